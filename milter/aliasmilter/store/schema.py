"""The names of the keys in Redis. People's scripts rely on them."""

DOMAIN_PREFIX = "domain:"
ALIAS_PREFIX = "alias:"
REINJECTED_PREFIX = "reinjected:"
COUNTED_PREFIX = "counted:"
STAGED_PREFIX = "staged:"

AUDIT_KEY = "audit"
"""The stream of changes that our commands made."""

QUARANTINED_KEY = "quarantined"
"""The hash domain -> how many of its catch-all hits were kept away from inboxes."""
BLOCK_PREFIX = "block:"
VENDORS_PREFIX = "vendors:"
MISSES_PREFIX = "misses:"


def domain_key(domain: str) -> str:
    """The hash with the settings of a domain; the domain is managed iff it exists."""
    return DOMAIN_PREFIX + domain


def alias_key(domain: str) -> str:
    """The hash with the rules of a domain: local part (lower case), or `*`, to rule text."""
    return ALIAS_PREFIX + domain


def counted_key(digest: str) -> str:
    """How much mail that is no bounce went to a return address, or came from a client, lately."""
    return COUNTED_PREFIX + digest


def reinjected_key(digest: str) -> str:
    """There for a day after a copy was submitted; the digest is of message and recipient."""
    return REINJECTED_PREFIX + digest


def staged_key(key: str, run: str) -> str:
    """A key as an import is about to put it in place; gone after an hour."""
    return f"{STAGED_PREFIX}{run}:{key}"


def block_key(domain: str) -> str:
    """The set of senders (addresses and domains) whose mail to a domain is refused."""
    return BLOCK_PREFIX + domain


def answered_key(digest: str) -> str:
    """Through which alias a message came, encrypted; the digest is of message and mailbox."""
    return "answered:" + digest


def vendors_key(domain: str) -> str:
    """The hash of who wrote to addresses of a domain that were given to vendors."""
    return VENDORS_PREFIX + domain


def misses_key(domain: str) -> str:
    """The hash of who wrote to addresses of a domain that have no rule of their own."""
    return MISSES_PREFIX + domain


def harvest_key(client: str, window: int) -> str:
    """The HyperLogLog of addresses that a client guessed in a window; one slot for a client."""
    return f"harvest:{{{client}}}:{window}"


def harvesting_key(client: str) -> str:
    """There for as long as a client goes on guessing."""
    return f"harvest:{{{client}}}"
