"""The text of authentication results that others wrote, for what authres does not tell of it.

    resinfo = [CFWS] ";" methodspec [ CFWS reasonspec ] [ CFWS 1*propspec ]     RFC 8601, 2.2

authres drops comments, which is where OpenDMARC and rspamd write the policy, knows no UTF-8, and
refuses a whole field for one property that does not follow the grammar, as Microsoft writes them.
Read in one pass without recursion; whatever is no result is passed over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aliasmilter.forwarding.names import to_a_label

_STRING_OR_PLAIN = re.compile(r'"(?:[^"\\]|\\(?:.|\Z))*"?|[^"(]+', re.DOTALL)
_PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)
_RESULT = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*(?:/\s*[0-9]+\s*)?=\s*([A-Za-z]+)(?=\s|\Z)")
_BARE_IPV6 = re.compile(r"(?<==)(?:IPv6:)?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?=[\s;]|\Z)")

_WORD = re.compile(r'[^\s@"()<>\[\],;:\\/=]+', re.ASCII)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Result:
    """A method and its result in lower case, and all comments between this and the next."""

    method: str
    verdict: str
    comment: str = ""


def read_results(text: str) -> list[Result]:
    """The results in the value of an Authentication-Results field or its ARC counterpart."""
    return [
        Result(match[1].lower(), match[2].lower(), comment)
        for plain, comment in _parts(text)
        if (match := _RESULT.match(plain))
    ]


def quote_addresses(text: str) -> str:
    """The text with quotes around IPv6 addresses that stand as values without them.

    A value with a colon has to be quoted (RFC 8601, 2.2; RFC 2045, 5.1); many write it bare.
    """
    return "".join(
        piece if piece[0] in '("' else _BARE_IPV6.sub(r'"\g<0>"', piece) for piece in _pieces(text)
    )


def split_results(text: str) -> list[str]:
    """The authserv-id and each result, as they stand between the semicolons of a field's value."""
    parts = [""]
    for piece in _pieces(text):
        first, *others = [piece] if piece[0] in '("' else piece.split(";")
        parts[-1] += first
        parts += others
    return parts


def to_ascii(text: str) -> str:
    """The text with domain names as A-labels; what else is not ASCII becomes "%", in no domain.

    RFC 8601, 2.2: where mail is internationalized its addresses stand there in UTF-8.
    """
    return text if text.isascii() else _WORD.sub(_ascii_word, text)


def _ascii_word(match: re.Match[str]) -> str:
    word = match[0]
    return word if word.isascii() else to_a_label(word) or _NOT_ASCII.sub("%", word)


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """What stands between semicolons: without comments and what is quoted, and the comments."""
    plain, comments = "", ""
    for piece in _pieces(text):
        if piece[0] == "(":
            plain, comments = plain + " ", comments + piece
        elif piece[0] == '"':
            plain += '""'
        else:
            *ended, rest = piece.split(";")
            for each in ended:
                yield plain + each, comments
                plain, comments = "", ""
            plain += rest
    yield plain, comments


def _pieces(text: str) -> Iterator[str]:
    """Comments, quoted strings, and what stands between them; together they are the text."""
    position = 0
    while position < len(text):
        start = position
        match = None if text[start] == "(" else _STRING_OR_PLAIN.match(text, start)
        position = match.end() if match else _end_of_comment(text, start)
        yield text[start:position]


def _end_of_comment(text: str, start: int) -> int:
    depth = 0
    for match in _PARENTHESIS.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return len(text)
