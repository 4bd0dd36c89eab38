"""The only file that speaks to pymilter: callbacks in, a Session's answers out.

Every callback of libmilter ends in one of two ways: with what the session said, or, when
anything at all went wrong, with a traceback in the log and a 451. Callbacks of one session may
come from different threads, but never two at a time.
"""

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import Milter
import structlog

from aliasmilter import log
from aliasmilter.mail.replies import REPLIES, Reason, Reply
from aliasmilter.mta import measures
from aliasmilter.mta.activity import Activity
from aliasmilter.mta.service import Service
from aliasmilter.mta.session import Session
from aliasmilter.mta.transaction import Client, Edits, Verdict, transport_of

ACTIONS = {
    "change the sender": Milter.CHGFROM,
    "add recipients": Milter.ADDRCPT,
    "add recipients with parameters": Milter.ADDRCPT_PAR,
    "delete recipients": Milter.DELRCPT,
    "add headers": Milter.ADDHDRS,
    "change headers": Milter.CHGHDRS,
    "quarantine": Milter.QUARANTINE,
}
# Asked for where offered. What is not answered costs no round trip; what is not called costs
# nothing at all. Of the commands, only RCPT and the end of the message need an answer.
_NEVER_CALLED = Milter.P_NOUNKNOWN | Milter.P_NODATA | Milter.P_NOEOH
_NO_REPLY = Milter.P_NR_CONN | Milter.P_NR_HELO | Milter.P_NR_MAIL | Milter.P_NR_HDR
# What we want to know; a stage without a list would get the MTA's long one.
_MACROS = {
    Milter.M_CONNECT: "v",
    Milter.M_HELO: "v",
    Milter.M_ENVFROM: "i {auth_authen} {mail_addr}",
    Milter.M_ENVRCPT: "i {rcpt_addr}",
    Milter.M_DATA: "i",
    Milter.M_EOH: "i",
    Milter.M_EOM: "i",
}

# Answers that are given all the time: numbers once, not at each callback.
_CONTINUE, _NOREPLY = int(Milter.CONTINUE), int(Milter.NOREPLY)


