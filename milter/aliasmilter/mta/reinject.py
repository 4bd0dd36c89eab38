"""Submitting a copy to another listener of the same MTA, by SMTP.

A milter can change the sender, and hold, for a whole message only. A copy that needs something
else is submitted anew, before the original transaction is accepted: when that fails, the sender
keeps the mail and tries again, and what was submitted the first time is not submitted twice.
"""

import contextlib
import hashlib
import re
import smtplib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from aliasmilter.mail.message import Message
from aliasmilter.routing.lookup import Unavailable

# Postfix says "2.0.0 Ok: queued as 4Tz8Qk1x2y", Sendmail "2.0.0 5BK... Message accepted ...".
_QUEUE_ID = re.compile(r"queued as (\w+)|^(?:[0-9.]+ )?(\w+) Message accepted")
_IDENTIFYING = (b"message-id", b"date", b"from", b"to", b"cc", b"subject")


class ReinjectError(Exception):
    """The listener did not take the copy; the message says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A message to submit.

    Attributes:
        sender: reverse-path in brackets; octets that are no UTF-8 as surrogates.
        mail_parameters: of MAIL, such as BODY=8BITMIME.
        recipients: path in brackets -> its parameters ("NOTIFY=... ORCPT=...", or "").
        content: header and body, CRLF line ends.
    """

    sender: str
    mail_parameters: tuple[str, ...]
    recipients: dict[str, str]
    content: bytes


class Reinjector:
    """Submits copies, each recipient once.

    Args:
        server: "HOST:PORT" of the listener.
        hostname: of this mail system; what we say in EHLO is made of it.
        timeout: seconds for each step of the dialogue.
        known: of these keys, which were remembered; raises Unavailable.
        remember: remembers keys for a day; raises Unavailable.
    """

    def __init__(
        self,
        server: str,
        hostname: str,
        timeout: float,
        known: Callable[[Sequence[str]], Collection[str]],
        remember: Callable[[Sequence[str]], None],
    ) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host.strip("[]"), int(port))
        self._timeout = timeout
        self._known = known
        self._remember = remember
        self.helo = f"alias-milter.{hostname}"

    def submit(self, copy: Copy, identity: str) -> str:
        """Submit the copy to those recipients that did not get it before.

        Args:
            copy: what to submit.
            identity: of the original message, the same at each try of its sender.

        Returns:
            The queue id that the listener gave, or "" when nobody was left to serve.

        Raises:
            ReinjectError: nobody, or nobody more, got it: the sender must keep the mail.
        """
        keys = {path: _key(identity, path) for path in copy.recipients}
        try:
            served = self._known(list(keys.values()))
        except Unavailable:
            served = ()  # a copy too many at worst; refusing would not make it fewer
        left = {path: p for path, p in copy.recipients.items() if keys[path] not in served}
        if not left:
            return ""
        try:
            reply = self._send(copy, left)
        except (OSError, smtplib.SMTPException) as error:
            raise ReinjectError(_describe(error)) from error
        self._note([keys[path] for path in left])
        match = _QUEUE_ID.search(reply)
        return (match[1] or match[2]) if match else reply[:80]

    def _note(self, keys: Sequence[str]) -> None:
        try:
            self._remember(keys)
        except Unavailable:
            return  # it has been delivered; only a retry of the sender could deliver it again

    def _send(self, copy: Copy, recipients: dict[str, str]) -> str:
        """The text of the final reply; raises OSError or SMTPException."""
        host, port = self._server
        smtp = smtplib.SMTP(host, port, local_hostname=self.helo, timeout=self._timeout)
        try:
            smtp.ehlo_or_helo_if_needed()
            _greet(smtp, copy)
            for path, parameters in recipients.items():
                given = f" {parameters}" if parameters and smtp.has_extn("dsn") else ""
                _expect(smtp.docmd("RCPT", _octets(f"TO:{path}{given}")))
            reply = _expect(smtp.data(copy.content))
        except BaseException:
            smtp.close()
            raise
        # From here on the copy is the listener's: whatever QUIT comes to changes nothing.
        with contextlib.suppress(OSError, smtplib.SMTPException):
            smtp.quit()
        return reply


def _greet(smtp: smtplib.SMTP, copy: Copy) -> None:
    """MAIL, with the parameters that the listener knows."""
    smtp.command_encoding = "latin-1"  # see _octets
    known = [p for p in copy.mail_parameters if smtp.has_extn(_EXTENSIONS[_name(p)])]
    lost = {_name(p) for p in copy.mail_parameters if p not in known}
    if lost & {"SMTPUTF8", "BODY"}:
        raise smtplib.SMTPNotSupportedError(f"the listener does not offer {', '.join(lost)}")
    _expect(smtp.docmd("MAIL", _octets(" ".join([f"FROM:{copy.sender}", *known]))))


def _octets(text: str) -> str:
    """For smtplib: each octet a letter. A sender goes on as it came, UTF-8 or not."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


_EXTENSIONS = {
    "BODY": "8bitmime",
    "SMTPUTF8": "smtputf8",
    "RET": "dsn",
    "ENVID": "dsn",
}


def mail_parameters(parameters: Sequence[bytes]) -> tuple[str, ...]:
    """Of the parameters of MAIL, those that a copy keeps (RFC 6152, RFC 6531, RFC 3461)."""
    texts = (p.decode("ascii", "replace") for p in parameters)
    return tuple(t for t in texts if _name(t) in _EXTENSIONS and t.isascii() and t.isprintable())


def identity_of(sender: str, message: Message) -> str:
    """What a message is recognised by when its sender tries again: who wrote what.

    Fields that the next try may bring anew, such as Received, do not count.
    """
    digest = hashlib.sha256(sender.encode("utf-8", "surrogateescape"))
    for name in _IDENTIFYING:
        for field in message.by_name.get(name, ()):
            digest.update(field.as_bytes())
    digest.update(message.body)
    return digest.hexdigest()


def _key(identity: str, path: str) -> str:
    return hashlib.sha256(f"{identity} {path.lower()}".encode()).hexdigest()


def _name(parameter: str) -> str:
    return parameter.partition("=")[0].upper()


def _expect(reply: tuple[int, bytes]) -> str:
    """The text of a positive reply; any other is an SMTPResponseException."""
    code, text = reply
    if code // 10 != 25:
        raise smtplib.SMTPResponseException(code, text)
    return text.decode("utf-8", "replace")


def _describe(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return f"{error.smtp_code} {said}"
    return str(error) or type(error).__name__
