"""`make demo`: real mail through a real Postfix or Sendmail, with the milter and a real Redis.

    python -m tests.demo [--mta postfix|sendmail] [--keep]

Everything runs in temporary folders and ends with the demo; nothing of the machine's own mail
system is touched. Each line of the table is checked: exit status 1 when one is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aliasmilter.mail.message import Message
from tests.harness.daemon import Config
from tests.harness.dns import DnsServer
from tests.harness.lab import RELAY_DOMAINS, Lab, MtaName
from tests.harness.postfix import why_no_postfix
from tests.harness.sendmail_packages import SendmailUnavailableError, programs
from tests.harness.signing import key, key_zone, pem, sign_dkim, verify_by_dkimpy
from tests.harness.smtp import OUTSIDE, Outcome, message
from tests.harness.wait import LabTimeoutError
from tests.harness.world import Delivery

RULES = Path(__file__).parents[1] / "rules" / "demo.redis"
ALICE = "alice@bank.example"
SRS = "SRS0=...=bank.example=alice@srs.example.net"
NAMES: dict[MtaName, str] = {"postfix": "Postfix", "sendmail": "Sendmail"}
NO_ONE: tuple[str, ...] = ()


@dataclass
class Row:
    """One line of the table.

    `got` are "recipient from sender" of all that arrived; `expected` the same as it should be.
    """

    title: str
    sent: str
    expected_reply: str
    expected: Sequence[str]
    reply: str = ""
    got: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        return self.reply.startswith(self.expected_reply) and self.got == sorted(self.expected)


def seen(delivery: Delivery) -> str:
    """Who got it and from which envelope sender, hash and date of SRS left out."""
    sender = re.sub(r"^SRS0=[^=]+=[^=]+=", "SRS0=...=", delivery.sender)
    return f"{delivery.recipient} from {sender or '<>'}"


class Demo:
    """Sends the messages and keeps the rows."""

    def __init__(self, lab: Lab, dns: DnsServer, report: Callable[[Row], None]) -> None:
        self.lab = lab
        self.dns = dns
        self.report = report
        self.rows: list[Row] = []
        self.forwarded: Delivery | None = None

    def send(
        self,
        title: str,
        recipient: str,
        reply: str,
        expected: Sequence[str] = NO_ONE,
        *,
        sender: str = ALICE,
        content: bytes | None = None,
    ) -> Outcome:
        """One message, its reply, and what comes of it."""
        self.lab.world.clear()
        if content is None:
            text = message(to=recipient, sender=sender or ALICE, subject=title)
            content = sign_dkim(Message.parse(text), "bank.example").as_bytes()
        outcome = self.lab.send(sender, recipient, content=content, xclient=OUTSIDE)
        last = outcome.data or outcome.rcpt
        shown = re.sub(r"SRS0=[^=]+=[^=]+=", "SRS0=...=", recipient)
        row = Row(title, f"{sender or '<>'} to {shown}", reply, expected)
        # Sendmail repeats the recipient before the milter's words.
        row.reply = re.sub(r" <[^ ]*>\.\.\. ", " ", str(last).splitlines()[0])
        if expected:
            try:
                self.lab.world.wait_for_total(len(expected))
            except LabTimeoutError:
                row.reply += " (and then nothing)"
        self.lab.settle()
        row.got = sorted(map(seen, self.lab.world.deliveries))
        self.rows.append(row)
        self.report(row)
        return outcome

    def run(self) -> None:
        """All the messages, in order."""
        send = self.send
        bob, carol = f"bob@example.com from {ALICE}", f"carol@example.com from {ALICE}"
        send("role address", "sales@example.com", "250", [bob])
        send("typo variant", "slaes@example.com", "250", [bob])
        send("vendor alias", "hub@example.com", "250", [bob])
        plus = f"bob+fair@example.com from {ALICE}"
        send("subaddress", "sales+fair@example.com", "250", [plus])
        send("former domain", "sales@old.example", "250", [bob])
        send("team", "team@example.com", "250", [bob, carol])
        send("forward outside", "anna@example.com", "250", [f"anna@gmail.example from {SRS}"])
        self.forwarded = next(iter(self.lab.world.deliveries), None)
        send("unknown user", "nobody@example.com", "550 5.1.1")
        send("disabled", "dave@example.com", "550 5.2.1 Dave has left")
        send("expired", "fair2025@example.com", "550 5.2.1")
        hit = f"quarantine@example.net from {ALICE}"
        send("catch-all hit", "guess@new.example", "250", [hit])
        send("rules in a circle", "ping@example.com", "451 4.4.6")
        self.loop()
        self.bounces()

    def loop(self) -> None:
        """Bob's mailbox forwards by itself, back to the alias that the mail came through."""
        self.lab.world.clear()
        self.lab.send(ALICE, "sales@example.com", xclient=OUTSIDE)
        (first,) = self.lab.world.wait_for("bob@example.com")
        self.send(
            "auto-forward loop",
            "sales@example.com",
            "554 5.4.6",
            sender="bob@example.com",
            content=first.content,
        )

    def bounces(self) -> None:
        """To the SRS sender: one from outside, one that the MTA makes itself."""
        if self.forwarded is None:
            return
        back = f"{ALICE} from <>"
        self.send("bounce from outside", self.forwarded.sender, "250", [back], sender="")
        forged = self.forwarded.sender.replace("=alice@", "=mallory@")
        self.send("forged bounce", forged, "550 5.7.1", sender="")
        self.lab.world.refuse("550 5.1.1 No such user", recipient="anna@gmail.example")
        self.send("refused outside", "anna@example.com", "250", [back])

    def authenticity(self) -> list[tuple[str, str]]:
        """What the forwarded message carries, and what its receiver makes of it."""
        if self.forwarded is None:
            return []
        text = " ".join(str(self.forwarded.message["ARC-Authentication-Results"]).split())
        verdict, _ = verify_by_dkimpy(Message.parse(self.forwarded.content), self.dns)
        came = [f"{m}={found[1]}" for m in ("spf", "dkim", "dmarc")
                if (found := re.search(rf"\b{m}=(\w+)", text))]  # fmt: skip
        return [
            ("as it came in (sealed)", ", ".join(came)),
            ("envelope sender", seen(self.forwarded).partition(" from ")[2]),
            ("as the receiver sees it", f"ARC: {verdict}"),
        ]


