"""A server for what is asked beside the mail: a thread for each connection."""

import socket
import socketserver


class ThreadedServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves a socket that others have bound; its threads hold nobody up at the end.

    Args:
        listener: bound and listening.
        handler: handles a connection.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listener: socket.socket, handler: type[socketserver.BaseRequestHandler]
    ) -> None:
        super().__init__(listener.getsockname(), handler)
        self.socket = listener

    def fileno(self) -> int:
        """For the selector of serve_forever."""
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a connection; another process may have been faster (OSError)."""
        return self.socket.accept()

    def shutdown_request(self, request: object) -> None:
        """Close a connection."""
        if isinstance(request, socket.socket):
            request.close()
