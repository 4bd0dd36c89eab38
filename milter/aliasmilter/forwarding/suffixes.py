"""Which names one registrant holds, by the public suffix list (https://publicsuffix.org).

Only for telling vendors apart, without DNS. DMARC has organizational domains of its own.
"""

from functools import cache, lru_cache

from publicsuffixlist import PublicSuffixList


@cache
def suffixes() -> PublicSuffixList:
    """The public suffix list; reading it takes a while: call this before forking."""
    return PublicSuffixList()


@lru_cache(maxsize=4096)
def registrable_domain(domain: str) -> str:
    """The domain right below the public suffix; a public suffix stands for itself."""
    return suffixes().privatesuffix(domain) or domain
