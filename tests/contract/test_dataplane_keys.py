"""The data plane's reading of API keys against the vectors that both planes share."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataplane.domain.credentials import is_well_formed, parse_credentials
from dataplane.domain.refusals import Reason, Refusal

_VECTORS = json.loads((Path(__file__).parent / "vectors" / "keys.json").read_text("utf-8"))


@pytest.mark.parametrize("case", _VECTORS["valid"], ids=lambda case: case["name"])
def test_a_key_that_was_minted_is_read(case: dict[str, Any]) -> None:
    assert is_well_formed(case["text"], case["prefix"])
    assert not is_well_formed(case["text"], "other")

    credentials = parse_credentials({"x-api-key": case["text"]}, case["prefix"])

    assert credentials.sha256.hex() == case["sha256_hex"]


@pytest.mark.parametrize(
    "text",
    [case["text"] for case in (*_VECTORS["malformed"], *_VECTORS["administrator_tokens"])],
)
def test_other_texts_are_refused_without_a_look_up(text: str) -> None:
    assert not is_well_formed(text)
    # A header's value has no white space at its ends (RFC 9110, section 5.5).
    if text == text.strip():
        with pytest.raises(Refusal) as refusal:
            parse_credentials({"x-api-key": text})
        assert refusal.value.reason is Reason.INVALID_API_KEY
