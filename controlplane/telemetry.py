"""Logs: one JSON object per line on stderr, without secrets.

Everything that is logged in this process, by libraries too, passes one redaction before it is
written. It is the second line of defence: secrets have types that do not print, and nothing logs
a message of the contract.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from google.protobuf.message import Message
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED: Final = "[redacted]"

# Whole words, so that `input_tokens` and `key_id` stay readable.
_SECRET_NAMES: Final = re.compile(
    r"(?:^|_)(?:secret|token|password|passphrase|authorization|cookie|api_key|master_key|node_key"
    r"|private_key|sealed|sealed_secret)$",
    re.IGNORECASE,
)

# What stays of a key is its id, which tells keys apart and opens nothing.
_SECRET_TEXTS: Final = (
    (re.compile(r"\btka_[0-9A-Za-z]+"), f"tka_{REDACTED}"),
    (re.compile(r"\btkj_[0-9A-Za-z_-]+"), f"tkj_{REDACTED}"),
    (
        re.compile(r"\b([a-z][a-z0-9]*_(?:live|test)_[a-z0-9]{12})_[0-9A-Za-z]+"),
        rf"\1_{REDACTED}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[^\s\"',;\[]+", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(r"\bsk-[0-9A-Za-z_-]{8,}"), f"sk-{REDACTED}"),
    (re.compile(r"://([^/\s:@]*):[^/\s@]+@"), rf"://\1:{REDACTED}@"),
)

# Deeper values are not ours; they are cut so that a log line cannot grow without bound.
_MAX_DEPTH: Final = 6


def redact(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
    """Return the event without secrets: a structlog processor, the last before the renderer."""
    return {name: _redacted_field(name, value, 0) for name, value in event.items()}


def redact_text(text: str) -> str:
    """Return `text` with tokens, keys and passwords replaced."""
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return text


def _redacted_field(name: str, value: Any, depth: int) -> Any:  # Any: whatever is logged
    if _SECRET_NAMES.search(name):
        return REDACTED
    return _redacted(value, depth)


def _redacted(value: Any, depth: int) -> Any:  # Any: whatever is logged
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact_text(value)
        case bytes() | bytearray() | memoryview():
            return f"{len(value)} bytes"
        case Message():
            return f"message {value.DESCRIPTOR.full_name}"
        case _ if depth >= _MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(k): _redacted_field(str(k), v, depth + 1) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(each, depth + 1) for each in value]
        case _:
            return redact_text(str(value))


class _RedactedArguments(logging.Filter):
    """Redacts what libraries log before it becomes text, where names and types are still seen."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, with redacted arguments."""
        if isinstance(record.args, Mapping):
            record.args = {
                name: _redacted_field(str(name), value, 0) for name, value in record.args.items()
            }
        elif record.args:
            record.args = tuple(_redacted(each, 0) for each in record.args)
        return True


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send every log of this process to `stream` (stderr), redacted.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, or `console` for people.
        stream: Where to; stderr by default.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer()
        if log_format == "console"
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_RedactedArguments())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Chatty below warnings, and they name statements and addresses.
    for library in ("sqlalchemy", "alembic", "aiosqlite", "asyncio"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
