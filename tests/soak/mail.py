"""What is sent while things break: numbered messages, and what has to become of each."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aliasmilter.forwarding.srs import Rewriter, SRSError
from aliasmilter.mail.address import AddressError, parse_address
from tests.harness.daemon import SRS_DOMAIN
from tests.harness.smtp import message
from tests.harness.world import Delivery

SECRET = "a secret of the tests"
QUARANTINE = "quarantine@example.net"
POSTMASTER = "MAILER-DAEMON@gmail.example"  # in From: of a bounce

# In one piece: between a domain and its rules, every address would be unknown.
RULES = (
    "MULTI",
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com carol carol@example.com",
    'HSET alias:example.com sales bob@example.com team "bob@example.com carol@example.com"',
    "HSET alias:example.com slaes sales@example.com out me@gmail.example drop discard",
    'HSET alias:example.com both "carol@example.com me@gmail.example" gone disabled',
    "HSET domain:old.example alias_of example.com",
    "HSET domain:new.example unknown reject",
    "HSET alias:new.example * quarantine",
    "EXEC",
)

_NUMBER = re.compile(rb"^X-Soak: (\d+)\r?$", re.MULTILINE)
_SEAL = re.compile(rb"^ARC-Seal:", re.MULTILINE)


class Way(StrEnum):
    """What happens to the sender of a copy."""

    STAYS = "stays"  # the sender is as it was
    LEAVES = "leaves"  # an SRS sender, and one ARC set
    RETURNS = "returns"  # a bounce leaves too: one ARC set, and the null sender


@dataclass(frozen=True)
class Fate:
    """What has to become of one recipient: who gets a copy, or how the reply begins."""

    reaches: Mapping[str, Way] = field(default_factory=dict)
    refusal: str = ""


def _stays(*people: str) -> Fate:
    return Fate(dict.fromkeys(people, Way.STAYS))


BOB, CAROL, ME = "bob@example.com", "carol@example.com", "me@gmail.example"

# Recipient, with {n} for the number of the message -> what has to become of it. Other domains
# than example.net are managed.
ADDRESSES: dict[str, tuple[str, Fate]] = {
    "mailbox": (BOB, _stays(BOB)),
    "alias": ("slaes@example.com", _stays(BOB)),
    "subaddress": ("sales+{n}@example.com", _stays("bob+{n}@example.com")),
    "second domain": ("sales@old.example", _stays(BOB)),
    "team": ("team@example.com", _stays(BOB, CAROL)),
    "forward": ("out@example.com", Fate({ME: Way.LEAVES})),
    "split": ("both@example.com", Fate({CAROL: Way.STAYS, ME: Way.LEAVES})),
    "unmanaged": ("somebody@example.net", _stays("somebody@example.net")),
    "catch-all": ("guess{n}@new.example", _stays(QUARANTINE)),
    "discard": ("drop@example.com", Fate()),
    "unknown": ("nobody{n}@example.com", Fate(refusal="550 5.1.1")),
    "disabled": ("gone@example.com", Fate(refusal="550 5.2.1")),
}
# How often, in relation to each other; "mixed" is several of the above in one transaction.
WEIGHTS = {**dict.fromkeys(ADDRESSES, 2), "forward": 4, "unknown": 4, "mixed": 8, "bounce": 3,
           "forged": 1, "discard": 1, "disabled": 1}  # fmt: skip
MIXABLE = [kind for kind in ADDRESSES if kind != "discard"]


@dataclass(frozen=True)
class Posting:
    """A message to be sent, by its number; the fates of its recipients by their addresses."""

    number: int
    kind: str
    sender: str
    fates: Mapping[str, Fate]
    content: bytes

    def needs_store(self, recipient: str) -> bool:
        """Whether only the store can say what becomes of it.

        What is unmanaged may have been seen before, and a return address is known by its hash.
        """
        return not recipient.endswith(("@example.net", f"@{SRS_DOMAIN}"))


@dataclass(frozen=True)
class Arrival:
    """One copy as the world got it; `number` is None when it is none of ours."""

    number: int | None
    recipient: str
    sender: str
    seals: int
    whole: bool


def sender_domain(number: int) -> str:
    """One for each message: what DNS said of it is in no cache."""
    return f"bank{number}.example"


def zone_of(number: int) -> dict[str, dict[str, Sequence[str | bytes]]]:
    """What DNS says of a sender's domain: the clients of the tests may send, nobody else."""
    name = sender_domain(number)
    return {
        name: {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]},
        f"_dmarc.{name}": {"TXT": ["v=DMARC1; p=reject"]},
    }


