"""What a sendmail.mc says, read as m4 reads it.

    `quoted'        nests; one level goes when it is read, nothing in it is expanded before
    dnl             and the rest of the line, newline and all, are not there
    # comment       the rest of the line is text in which nothing is expanded
    name(a, `b')    a macro, when the parenthesis follows at once; unquoted space before an
                    argument goes; what a macro yields is read again
    divert(-1)      text is thrown away until the next divert; macros still act
    LOCAL_CONFIG    and its like: the lines that follow belong to that section

Of m4's own macros those are known that a .mc has use for. Sendmail's are not run (that takes its
cf folder) but written down: a `Call` each, in the order in which they would act.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIMIT = 10_000  # macros read, against those that yield themselves
_DEPTH = 200  # of what they yield within each other

# Where Sendmail's macros divert the lines that follow to (cfhead.m4).
SECTIONS = {
    "LOCAL_NET_CONFIG": "1", "LOCAL_RULE_3": "2", "LOCAL_RULE_0": "3", "LOCAL_UUCP": "4",
    "LOCAL_CONFIG": "6", "MAILER_DEFINITIONS": "7", "LOCAL_DNSBL": "8", "LOCAL_RULE_1": "9",
    "LOCAL_RULE_2": "9", "LOCAL_RULESETS": "9", "LOCAL_SRV_FEATURES": "9",
    "LOCAL_CLT_FEATURES": "9", "LOCAL_TRY_TLS": "9", "LOCAL_TLS_RCPT": "9",
    "LOCAL_TLS_CLIENT": "9", "LOCAL_TLS_SERVER": "9",
}  # fmt: skip
_RECORDED = frozenset({
    "CLIENT_OPTIONS", "DAEMON_OPTIONS", "DOMAIN", "FEATURE", "HACK", "INPUT_MAIL_FILTER",
    "LOCAL_DOMAIN", "MAILER", "MAIL_FILTER", "MASQUERADE_AS", "MODIFY_MAILER_FLAGS", "OSTYPE",
    "RELAY_DOMAIN", "RELAY_DOMAIN_FILE", "TRUST_AUTH_MECH", "VERSIONID",
})  # fmt: skip

Include = Callable[[str], str | None]


class M4Error(Exception):
    """The text ends within a quote or a call; the message says where that began."""


class Call(NamedTuple):
    """A macro of Sendmail's: where it stands ("sendmail.mc:12"), and its arguments."""

    name: str
    args: tuple[str, ...]
    where: str

    def arg(self, number: int) -> str:
        """An argument from 0 on; "" when there is none."""
        return self.args[number] if number < len(self.args) else ""


@dataclass(slots=True)
class Reading:
    """What was read.

    Attributes:
        calls: Sendmail's macros, in order.
        defines: name -> value, as they are at the end.
        sections: lines outside of macros, by the number that they are diverted to.
        missing: files to be included that are not there.
    """

    calls: list[Call] = field(default_factory=list)
    defines: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def expand(self, name: str) -> str:
        """The value of a define, with those that it names in it; "" when there is none."""
        return _expanded(self.defines.get(name, ""), self.defines)


@dataclass(slots=True)
class _Frame:
    """A text that is being read; `name` is "" for what a macro has yielded."""

    name: str
    text: str
    at: int = 0

    @property
    def where(self) -> str:
        return f"{self.name}:{self.text.count(chr(10), 0, self.at) + 1}"


def read(
    text: str, name: str, include: Include, defines: Mapping[str, str] | None = None
) -> Reading:
    """Read a .mc file.

    Args:
        text: what is in it.
        name: what to call it in `Call.where`.
        include: the text of a file by the name in `include(...)`; None when there is none.
        defines: what is defined before the first line.

    Raises:
        M4Error: a quote or a call has no end, or macros yield themselves for ever.
    """
    return _Reader(text, name, include, defines or {}).read()


