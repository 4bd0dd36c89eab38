"""The Sender Rewriting Scheme: reverse-paths that come back to us and can be undone.

    SRS0=HHHH=TT=example.org=alice@fwd.example.net       alice@example.org, forwarded by us
    SRS1=HHHH=other.example==HHHH=TT=...@fwd.example.net an SRS0 address of other.example

pysrs does the grammar; what it rests on `assert`, on a function gone since Python 3.9, and on
a comparison that leaks time is done here. Hashes are HMAC-SHA1 as in libsrs2 and PostSRSd, so
that with one secret each undoes what the other made.
"""

import base64
import hmac
import re
from collections.abc import Callable, Sequence
from enum import StrEnum

from SRS.Guarded import Guarded

from aliasmilter.config import SRSSection
from aliasmilter.mail.address import Address, AddressError, parse_address
from aliasmilter.mail.replies import Reason

MAX_LOCAL_OCTETS = 64  # RFC 5321 section 4.5.3.1.1: what every next hop has to take
MAX_REVERSE_OCTETS = 512  # longer ones were not made here
DAY = 86_400
_SLOTS = 1024  # days until the two characters of a timestamp come round again
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_LOOKS_LIKE_SRS = re.compile(r"SRS[01][-+=]", re.IGNORECASE)
# Old software writes SRS1=host==HHHH=TT=... without a hash of its own: after one "=" comes the
# separator of the SRS0 address within, and a host begins with none.
_HASHLESS_SRS1 = re.compile(r"\A(SRS1[-+=])(?=[^=]+=[-+=][^=]*=)", re.IGNORECASE)
_COMPLETE_SRS1 = re.compile(r"SRS1[-+=][^=]*=[^=]*=", re.IGNORECASE)
# PostSRSd before 2.2.6 writes and reads base64, later ones base64url. A hash without the
# characters in which the two differ suits both, and a day of the timestamp buys another hash.
_DAYS_TO_CHOOSE_FROM = 4
_BASE64URL = bytes.maketrans(b"+/", b"-_")


class SRSError(Exception):
    """The address cannot be undone; `reason` says why."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


class Unchanged(StrEnum):
    """Why mail leaves with its original sender."""

    NULL = "null-sender"
    MALFORMED = "malformed"
    OWN = "own"  # it is in our SRS domain already
    NO_DOMAIN = "no-domain"
    TOO_LONG = "too-long"


class CannotRewrite(Exception):  # noqa: N818  # an outcome with a documented fall-back
    """No SRS sender can be made of this one; the message and `cause` say why."""

    def __init__(self, cause: Unchanged, problem: str) -> None:
        super().__init__(problem)
        self.cause = cause


class Rewriter:
    """Makes SRS senders and undoes them.

    Args:
        secrets: the first signs, all verify.
        max_age_days: how long a return address is good.
        hash_length: characters of the hash.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        max_age_days: int,
        hash_length: int,
        clock: Callable[[], float],
    ) -> None:
        self._scheme = _Scheme(tuple(secrets), max_age_days, hash_length, clock)

    def forward(self, sender: Address, domain: str) -> Address:
        """The SRS sender of mail forwarded under `domain`.

        A sender at `domain` is ours already and stays as it is.

        Raises:
            CannotRewrite: the sender has no domain, or the local part would pass 64 octets.
                Cut short it could not be undone, so the caller keeps the original sender.
        """
        if not sender.domain:
            raise CannotRewrite(Unchanged.NO_DOMAIN, "the sender has no domain")
        if sender.domain == domain:
            return sender
        local = self._scheme.compile(sender.domain, sender.local)
        # As it is written, quotes included: that is what a next hop counts.
        octets = len(str(Address(local, "")).encode())
        if octets > MAX_LOCAL_OCTETS:
            problem = f"SRS local part of {octets} octets, at most {MAX_LOCAL_OCTETS}"
            raise CannotRewrite(Unchanged.TOO_LONG, problem)
        return Address(local, domain)

    def reverse(self, address: Address) -> Address:
        """The address that an SRS address was made of.

        What was forwarded twice, under two domains of ours, is an SRS1 of an SRS0 that is ours as
        well: both are undone. An SRS0 within that was made elsewhere stays.

        Raises:
            SRSError: forged, expired, or not in the form of SRS.
        """
        original = self._undo(address)
        if not looks_like_srs(original):
            return original
        try:
            return self._undo(original)
        except SRSError as error:
            if error.reason is Reason.SRS_EXPIRED:
                raise
            return original

    def _undo(self, address: Address) -> Address:
        """One step back."""
        if len(address.local.encode()) > MAX_REVERSE_OCTETS:
            raise SRSError(Reason.SRS_FORGED, "too long")
        try:
            domain, local = self._scheme.parse(address.local)
            return parse_address(str(Address(local, domain)), any_dots=True)
        except AddressError as error:
            raise SRSError(Reason.SRS_FORGED, str(error)) from None
        except ValueError:  # too few parts
            raise SRSError(Reason.SRS_FORGED, "not in the form of SRS") from None


