"""Logs: one JSON object per line on stderr, without secrets, prompts or answers.

Nothing here is per request: what a request did is in the ledger. The redaction is the second
line of defence; secrets have a type that does not print.
"""

import logging
import re
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, WrappedLogger

REDACTED: Final = "[redacted]"
_SECRET_NAMES: Final = re.compile(
    r"(?:^|_)(?:secret|token|password|authorization|cookie|api_key|node_key)$", re.IGNORECASE
)
_SECRET_TEXTS: Final = (
    (re.compile(r"\btka_[0-9A-Za-z]+"), f"tka_{REDACTED}"),
    (re.compile(r"\btkj_[0-9A-Za-z_-]+"), f"tkj_{REDACTED}"),
    (re.compile(r"\b([a-z][a-z0-9]*_(?:live|test)_[a-z0-9]{12})_[0-9A-Za-z]+"), rf"\1_{REDACTED}"),
    (re.compile(r"\bbearer\s+[^\s\"',;\[]+", re.IGNORECASE), f"Bearer {REDACTED}"),
    (re.compile(r"\bsk-[0-9A-Za-z_-]{8,}"), f"sk-{REDACTED}"),
    (re.compile(r"://([^/\s:@]*):[^/\s@]+@"), rf"://\1:{REDACTED}@"),
)


def redact(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
    """Return the event without secrets: a structlog processor, the last before the renderer."""
    return {name: _redacted(name, value) for name, value in event.items()}


def redact_text(text: str) -> str:
    """Return `text` with keys, tokens and passwords replaced."""
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return text


def configure_logging(level: str, log_format: str, prefix: str = "") -> None:
    """Send this process' logs, those of libraries too, to stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if prefix:
        shared.append(_with_prefix(prefix))
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries are heard when something is wrong, not when they work.
    for noisy in ("hypercorn", "grpc", "asyncio", "aiohttp", "redis"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _with_prefix(prefix: str) -> structlog.typing.Processor:
    def add(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
        event["prefix"] = prefix
        return event

    return add


def _redacted(name: str, value: object) -> object:
    if _SECRET_NAMES.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return [redact_text(str(each)) for each in value]
    return redact_text(str(value))
