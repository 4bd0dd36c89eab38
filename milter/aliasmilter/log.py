"""The log: one line an event, the queue id first, nothing in it that a sender could forge.

Text:  4Tz8Qk1x2y: accepted sender="<a@example.org>" recipients="<sales@example.com> alias ..."
JSON:  {"queue_id": "4Tz8Qk1x2y", "event": "accepted", ...}
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

NO_QUEUE = "NOQUEUE"  # as Postfix and Sendmail call what has no queue id yet


def set_up(style: Literal["text", "json"], level: str) -> None:
    """Send all log lines to standard error, where the service manager takes them."""
    renderer = structlog.processors.JSONRenderer(ensure_ascii=True) if style == "json" else _text
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            *([structlog.processors.TimeStamper(fmt="iso", utc=True)] if style == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # One write a line: several processes share the stream.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger of this project."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def escape(text: str) -> str:
    """Make text of unknown origin harmless: what does not print shows as an escape.

    That is every control character, line separator, bidirectional control and lone surrogate,
    and the quote and the backslash, so that a field cannot end early.
    """
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_escape_character(c) for c in text)


def _escape_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    queue_id = escape(str(event.pop("queue_id", "")))
    name, level = event.pop("event"), event.pop("level")
    trace = event.pop("exception", "")
    head = f"{queue_id}: " if queue_id else ""
    severity = "" if level in ("info", "debug") else f"{level}: "
    fields = "".join(f" {key}={_field(value)}" for key, value in event.items())
    # A traceback has many lines: each says where it belongs.
    lines = "".join(f"\n{head}  {escape(line)}" for line in trace.splitlines())
    return f"{head}{severity}{escape(str(name))}{fields}{lines}"


def _field(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    text = escape(str(value))
    return text if text and " " not in text and "=" not in text else f'"{text}"'
