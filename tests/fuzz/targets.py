"""What is fuzzed: a function for each parser that meets what strangers, or tired people, wrote.

Each takes any octets. The first comment of each says what must hold; whatever else it raises is a
bug. `make fuzz TARGET=rules SECONDS=300` runs one under atheris, which looks for inputs that reach
new code and stops at one that takes over 5 seconds or 1 GB; test_corpus.py runs all of them over
the seeds in corpus/, without atheris.
"""

from __future__ import annotations

import atexit
import io
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path

from aliasmilter import config
from aliasmilter.forwarding import chain, dkim, dmarc, spf
from aliasmilter.forwarding.arc import POSTFIX, SENDMAIL, seal
from aliasmilter.forwarding.author import NoAuthorError, author_domain
from aliasmilter.forwarding.authserv import forged_results, trusted_results
from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.names import is_domain
from aliasmilter.forwarding.results import Results, Verdict, results_text
from aliasmilter.forwarding.srs import CannotRewrite, Rewriter, SRSError
from aliasmilter.forwarding.trace import Tracer
from aliasmilter.mail.address import Address, AddressError, parse_address, parse_path
from aliasmilter.mail.message import HeaderField, Message
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.mta import socketmap
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.resolver import resolve
from aliasmilter.routing.rules import RuleError, parse_rule, parse_settings
from tests.harness.dns import Zone, ZoneResolver
from tests.harness.signing import key_zone, our_sealer
from tests.unit.fakes import Store

NOW = 1_800_000_000.0
HOST = "mx.example.net"
SRS_DOMAIN = "srs.example.net"
REWRITER = Rewriter(["a secret"], max_age_days=21, hash_length=4, clock=lambda: NOW)
TRACER = Tracer(["a secret"])
POLICY = Policy(quarantine=Address("q", "example.net"))
ZONE: Zone = {
    **key_zone("s.example.org", "arc.one.example", "arc.fwd.example"),
    "example.org": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
    "_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]},
}
_FOLDER = tempfile.TemporaryDirectory(prefix="am-fuzz-")
atexit.register(_FOLDER.cleanup)


def addresses(data: bytes) -> None:
    # An Address that is written and read as itself, None, or AddressError, never any other error,
    # in bounded time and memory.
    with suppress(AddressError):
        for any_dots in (True, False):
            address = parse_path(data, any_dots=any_dots)
            if address is not None:
                assert parse_path(address.path.encode(), any_dots=True) == address
                assert not re.search(r"[\x00-\x1f\x7f]", address.path)
    with suppress(AddressError):
        parse_address(data.decode("utf-8", "surrogateescape"), any_dots=True)


def rules(data: bytes) -> None:
    # A Rule or RuleError, Settings or RuleError, and a Decision for an address with that rule,
    # never any other error, in bounded time and memory.
    with suppress(RuleError):
        rule = parse_rule(data)
        assert bool(rule.targets) != bool(rule.action)
    lines = data.split(b"\n")
    with suppress(RuleError):
        parse_settings(dict(zip(lines[::2], lines[1::2], strict=False)))
    texts = [line.decode("utf-8", "replace") for line in lines]
    names = ("start", "a", "b", "c", "*")
    store = Store({"example.com": dict(zip(names, texts, strict=False))})
    for local in ("start", "start+x", "other"):
        decision = resolve(Address(local, "example.com"), store, POLICY, date(2027, 1, 15))
        assert bool(decision.finals) == (decision.reply is None and decision.reason is not _DROPPED)
        assert decision.reply is None or str(decision.reply).isprintable()


_DROPPED = Reason.DISCARDED


def srs(data: bytes) -> None:
    # An Address or SRSError, an Address or CannotRewrite, never any other error, in bounded time
    # and memory; what was made here is undone here, and nothing else is.
    text = data.decode("utf-8", "replace")
    for local in (text, f"SRS0={text}", f"SRS1={text}"):
        with suppress(SRSError):
            REWRITER.reverse(Address(local, SRS_DOMAIN))
    with suppress(AddressError, CannotRewrite):
        sender = parse_address(text, any_dots=True)
        made = REWRITER.forward(sender, SRS_DOMAIN)
        if made != sender and not sender.local.upper().startswith("SRS"):
            assert REWRITER.reverse(made).key == sender.key


