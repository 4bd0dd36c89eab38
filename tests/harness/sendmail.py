"""A private Sendmail 8.17, set up with the lines of docs/sendmail.md; needs root.

What the document says is run as it stands; only ports, folders and the names of domains are put
in. `LAB` is all that is added: what makes a Sendmail private, quick and independent of DNS.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from tests.harness.ports import accepts, reserved_port
from tests.harness.postfix import Queued
from tests.harness.sendmail_document import blocks, put
from tests.harness.sendmail_packages import programs
from tests.harness.service import Service
from tests.harness.wait import LabError, wait_until

HOSTNAME = "mx.example.net"
# As smtp.XCLIENT_DEFAULT has it, for Postfix.
CLIENT = ("client.example", "192.0.2.10")
HOSTS = {
    "localhost": "127.0.0.1",
    HOSTNAME: "127.0.0.1",
    "mailbox.example.net": "127.0.0.1",
    CLIENT[0]: CLIENT[1],
}

LAB = """\
divert(0)dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `{hostname}')dnl
define(`confSERVICE_SWITCH_FILE', `{folder}/etc/service.switch')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confDONT_BLAME_SENDMAIL', `TrustStickyBit, RunProgramInUnsafeDirPath, NonRootSafeAddr')dnl
define(`QUEUE_DIR', `{folder}/queue')dnl
define(`ALIAS_FILE', `{folder}/etc/aliases')dnl
define(`STATUS_FILE', `{folder}/etc/statistics')dnl
define(`HELP_FILE', `{folder}/etc/helpfile')dnl
define(`confPID_FILE', `{folder}/sendmail.pid')dnl
define(`confCW_FILE', `{folder}/etc/local-host-names')dnl
define(`confCR_FILE', `{folder}/etc/relay-domains')dnl
define(`confCT_FILE', `{folder}/etc/trusted-users')dnl
define(`confHOST_STATUS_DIRECTORY', `')dnl
define(`confTO_IDENT', `0')dnl
define(`confTO_ICONNECT', `5s')dnl
define(`confTO_CONNECT', `5s')dnl
define(`confQUEUE_LA', `999')dnl
define(`confREFUSE_LA', `999')dnl
define(`confBAD_RCPT_THROTTLE', `0')dnl
define(`confDEF_USER_ID', `8:8')dnl
define(`confLOG_LEVEL', `14')dnl
define(`confMILTER_LOG_LEVEL', `14')dnl
define(`LOCAL_MAILER_PATH', `{folder}/deliver')dnl
define(`LOCAL_MAILER_ARGS', `deliver $u $f')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-f')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`accept_unqualified_senders')dnl
define(`RELAY_MAILER_ARGS', `TCP $h {next_hop}')dnl
define(`ESMTP_MAILER_ARGS', `TCP $h {next_hop}')dnl
define(`SMART_HOST', `esmtp:[127.0.0.1]')dnl
"""

# A delivery agent: a file for each message, whole or absent.
DELIVER = """\
#!/bin/sh
cd {folder}/mail || exit 75
file=$1.$$.$(date +%s%N)
{{ echo "X-Envelope-From: $2"; cat; }} > ".$file" && mv ".$file" "$file"
"""

Delivery = Literal["relay", "local"]
# In the order of their rules: the SRS domain is one of ours as well.
TABLES = ("socketmap-srs", "socketmap-domains")


class Sendmail(Service):
    """Sendmail in a folder of its own, with the same face as the lab's Postfix.

    Args:
        milters: of the main listener, as Postfix spells them: "unix:/path", "inet:host:port".
        next_hop: port on 127.0.0.1 that all mail goes to that is not delivered here.
        relay_domains: those that it takes mail for.
        reinject_port: a second listener there, without milters, for submission from here.
        srs_domains: mail to these goes through a third listener, with the milters: the way back
            for bounces that Sendmail itself makes.
        delivery: what happens to `relay_domains`: the document's case 3a or 3b.
        submission_port: a listener for own users there.
        mc: further lines of sendmail.mc, above MAILER.
        replace: text of the document to be replaced, to show what a line is good for.
        maps: socket of the lookup tables of the document's section 6, which then is taken in the
            place of sections 2 and 3a.
    """

    name = "sendmail"

    def __init__(
        self,
        *,
        milters: Sequence[str] = (),
        next_hop: int,
        relay_domains: Sequence[str] = ("example.com", "example.net"),
        reinject_port: int | None = None,
        srs_domains: Sequence[str] = (),
        delivery: Delivery = "relay",
        submission_port: int | None = None,
        mc: str = "",
        replace: Mapping[str, str] | None = None,
        maps: str = "",
    ) -> None:
        self.milters = milters
        self.next_hop = next_hop
        self.relay_domains = relay_domains
        self.reinject_port = reinject_port
        self.srs_domains = srs_domains
        self.delivery = delivery
        self.submission_port = submission_port
        self.mc = mc
        self.replace = dict(replace or {})
        self.maps = maps
        self.port = 0
        self.srs_port: int | None = None

    def prepare(self, stack: ExitStack) -> None:
        """Take the ports, make the folders, write and build the configuration."""
        if os.geteuid() != 0:
            raise LabError("Sendmail starts only as root: run the tests with sudo")
        self.programs = programs()
        self.port = stack.enter_context(reserved_port())
        if self.srs_domains and not self.maps:
            self.srs_port = stack.enter_context(reserved_port())
        for name, mode in (("etc", 0o755), ("queue", 0o700), ("mail", 0o777)):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(mode)
        deliver = self.folder / "deliver"
        deliver.write_text(DELIVER.format(folder=self.folder))
        deliver.chmod(0o755)
        self.pretend_client(CLIENT[1])
        self.write_configuration()
        self.run("sendmail", "-bi")

    def write_configuration(self) -> None:
        """Write sendmail.mc and its files, and build sendmail.cf; before `reload`."""
        files = {
            "service.switch": "hosts files\naliases files\n",
            "aliases": "",
            "trusted-users": "",
            "helpfile": "",
            "statistics": "",
            **self.domain_files(),
        }
        for name, text in files.items():
            self.write_file(name, text)
        self.write_file("sendmail.mc", self.mc_text())
        macros = [f"-D_CF_DIR_={self.programs.cf}/", f"{self.programs.cf}/m4/cf.m4"]
        built = self._call([str(self.programs.m4), *macros, f"{self.folder}/etc/sendmail.mc"])
        self.write_file("sendmail.cf", built)
        if "mailertable" in files:
            table = ["hash", f"{self.folder}/etc/mailertable"]
            makemap = [str(self.programs.makemap), "-C", f"{self.folder}/etc/sendmail.cf", *table]
            self._call(makemap, stdin=files["mailertable"])

    def write_file(self, name: str, text: str) -> Path:
        """Write a file of the folder that stands for /etc/mail."""
        file = self.folder / "etc" / name
        file.write_text(text)
        return file

    def domain_files(self) -> dict[str, str]:
        """Return relay-domains and its companions for this case, by file name."""
        if self.delivery == "local":
            return {
                "local-host-names": _lines(self.relay_domains),
                "relay-domains": _lines(self.srs_domains),
            }
        if self.maps:
            return {"local-host-names": "", "relay-domains": ""}
        routes = [f"{domain}\trelay:[mailbox.example.net]" for domain in self.relay_domains]
        return {
            "local-host-names": "",
            "relay-domains": _lines([*self.relay_domains, *self.srs_domains]),
            "mailertable": _lines(routes),
        }

    def mc_text(self) -> str:
        """Return sendmail.mc: the lab's lines, and the document's for this case."""
        document = blocks()
        parts = [
            LAB.format(hostname=HOSTNAME, folder=self.folder, next_hop=self.next_hop),
            self._listeners(document),
            "" if self.maps else put(document[self.delivery], self._folders()),
            document["bytes"],
            *(self._filter(document["filter"], n, spec) for n, spec in enumerate(self.milters)),
            self.mc,
            "MAILER(`local')dnl\nMAILER(`smtp')dnl\n",
            self._srs(document["srs"]),
            *(self._table(document[name]) for name in TABLES if self.maps),
        ]
        text = "".join(parts)
        for old, new in self.replace.items():
            text = put(text, {old: new})
        return text

    def _folders(self) -> dict[str, str]:
        return {} if self.delivery == "local" else {"/etc/mail/": f"{self.folder}/etc/"}

    def _listeners(self, document: Mapping[str, str]) -> str:
        text = document["listeners"]
        for name, port in (("REINJECT", self.reinject_port), ("SRS", self.srs_port)):
            if not port:
                text = re.sub(rf"^DAEMON_OPTIONS\(`Name={name},.*\n", "", text, flags=re.MULTILINE)
        ports = {"Port=25'": f"Port={self.port}, Addr=127.0.0.1'"}
        if self.reinject_port:
            ports["Port=10026,"] = f"Port={self.reinject_port},"
        if self.srs_port:
            ports["Port=10025'"] = f"Port={self.srs_port}'"
        if self.submission_port:
            text += document["submission"]
            ports["Port=587,"] = f"Port={self.submission_port}, Addr=127.0.0.1,"
        return put(text, ports)

    def _filter(self, block: str, number: int, spec: str) -> str:
        names = {"unix:/run/alias-milter/milter.sock": milter_spec(spec)}
        if number:
            names["`alias-milter'"] = f"`milter{number}'"
        return put(block, names)

    def _srs(self, block: str) -> str:
        if not self.srs_port:
            return ""
        domains = {"fwd.example.net": " ".join(self.srs_domains)}
        return put(block, domains | {"TCP $h 10025": f"TCP $h {self.srs_port}"})

    def _table(self, block: str) -> str:
        domains = {"fwd.example.net": " ".join(self.srs_domains)}
        names = {"unix:/run/alias-milter/map.sock": self.maps}
        return put(block, names | (domains if "fwd.example.net" in block else {}))

    def pretend_client(self, address: str) -> None:
        """Show clients of the main listener with this IPv4 address from now on.

        What XCLIENT is to Postfix. Sendmail knows the name of CLIENT's address alone.
        """
        (self.folder / "client").write_text(address)

    def command(self) -> Sequence[str]:
        """The daemon in the foreground, with a queue run every second."""
        return [str(self.programs.sendmail), self._configuration, "-bD", "-q1s"]

    @property
    def _configuration(self) -> str:
        return f"-C{self.folder}/etc/sendmail.cf"

    def environment(self) -> Mapping[str, str]:
        """The environment: the unpacked libraries, and the shim's variables."""
        return self.programs.environment(
            SHIM_LOG=str(self.log_file),
            SHIM_HOSTNAME=HOSTNAME,
            SHIM_HOSTS=",".join(f"{name}={address}" for name, address in HOSTS.items()),
            SHIM_CLIENT_FILE=str(self.folder / "client"),
            SHIM_OUTSIDE_PORT=str(self.port),
        )

    def is_ready(self) -> bool:
        """Whether all listeners take connections."""
        ports = [self.port, self.srs_port, self.reinject_port, self.submission_port]
        return all(accepts(port) for port in ports if port)

    def run(self, *command: str, stdin: str = "") -> str:
        """Run sendmail under one of its names: `run("mailq", "-qQ")`, `run("sendmail", "-q")`.

        Returns:
            Its standard output.

        Raises:
            LabError: it failed.
        """
        # Sendmail acts by the name it is called by.
        program = str(self.programs.sendmail)
        return self._call([command[0], self._configuration, *command[1:]], stdin, program)

    def _call(self, command: Sequence[str], stdin: str = "", executable: str | None = None) -> str:
        done = subprocess.run(
            command, executable=executable, input=stdin, env=self.environment(),
            cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr}{done.stdout}\n{self.log_tail()}")
        return done.stdout

    def queue(self) -> list[Queued]:
        """What is in the queue now; `queue` is "deferred" or, when quarantined, "hold"."""
        found = []
        for file in sorted((self.folder / "queue").glob("[qh]f*")):
            # Delivered in this very moment.
            with suppress(FileNotFoundError):
                found.append(_queued(file))
        return found

    def wait_until_empty(self, timeout: float = 15.0) -> None:
        """Wait until nothing is queued any more: all is delivered, or bounced.

        Raises:
            LabTimeoutError: something stays; the message shows what, and the log.
        """
        wait_until(
            lambda: not any((self.folder / "queue").glob("[qhd]f*")),
            "the queue is empty",
            timeout,
            lambda: f"{self.queue()}\n{self.log_tail()}",
        )

    def flush(self) -> None:
        """Try all deferred mail again now."""
        self.run("sendmail", "-q")

    def purge(self, timeout: float = 15.0) -> None:
        """Remove all that is queued, once none of it is on its way: it would still arrive later.

        Raises:
            LabTimeoutError: a delivery did not end in time.
        """
        wait_until(self._discard_idle, "all deliveries have ended", timeout, self.log_tail)

    def _discard_idle(self) -> bool:
        for file in (self.folder / "queue").glob("[qh]f*"):
            with suppress(FileNotFoundError, BlockingIOError), file.open("rb+") as control:
                # Sendmail holds this lock for as long as it works on the message.
                fcntl.flock(control, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
                file.with_name(f"df{file.name[2:]}").unlink(missing_ok=True)
        return not any((self.folder / "queue").glob("[qh]f*"))

    def release(self, queue_id: str) -> None:
        """Let a quarantined message go on, as docs/sendmail.md says."""
        self.run("sendmail", "-qQ", f"-qI{queue_id}", "-Q")
        self.run("sendmail", f"-qI{queue_id}")

    def reload(self) -> None:
        """Take up a changed configuration (SIGHUP: it starts itself again)."""
        self.signal(signal.SIGHUP)

    def mailbox(self, user: str) -> list[bytes]:
        """What the local mailer has delivered to this user, oldest first.

        The first line is "X-Envelope-From: " and the envelope sender.
        """
        files = sorted((self.folder / "mail").glob(f"{user}.*"), key=lambda file: file.suffix)
        return [file.read_bytes() for file in files]

    def kill(self) -> None:
        """End the daemon and all its children; background deliveries have left its session."""
        super().kill()
        for link in Path("/proc").glob("[0-9]*/cwd"):
            # A process of another user, or one that has just ended.
            with suppress(OSError):
                if link.readlink().is_relative_to(self.folder):
                    os.kill(int(link.parent.name), signal.SIGKILL)


def milter_spec(endpoint: str) -> str:
    """Turn Postfix's spelling of a milter's socket into Sendmail's."""
    kind, _, rest = endpoint.partition(":")
    if kind != "inet":
        return endpoint
    host, _, port = rest.rpartition(":")
    return f"inet:{port}@{host}"


def _lines(words: Sequence[str]) -> str:
    return "".join(f"{word}\n" for word in words)


def _queued(file: Path) -> Queued:
    """Read a queue file (Sendmail operations guide, appendix B)."""
    lines = file.read_text(errors="backslashreplace").splitlines()
    fields = [(line[:1], line[1:]) for line in lines]
    # Of fields that repeat, the first.
    first = dict(reversed(fields))
    # "R", flags, a colon, the address.
    people = [value.partition(":")[2] for letter, value in fields if letter == "R"]
    return Queued(
        "hold" if file.name.startswith("h") else "deferred",
        file.name[2:],
        first.get("S", "").strip("<>"),
        tuple(person.strip("<>") for person in people),
        tuple([first.get("q", "") or first.get("M", "")] * len(people)),
    )
