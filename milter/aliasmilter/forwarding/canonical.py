"""Canonical forms of RFC 6376, 3.4: what is hashed and signed.

dkimpy does both, and the tests compare with it; but its relaxed header form takes ten times as long
as this one, and its relaxed body form takes quadratic time on a run of white space (20 KB of
spaces: half a second of CPU, which any sender can cause) and holds several copies of the body.
"""

import re
from collections.abc import Iterable
from hashlib import sha256

from aliasmilter.mail.message import HeaderField, Message

CRLF = b"\r\n"
_PIECE = 1 << 18
# White space that is no white space to RFC 6376, and a line end that is no fold.
_ODD = re.compile(rb"[\r\v\f]|\n(?![\t ])")
_FOLD = re.compile(rb"\r?\n")
# RFC 6376, 2.8: white space is SP and HTAB alone. dkimpy strips vertical tabs and form feeds, too.
_ENDS = b" \t\r\n"
_WHITE_RUN = re.compile(rb"[\t ]+")


def header(field: HeaderField, *, relaxed: bool) -> bytes:
    """A header field with its CRLF in simple (3.4.1) or relaxed (3.4.2) form."""
    return _relaxed(field) if relaxed else field.as_bytes()


def headers(message: Message, fields: Iterable[HeaderField], *, relaxed: bool) -> bytes:
    """Fields of a message one after the other; what was made relaxed is kept with the message."""
    if not relaxed:
        return b"".join([field.as_bytes() for field in fields])
    made = message.relaxed
    parts = []
    for field in fields:
        known = made.get(id(field))
        if known is None:
            known = made[id(field)] = field, _relaxed(field)
        parts.append(known[1])
    return b"".join(parts)


def _relaxed(field: HeaderField) -> bytes:
    value = field.value
    if _ODD.search(value):
        text = _WHITE_RUN.sub(b" ", _FOLD.sub(b"", value)).strip(_ENDS)
    else:
        text = b" ".join(value.split())
    return b"%b:%b\r\n" % (field.key, text)


def body_hash(message: Message, *, relaxed: bool) -> bytes:
    """SHA-256 over the body in simple (3.4.3) or relaxed (3.4.4) form; kept with the message."""
    kind = "relaxed" if relaxed else "simple"
    if kind not in message.digests:
        message.digests[kind] = hash_body(message.body, relaxed=relaxed)
    return message.digests[kind]


def hash_body(body: bytes, *, relaxed: bool) -> bytes:
    """SHA-256 over a body in canonical form, in linear time and little memory beside the body."""
    digest = sha256()
    ends = 0  # line ends seen but not hashed: they count only when more text follows
    hashed = False
    start = 0
    while start < len(body):
        piece, start = _next_piece(body, start)
        if relaxed:
            piece = _compressed(piece)
        text = _without_line_ends(piece)
        if text:
            digest.update(CRLF * ends + text)
            ends, hashed = 0, True
        ends += (len(piece) - len(text)) // 2
    # 3.4.3: an empty body is one CRLF in simple form; 3.4.4: nothing at all in relaxed form.
    if hashed or not relaxed:
        digest.update(CRLF)
    return digest.digest()


def _next_piece(body: bytes, start: int) -> tuple[bytes, int]:
    """A quarter of a megabyte, cut after a line end; the body's last line always gets one."""
    end = body.find(CRLF, start + _PIECE)
    end = len(body) if end < 0 else end + 2
    piece = body[start:end]
    return (piece if piece.endswith(CRLF) else piece + CRLF), end


def _compressed(text: bytes) -> bytes:
    """Each run of white space as one space, none at the ends of lines (RFC 6376, 3.4.4)."""
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    # Runs halve: no more rounds than the length of the longest has binary digits.
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \r\n", CRLF)


def _without_line_ends(text: bytes) -> bytes:
    """A text that ends with CRLF without the CRLF pairs at its end; a bare CR or LF is text."""
    bare = text.rstrip(CRLF)
    tail = text[len(bare) :]
    # The pairs begin after the last two equal octets, as CR and LF take turns in them.
    start = max(tail.rfind(b"\r\r"), tail.rfind(b"\n\n")) + 1
    if tail[start : start + 1] == b"\n":
        start += 1
    return bare + tail[:start]
