"""Nothing secret reaches the log, whoever logs it and however it is wrapped."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.telemetry import configure_logging

TOKEN = "tka_" + "Zq3" * 14 + "x"
KEY = "tk_live_abcdef012345_" + "Zq3" * 16
SECRETS = (TOKEN, KEY.rpartition("_")[2], "hunter2", "sk-proj-abcdefghijk")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, as it is written."""
    root, before = logging.getLogger(), logging.getLogger().handlers
    level = root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    root.handlers = before
    root.setLevel(level)
    structlog.reset_defaults()


def written(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.mark.parametrize(
    "fields",
    [
        {"presented": TOKEN},
        {"note": f"called with {KEY} and failed"},
        {"header": f"Bearer {TOKEN}"},
        {"header": "authorization: bearer hunter2"},
        {"url": "postgresql+asyncpg://app:hunter2@db:5432/tollkeeper"},
        {"secret": "hunter2"},
        {"provider_password": "hunter2"},
        {"nested": {"list": [{"api_key": "hunter2"}, TOKEN]}},
        {"bundle": pb.SecretBundle(credential_id="c", secret=b"hunter2")},
        {"raw": b"hunter2"},
        {"error": ValueError("sk-proj-abcdefghijk is not accepted")},
    ],
    ids=repr,
)
def test_secrets_do_not_reach_the_log(log: io.StringIO, fields: dict[str, Any]) -> None:
    structlog.get_logger("test").info("event", **fields)
    logging.getLogger("library").warning("library says %s", fields)

    assert len(written(log)) == 2
    for secret in SECRETS:
        assert secret not in log.getvalue()


def test_secrets_in_tracebacks_do_not_reach_the_log(log: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot use {TOKEN}")
    except ValueError:
        structlog.get_logger("test").exception("failed")
        logging.getLogger("library").exception("failed")

    first, second = written(log)
    assert "ValueError" in first["exception"]
    assert "ValueError" in second["exception"]
    assert TOKEN not in log.getvalue()


def test_what_helps_stays_readable(log: io.StringIO) -> None:
    structlog.get_logger("test").info(
        "event", input_tokens=7, key_id="abcdef012345", key=KEY, node_id="node-1"
    )

    (line,) = written(log)
    assert line["input_tokens"] == 7
    assert line["key_id"] == "abcdef012345"
    assert line["key"] == "tk_live_abcdef012345_[redacted]"
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")
