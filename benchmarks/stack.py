"""What alias-milter replaces, as Debian 12 has it: an alias map, PostSRSd and rspamd."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aliasmilter.mail.message import Message
from benchmarks.machine import cpu_count
from benchmarks.postfix import ALIAS_MAP, LEAVES_FOR, Setup, running, send
from benchmarks.scene import SEALING
from tests.harness.daemon import SRS_DOMAIN
from tests.harness.dns import DnsServer
from tests.harness.ports import accepts, reserved_port
from tests.harness.service import Service
from tests.harness.signing import key, pem, verify_by_dkimpy
from tests.harness.wait import LabError
from tests.harness.world import World

VERDICTS = ("spf=pass", "dkim=pass", "dmarc=pass")
# rspamd's names for the same three, and for a message that it has sealed.
SYMBOLS = {"R_SPF_ALLOW", "R_DKIM_ALLOW", "DMARC_POLICY_ALLOW", "ARC_SIGNED"}

# Nothing but what is compared: none of rspamd's rules, statistics and other workers.
RSPAMD = """\
lua = "{folder}/rspamd.lua";
modules {{
  path = "/usr/share/rspamd/plugins/spf.lua";
  path = "/usr/share/rspamd/plugins/dmarc.lua";
  path = "/usr/share/rspamd/plugins/arc.lua";
}}
options {{
  filters = "dkim";
  check_local = true;  # smtp-source comes from 127.0.0.1
  hs_cache_dir = "{folder}/state";
  url_tld = "/usr/share/rspamd/effective_tld_names.dat";
  dns {{ nameserver = ["{dns}"]; }}
}}
logging {{ type = "console"; level = "notice"; log_format = "$mid $action [$symbols] $len"; }}
worker "rspamd_proxy" {{
  bind_socket = "{folder}/milter.sock mode=0666";
  count = {count};
  milter = yes;
  timeout = 120s;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
spf {{}}
dkim {{}}
dmarc {{}}
arc {{
  sign_local = true;
  allow_hdrfrom_mismatch = true;
  use_domain = "{domain}";
  selector = "{selector}";
  path = "{folder}/state/arc.pem";
}}
"""


@contextmanager
def resolver(dns: DnsServer) -> Iterator[str]:
    """A server that keeps answers, as a mail server has one beside it; its address.

    rspamd keeps no DMARC records. Asked for one with each message, our DNS server, which is made
    for tests, would take a tenth of the processors, and the stack would look slow for it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=_answer, args=(sock, dns), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            sock.sendto(b"", sock.getsockname())
            thread.join()


def _answer(sock: socket.socket, dns: DnsServer) -> None:
    """Answer until a datagram comes that is empty."""
    kept: dict[bytes, bytes] = {}
    while True:
        question, client = sock.recvfrom(4096)
        if not question:
            return
        asked = question[2:]  # all but the number, which the answer repeats
        if asked not in kept:
            kept[asked] = (dns.answer(question, "udp") or b"")[2:]
        sock.sendto(question[:2] + kept[asked], client)


class Rspamd(Service):
    """rspamd as a milter that examines SPF, DKIM and DMARC and seals, a process for each core.

    Args:
        dns: the server behind its resolver.
    """

    name = "rspamd"
    start_timeout = 120.0  # it compiles its patterns for seconds
    user = "_rspamd"

    def __init__(self, dns: DnsServer) -> None:
        self.dns = dns

    @property
    def endpoint(self) -> str:
        """The socket as Postfix's smtpd_milters has it."""
        return f"unix:{self.folder}/milter.sock"

    def prepare(self, stack: ExitStack) -> None:
        """Write the configuration, and the key that we seal with as well."""
        state = self.folder / "state"  # the workers' own: they have given up root
        state.mkdir()
        (state / "arc.pem").write_bytes(pem(key()))
        for path in (state, state / "arc.pem"):
            shutil.chown(path, self.user, self.user)
        (self.folder / "rspamd.lua").write_text('require "global_functions" ()\n')
        text = RSPAMD.format(
            folder=self.folder,
            dns=stack.enter_context(resolver(self.dns)),
            count=cpu_count(),
            **SEALING["arc"],
        )
        (self.folder / "rspamd.conf").write_text(text)

    def command(self) -> Sequence[str]:
        """Rspamd in the foreground, with nothing of /etc/rspamd."""
        user = ["--user", self.user, "--group", self.user]
        return ["rspamd", "--no-fork", "--config", "rspamd.conf", *user]

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        return accepts(self.endpoint.removeprefix("unix:"))

    def end(self) -> None:
        """At once: its workers wait for the sessions that they have."""
        self.kill()

    def require(self, count: int) -> None:
        """Raise LabError unless so many messages were examined, passed and were sealed."""
        found = re.findall(r"rspamd_task_write_log: .*\[(.*)\]", self.log)
        idle = [line for line in found if SYMBOLS - set(line.split(","))]
        if idle or len(found) < count:
            raise LabError(f"rspamd: {len(found)} messages, {count} sent; not in full: {idle[:3]}")


class PostSrsd(Service):
    """PostSRSd 1, which answers Postfix as a tcp_table(5)."""

    name = "postsrsd"

    def prepare(self, stack: ExitStack) -> None:
        """Take the ports, make a secret."""
        self.forward = stack.enter_context(reserved_port())
        self.reverse = stack.enter_context(reserved_port())
        (self.folder / "secret").write_text("a secret of the benchmarks\n")

    def command(self) -> Sequence[str]:
        """PostSRSd in the foreground."""
        ports = [f"-f{self.forward}", f"-r{self.reverse}"]
        return ["postsrsd", "-4", "-ssecret", f"-d{SRS_DOMAIN}", "-upostsrsd", *ports]

    def is_ready(self) -> bool:
        """Whether both tables take connections."""
        return accepts(self.forward) and accepts(self.reverse)

    @property
    def tables(self) -> dict[str, str]:
        """The lines of main.cf that its documentation asks for."""
        return {
            "sender_canonical_maps": f"tcp:127.0.0.1:{self.forward}",
            "sender_canonical_classes": "envelope_sender",
            "recipient_canonical_maps": f"tcp:127.0.0.1:{self.reverse}",
            "recipient_canonical_classes": "envelope_recipient, header_recipient",
        }


@contextmanager
def replaced(dns: DnsServer) -> Iterator[tuple[Setup, Rspamd]]:
    """All that alias-milter replaces, ready."""
    with PostSrsd() as postsrsd, Rspamd(dns) as rspamd:
        yield Setup(rspamd.endpoint, {**ALIAS_MAP, **postsrsd.tables}), rspamd


def why_no_stack() -> str:
    """Why it cannot be measured here; "" if it can."""
    for name in ("rspamd", "postsrsd"):
        if not shutil.which(name):
            return f"{name} is not installed"
    asked = subprocess.run(["postsrsd", "-v"], capture_output=True, text=True, check=False)
    # PostSRSd 2 has neither these options nor tcp tables.
    return "" if asked.stdout.startswith("1.") else "PostSRSd is not version 1"


def require_work(setup: Setup, message: Path, dns: DnsServer) -> None:
    """Raise LabError unless a message leaves with an SRS sender, verdicts and a chain that holds.

    A benchmark against what does nothing is none.
    """
    with World() as world, running(setup, world.port) as server:
        send(server, message, 1)
        (got,) = world.wait_for(LEAVES_FOR, timeout=30)
    delivered = Message.parse(got.content)
    chain, why = verify_by_dkimpy(delivered, dns)
    results = b"".join(field.value for field in delivered.fields("arc-authentication-results"))
    wrong = [f"no {each}" for each in VERDICTS if each.encode() not in results]
    if not delivered.fields("arc-seal"):
        wrong.append("no ARC-Seal")
    elif chain != "pass":
        wrong.append(f"ARC chain {chain}: {why}")
    if not got.sender.startswith("SRS0=") or not got.sender.endswith(f"@{SRS_DOMAIN}"):
        wrong.append(f"no SRS sender: <{got.sender}>")
    if wrong:
        raise LabError(f"the first message through {setup.milter} has {', '.join(wrong)}")
