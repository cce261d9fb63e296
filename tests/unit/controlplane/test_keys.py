import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.keys import (
    BASE62,
    base62,
    display_of,
    is_administrator_token,
    mint_administrator_token,
    mint_api_key,
    mint_session_token,
    sha256_of,
)

VECTORS = json.loads((Path(__file__).parents[2] / "contract" / "vectors" / "keys.json").read_text())


@pytest.mark.parametrize("case", VECTORS["valid"], ids=lambda case: case["name"])
def test_a_key_is_minted_as_the_vectors_say(case: dict[str, Any]) -> None:
    secret = bytes.fromhex(case["secret_hex"])

    text = mint_api_key(
        case["key_id"], secret, test=case["environment"] == "test", prefix=case["prefix"]
    )

    assert text == case["text"]
    assert sha256_of(text).hex() == case["sha256_hex"]


@pytest.mark.parametrize("case", VECTORS["administrator_tokens"], ids=lambda case: case["name"])
def test_a_token_is_minted_as_the_vectors_say(case: dict[str, Any]) -> None:
    text = mint_administrator_token(bytes.fromhex(case["secret_hex"]))

    assert text == case["text"]
    assert sha256_of(text).hex() == case["sha256_hex"]
    assert is_administrator_token(text)


@given(st.binary(min_size=32, max_size=32), st.from_regex(r"[a-z0-9]{12}", fullmatch=True))
def test_every_key_has_the_form_of_the_contract(secret: bytes, key_id: str) -> None:
    text = mint_api_key(key_id, secret, test=False)

    prefix, environment, found_id, rest = text.split("_")
    assert (prefix, environment, found_id, len(rest)) == ("tk", "live", key_id, 49)
    number = 0
    for digit in rest[43:]:
        number = number * 62 + BASE62.index(digit)
    assert number == zlib.crc32(text[:-6].encode())
    assert hashlib.sha256(text.encode()).digest() == sha256_of(text)


def test_a_session_token_cannot_be_taken_for_an_administrators() -> None:
    text = mint_session_token(b"\xff" * 32)

    assert text[:4] == "tks_"
    assert text[4:] == mint_administrator_token(b"\xff" * 32)[4:]
    assert not is_administrator_token(text)


def test_the_largest_secret_fits() -> None:
    assert 62**42 < 2**256 < 62**43
    assert len(mint_administrator_token(b"\xff" * 32)) == 47


@pytest.mark.parametrize(("number", "digits"), [(-1, 3), (62**3, 3)])
def test_a_number_that_does_not_fit_is_not_cut(number: int, digits: int) -> None:
    with pytest.raises(ValueError, match="fit"):
        base62(number, digits)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_not_taken(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        mint_api_key("a" * 12, bytes(length), test=False)


def test_what_is_displayed_holds_nothing_of_the_secret() -> None:
    text = mint_api_key("abc123def456", b"\x07" * 32, test=True)

    assert display_of(text) == "tk_test_abc123…"


@pytest.mark.parametrize(
    "text", ["", "tka_", "tka_" + "a" * 42, "tka_" + "a" * 44, "tkb_" + "a" * 43]
)
def test_what_is_no_token_is_seen_without_a_look_up(text: str) -> None:
    assert not is_administrator_token(text)
    assert not is_administrator_token("tka_" + "a" * 42 + "é")