def make_rewriter(
    settings: SRSSection, secrets: Sequence[str], clock: Callable[[], float]
) -> Rewriter:
    """The rewriter that a configuration asks for."""
    return Rewriter(
        secrets,
        max_age_days=settings.max_age_days,
        hash_length=settings.hash_length,
        clock=clock,
    )


def looks_like_srs(address: Address) -> bool:
    """Whether the local part has the form of SRS; says nothing about who made it."""
    return _LOOKS_LIKE_SRS.match(address.local) is not None


class _Scheme(Guarded):  # type: ignore[misc]  # pysrs has no annotations
    """pysrs's guarded scheme, its checks made so that `python -O` cannot drop them."""

    def __init__(
        self,
        secrets: tuple[str, ...],
        max_age_days: int,
        hash_length: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(secret=secrets, maxage=max_age_days, hashlength=hash_length)
        self._keys = tuple(secret.encode() for secret in secrets)
        self._clock = clock

    def compile(self, sendhost: str, senduser: str, srshost: str | None = None) -> str:
        """SRS0, or SRS1 for what is SRS already (pysrs knows that grammar)."""
        # pysrs puts its hash in the place of the old one, without which it would take the host.
        senduser = _HASHLESS_SRS1.sub(r"\1none=", senduser, count=1)
        if self.srs0re.match(senduser) or _COMPLETE_SRS1.match(senduser):
            return str(super().compile(sendhost, senduser, srshost=srshost))
        now = self._clock()
        newest = ""
        for age in range(_DAYS_TO_CHOOSE_FROM):
            timestamp = self.timestamp_create(now - age * DAY)
            local, suits_both = self._compile_srs0(sendhost, senduser, timestamp)
            if suits_both:
                return local
            newest = newest or local
        return newest

    def parse(self, user: str, srshost: str | None = None) -> tuple[str, str]:  # noqa: ARG002
        """Take an SRS local part apart: (domain, local part) of the address in it.

        Raises:
            SRSError: see `Rewriter.reverse`.
            ValueError: too few parts.
        """
        rest, is_srs1 = self.srs1re.subn("", user, 1)
        if is_srs1:
            signature, host, inner = rest.split("=", 2)
            self._verify(signature, host, inner)
            return host, "SRS0" + inner
        signature, timestamp, host, local = self.srs0re.sub("", user, 1).split("=", 3)
        self._verify(signature, timestamp, host, local)  # before the date: expired means genuine
        self.timestamp_check(timestamp)
        return host, local

    def hash_create(self, *data: bytes) -> bytes:
        return _signature(self._keys[0], data)[: self.hashlength]

    def timestamp_check(self, timestamp: str) -> bool:
        """Raises SRSError for an address that is too old; a day ahead is another MTA's clock."""
        slot = 0
        for character in timestamp.upper():
            slot = slot * 32 + _BASE32.index(character)
        age = (int(self._clock() // DAY) - slot) % _SLOTS
        if self.maxage < age < _SLOTS - 1:
            raise SRSError(Reason.SRS_EXPIRED, f"{age} days old, {self.maxage} are allowed")
        return True

    def _compile_srs0(self, host: str, user: str, timestamp: str) -> tuple[str, bool]:
        signature = self.hash_create(timestamp.encode(), host.encode(), user.encode()).decode()
        suits_both = "-" not in signature and "_" not in signature
        return f"SRS0={signature}={timestamp}={host}={user}", suits_both

    def _verify(self, signature: str, *parts: str) -> None:
        """In constant time; case does not count, for some MTAs fold it."""
        given = signature.encode().translate(_BASE64URL).lower()
        data = [part.encode() for part in parts]
        genuine = False
        for key in self._keys:
            expected = _signature(key, data)[: self.hashlength].lower()
            genuine |= hmac.compare_digest(given, expected)
        if not genuine:
            raise SRSError(Reason.SRS_FORGED, "the hash does not match")


def _signature(key: bytes, data: Sequence[bytes]) -> bytes:
    digest = hmac.digest(key, b"".join(data).lower(), "sha1")
    return base64.urlsafe_b64encode(digest)
