import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from dataplane.domain.secret import Secret
from dataplane.telemetry import configure_logging, redact, redact_text

KEY = "tk_live_abcdefghijkl_SecretSecretSecretSecretSecretSecretSecretS123456"


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} was used",
        "token tka_SecretSecretSecretSecretSecretSecretSecretS",
        "joins with tkj_hKFz2StTZWNyZXQ-Secret_Secret",
        "Authorization: Bearer SecretSecret.Secret",
        "provider said sk-proj-SecretSecret",
        "cannot reach redis://:Secret@127.0.0.1:6379/0",
        "postgresql://tollkeeper:Secret@db/x",
    ],
)
def test_texts_lose_their_secrets_and_keep_the_rest(text: str) -> None:
    shown = redact_text(text)

    assert "Secret" not in shown
    assert "[redacted]" in shown


def test_the_id_of_a_key_may_be_seen() -> None:
    assert redact_text(KEY) == "tk_live_abcdefghijkl_[redacted]"


def test_names_that_hold_secrets_are_never_shown() -> None:
    names = ("authorization", "join_token", "api_key", "provider_secret", "Cookie", "password")
    event = dict.fromkeys(names, "Secret") | {"count": 3, "path": "/v1", "body": b"Secret"}

    shown = redact(None, "info", event)

    assert "Secret" not in str(shown)
    assert (shown["count"], shown["path"], shown["body"]) == (3, "/v1", "6 bytes")


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_as_before")
def test_every_line_is_an_object_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", prefix="dataplane-1")
    log = structlog.get_logger("test")
    try:
        raise ValueError(f"Bearer {KEY}")
    except ValueError:
        log.exception("failed", secret_of=Secret(b"Secret" * 4), items=[KEY])
    logging.getLogger("redis").warning("redis://:Secret@host")
    logging.getLogger("redis").info("not heard")
    log.debug("not heard")

    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0]["event"] == "failed"
    assert len(lines) == 2
    assert all(line["prefix"] == "dataplane-1" for line in lines)
    assert "ValueError" in lines[0]["exception"]
    assert "SecretSecret" not in text
    assert ":Secret@" not in text