class Filter:
    """The callbacks of one session.

    Args:
        service: what all sessions share.
        activity: knows what goes on in the session, from now until it is closed.
        context: pymilter's handle of the session.
    """

    def __init__(self, service: Service, activity: Activity, context: Any) -> None:  # noqa: ANN401
        self.part = activity.begin()
        self._activity = activity
        self._context = context
        self._logger: structlog.typing.FilteringBoundLogger = service.logger
        self._session = Session(service)
        self._protocol = 0
        self._keeps_spaces = False  # a header value comes with the space before it
        self._turned_away: Reason | None = None

    def negotiate(self, options: list[int]) -> int:
        """Agree on the least: options are [actions, protocol steps, 0, 0] as the MTA offers."""
        offered, steps, *_ = options
        missing = [name for name, action in ACTIONS.items() if not offered & action]
        if missing:
            what = "the MTA offers too little"
            self.turn_away(Reason.MTA_INCAPABLE, what, missing=", ".join(missing))
        if offered & Milter.SETSYMLIST:
            for stage, names in _MACROS.items():
                self._context.setsymlist(stage, names)
        wanted = _NEVER_CALLED | _NO_REPLY | Milter.P_HDR_LEADSPC | Milter.P_SKIP
        self._protocol = steps & wanted
        self._keeps_spaces = bool(self._protocol & Milter.P_HDR_LEADSPC)
        actions = offered & (sum(ACTIONS.values()) | Milter.SETSYMLIST)
        options[:] = [actions, self._protocol, 0, 0]
        return _CONTINUE

    def turn_away(self, reason: Reason, what: str, **fields: object) -> None:
        """Serve nobody in this session, and say why in the log."""
        # An answer at RCPT and not a closed connection, which an MTA may be told to ignore.
        self._turned_away = reason
        self._logger.error(what, **fields)

    def connect(self, hostname: str, _family: int, address: Any) -> int:  # noqa: ANN401
        """`address` is (ip, port, ...) over a network; a path or None otherwise."""
        ip, port = address[:2] if isinstance(address, tuple) else (None, None)
        transport = transport_of(self._macro("v"))
        self._session.connected(Client(hostname, ip, port), transport)
        return self._unanswered(Milter.P_NR_CONN)

    def helo(self, name: str) -> int:
        """HELO or EHLO."""
        self._session.helo(name)
        return self._unanswered(Milter.P_NR_HELO)

    def envfrom(self, argument: bytes, *parameters: bytes) -> int:
        """MAIL."""
        self.part.in_transaction = True
        login = self._macro("{auth_authen}")
        self._session.mail(argument, parameters, login, self._resolved_sender)
        return self._unanswered(Milter.P_NR_MAIL)

    def envrcpt(self, argument: bytes, *parameters: bytes) -> int:
        """RCPT: the one question that most sessions are about."""
        if self._turned_away:
            measures.recipient(self._turned_away)
            return self._refuse(REPLIES[self._turned_away])
        queue_id = self._macro("i")
        reply = self._session.rcpt(argument, parameters, queue_id, self._resolved_recipient)
        return self._refuse(reply) if reply else _CONTINUE

    def header(self, name: str, value: bytes) -> int:
        """One header field; without P_HDR_LEADSPC its value has lost the space before it."""
        self._session.header(name, value if self._keeps_spaces else b" " + value)
        return self._unanswered(Milter.P_NR_HDR)

    def body(self, chunk: bytes) -> int:
        """A piece of the body; the first is the last when nobody wants it."""
        if self._session.wants_body:
            self._session.body(chunk)
            return _CONTINUE
        return int(Milter.SKIP if self._protocol & Milter.P_SKIP else Milter.CONTINUE)

    def eom(self) -> int:
        """The end of the message: all edits are made here."""
        try:
            return self._apply(self._session.end_of_message(self._macro("i")))
        finally:
            self.part.in_transaction = False

    def abort(self) -> int:
        """The transaction ends without a message."""
        self.part.in_transaction = False
        self._session.abort()
        return _CONTINUE

    def closed(self) -> None:
        """The session is over, however it ended."""
        self._activity.end(self.part)
        self._session.closed()

    def failed(self, where: str, error: Exception) -> int:
        """Log the exception; nothing may be accepted on what is left."""
        self._logger.error(
            "exception",
            queue_id=self._macro("i") or log.NO_QUEUE,
            callback=where,
            reason=Reason.INTERNAL_ERROR.value,
            exc_info=error,
        )
        measures.failed(where)
        self._session.broke(for_good=where == "connect")
        if where in ("envrcpt", "eom"):
            return self._refuse(REPLIES[Reason.INTERNAL_ERROR])
        return _CONTINUE

    def _apply(self, verdict: Verdict) -> int:
        if verdict.reply:
            return self._refuse(verdict.reply)
        if verdict.discard:
            return int(Milter.DISCARD)
        self._edit(verdict.edits)
        return _CONTINUE

    def _edit(self, edits: Edits) -> None:
        """The one place where a message is changed."""
        context = self._context
        for argument in edits.recipients.delete:
            context.delrcpt(argument)
        for addition in edits.recipients.add:
            parameters = (addition.parameters,) if addition.parameters else ()
            context.addrcpt(addition.path, *parameters)
        if edits.sender:
            # No ESMTP arguments: Sendmail would reset all that the client gave.
            context.chgfrom(edits.sender)
        for name, number, value in edits.change:
            context.chgheader(name, number, self._exact(value))
        for name, number in edits.remove:
            context.chgheader(name, number, None)
        for name, value in edits.headers:
            context.addheader(name, self._exact(value), 0)  # index 0: above everything
        if edits.quarantine:
            context.quarantine(edits.quarantine)

    def _exact(self, value: str) -> str:
        """A header value, with its leading space only where that was agreed."""
        return value if self._keeps_spaces else value.removeprefix(" ")

    def _refuse(self, reply: Reply) -> int:
        # libmilter takes the text for a format.
        self._context.setreply(str(reply.code), reply.enhanced, reply.text.replace("%", "%%"))
        return int(Milter.TEMPFAIL if reply.is_temporary else Milter.REJECT)

    def _unanswered(self, step: int) -> int:
        return _NOREPLY if self._protocol & step else _CONTINUE

    def _resolved_sender(self) -> str:
        return self._macro("{mail_addr}")

    def _resolved_recipient(self) -> str:
        return self._macro("{rcpt_addr}")

    def _macro(self, name: str) -> str:
        try:
            return self._context.getsymval(name) or ""
        except UnicodeDecodeError:  # a login name of a client: there is one, whatever it is
            return "\N{REPLACEMENT CHARACTER}"


