"""The service manager: systemd is told what goes on, and that we are well (sd_notify(3)).

Under another one nothing happens.
"""

import os
import socket
import time


def notify(state: str) -> None:
    """Tell systemd, in lines of the form KEY=value; what it cannot take is not our trouble."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        # A manager that does not read must not hold us up.
        manager.setblocking(False)
        try:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.sendall(state.encode())
        except OSError:
            return


class Status:
    """The STATUS= line that `systemctl status` shows; told when it changes."""

    def __init__(self) -> None:
        self._told = ""

    def tell(self, text: str) -> None:
        """Have this shown."""
        if text != self._told:
            self._told = text
            notify(f"STATUS={text}")


class Watchdog:
    """Tells systemd that we are well, twice in the time after which it would restart us."""

    def __init__(self) -> None:
        # sd_watchdog_enabled(3): the variables may be meant for the process that started us.
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit = os.environ.get("WATCHDOG_USEC", "") if mine else ""
        self._interval = int(limit) / 2e6 if limit.isdecimal() else 0.0
        self._told = 0.0

    def ping(self) -> None:
        """We are well; to be called at least so often."""
        now = time.monotonic()
        if self._interval and now - self._told >= self._interval:
            self._told = now
            notify("WATCHDOG=1")