def make_lab(dns: DnsServer, mta: MtaName) -> Lab:
    """The scene: Redis, the daemon with ARC, the MTA, and the world."""
    config: Config = {
        "arc": {"enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem"},
        "dns": {"nameservers": [dns.address]},
    }
    return Lab(
        config,
        mta=mta,
        relay_domains=RELAY_DOMAINS,
        files={"arc.pem": pem(key()).decode()},
    )


def why_not(mta: MtaName) -> str:
    """Why this MTA cannot be started here; "" if it can. Sendmail is fetched when it is missing."""
    if os.geteuid() != 0:
        return "that needs root"
    if mta == "postfix":
        return why_no_postfix()
    try:
        programs()
    except SendmailUnavailableError as error:
        return str(error)
    return ""


def make_dns() -> DnsServer:
    """The DNS of the world: Alice's bank, and our key."""
    zone = key_zone("s.bank.example", "arc.example.net")
    zone["bank.example"] = {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]}
    zone["_dmarc.bank.example"] = {"TXT": ["v=DMARC1; p=reject"]}
    return DnsServer(zone)


def table(rows: Sequence[Row], name: str) -> Table:
    """The rows, for people."""
    shown = Table(title=f"alias-milter with a real {name}", title_justify="left", show_lines=True)
    for heading in ("what", "sent", "the MTA's answer", "who got it, from which sender"):
        shown.add_column(heading, overflow="fold")
    shown.add_column("", width=1)
    for row in rows:
        mark = Text("\u2713", "green") if row.good else Text("\u2717", "bold red")
        got = "\n".join(row.got) or "nobody"
        shown.add_row(*(Text(t) for t in (row.title, row.sent, row.reply, got)), mark)
    return shown


def keep(lab: Lab, console: Console) -> None:
    """Say how to play with it, and wait."""
    base = f"redis-cli -s {lab.redis.socket}"
    config = lab.daemon.config_file
    lines = (
        "All of it is still running. Paste these into another terminal:",
        "",
        f'  {base} HSET alias:example.com vip "bob@example.com, carol@example.com"',
        f"  swaks --server 127.0.0.1:{lab.mta.port} --from {ALICE} --to vip@example.com",
        f"  {sys.executable} -m aliasmilter resolve -c {config} vip@example.com",
        f"  {sys.executable} -m aliasmilter check -c {config}",
        f"  tail -f {lab.daemon.log_file}",
        "",
        "Enter (or Ctrl-C) ends it and removes all of it.",
    )
    for line in lines:
        console.out(line, highlight=False)
    sys.stdin.readline()


def main() -> int:
    """Run the demo; the exit status."""
    options = argparse.ArgumentParser(prog="make demo")
    options.add_argument("--mta", choices=NAMES, default="postfix", help="the mail server")
    options.add_argument("--keep", action="store_true", help="leave it running to play with")
    chosen = options.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    name = NAMES[chosen.mta]
    if reason := why_not(chosen.mta):
        console.print(f"The demo starts a private {name}: {reason}.")
        return 1
    try:
        with make_dns() as dns, make_lab(dns, chosen.mta) as lab:
            lab.load(RULES)
            console.print(f"Redis, {name}, alias-milter and a world outside are running.")
            demo = Demo(lab, dns, lambda row: console.print(f"  {row.title} ...", style="dim"))
            demo.run()
            console.print(table(demo.rows, name))
            for what, value in demo.authenticity():
                console.print(f"  the forwarded message, {what}: {value}", highlight=False)
            bad = [row for row in demo.rows if not row.good]
            for row in bad:
                console.print(f"not as it should be: {row.title}: {row.expected_reply}, "
                              f"{', '.join(row.expected) or 'nobody'}", style="red")  # fmt: skip
            if chosen.keep:
                keep(lab, console)
            return 1 if bad else 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