class _Reader:
    def __init__(self, text: str, name: str, include: Include, defines: Mapping[str, str]) -> None:
        self._frames = [_Frame(name, text)]
        self._include = include
        self._reading = Reading(defines=dict(defines))
        self._section = "0"
        self._left = _LIMIT

    def read(self) -> Reading:
        while self._frames:
            frame = self._frames[-1]
            if frame.at >= len(frame.text):
                self._frames.pop()
            else:
                self._step(frame)
        return self._reading

    def _step(self, frame: _Frame) -> None:
        if word := _WORD.match(frame.text, frame.at):
            self._word(frame, word[0])
            return
        end = _piece_end(frame)
        piece = frame.text[frame.at : end]
        frame.at = end
        self._emit(piece[1:-1] if piece.startswith("`") else piece)

    def _emit(self, text: str) -> None:
        if not self._section.startswith("-"):
            sections = self._reading.sections
            sections[self._section] = sections.get(self._section, "") + text

    def _where(self) -> str:
        return next(one.where for one in reversed(self._frames) if one.name)

    def _word(self, frame: _Frame, word: str) -> None:
        if self._is_macro(word):
            where = self._where()
            frame.at += len(word)
            self._macro(word, self._arguments(frame), where)
            return
        frame.at += len(word)
        if word == "dnl":
            frame.at = _line_end(frame.text, frame.at)
        elif word in SECTIONS:
            self._section = SECTIONS[word]
        else:
            self._emit(word)

    def _is_macro(self, word: str) -> bool:
        return word in self._reading.defines or word in _RECORDED or hasattr(self, f"_m4_{word}")

    def _macro(self, word: str, args: tuple[str, ...] | None, where: str) -> None:
        self._left -= 1
        if self._left < 0 or len(self._frames) > _DEPTH:
            raise M4Error(f"{where}: {word} has no end")
        if word in self._reading.defines:
            self._push(_with_arguments(self._reading.defines[word], args or ()))
        elif args is None:
            self._emit(word)
        elif word in _RECORDED:
            read_again = tuple(_expanded(arg, self._reading.defines) for arg in args)
            self._record(Call(word, read_again, where))
        else:
            getattr(self, f"_m4_{word}")(*args)

    def _record(self, call: Call) -> None:
        self._reading.calls.append(call)
        if call.name == "INPUT_MAIL_FILTER":
            name, defines = "confINPUT_MAIL_FILTERS", self._reading.defines
            defines[name] = ", ".join(filter(None, [defines.get(name, ""), call.arg(0)]))

    def _push(self, text: str, name: str = "") -> None:
        self._frames.append(_Frame(name, text))

    def _arguments(self, frame: _Frame) -> tuple[str, ...] | None:
        if frame.text[frame.at : frame.at + 1] != "(":
            return None
        raw, frame.at = _raw_arguments(frame)
        return tuple(_expanded(arg, self._reading.defines) for arg in raw)

    # m4's own macros; an argument too many is ignored, as by m4.

    def _m4_define(self, name: str = "", value: str = "", *_: str) -> None:
        self._reading.defines[name] = value

    def _m4_undefine(self, name: str = "", *_: str) -> None:
        self._reading.defines.pop(name, None)

    def _m4_ifdef(self, name: str = "", then: str = "", other: str = "", *_: str) -> None:
        known = name in self._reading.defines or name in _RECORDED
        self._push(then if known else other)

    def _m4_ifelse(self, *args: str) -> None:
        while len(args) >= 3:
            if args[0] == args[1]:
                self._push(args[2])
                return
            args = args[3:]
        self._push(args[0] if args else "")

    def _m4_divert(self, number: str = "0", *_: str) -> None:
        self._section = number.strip() or "0"

    def _m4_include(self, name: str = "", *_: str) -> None:
        text = self._include(name)
        if text is None:
            self._reading.missing.append(name)
        else:
            self._push(text, name)

    def _m4_sinclude(self, name: str = "", *_: str) -> None:
        if text := self._include(name):
            self._push(text, name)

    def _m4_errprint(self, *_: str) -> None:
        """A message for whoever builds; not for us."""


def _line_end(text: str, at: int) -> int:
    """Behind the newline that ends the line."""
    return (text.find("\n", at) + 1) or len(text)


def _piece_end(frame: _Frame) -> int:
    """Behind a quoted text, a comment, or a single character."""
    text, at = frame.text, frame.at
    if text[at] == "#":
        return _line_end(text, at)
    if text[at] != "`":
        return at + 1
    depth = 0
    for end in range(at, len(text)):
        depth += {"`": 1, "'": -1}.get(text[end], 0)
        if depth == 0:
            return end + 1
    raise M4Error(f"{frame.where}: the quote that begins here has no end (`...')")


def _raw_arguments(frame: _Frame) -> tuple[list[str], int]:
    """The arguments of a call as they stand, and where the call ends."""
    probe = _Frame(frame.name, frame.text, frame.at)
    found, depth = [""], 0
    while probe.at < len(probe.text):
        if word := _WORD.match(probe.text, probe.at):
            is_comment = word[0] == "dnl"
            end = _line_end(probe.text, probe.at) if is_comment else word.end()
            piece = "" if is_comment else word[0]
        else:
            end = _piece_end(probe)
            piece = probe.text[probe.at : end]
        probe.at = end
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if depth == 0:
            return [arg.lstrip() for arg in found], end
        if depth == 1 and piece == ",":
            found.append("")
        elif not (depth == 1 and piece == "(" and found == [""]):
            found[-1] += piece
    raise M4Error(f"{frame.where}: the parenthesis that opens here is not closed")


def _expanded(text: str, defines: Mapping[str, str]) -> str:
    """A text without its outer quotes, and with what is defined in the place of its name."""
    frames, out, left = [_Frame("", text)], "", _LIMIT
    while frames:
        frame = frames[-1]
        if frame.at >= len(frame.text):
            frames.pop()
            continue
        if word := _WORD.match(frame.text, frame.at):
            frame.at = word.end()
            value = defines.get(word[0])
            left -= 1
            if word[0] == "dnl":
                frame.at = _line_end(frame.text, frame.at)
            elif value is None or left < 0 or len(frames) > len(defines) + 1:
                out += word[0]
            else:
                frames.append(_Frame("", value))
            continue
        end = _piece_end(frame)
        piece = frame.text[frame.at : end]
        out += piece[1:-1] if piece.startswith("`") else piece
        frame.at = end
    return out


def _with_arguments(body: str, args: tuple[str, ...]) -> str:
    """The body of a macro with its arguments in the place of $1 to $9 and $*."""
    body = body.replace("$*", ",".join(args))

    def argument(found: re.Match[str]) -> str:
        number = int(found[1]) - 1
        return args[number] if number < len(args) else ""

    return re.sub(r"\$([1-9])", argument, body)
