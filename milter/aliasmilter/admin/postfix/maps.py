"""Tables of other programs and our own, by how Postfix spells them."""

import re

from aliasmilter.admin.ours import Endpoint, Ours, host_port

# PostSRSd 1.x speaks tcp_table(5) on 10001 and 10002, 2.x socketmap.
_POSTSRSD = re.compile(
    r"tcp:.*:(10001|10002)|(tcp|socketmap|unix):.*srs(d\b|:)|.*postsrsd", re.IGNORECASE
)
REVERSE = "srs-reverse"


def socketmap_of(table: str, queue_directory: str = "/") -> tuple[Endpoint, str] | None:
    """The socket and the name of a `socketmap:` table (socketmap_table(5)); None for others."""
    found = re.fullmatch(r"(?:proxy:)?socketmap:(unix|inet):(.+):([^:]+)", table)
    if not found:
        return None
    kind, place, name = found.groups()
    if kind == "inet":
        return host_port(place), name
    path = place if place.startswith("/") else f"{queue_directory}/{place}"
    return Endpoint(path=path), name


def is_own_map(ours: Ours, table: str, name: str | None = None) -> bool:
    """Whether a table is one of alias-milter's, and of that name if one is given."""
    found = socketmap_of(table)
    if found is None or ours.socketmap is None:
        return False
    return found[0].is_same(ours.socketmap) and name in (None, found[1])


def is_postsrsd(table: str) -> bool:
    """Whether a table looks like one of PostSRSd's."""
    return bool(_POSTSRSD.match(table))
