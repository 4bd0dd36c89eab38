"""Stand-ins for what the rooms are given: a lookup, a listener, a clock; and a whole session."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import structlog

from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.outbound import Keyring, Outbound
from aliasmilter.forwarding.srs import Rewriter
from aliasmilter.forwarding.trace import Tracer
from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mta.reinject import Copy, ReinjectError, Reinjector
from aliasmilter.mta.service import Service
from aliasmilter.mta.session import Session
from aliasmilter.mta.transaction import Client, Edits, Verdict
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.lookup import Absent, Answer, Found, Unavailable, fields_for
from tests.harness.dns import ZoneResolver

SRS = "srs.example.net"
ALICE = b"<alice@bank.example>"

Rules = Mapping[str, Mapping[str, str]]


class Store:
    """A lookup out of dicts: domain -> settings, domain -> local part -> rule."""

    def __init__(self, rules: Rules, settings: Rules | None = None) -> None:
        self.rules = rules
        self.settings = settings or {}
        self.calls: list[list[Address]] = []
        self.down = False

    def __call__(self, addresses: Sequence[Address]) -> list[Answer]:
        if self.down:
            raise Unavailable("switched off")
        self.calls.append(list(addresses))
        return [self._answer(address) for address in addresses]

    def _answer(self, address: Address) -> Answer:
        if address.domain not in self.rules:
            return Absent()
        settings = self.settings.get(address.domain, {"unknown": "reject"})
        rules = self.rules[address.domain]
        return Found(
            {k.encode(): v.encode() for k, v in settings.items()},
            {f: rules[f].encode() for f in fields_for(address.local) if f in rules},
        )


class Served:
    """Knows who was served; made to fail on demand."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.down = False
        self.calls = 0

    def known(self, keys: Sequence[str]) -> set[str]:
        self._ask()
        return self.keys & set(keys)

    def remember(self, keys: Sequence[str]) -> None:
        self._ask()
        self.keys |= set(keys)

    def forget(self, keys: Sequence[str]) -> None:
        self._ask()
        self.keys -= set(keys)

    def _ask(self) -> None:
        self.calls += 1
        if self.down:
            raise Unavailable("switched off")


class Listener(Reinjector):
    """Takes copies without a network; made to fail on demand."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1", "mx.example.net", 1.0, Served())
        self.copies: list[Copy] = []
        self.fails = False
        self.fails_for = ""

    def send(self, copy: Copy, deadline: float) -> str:
        if self.fails or self.fails_for in copy.recipients:
            raise ReinjectError("451 not now")
        self.copies.append(copy)
        return f"2.0.0 Ok: queued as Q{len(self.copies)}"


@dataclass
class Scene:
    """A session, and what its service is made of."""

    store: Store
    hold: bool = False
    listener: Listener | None = None
    now: float = 1_800_000_000.0
    log: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rewriter = Rewriter(
            ["a secret"], max_age_days=21, hash_length=4, clock=lambda: self.now
        )
        policy = Policy(quarantine=parse_address("q@example.net"), hold=self.hold)
        service = Service(
            hostname="mx.example.net",
            decider=Decider(lambda _: self.store, policy, self.rewriter, SRS, lambda: self.now),
            tracer=Tracer(["a secret"]),
            srs_domain=SRS,
            max_received=5,
            logger=structlog.wrap_logger(
                structlog.ReturnLogger(),
                processors=[self._record],
                wrapper_class=structlog.make_filtering_bound_logger(0),
            ),
            reinjector=self.listener,
        )
        self.session = Session(service)
        self.session.connected(Client("client.example", "192.0.2.1", 4321))

    def _record(self, _logger: object, _name: str, event: structlog.typing.EventDict) -> str:
        self.log.append(dict(event))
        return ""

    def local(self) -> Scene:
        """Mail is handed in on this host, without SMTP."""
        self.session.connected(Client("localhost", "127.0.0.1", 0))
        return self

    def rcpt(self, *arguments: str, parameters: Sequence[bytes] = ()) -> list[str]:
        """The replies, "" for those that are accepted."""
        replies = [self.session.rcpt(a.encode(), parameters) for a in arguments]
        return [str(reply or "") for reply in replies]

    def end(self, *headers: tuple[str, bytes], queue_id: str = "4Tz") -> Verdict:
        for name, value in headers:
            self.session.header(name, value)
        return self.session.end_of_message(queue_id)

    def send(self, *arguments: str, sender: bytes = ALICE) -> Edits:
        """The edits for a message to these, each of which has to be accepted."""
        self.session.mail(sender, [])
        assert self.rcpt(*arguments) == [""] * len(arguments)
        verdict = self.end()
        assert verdict.reply is None
        return verdict.edits


def sealing(scene: Scene, keyring: Keyring | None = None) -> Scene:
    """The scene, where mail that leaves is to be sealed, if there is a key."""
    scene.session._service = replace(
        scene.session._service,
        outbound=Outbound(
            "mx.example.net",
            ZoneResolver(),
            dns_timeout=1.0,
            trust=False,
            refuses_dmarc=False,
            trusted_sealers=(),
            keyring=keyring,
            clock=lambda: scene.now,
        ),
    )
    return scene


@contextmanager
def no_thread_left() -> Iterator[None]:
    """While it lasts, the system has no thread to spare."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        yield
