"""What authentication found, as values, and as Authentication-Results text (RFC 8601).

Nothing that a sender wrote gets into the text except domain names, selectors and IP addresses
that were checked before; reasons come out of our own fixed phrases.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

# RFC 2045, 5.1: no white space, no control characters, none of the tspecials.
_TOKEN = re.compile(r"[!#$%&'*+.0-9A-Z^_`a-z{|}~-]+")
FOLD = b";\n\t"


class Verdict(StrEnum):
    """Results of RFC 8601, 2.7; each method uses some of them."""

    NONE = "none"
    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    POLICY = "policy"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


class Identity(StrEnum):
    """Which identity SPF checked (RFC 7208, 2.3 and 2.4)."""

    MAIL_FROM = "mailfrom"
    HELO = "helo"


@dataclass(frozen=True, slots=True)
class SpfResult:
    """SPF: for a null sender the identity is HELO (RFC 7208, 2.4: postmaster@HELO)."""

    verdict: Verdict
    domain: str = ""
    identity: Identity = Identity.MAIL_FROM
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DkimResult:
    """One DKIM signature; `domain` and `selector` are empty when they were malformed."""

    verdict: Verdict
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    signature: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ArcSetResult:
    """One ARC set: the verdict on its seal, and on its message signature where that counts.

    Only the newest message signature is verified (RFC 8617, 5.2, step 4); NONE elsewhere.
    `passed` are the methods that passed as its sealer says in ARC-Authentication-Results; known
    of chains that pass.
    """

    instance: int
    domain: str = ""
    selector: str = ""
    seal: Verdict = Verdict.NONE
    message_signature: Verdict = Verdict.NONE
    reason: str = ""
    passed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ArcResult:
    """The incoming chain: NONE, PASS or FAIL, or TEMPERROR when DNS gave no answer.

    `sets` stand in order of their instance, oldest first; empty when the chain has no structure.
    """

    verdict: Verdict
    sets: tuple[ArcSetResult, ...] = ()
    reason: str = ""

    @property
    def sealers(self) -> tuple[str, ...]:
        """The sealing domains, oldest first."""
        return tuple(each.domain for each in self.sets)


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """DMARC: `policy` is what the author domain asks for when the message fails."""

    verdict: Verdict
    domain: str = ""
    policy: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """All results of one message; None where nothing is known (`mode = "trust"`)."""

    spf: SpfResult | None = None
    dkim: tuple[DkimResult, ...] = ()
    arc: ArcResult | None = None
    dmarc: DmarcResult | None = None
    client_ip: str = ""

    @property
    def authenticated(self) -> tuple[str, ...]:
        """The domains that have proved to be behind the message: by DKIM, then by SPF.

        A HELO name that passes says who runs the host, not who wrote (RFC 7208 section 2.3).
        """
        found = [one.domain for one in self.dkim if one.verdict is Verdict.PASS]
        spf = self.spf
        if spf and spf.verdict is Verdict.PASS and spf.identity is Identity.MAIL_FROM:
            found.append(spf.domain)
        return tuple(dict.fromkeys(domain for domain in found if domain))

    @property
    def summary(self) -> dict[str, str]:
        """The verdicts by method, for a log line."""
        named = {"spf": self.spf, "dmarc": self.dmarc, "arc": self.arc}
        found = {method: result.verdict.value for method, result in named.items() if result}
        if self.dkim:
            found["dkim"] = ",".join(result.verdict.value for result in self.dkim)
        return found


def results_header(results: Results, authserv_id: str) -> bytes:
    """The value of an Authentication-Results field, folded, starting with a space."""
    return b" " + results_text(results, authserv_id)


def results_text(results: Results, authserv_id: str) -> bytes:
    """authserv-id and results, folded: what both A-R and ARC-Authentication-Results carry."""
    texts = [text.encode("ascii", "replace") for text in _texts(results)]
    return FOLD.join([authserv_id.encode("ascii", "replace"), *(texts or [b"none"])])


def _texts(results: Results) -> list[str]:
    found = []
    if results.arc is not None:
        # RFC 8617, 10.2: smtp.remote-ip is the address of the client at this hop.
        found.append(_one("arc", results.arc, ("smtp.remote-ip", results.client_ip)))
    if results.spf is not None:
        identity = f"smtp.{results.spf.identity.value}"
        found.append(_one("spf", results.spf, (identity, results.spf.domain)))
    found.extend([_dkim(each) for each in results.dkim])
    if results.dmarc is not None:
        policy = ("policy.dmarc", results.dmarc.policy)
        found.append(_one("dmarc", results.dmarc, ("header.from", results.dmarc.domain), policy))
    return found


def _dkim(result: DkimResult) -> str:
    return _one(
        "dkim",
        result,
        ("header.d", result.domain),
        ("header.s", result.selector),
        ("header.a", result.algorithm),
        ("header.b", result.signature),  # RFC 6008
    )


def _one(
    method: str,
    result: SpfResult | DkimResult | ArcResult | DmarcResult,
    *properties: tuple[str, str],
) -> str:
    """One resinfo (RFC 8601, 2.2); properties without a value are left out."""
    words = [f"{method}={result.verdict.value}"]
    if result.reason:
        words.append(f"reason={_value(result.reason)}")
    words += [f"{name}={_value(value)}" for name, value in properties if value]
    return " ".join(words)


def _value(text: str) -> str:
    """As a token, or quoted where it is none (RFC 2045, 5.1)."""
    if _TOKEN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
