"""What a single value of the configuration may be.

Each of these types takes the text as it stands in the file and gives it back in its one form;
what is none of its kind is a ValueError that says so.
"""

import grp
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from aliasmilter import redisurl
from aliasmilter.endpoints import parse_host_port, parse_nameserver
from aliasmilter.mail.address import AddressError, parse_address, parse_domain
from aliasmilter.routing.rules import RuleError, parse_delimiter

MAX_SOCKET_PATH = 107  # octets: sockaddr_un of Linux, with its final NUL


def _domain(text: str) -> str:
    try:
        return parse_domain(text)
    except AddressError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _mailbox(text: str) -> str:
    try:
        return str(parse_address(text))
    except AddressError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _delimiter(text: str) -> str:
    try:
        return parse_delimiter(text)
    except RuleError as error:
        raise ValueError(str(error)) from None


def _mode(text: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is no file mode such as 0660")
    return text


def _group(text: str) -> str:
    if text:
        try:
            grp.getgrnam(text)
        except KeyError:
            raise ValueError(f"there is no group {text!r}") from None
    return text


def _file(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("no name of a file: a NUL in it")
    return path


def _nameserver(text: str) -> str:
    try:
        parse_nameserver(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or ADDRESS:PORT") from None
    return text


def _host_port(text: str) -> str:
    parse_host_port(text)
    return text


def _socket(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        if len(rest.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH:
            raise ValueError(f"{text!r}: no path of a socket has over {MAX_SOCKET_PATH} octets")
        return text
    port, at, host = rest.partition("@")
    number = int(port) if port.isascii() and port.isdigit() else 0
    if kind not in ("inet", "inet6") or not 0 < number < 1 << 16 or not at or not host:
        raise ValueError(f"{text!r} is neither unix:PATH nor inet:PORT@ADDRESS")
    if kind == "inet" and ":" in host:
        raise ValueError(f"{text!r}: that is an address of IPv6; write inet6:{rest}")
    return text


def _or_nothing(checked: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: checked(text) if text else text


def _store_url(text: str) -> str:
    redisurl.parse(text)
    return text


File = Annotated[Path, Field(strict=False), AfterValidator(_file)]
Domain = Annotated[str, AfterValidator(_domain)]
Mailbox = Annotated[str, AfterValidator(_mailbox)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]
Mode = Annotated[str, AfterValidator(_mode)]
Group = Annotated[str, AfterValidator(_group)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
HostPort = Annotated[str, AfterValidator(_host_port)]
OptionalHostPort = Annotated[str, AfterValidator(_or_nothing(_host_port))]
Socket = Annotated[str, AfterValidator(_socket)]
OptionalSocket = Annotated[str, AfterValidator(_or_nothing(_socket))]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
