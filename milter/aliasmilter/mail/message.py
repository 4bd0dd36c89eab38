"""A message as a value: header fields, byte for byte, and a body.

Rule 1: a value is exactly what stands after the colon, without the final line end. The leading
space is kept and a fold is LF followed by white space, as a milter gets it with P_HDR_LEADSPC.
Rule 2: the body has CRLF line ends, as it goes over SMTP.
Rule 3: nothing here refuses a message; whatever a sender can write can be held.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from aliasmilter.mail.kept import kept

QUARANTINE_HEADER = "X-Alias-Milter-Quarantine"
"""What a quarantined copy says about itself: recipient, rule, reason."""

_LINE_END = re.compile(rb"\r?\n")
# RFC 5322, 2.2: printable US-ASCII except the colon; white space before the colon is obsolete
# syntax (4.5.8), but MTAs take it for a header field.
_FIELD = re.compile(rb"([\x21-\x39\x3b-\x7e]+[ \t]*):")


@dataclass(frozen=True, slots=True)
class HeaderField:
    """One header field: its name and the bytes after the colon, without the final line end."""

    name: bytes
    value: bytes

    @property
    def key(self) -> bytes:
        """The name for comparing: lower case, without white space at its end."""
        return self.name.rstrip().lower()

    @property
    def unfolded(self) -> bytes:
        """The value on one line (RFC 5322, 2.2.3), leading space included."""
        return self.value.replace(b"\r\n", b"").replace(b"\n", b"")

    def as_bytes(self) -> bytes:
        """The field as it is sent: folds and end are CRLF."""
        value = self.value
        if b"\n" in value:
            value = _LINE_END.sub(b"\r\n", value)
        return b"%b:%b\r\n" % (self.name, value)


@dataclass(frozen=True)
class Message:
    """A message: header fields from the top down, and a body with CRLF line ends."""

    headers: tuple[HeaderField, ...]
    body: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> "Message":
        """Read an RFC 5322 message, with LF or CRLF line ends. Never fails.

        A line that is no header field ends the header, as MTAs do it; a leading mbox "From " line
        is left out.
        """
        header, body = _split(data)
        return cls(tuple(header), _LINE_END.sub(b"\r\n", body))

    @kept
    def by_name(self) -> Mapping[bytes, tuple[HeaderField, ...]]:
        """The fields of each name (lower case), from the top down."""
        found: dict[bytes, tuple[HeaderField, ...]] = {}
        repeated: dict[bytes, list[HeaderField]] = {}
        for field in self.headers:
            key = field.key
            if key not in found:
                found[key] = (field,)
            else:  # a list: ten thousand fields of one name must not take quadratic time
                repeated.setdefault(key, [*found[key]]).append(field)
        found.update((name, tuple(fields)) for name, fields in repeated.items())
        return found

    @kept
    def digests(self) -> dict[str, bytes]:
        """Body hashes made so far, by canonicalization: a large body is hashed only once."""
        return {}

    @kept
    def relaxed(self) -> dict[int, tuple[HeaderField, bytes]]:
        """Canonical forms made so far, with their fields, by the identity of these."""
        return {}

    def fields(self, name: str) -> tuple[HeaderField, ...]:
        """All fields of that name, whatever its case, from the top down."""
        return self.by_name.get(_key(name), ())

    def count(self, name: str) -> int:
        """How many fields of that name there are."""
        return len(self.fields(name))

    def with_fields_on_top(self, fields: Iterable[HeaderField]) -> "Message":
        """The message with more fields above the others; the first given stands topmost."""
        return self._with((*fields, *self.headers))

    def with_changed_fields(self, changed: Mapping[int, HeaderField]) -> "Message":
        """The message with other fields at these positions (0 is the topmost)."""
        if not changed:
            return self
        fields = (changed.get(position, field) for position, field in enumerate(self.headers))
        return self._with(tuple(fields))

    def _with(self, headers: tuple[HeaderField, ...]) -> "Message":
        """The message with other fields; what was made of its body, and of them, holds on."""
        made = Message(headers, self.body)
        made.__dict__.update(digests=self.digests, relaxed=self.relaxed)
        return made

    def as_bytes(self) -> bytes:
        """The message with CRLF line ends, as it goes over SMTP (without dot-stuffing)."""
        return b"".join([*(field.as_bytes() for field in self.headers), b"\r\n", self.body])


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    return name.lower().encode("latin-1", "replace")


def _split(data: bytes) -> tuple[list[HeaderField], bytes]:
    fields: list[HeaderField] = []
    position = 0
    while position < len(data):
        end = data.find(b"\n", position)
        line_end = len(data) if end < 0 else end + 1
        line = data[position:line_end].rstrip(b"\r\n")
        if not line:
            return fields, data[line_end:]
        if line[:1] in b" \t" and fields:
            last = fields[-1]
            fields[-1] = HeaderField(last.name, last.value + b"\n" + line)
        elif match := _FIELD.match(line):
            fields.append(HeaderField(match[1], line[match.end() :]))
        elif position or not line.startswith(b"From "):
            return fields, data[position:]
        position = line_end
    return fields, b""
