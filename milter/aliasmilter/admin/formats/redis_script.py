r"""Scripts for redis-cli: `HSET alias:example.com sales "bob@example.com"`, `SADD block:...`.

Words are parted by blanks; a word in double quotes may hold them and the escapes \n \r \t \b \a
\xHH, one in single quotes the escape \' (redis-cli takes its lines apart in this way). `ECHO` is a
comment, as redis-cli knows none; `#` at the beginning of a line is taken for one as well.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.mail.address import AddressError, local_key, parse_domain
from aliasmilter.store.schema import (
    ALIAS_PREFIX,
    BLOCK_PREFIX,
    DOMAIN_PREFIX,
    alias_key,
    block_key,
    domain_key,
)
from aliasmilter.store.snapshot import Snapshot, octets

_WORD = re.compile(
    rb"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s"']+))(?=\s|$)""", re.DOTALL
)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_SINGLE_ESCAPE = re.compile(rb"\\'")
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_PLAIN = re.compile(rb"[!#-&(-\[\]-~]+")
_MEMBERS = 50  # of a set, on one line
_UNSAFE = re.compile(r'["\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]')


class ScriptError(ValueError):
    """A line that redis-cli would not take, either."""


def read(lines: Iterable[str], rules: RuleSet) -> None:
    """Take the HSET and SADD lines of a script.

    Args:
        lines: text; octets that are no UTF-8 as surrogate escapes.
        rules: takes them, and every mistake.
    """
    for number, line in enumerate(lines, 1):
        if line.lstrip(" \t").startswith("#"):
            continue
        try:
            words = split(line.encode("utf-8", "surrogateescape"))
            _take(words, number, rules)
        except (ScriptError, AddressError) as problem:
            rules.mistake(number, str(problem))


def write(snapshot: Snapshot, _: RuleSet) -> Iterator[str]:
    """The lines that make all rules, blocked senders and settings of the snapshot.

    Settings come last: a domain that is managed before its rules are there would refuse its mail.
    """
    for domain in sorted({*snapshot.rules, *snapshot.blocks}):
        start = f"HSET {_quoted(alias_key(domain))} "
        for name, raw in sorted(snapshot.rules.get(domain, {}).items()):
            yield f"{start}{_quoted(name)} {quote(raw)}\n"
        members = iter(sorted(snapshot.blocks.get(domain, ())))
        while some := list(islice(members, _MEMBERS)):
            yield f"SADD {_quoted(block_key(domain))} {' '.join(map(quote, some))}\n"
    for domain, settings in sorted(snapshot.settings.items()):
        if settings:
            words = (quote(word) for item in sorted(settings.items()) for word in item)
            yield f"HSET {_quoted(domain_key(domain))} {' '.join(words)}\n"


def split(line: bytes) -> list[bytes]:
    """Take a line apart into words as redis-cli does.

    Raises:
        ScriptError: quotes that are not closed, or have something behind them.
    """
    words = []
    line, position = line.strip(), 0
    while position < len(line):
        match = _WORD.match(line, position)
        if not match:
            raise ScriptError("a quote that is not closed, or not followed by a blank")
        words.append(_unquoted(match))
        position = match.end()
    return words


def quote(word: bytes) -> str:
    """Write a word so that redis-cli reads it again."""
    if _PLAIN.fullmatch(word):
        return word.decode("ascii")
    text = word.decode("utf-8", "surrogateescape")
    return f'"{_UNSAFE.sub(_escaped, text)}"'


def _quoted(name: str) -> str:
    return quote(octets(name))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    return "".join(f"\\x{octet:02x}" for octet in character.encode("utf-8", "surrogateescape"))


def _unquoted(match: re.Match[bytes]) -> bytes:
    double, single, bare = match.groups()
    if double is not None:
        return _ESCAPE.sub(_meaning, double) if b"\\" in double else double
    return bare if single is None else _SINGLE_ESCAPE.sub(b"'", single)


def _meaning(match: re.Match[bytes]) -> bytes:
    what = match[1]
    if len(what) == 3:
        return bytes.fromhex(what[1:].decode("ascii"))
    return _ESCAPES.get(what, what)


def _take(words: list[bytes], line: int, rules: RuleSet) -> None:
    if not words or words[0].upper() == b"ECHO":
        return
    command = words[0].upper()
    if command == b"SADD":
        _take_blocks(words, line, rules)
    elif command in (b"HSET", b"HMSET"):
        _take_fields(words, line, rules)
    else:
        shown = words[0][:40].decode("utf-8", "replace")
        raise ScriptError(f"{shown}: only HSET and SADD (and ECHO) lines can be imported")


def _take_blocks(words: list[bytes], line: int, rules: RuleSet) -> None:
    if len(words) < 3:
        raise ScriptError("SADD takes a key, and members")
    key = _text(words[1])
    if not key.startswith(BLOCK_PREFIX):
        raise ScriptError(f"{key[:80]}: not block:<domain>")
    domain = parse_domain(key.removeprefix(BLOCK_PREFIX))
    for member in words[2:]:
        rules.add_block(domain, member, line)


def _take_fields(words: list[bytes], line: int, rules: RuleSet) -> None:
    if len(words) < 4 or len(words) % 2:
        raise ScriptError("HSET takes a key, and pairs of field and value")
    kind, take = _kind(_text(words[1]))
    domain = parse_domain(_text(words[1])[len(kind) :])
    for name, value in zip(words[2::2], words[3::2], strict=True):
        take(rules, domain, name, value, line)


def _kind(key: str) -> tuple[str, Callable[[RuleSet, str, bytes, bytes, int], None]]:
    for prefix, take in ((ALIAS_PREFIX, _take_rule), (DOMAIN_PREFIX, RuleSet.add_setting)):
        if key.startswith(prefix):
            return prefix, take
    raise ScriptError(f"{key[:80]}: neither alias:<domain> nor domain:<domain>")


def _take_rule(rules: RuleSet, domain: str, name: bytes, value: bytes, line: int) -> None:
    rules.add(domain, local_key(_text(name)), value, line)


def _text(word: bytes) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        raise ScriptError("a key or field that is not UTF-8") from None