def headers(data: bytes) -> None:
    # A Message that is written and read as itself, one author domain or NoAuthorError, DKIM, SPF
    # and DMARC verdicts, never any other error, in bounded time and memory.
    message = Message.parse(data)
    again = Message.parse(message.as_bytes())
    assert again.as_bytes() == message.as_bytes()
    lookup = ZoneResolver(ZONE).lookup(5, 20)
    with suppress(NoAuthorError):
        assert is_domain(author_domain(message))
    signatures = dkim.evaluate(message, lookup, NOW)
    sender = spf.evaluate("192.0.2.1", "mx.example.org", data[:80].decode("latin-1"), lookup)
    author = dmarc.evaluate(message, sender, signatures, lookup)
    results = Results(sender, signatures, chain.evaluate(message, lookup), author, "192.0.2.1")
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f-\xff(]", results_text(results, HOST))
    TRACER.passed([field.value for field in message.headers], ["bob@example.com"])


def author(data: bytes) -> None:
    # One domain of the From field or NoAuthorError, never any other error, in bounded time and
    # memory.
    with suppress(NoAuthorError):
        assert is_domain(author_domain(Message((HeaderField(b"From", data),))))


def arc(data: bytes) -> None:
    # A verdict on the ARC sets of a message and a new set or a reason for none, never any other
    # error, in bounded time and memory; what nobody signed does not pass.
    message = Message.parse(data)
    resolver = ZoneResolver(ZONE)
    verdict = chain.evaluate(message, resolver.lookup(5, 20))
    assert verdict.verdict is not Verdict.PASS or b"one.example" in data
    for transport in (POSTFIX, SENDMAIL):
        seal(message, Results(arc=verdict), HOST, our_sealer(), now=NOW, transport=transport)
    chain.named_sets(message)


def results(data: bytes) -> None:
    # Results out of an Authentication-Results field, and whether it claims our name, never any
    # other error, in bounded time and memory; nothing of it gets into a header unchecked.
    message = Message((HeaderField(b"Authentication-Results", data),))
    forged_results(message, HOST)
    text = results_text(trusted_results(message, HOST, "192.0.2.1"), HOST)
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f-\xff(]", text)
    ours = Message((HeaderField(b"Authentication-Results", b" " + HOST.encode() + b";" + data),))
    assert forged_results(ours, HOST) == [1]
    trusted_results(ours, HOST)


def configuration(data: bytes) -> None:
    # A Config or ConfigError, never any other error, in bounded time and memory.
    file = Path(_FOLDER.name) / "alias-milter.toml"
    file.write_bytes(data)
    with suppress(config.ConfigError):
        config.load(file)
    file.write_bytes(data)
    with suppress(config.ConfigError):
        config.load_secrets(file)


def netstrings(data: bytes) -> None:
    # Requests or ValueError, an answer of a known kind to each request, never any other error, in
    # bounded time and memory.
    store = Store({"example.com": {"bob": "bob@example.com", "sales": "bob@example.com"}})
    maps = socketmap.Maps(Decider(lambda _: store, POLICY, REWRITER, SRS_DOMAIN, lambda: NOW))
    stream = io.BytesIO(data)
    with suppress(ValueError):
        while (request := socketmap.read_netstring(stream)) is not None:
            assert len(request) <= socketmap.MAX_REQUEST
            answer = maps.reply(request.decode("utf-8", "replace"))
            assert answer.startswith(("OK ", "NOTFOUND ", "TEMP "))
            assert len(socketmap.netstring(answer.encode())) < 100_000


def replies(data: bytes) -> None:
    # A reply line that every MTA sends as it is, never an error, in bounded time and memory.
    reply = REPLIES[Reason.REJECTED].saying(data.decode("utf-8", "replace"))
    assert str(reply).isprintable()
    assert str(reply).isascii()
    assert len(str(reply)) <= 510


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "addresses": addresses,
    "rules": rules,
    "srs": srs,
    "headers": headers,
    "author": author,
    "arc": arc,
    "results": results,
    "configuration": configuration,
    "netstrings": netstrings,
    "replies": replies,
}