def _escaped(
    _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    """Log what got past every guard and out of a callback.

    pymilter has Python print it, holding the GIL in a way that Python's own printing does not
    know: where standard error cannot be written, that waits for the GIL, which it has, for ever,
    and the whole process with it.
    """
    log.get().error("exception outside of a session", exc_info=error)


def register(service: Service, activity: Activity) -> None:
    """Hand the callbacks to libmilter; once in a process, before `Milter.opensocket`."""
    limit = service.limits.connections

    def negotiate(context: Any, options: list[int]) -> int:  # noqa: ANN401
        _end(context)  # who negotiates again begins anew
        filter_ = Filter(service, activity, context)
        context.setpriv(filter_)
        answer = filter_.negotiate(options)
        if limit and activity.sessions > limit:
            filter_.turn_away(Reason.TOO_MANY_SESSIONS, "too many sessions", limit=limit)
        return answer

    def of(context: Any) -> Filter:  # noqa: ANN401
        known: Filter | None = context.getpriv()
        if known is not None:
            return known
        # Nobody knows what was agreed on; of real MTAs none goes on like this after QUIT_NC.
        filter_ = Filter(service, activity, context)
        context.setpriv(filter_)
        filter_.turn_away(Reason.MTA_INCAPABLE, "a session without negotiation")
        return filter_

    sys.excepthook = _escaped
    Milter.set_flags(sum(ACTIONS.values()))
    Milter.set_exception_policy(Milter.TEMPFAIL)
    Milter.set_connect_callback(_guarded(of, Filter.connect))
    Milter.set_helo_callback(_guarded(of, Filter.helo))
    Milter.set_envfrom_callback(_guarded(of, Filter.envfrom))
    Milter.set_envrcpt_callback(_guarded(of, _noted(Filter.envrcpt)))
    Milter.set_header_callback(_guarded(of, Filter.header))
    Milter.set_body_callback(_guarded(of, Filter.body))
    Milter.set_eom_callback(_guarded(of, _noted(Filter.eom)))
    Milter.set_abort_callback(_guarded(of, Filter.abort))
    Milter.set_close_callback(_close)
    Milter.register("alias-milter", negotiate=negotiate)


def _guarded(of: Callable[[Any], Filter], callback: Callable[..., int]) -> Callable[..., int]:
    """A callback of libmilter out of a method of Filter, which `of` finds.

    Any exception becomes a traceback in the log and a 451 (or, unanswered, a lost event).
    """

    @functools.wraps(callback)
    def guarded(context: Any, *arguments: Any) -> int:  # noqa: ANN401  # pymilter's
        filter_ = of(context)
        try:
            return callback(filter_, *arguments)
        except Exception as error:  # noqa: BLE001  # whatever it was: logged, and a 451
            return filter_.failed(callback.__name__, error)

    return guarded


def _noted(callback: Callable[..., int]) -> Callable[..., int]:
    """Note that the callback runs: one that asks others, and must not be cut short."""

    @functools.wraps(callback)
    def noted(filter_: Filter, *arguments: Any) -> int:  # noqa: ANN401
        filter_.part.in_callback = True
        try:
            return callback(filter_, *arguments)
        finally:
            filter_.part.in_callback = False

    return noted


def _close(context: Any) -> int:  # noqa: ANN401
    _end(context)
    # The two hold each other; without this neither would ever be freed.
    context.setpriv(None)
    return _CONTINUE


def _end(context: Any) -> None:  # noqa: ANN401
    filter_: Filter | None = context.getpriv()
    if filter_ is not None:  # None: it has not been negotiated
        filter_.closed()
