"""A private Postfix instance, out of Debian's postfix package; needs root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.harness.ports import accepts, reserved_port
from tests.harness.service import Service
from tests.harness.wait import LabError, wait_until

DAEMONS = "/usr/lib/postfix/sbin"

# What every instance has; `main` overrides any of it.
MAIN = {
    "compatibility_level": "3.6",
    "command_directory": "/usr/sbin",
    "daemon_directory": DAEMONS,
    "meta_directory": "/etc/postfix",
    "shlib_directory": "/usr/lib/postfix",
    "myhostname": "mx.example.net",
    "mydestination": "",
    "alias_maps": "",
    "alias_database": "",
    "notify_classes": "",
    # Nobody leaves this machine, and nobody is asked for an address.
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "disable_dns_lookups": "yes",
    "smtp_host_lookup": "native",
    "smtpd_peername_lookup": "no",
    "smtpd_tls_security_level": "none",
    "smtp_tls_security_level": "none",
    # Clients of the tests come from 127.0.0.1, and must not be trusted for that.
    "mynetworks": "127.0.0.99/32",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "smtpd_authorized_xclient_hosts": "127.0.0.0/8",
    # The default asks for the true address, whatever XCLIENT says: all would be local clients.
    "local_header_rewrite_clients": "permit_mynetworks",
    "relay_recipient_maps": "",
    "milter_default_action": "tempfail",
    "milter_protocol": "6",
    "smtp_line_length_limit": "0",
    # No patience with anything, and no impatience with clients.
    "queue_run_delay": "1s",
    # Not less: a queue run takes what is due within a second. It would take a message that has
    # been deferred just now, whose delivery agent still holds the lock, and put it off by 60 s.
    "minimal_backoff_time": "3s",
    "maximal_backoff_time": "3s",
    "smtp_connect_timeout": "5s",
    "smtp_helo_timeout": "5s",
    "in_flow_delay": "0s",
    "smtpd_error_sleep_time": "0s",
    "smtpd_soft_error_limit": "1000",
    "smtpd_hard_error_limit": "1000",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
}

MASTER = """\
pickup unix n - n 1 1 pickup
cleanup unix n - {chroot} - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - {chroot} - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True)
class Queued:
    """A message in the queue: `queue` is incoming, active, deferred, hold or corrupt."""

    queue: str
    id: str
    sender: str
    recipients: tuple[str, ...]
    delays: tuple[str, ...]


