"""The log: one line an event, the queue id first, nothing in it that a sender could forge.

Text:  4Tz8Qk1x2y: accepted sender="<a@example.org>" recipients="<sales@example.com> alias ..."
JSON:  {"queue_id": "4Tz8Qk1x2y", "event": "accepted", ...}

Every text in it is bounded, and what was cut says how long it was: "<aaaa...[50012]". A line that
cannot be written is lost, and counted; nobody's mail depends on the log (`logstream`).
"""

import json
import logging
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal

import structlog

from aliasmilter import logstream

NO_QUEUE = "NOQUEUE"  # as Postfix and Sendmail call what has no queue id yet

MAX_TEXT = 400  # characters of one field; an address has 320 at most
MAX_LIST = 16_000  # characters of all the items of a list together
MAX_TRACE = 100  # lines of a traceback; what matters most stands at its end
_TRACE_HEAD = 20
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without `"`, `=` and `\`


def set_up(style: Literal["text", "json"], level: str) -> None:
    """Send all log lines to standard error, where the service manager takes them."""
    structlog.configure(
        processors=[_json if style == "json" else _text],
        wrapper_class=_direct(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=logstream.open_stream(_loss_in[style]),
        cache_logger_on_first_use=True,
    )


def _direct(level: int) -> type:
    """A logger of structlog for a level, which goes to the one processor without detours.

    A line for each message and each refusal: the chain that structlog walks in general, with
    copies of all fields, would take longer than all that is done here.
    """

    class Direct(structlog.make_filtering_bound_logger(level)):  # type: ignore[misc]
        def _proxy_to_logger(self, level: str, event: str | None = None, **fields: object) -> None:
            process = self._processors[0]
            if (process is _text or process is _json) and not self._context:
                fields["event"] = event
                self._logger.msg(process(self._logger, level, fields))
            else:  # a test captures lines, or somebody has bound fields
                super()._proxy_to_logger(level, event, **fields)

    return Direct


_loss_in: dict[str, Callable[[int], str]] = {
    "text": lambda lost: f"error: {lost} log lines lost",
    "json": lambda lost: json.dumps({"level": "error", "event": "log lines lost", "lost": lost}),
}


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger of this project, as `set_up` has it now."""
    # Bound: what get_logger() returns would be made anew for each line.
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind()
    return logger


def escape(text: str) -> str:
    """Make text of unknown origin harmless: what does not print shows as an escape.

    That is every control character, line separator, bidirectional control and lone surrogate,
    and the quote and the backslash, so that a field cannot end early.
    """
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return printable(text.replace("\\", "\\\\").replace('"', '\\"'))


def printable(text: str) -> str:
    """Show what does not print as an escape; for text that stands in no quotes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape_character(c) for c in text)


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}...[{len(text)}]"


def _cut_list(items: Sequence[object]) -> list[str]:
    """The items, each of them cut; the last one says how many there were when not all are shown."""
    room = MAX_LIST
    shown: list[str] = []
    for item in items:
        text = _cut(str(item))
        room -= len(text)
        if room < 0:
            return [*shown, f"...[{len(items)}]"]
        shown.append(text)
    return shown


def _cut_trace(trace: str) -> str:
    lines = [_cut(line) for line in trace.splitlines()]
    if len(lines) > MAX_TRACE:
        tail = MAX_TRACE - _TRACE_HEAD
        lines[_TRACE_HEAD:-tail] = [f"...[{len(lines)} lines]"]
    return "\n".join(lines)


def _cut_value(value: object) -> object:
    """What stands for a value in JSON: numbers are numbers, lists are lists, all else is text."""
    if isinstance(value, list | tuple):
        return _cut_list(value)
    return value if isinstance(value, int | float | None) else _cut(str(value))


def _trace(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """Take the exception out of the event, and make its traceback."""
    if "exc_info" in event:
        structlog.processors.format_exc_info(logger, level, event)
    return _cut_trace(str(event.pop("exception", "")))


_timestamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


def _json(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    trace = _trace(logger, level, event)
    line = {key: _cut_value(value) for key, value in event.items()}
    if trace:
        line["exception"] = trace
    _timestamp(logger, level, line)
    return json.dumps({**line, "level": level}, default=repr)


def _text(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    trace = _trace(logger, level, event) if "exc_info" in event else ""
    queue_id = escape(_cut(str(event.pop("queue_id", ""))))
    name = event.pop("event")
    head = f"{queue_id}: " if queue_id else ""
    severity = "" if level in ("info", "debug") else f"{level}: "
    parts = [head, severity, escape(_cut(str(name)))]
    for key, value in event.items():
        text = _as_text(value)
        if not _PLAIN.fullmatch(text):
            text = escape(text)
            if not text or " " in text or "=" in text:
                text = f'"{text}"'
        parts.append(f" {key}={text}")
    # A traceback has many lines: each says where it belongs.
    parts += [f"\n{head}  {printable(line)}" for line in trace.splitlines()]
    return "".join(parts)


def _as_text(value: object) -> str:
    return ", ".join(_cut_list(value)) if isinstance(value, list | tuple) else _cut(str(value))
