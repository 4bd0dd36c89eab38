"""Mail of our own users: who may send as what, and answers that must not show the mailbox."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from aliasmilter import log
from aliasmilter.config import SubmissionSection
from aliasmilter.forwarding.author import MAX_AUTHORS, NoAuthorError, author_addresses
from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.identity import Keeper, Token, answered, message_id
from aliasmilter.mail.address import Address, AddressError, parse_address, whole_address
from aliasmilter.mail.message import HeaderField, Message
from aliasmilter.mail.replies import Reason
from aliasmilter.mta.transaction import Transaction
from aliasmilter.routing.decision import Decision
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.ownership import mailbox_of, owners
from aliasmilter.routing.plan import Recipient
from aliasmilter.store.redis import AliasStore
from aliasmilter.store.schema import answered_key

# The fields in which an answer shows who wrote it (RFC 5322 section 3.6.2).
SHOWING = ("from", "sender", "reply-to")
_SHOWING_KEYS = frozenset(name.encode() for name in SHOWING)
_NOBODY = Address("", "")


class IdentityMode(StrEnum):
    """What becomes of an answer that would show the mailbox behind an alias."""

    OFF = "off"
    REJECT = "reject"
    REWRITE = "rewrite"


@dataclass(frozen=True, slots=True)
class Memory:
    """Remembers through which alias a message reached a mailbox.

    Attributes:
        keeper: makes and reads what is kept.
        get: the values that stand under these digests, None for those that are gone; raises
            Unavailable.
        put: keeps values under digests for some days; never raises.
    """

    keeper: Keeper
    get: Callable[[Sequence[str]], Sequence[bytes | None]]
    put: Callable[[Sequence[Token]], None]

    def note(self, message: Message, recipients: Sequence[Recipient]) -> None:
        """Remember the message for each mailbox here that it reaches through an alias."""
        identifier = message_id(message)
        if identifier is None:
            return
        tokens = [
            self.keeper.token(identifier, mailbox, decision.address)
            for decision in (recipient.decision for recipient in recipients)
            if decision.reason is not Reason.SRS_REVERSED
            for mailbox in owners(decision)
            if mailbox != mailbox_of(decision)  # which it names itself
        ]
        if tokens:
            self.put(tokens)

    def alias(self, identifiers: Sequence[bytes], mailbox: Address) -> Address | None:
        """The alias through which the nearest of these messages reached the mailbox.

        Raises:
            Unavailable: the store does not answer.
        """
        digests = self.keeper.digests(identifiers, mailbox)
        values = self.get(digests) if digests else ()
        for digest, value in zip(digests, values, strict=True):
            if value and (alias := self.keeper.alias(Token(digest, value))):
                return alias
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that would show a mailbox: as it is written, and the alias to show instead."""

    author: Address
    alias: Address


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is to be done with a message of our own user.

    Attributes:
        refusal: why it may not go out, or None.
        answer: an answer that shows the alias now, or None.
        changed: the header fields that do so, by position.
    """

    refusal: Decision | None = None
    answer: Answer | None = None
    changed: Mapping[int, HeaderField] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """What holds for sessions that have logged in.

    Attributes:
        decider: decides whose an address is.
        owners_only: a login sends as its own addresses alone.
        logins: login -> its mailboxes; a login that is not in it is an address itself.
        login_domain: of logins that have none, or "".
        identity: what becomes of an answer that would show the mailbox.
        memory: None when `identity` is off.
    """

    decider: Decider
    owners_only: bool
    logins: Mapping[str, Sequence[str]]
    login_domain: str
    identity: IdentityMode = IdentityMode.OFF
    memory: Memory | None = None

    def objection(self, login: str, sender: Address | None) -> Decision | None:
        """Why the login may not send as this address; None when it may.

        Addresses in domains that are not managed are none of our business.

        Raises:
            Unavailable: the store does not answer.
        """
        if not self.owners_only or sender is None or not sender.domain:
            return None
        decision = self.decider.decide(sender)
        if decision.settings is None:
            return None
        if decision.reply and decision.reply.is_temporary:
            return decision
        if _keys(decision) & self._mailboxes(login):
            return None
        return Decision(
            sender,
            Reason.NOT_OWNER,
            text=f"<{sender}> is no address that {login} may send from",
        )

    def outgoing(self, mail: Transaction, message: Message) -> Outgoing:
        """What is to be done with a message that a login sends.

        Args:
            mail: its login, its sender.
            message: as received.

        Raises:
            Unavailable: the store does not answer.
        """
        refusal = self._author_objection(mail.login, message)
        answer = None if refusal else self._answer(message, mail.sender)
        if answer is None:
            return Outgoing(refusal)
        changed = disguised(message, answer)
        # RFC 6531 section 3.2: an alias beyond ASCII is named in a message with SMTPUTF8 alone.
        nameable = answer.alias.is_ascii or mail.is_smtputf8
        # Sendmail itself writes a From that is missing, with the sender that the client gave.
        complete = message.count("from") > 0 and all(map(_is_utf8, changed.values()))
        if self.identity is IdentityMode.REWRITE and nameable and complete:
            shown = _shown(message.with_changed_fields(changed))
            # Written in a way that was not found: `bob(x)@example.com`, `"bob"@`, `bob+x@`.
            if max(len(changed), len(shown)) <= MAX_AUTHORS and not any(
                self.is_of_one_mailbox(address, answer.author) for address in shown
            ):
                return Outgoing(None, answer, changed)
        text = f"This answers mail to <{answer.alias}>: send it from there, not <{answer.author}>"
        return Outgoing(Decision(answer.author, Reason.SHOWS_MAILBOX, text=text))

    def is_of_one_mailbox(self, address: Address, author: Address) -> bool:
        """Whether an address is that of the author's mailbox itself, a subaddress included.

        Raises:
            Unavailable: the store does not answer.
        """
        mailbox = mailbox_of(self.decider.decide(address))
        own = mailbox_of(self.decider.decide(author))
        return mailbox is not None and own is not None and mailbox.key == own.key

    def _author_objection(self, login: str, message: Message) -> Decision | None:
        """Why the login may not send as one of the addresses in From; None when it may."""
        if not self.owners_only:
            return None
        try:
            authors = author_addresses(message)
        except NoAuthorError as error:
            # Who reads it may take it for anybody.
            return Decision(_NOBODY, Reason.NOT_OWNER, text=f"{error}: {login} may not send that")
        objections = (self.objection(login, author) for author in authors)
        return next((found for found in objections if found), None)

    def _answer(self, message: Message, sender: Address | None) -> Answer | None:
        """The mailbox that is shown and the alias it stands for, when that is what is answered."""
        identifiers = answered(message) if self.memory else ()
        if self.memory is None or not identifiers:
            return None
        for author, mailbox in self._mailboxes_shown(message, sender):
            if alias := self.memory.alias(identifiers, mailbox):
                return Answer(author, alias)
        return None

    def _mailboxes_shown(
        self, message: Message, sender: Address | None
    ) -> Iterator[tuple[Address, Address]]:
        """The mailboxes in From, then those behind From elsewhere; each with how it is written."""
        behind: set[str] = set()
        authors = _shown(message, SHOWING[:1])[:MAX_AUTHORS]
        for author in authors:
            decision = self.decider.decide(author)
            behind |= _keys(decision)
            if mailbox := mailbox_of(decision):  # an alias is what is to be shown
                yield author, mailbox
        if authors and not behind:
            return  # somebody else's message, which is handed on
        others = [*([sender] if sender else ()), *_shown(message, SHOWING[1:])]
        for other in list({one.key: one for one in others}.values())[:MAX_AUTHORS]:
            mailbox = mailbox_of(self.decider.decide(other))
            if mailbox and (mailbox.key in behind or not authors):
                yield other, mailbox

    def _mailboxes(self, login: str) -> set[str]:
        """The keys of the mailboxes of a login."""
        bare = login if "@" in login else f"{login}@{self.login_domain}"
        given = self.logins.get(login, [bare])
        return {_key(text) for text in given}


def disguised(message: Message, answer: Answer) -> dict[int, HeaderField]:
    """The fields that show the mailbox, by position, as they show the alias instead."""
    shown = whole_address(answer.author)
    alias = str(answer.alias).encode()
    return {
        position: HeaderField(found.name, changed)
        for position, found in enumerate(message.headers)
        if found.key in _SHOWING_KEYS
        and (changed := shown.sub(lambda _: alias, found.value)) != found.value
    }


def numbered(
    message: Message, changed: Mapping[int, HeaderField]
) -> tuple[tuple[str, int, str], ...]:
    """The changed fields as a milter names them: name, number among those of the name, value."""
    found = []
    for position, new in changed.items():
        same = [one.key for one in message.headers[: position + 1]].count(new.key)
        found.append((new.name.decode("ascii"), same, new.value.decode("utf-8")))
    return tuple(found)


def _keys(decision: Decision) -> set[str]:
    return {owner.key for owner in owners(decision)}


def _shown(message: Message, names: Sequence[str] = SHOWING) -> list[Address]:
    """The addresses in the fields that show who wrote it; what cannot be read shows nobody."""
    found: list[Address] = []
    for name in names:
        for field_ in message.fields(name):
            with suppress(NoAuthorError):
                found += author_addresses(Message((HeaderField(b"From", field_.value),)), None)
    return found


def _is_utf8(changed: HeaderField) -> bool:
    """Whether a milter can hand the value over: what cannot be rewritten must not go out."""
    try:
        changed.value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in changed.value


def _key(text: str) -> str:
    try:
        return parse_address(text, any_dots=True).key
    except AddressError:
        return ""  # of nobody


def make_submission(
    settings: SubmissionSection, secrets: Sequence[str], decider: Decider, store: AliasStore
) -> Submission | None:
    """What the configuration asks for; None when nothing holds for those who have logged in."""
    owners_only, identity = settings.send_as == "owners", IdentityMode(settings.identity)
    if not owners_only and identity is IdentityMode.OFF:
        return None
    return Submission(
        decider,
        owners_only,
        settings.logins,
        settings.login_domain or "",
        identity,
        None if identity is IdentityMode.OFF else _memory(settings, secrets, store),
    )


def _memory(settings: SubmissionSection, secrets: Sequence[str], store: AliasStore) -> Memory:
    seconds = settings.remember_days * 86_400

    def get(digests: Sequence[str]) -> list[bytes | None]:
        return store.ask([("GET", answered_key(digest)) for digest in digests])

    def put(tokens: Sequence[Token]) -> None:
        commands = [("SET", answered_key(t.digest), t.value, "EX", seconds) for t in tokens]
        try:
            store.ask(commands)
        except Unavailable as error:
            # The message itself must not wait for that.
            log.get().warning("an answer to a message may show the mailbox", problem=str(error))

    return Memory(Keeper(secrets), get, put)
