"""Servers as the configuration names them. No I/O: a name that has no address is not found out."""

from ipaddress import ip_address

from aliasmilter.mail.address import parse_domain

DNS_PORT = 53


def parse_nameserver(text: str) -> tuple[str, int]:
    """Read "192.0.2.1", "192.0.2.1:5353", "2001:db8::1" or "[2001:db8::1]:5353".

    Raises ValueError for anything else; a host name is none of these, as it would need DNS itself.
    """
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"not a name server: {text!r}")
        port = port[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    number = int(port) if port.isascii() and port.isdigit() else DNS_PORT
    if (port and not port.isdigit()) or not 0 < number < 1 << 16:
        raise ValueError(f"not a port: {text!r}")
    return str(ip_address(host)), number


def parse_host_port(text: str) -> tuple[str, int]:
    """Read "mx.example.net:25", "192.0.2.1:25", "[2001:db8::1]:25" or "2001:db8::1:25".

    Raises ValueError for anything else, such as "inet:..." or "smtp:...", as MTAs write it.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16 and _is_host(bare)):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return bare, int(port)


def _is_host(text: str) -> bool:
    try:
        _ = ip_address(text) if ":" in text else parse_domain(text)
    except ValueError:
        return False
    return not text.startswith("[")
