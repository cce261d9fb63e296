import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.credentials import BASE62, check_of, is_well_formed, parse_credentials
from dataplane.domain.refusals import Reason, Refusal

_HEAD = "tk_live_abcdefghij01_" + "aZ9" * 14 + "x"
KEY = _HEAD + check_of(_HEAD)
_OTHER = "tk_test_abcdefghij01_" + "aZ9" * 14 + "x"
OTHER = _OTHER + check_of(_OTHER)


def reason(headers: dict[str, str]) -> Reason:
    with pytest.raises(Refusal) as refusal:
        parse_credentials(headers)
    return refusal.value.reason


@pytest.mark.parametrize("name", ["x-api-key", "x-goog-api-key", "x-iam-key"])
def test_each_header_takes_a_key(name: str) -> None:
    credentials = parse_credentials({name: f" {KEY} ", "x-iam-org": "acme"})

    assert credentials.sha256 == hashlib.sha256(KEY.encode()).digest()
    assert credentials.organization == "acme"
    assert KEY not in repr(credentials)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_bearer_is_written_in_any_case(scheme: str) -> None:
    assert parse_credentials({"authorization": f"{scheme} {KEY}"})


def test_the_same_key_twice_is_one_and_two_are_refused() -> None:
    both = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}

    assert parse_credentials(both)
    assert reason({**both, "x-iam-key": OTHER}) is Reason.DUPLICATE_CREDENTIALS
    assert reason({**both, "authorization": "Basic x"}) is Reason.DUPLICATE_CREDENTIALS
    assert reason({"x-iam-org": "acme"}) is Reason.MISSING_CREDENTIALS


@pytest.mark.parametrize(
    "text",
    ["", "Bearer", "Bearer ", f"Basic {KEY}", f"Token {KEY}", KEY, "Bearer sk-123",
     f"Bearer {KEY} {KEY}", f"Bearer {KEY}, Bearer {KEY}"],
)  # fmt: skip
def test_other_texts_are_no_keys(text: str) -> None:
    assert reason({"authorization": text}) is Reason.INVALID_API_KEY


@given(st.integers(0, len(KEY) - 1), st.sampled_from(BASE62 + "_-é²"))
def test_one_wrong_character_is_seen(position: int, character: str) -> None:
    changed = KEY[:position] + character + KEY[position + 1 :]

    assert is_well_formed(changed) is (changed == KEY)


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    assert not is_well_formed(text)


def test_the_prefix_is_a_setting() -> None:
    head = "acme_live_abcdefghij01_" + "0" * 43
    assert is_well_formed(head + check_of(head), prefix="acme")
    assert not is_well_formed(head + check_of(head))


def test_a_device_presents_its_id_and_its_token() -> None:
    credentials = parse_credentials(
        {"x-device-id": " d1 ", "x-session-token": " tks_abc ", "x-iam-org": "acme"}
    )

    assert credentials.device_id == "d1"
    assert credentials.sha256 == hashlib.sha256(b"tks_abc").digest()
    assert credentials.organization == "acme"
    assert "tks_abc" not in repr(credentials)


@pytest.mark.parametrize(
    ("headers", "missing"),
    [
        ({"x-device-id": "d1"}, ["x-session-token"]),
        ({"x-session-token": "tks_abc"}, ["x-device-id"]),
        ({"x-device-id": " ", "x-session-token": ""}, ["x-device-id", "x-session-token"]),
    ],
)
def test_a_device_is_told_which_header_is_missing(
    headers: dict[str, str], missing: list[str]
) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_credentials(headers)

    assert refusal.value.reason is Reason.MISSING_CREDENTIALS
    assert refusal.value.details == {"headers": missing}
    shown = {"x-device-id": "X-Device-ID is", "x-session-token": "X-Session-Token is"}
    assert shown[missing[-1]] in refusal.value.message


def test_a_key_and_a_device_are_two_credentials() -> None:
    device = {"x-device-id": "d1", "x-session-token": "t"}

    assert reason({**device, "authorization": f"Bearer {KEY}"}) is Reason.DUPLICATE_CREDENTIALS
    assert reason({**device, "x-api-key": "x"}) is Reason.DUPLICATE_CREDENTIALS
    # SDKs that are given an empty key send the header nevertheless.
    assert parse_credentials({**device, "authorization": "Bearer "}).device_id == "d1"


def test_who_presents_nothing_is_told_every_header() -> None:
    with pytest.raises(Refusal) as refusal:
        parse_credentials({})

    headers = refusal.value.details["headers"]
    assert isinstance(headers, list)
    assert {"authorization", "x-api-key", "x-device-id", "x-session-token"} <= set(headers)
