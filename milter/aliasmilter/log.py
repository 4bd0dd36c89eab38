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
    renderer = _json if style == "json" else _text
    structlog.configure(
        processors=[
            _bounded,
            *([structlog.processors.TimeStamper(fmt="iso", utc=True)] if style == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=logstream.open_stream(_loss_in[style]),
        cache_logger_on_first_use=True,
    )


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


def _bounded(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Cut what is too long, so that no sender can fill the log; in either format."""
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    for key, value in event.items():
        if type(value) is str and len(value) <= MAX_TEXT:
            continue  # nearly all
        if key == "exception":
            event[key] = _cut_trace(str(value))
        elif isinstance(value, list | tuple):
            event[key] = _cut_list(value)
        elif not isinstance(value, int | float | None):
            event[key] = _cut(str(value))
    return event


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


def _json(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps({**event, "level": level}, default=repr)


def _text(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    queue_id = escape(str(event.pop("queue_id", "")))
    name, trace = event.pop("event"), event.pop("exception", "")
    head = f"{queue_id}: " if queue_id else ""
    severity = "" if level in ("info", "debug") else f"{level}: "
    fields = "".join([f" {key}={_field(value)}" for key, value in event.items()])
    # A traceback has many lines: each says where it belongs.
    lines = "".join([f"\n{head}  {printable(line)}" for line in trace.splitlines()])
    return f"{head}{severity}{escape(str(name))}{fields}{lines}"


def _field(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    text = escape(text)
    return text if text and " " not in text and "=" not in text else f'"{text}"'
