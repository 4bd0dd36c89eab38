"""Domain names out of mail: made A-labels, or refused."""

import re
from functools import lru_cache

import idna

# Underscores stand in selectors and in names that SPF asks for.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def is_domain(text: str) -> bool:
    """Whether the text can stand for a domain name in a header that we write."""
    return len(text) <= 253 and _DOMAIN.fullmatch(text) is not None


def to_a_label(text: str) -> str | None:
    """The domain in lower case with A-labels (RFC 5890), or None when it is no domain name."""
    name = text.strip()
    # Longer ones are none; nor may they fill the cache.
    return _to_a_label(name) if len(name) <= 254 else None


@lru_cache(maxsize=4096)
def _to_a_label(text: str) -> str | None:
    name = text.removesuffix(".").lower()
    if not name.isascii():
        if len(name) > 253:
            return None
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except UnicodeError:  # IDNAError is one; surrogates raise others
            return None
    return name if is_domain(name) else None
