"""A bare milter to compare with: pymilter and nothing else, in as many processes on one socket.

    python -m benchmarks.bare unix:PATH WORKERS

It refuses every recipient at unknown.example, and of every other message it replaces the recipient
and adds a header field: the edits that an alias needs, without finding out that it is one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import Milter

BACKLOG = 512
HEADER = "X-Alias-Milter-Trace"
VALUE = " v1 c2FsdHNhbHQ dG9rZW4xMTEx dG9rZW4yMjIy\n\tdG9rZW4zMzMz"
UNKNOWN = "@unknown.example>"


class Bare(Milter.Base):  # type: ignore[misc]  # pymilter has no annotations, nor decorators
    """As pymilter's documentation advises: what needs no answer gets none."""

    def __init__(self) -> None:
        self.recipients: list[str] = []

    @Milter.noreply  # type: ignore[untyped-decorator]
    def envfrom(self, _sender: str, *_parameters: str) -> int:
        """MAIL."""
        self.recipients = []
        return int(Milter.CONTINUE)

    def envrcpt(self, recipient: str, *_parameters: str) -> int:
        """RCPT."""
        if recipient.endswith(UNKNOWN):
            self.setreply("550", "5.1.1", "No such address here")
            return int(Milter.REJECT)
        self.recipients.append(recipient)
        return int(Milter.CONTINUE)

    @Milter.noreply  # type: ignore[untyped-decorator]
    def header(self, _name: str, _value: str) -> int:
        """A header field, which a filter that finds loops has to see."""
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        """The edits."""
        for recipient in self.recipients:
            self.delrcpt(recipient)
        self.addrcpt("<bob@example.com>")
        self.addheader(HEADER, VALUE, 0)
        return int(Milter.CONTINUE)


def listen(path: Path) -> socket.socket:
    """The socket, before any process is forked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def serve(listener: socket.socket) -> None:
    """Be a milter until SIGTERM."""
    Milter.factory = Bare
    Milter.set_flags(Milter.ADDHDRS | Milter.ADDRCPT | Milter.DELRCPT)
    # What Milter.runmilter does, on a descriptor that is open already.
    Milter.set_connect_callback(Milter.connect_callback)
    Milter.set_envfrom_callback(lambda context, *words: context.getpriv().envfrom_bytes(*words))
    Milter.set_envrcpt_callback(lambda context, *words: context.getpriv().envrcpt_bytes(*words))
    Milter.set_header_callback(lambda context, *words: context.getpriv().header_bytes(*words))
    Milter.set_eom_callback(lambda context: context.getpriv().eom())
    Milter.set_abort_callback(lambda context: context.getpriv().abort())
    Milter.set_close_callback(Milter.close_callback)
    Milter.register("bare", negotiate=Milter.negotiate_callback)
    Milter.setbacklog(BACKLOG)
    Milter.setconn(f"fd:{listener.fileno()}")
    Milter.opensocket(False)
    Milter.main()


def main() -> None:
    """Fork the workers, and be the first of them."""
    path, workers = Path(sys.argv[1].removeprefix("unix:")), int(sys.argv[2])
    listener = listen(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(workers - 1):
        if os.fork() == 0:
            break
    serve(listener)


if __name__ == "__main__":
    main()
