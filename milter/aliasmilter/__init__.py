"""alias-milter: aliases and forwarding for Postfix and Sendmail, with the rules in Redis."""

__version__ = "0.1.0"