class Composer:
    """Makes messages at random, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._rewriter = rewriter()
        self._number = 0

    def next(self) -> Posting:
        """The next message."""
        self._number += 1
        kinds = list(WEIGHTS)
        (kind,) = self._random.choices(kinds, [WEIGHTS[name] for name in kinds])
        return self.make(self._number, kind)

    def make(self, number: int, kind: str) -> Posting:
        """The message with that number, of that kind."""
        sender = f"alice@{sender_domain(number)}"
        if kind in ("bounce", "forged"):
            fates = self._return_path(sender, forged=kind == "forged")
            return Posting(number, kind, "", fates, _content(number, POSTMASTER, fates))
        mixed = kind == "mixed"
        chosen = self._random.sample(MIXABLE, self._random.randint(2, 4)) if mixed else [kind]
        fates = dict(_numbered(name, number) for name in chosen)
        return Posting(number, kind, sender, fates, _content(number, sender, fates))

    def _return_path(self, sender: str, *, forged: bool) -> dict[str, Fate]:
        address = str(self._rewriter.forward(parse_address(sender), SRS_DOMAIN))
        if forged:
            return {address.replace("=alice@", "=mallory@"): Fate(refusal="550 5.7.1")}
        return {address: Fate({sender: Way.RETURNS})}


def rewriter() -> Rewriter:
    """Makes and undoes SRS senders as the daemon of the tests does."""
    return Rewriter([SECRET], max_age_days=21, hash_length=4, clock=time.time)


def arrival(delivery: Delivery) -> Arrival:
    """What is to be remembered of a delivery."""
    head = delivery.content.partition(b"\r\n\r\n")[0]
    found = _NUMBER.search(head)
    number = int(found[1]) if found else None
    whole = number is not None and delivery.content.endswith(_last_line(number).encode())
    return Arrival(
        number, delivery.recipient, delivery.sender, len(_SEAL.findall(head)), whole=whole
    )


def is_as_it_should_be(copy: Arrival, posting: Posting, way: Way, undo: Rewriter) -> bool:
    """Whether sender, seal and body are those that such a copy has."""
    if not copy.whole:
        return False
    if way is not Way.LEAVES:
        return copy.sender == posting.sender and copy.seals == (way is Way.RETURNS)
    try:
        original = str(undo.reverse(parse_address(copy.sender)))
    except (SRSError, AddressError):
        return False
    return original == posting.sender and copy.seals == 1


def _numbered(kind: str, number: int) -> tuple[str, Fate]:
    address, fate = ADDRESSES[kind]
    reaches = {person.format(n=number): way for person, way in fate.reaches.items()}
    return address.format(n=number), Fate(reaches, fate.refusal)


def _content(number: int, sender: str, fates: Mapping[str, Fate]) -> bytes:
    lines = [f"This is message {number}.\r\n", *["It has a few lines.\r\n"] * 20]
    return message(
        to=", ".join(fates),
        sender=sender,
        subject=f"Number {number}",
        body="".join([*lines, _last_line(number)]),
        headers=[("X-Soak", str(number))],
    )


def _last_line(number: int) -> str:
    return f"End of message {number}.\r\n"
