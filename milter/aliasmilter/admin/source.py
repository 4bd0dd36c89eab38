"""Reading the message that a command works on."""

import sys
from pathlib import Path

import click

from aliasmilter.mail.message import Message


class MessageFile(click.ParamType[Message]):
    """A file with one message (RFC 5322), or `-` for standard input."""

    name = "file"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Message:
        """Read and parse it; a usage error (exit status 2) when it cannot be read."""
        if isinstance(value, Message):
            return value
        try:
            data = sys.stdin.buffer.read() if value == "-" else Path(str(value)).read_bytes()
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        return Message.parse(data)