class Postfix(Service):
    """Postfix in a folder of its own.

    Args:
        milters: of the main listener, as in smtpd_milters: "unix:/path", "inet:host:port".
        next_hop: port on 127.0.0.1 that all mail goes to.
        relay_domains: those that it takes mail for.
        reinject_port: a second listener there, without milters, for submission from here.
        srs_domains: mail to these goes through a third listener, with the milters: the way back
            for bounces that Postfix itself makes.
        main: lines of main.cf, which override everything; None takes a line away.
        master: further text of master.cf.
        chroot: run smtpd, cleanup and trivial-rewrite in the queue directory, as Debian does.
    """

    name = "postfix"

    def __init__(
        self,
        *,
        milters: Sequence[str] = (),
        next_hop: int,
        relay_domains: Sequence[str] = ("example.com", "example.net"),
        reinject_port: int | None = None,
        srs_domains: Sequence[str] = (),
        main: Mapping[str, str | None] | None = None,
        master: str = "",
        chroot: bool = False,
    ) -> None:
        self.milters = milters
        self.next_hop = next_hop
        self.relay_domains = relay_domains
        self.reinject_port = reinject_port
        self.srs_domains = srs_domains
        self.main = dict(main or {})
        self.master = master
        self.chroot = "y" if chroot else "n"
        self.port = 0
        self.srs_port: int | None = None

    def prepare(self, stack: ExitStack) -> None:
        """Take the ports, make the folders, write main.cf and master.cf."""
        require_postfix()
        self.port = stack.enter_context(reserved_port())
        if self.srs_domains:
            self.srs_port = stack.enter_context(reserved_port())
        for name in ("etc", "spool", "data"):
            (self.folder / name).mkdir()
        shutil.chown(self.folder / "data", "postfix")
        (self.folder / "etc/dynamicmaps.cf").touch()
        self.write_configuration()
        self.run("postfix", "check")

    def write_configuration(self) -> None:
        """Write main.cf and master.cf; to be called again after a change, before `reload`."""
        settings = MAIN | self._own_settings() | self.main
        lines = [f"{name} = {value}\n" for name, value in settings.items() if value is not None]
        main_cf = self.folder / "etc/main.cf"
        main_cf.write_text("".join(lines))
        # Postfix reads a file of this very second again and again until it is older: 2 s a start.
        os.utime(main_cf, (0, 0))
        services = MASTER.format(chroot=self.chroot) + "".join(self._listeners()) + self.master
        (self.folder / "etc/master.cf").write_text(services)

    def _own_settings(self) -> dict[str, str]:
        settings = {
            "queue_directory": f"{self.folder}/spool",
            "data_directory": f"{self.folder}/data",
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.folder),
            "relay_domains": ", ".join([*self.relay_domains, *self.srs_domains]),
            "smtpd_milters": ", ".join(self.milters),
            "default_transport": f"smtp:[127.0.0.1]:{self.next_hop}",
            "relay_transport": f"smtp:[127.0.0.1]:{self.next_hop}",
        }
        if self.srs_port:
            routes = (f"{{{name} = smtp:[127.0.0.1]:{self.srs_port}}}" for name in self.srs_domains)
            settings["transport_maps"] = f"inline:{{ {', '.join(routes)} }}"
        return settings

    def _listeners(self) -> list[str]:
        lines = [f"127.0.0.1:{self.port} inet n - {self.chroot} - - smtpd\n"]
        if self.srs_port:
            lines.append(
                f"127.0.0.1:{self.srs_port} inet n - {self.chroot} - - smtpd\n"
                "  -o syslog_name=postfix/srs\n"
            )
        if self.reinject_port:
            lines.append(
                f"127.0.0.1:{self.reinject_port} inet n - n - - smtpd\n"
                "  -o syslog_name=postfix/reinject\n"
                "  -o smtpd_milters=\n"
                "  -o local_header_rewrite_clients=\n"
                "  -o mynetworks=127.0.0.0/8\n"
                "  -o smtpd_client_restrictions=permit_mynetworks,reject\n"
            )
        return lines

    def command(self) -> Sequence[str]:
        """The master daemon in the foreground, as `postfix start-fg` runs it."""
        return [f"{DAEMONS}/master", "-s", "-c", str(self.folder / "etc")]

    def environment(self) -> Mapping[str, str]:
        """The environment, with the configuration's place."""
        return {**os.environ, "MAIL_CONFIG": str(self.folder / "etc")}

    def is_ready(self) -> bool:
        """Whether all listeners take connections."""
        ports = [self.port, self.srs_port, self.reinject_port]
        return all(accepts(port) for port in ports if port)

    def run(self, *command: str, stdin: str | bytes = "") -> str:
        """Run one of Postfix's commands ("postqueue", "-p") for this instance.

        Returns:
            Its standard output.

        Raises:
            LabError: it failed.
        """
        octets = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            command, input=octets, capture_output=True, timeout=60, check=False,
            env=self.environment(), cwd=self.folder,
        )  # fmt: skip
        output = done.stdout.decode(errors="backslashreplace")
        if done.returncode:
            errors = done.stderr.decode(errors="backslashreplace")
            raise LabError(f"{' '.join(command)}: {errors}{output}\n{self.log_tail()}")
        return output

    def queue(self) -> list[Queued]:
        """What is in the queue now."""
        found = [json.loads(line) for line in self.run("postqueue", "-j").splitlines()]
        return [
            Queued(
                entry["queue_name"],
                entry["queue_id"],
                entry["sender"],
                tuple(person["address"] for person in entry["recipients"]),
                tuple(person.get("delay_reason", "") for person in entry["recipients"]),
            )
            for entry in found
        ]

    def wait_until_empty(self, timeout: float = 15.0) -> None:
        """Wait until nothing is queued any more: all is delivered, or bounced.

        Raises:
            LabTimeoutError: something stays; the message shows what, and the log.
        """
        wait_until(
            lambda: not self.queue(),
            "the queue is empty",
            timeout,
            lambda: f"{self.queue()}\n{self.log_tail()}",
        )

    def purge(self) -> None:
        """Remove all mail, once none of it is on its way: what is, would still arrive later.

        Raises:
            LabTimeoutError: something is being delivered for too long.
        """
        wait_until(
            lambda: {found.queue for found in self.queue()} <= {"deferred", "hold"},
            "no mail is being delivered",
            detail=self.log_tail,
        )
        self.postsuper("-d", "ALL")

    def flush(self) -> None:
        """Try all deferred mail again now."""
        self.run("postqueue", "-f")

    def postsuper(self, *args: str) -> str:
        """Run postsuper: `postsuper("-H", "ALL")`."""
        return self.run("postsuper", *args)

    def release(self, queue_id: str) -> None:
        """Let a held message go on, as docs/postfix.md says."""
        self.postsuper("-H", queue_id)
        self.flush()

    def reload(self) -> None:
        """Take up a changed configuration."""
        self.run("postfix", "reload")


def why_no_postfix() -> str:
    """Why this machine cannot run the Postfix of the lab; "" if it can."""
    if os.geteuid() != 0:
        return "Postfix starts only as root: run the tests with sudo"
    missing = [name for name in ("postfix", "postqueue") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install postfix"
    return ""


def require_postfix() -> None:
    """Raise LabError with the reason when this machine cannot run Postfix."""
    if reason := why_no_postfix():
        raise LabError(reason)
