"""Through which alias a message came, remembered without an address in clear.

The answer to a message names it (In-Reply-To, References). Whoever reads the store learns nothing
from what is kept: the key is a keyed hash of Message-ID and mailbox, the value is the alias,
encrypted, and good for that key alone.
"""

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aliasmilter.mail.address import Address, AddressError, parse_address
from aliasmilter.mail.message import Message

MAX_IDS = 50
# RFC 5322 section 3.6.4: msg-id, without its obsolete white space; RFC 5322, 2.1.1: 998 octets
_MESSAGE_ID = re.compile(rb"<[^<>\s]{1,996}>")
_NONCE = 12


def message_id(message: Message) -> bytes | None:
    """The Message-ID; None when there is none that an answer could name."""
    for field in message.fields("message-id"):
        if found := _MESSAGE_ID.search(field.unfolded):
            return found[0]
    return None


def answered(message: Message) -> list[bytes]:
    """The messages that this one answers, the nearest first (RFC 5322 section 3.6.4)."""
    found: dict[bytes, None] = {}
    for name, step in (("in-reply-to", 1), ("references", -1)):
        for field in message.fields(name):
            for one in _MESSAGE_ID.findall(field.unfolded)[::step]:
                found[one] = None
    return list(found)[:MAX_IDS]


@dataclass(frozen=True, slots=True)
class Token:
    """What the store keeps: `digest` is a key, `value` what stands there."""

    digest: str
    value: bytes


class Keeper:
    """Makes and reads what is remembered.

    Args:
        secrets: the first encrypts, all are tried.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        # A key of its own for each use: none says anything about another.
        self._keys = [
            (
                hmac.digest(secret.encode(), b"alias-milter answered message", "sha256"),
                AESGCM(hmac.digest(secret.encode(), b"alias-milter alias used", "sha256")),
            )
            for secret in secrets
        ]

    def token(self, identifier: bytes, mailbox: Address, alias: Address) -> Token:
        """That a message came to a mailbox through an alias."""
        key, cipher = self._keys[0]
        digest = _digest(key, identifier, mailbox)
        nonce = os.urandom(_NONCE)
        sealed = cipher.encrypt(nonce, str(alias).encode(), digest.encode())
        return Token(digest, nonce + sealed)

    def digests(self, identifiers: Iterable[bytes], mailbox: Address) -> list[str]:
        """The keys under which the alias may stand, the nearest message first."""
        return [_digest(key, one, mailbox) for one in identifiers for key, _ in self._keys]

    def alias(self, token: Token) -> Address | None:
        """The alias in what the store held; None for what was not written here."""
        nonce, sealed = token.value[:_NONCE], token.value[_NONCE:]
        for _, cipher in self._keys:
            try:
                text = cipher.decrypt(nonce, sealed, token.digest.encode()).decode()
                return parse_address(text, any_dots=True)
            except (InvalidTag, ValueError, AddressError):
                continue
        return None


def _digest(key: bytes, identifier: bytes, mailbox: Address) -> str:
    return hmac.digest(key, identifier + b" " + mailbox.key.encode(), "sha256").hex()[:40]
