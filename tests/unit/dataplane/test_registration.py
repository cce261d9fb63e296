"""What a registration's body must be, and what its throttle counts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.guards import Check, Guard, Verdict
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.registration import (
    IN_ALL,
    MAX_BODY_BYTES,
    PER_ADDRESS,
    Registration,
    registration_of,
)


def registered(**fields: Any) -> Registration:
    body = json.dumps({"deviceName": "Ada's laptop", **fields}).encode()
    return registration_of(body, "203.0.113.9", "Application/1.0")


def refused(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as raised:
        registration_of(body, "203.0.113.9", "")
    return raised.value


def test_a_registration_says_what_the_device_says_without_the_space_around_it() -> None:
    assert registered(
        deviceName="  Ada's laptop ", platform="\tmacos\n", version=" 1.4.2"
    ) == Registration("Ada's laptop", "macos", "1.4.2", "203.0.113.9", "Application/1.0")


def test_platform_and_version_may_be_absent_null_or_empty() -> None:
    assert registered() == registered(platform=None, version="") == registered(platform="  ")


def test_fields_that_are_not_known_are_passed_over() -> None:
    assert registered(color="red", nested={"a": [1]}) == registered()


@pytest.mark.parametrize(
    ("field", "longest"), [("deviceName", 100), ("platform", 64), ("version", 64)]
)
def test_a_text_is_taken_up_to_its_length_and_no_longer(field: str, longest: int) -> None:
    assert registered(**{field: "\N{SNOWMAN}" * longest})

    with pytest.raises(Refusal) as refusal:
        registered(**{field: "x" * (longest + 1)})

    assert (refusal.value.reason, refusal.value.param) == (Reason.INVALID_REQUEST, field)


@pytest.mark.parametrize("field", ["deviceName", "platform", "version"])
@pytest.mark.parametrize("value", [1, True, ["x"], {"x": 1}])
def test_what_is_no_text_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(Refusal) as refusal:
        registered(**{field: value})

    assert (refusal.value.reason, refusal.value.param) == (Reason.INVALID_REQUEST, field)


@pytest.mark.parametrize("name", ["", "   ", None])
def test_a_device_has_a_name(name: object) -> None:
    with pytest.raises(Refusal) as refusal:
        registered(deviceName=name)
    assert refusal.value.param == "deviceName"
    assert refused(b"{}").param == "deviceName"


@pytest.mark.parametrize(
    "character",
    ["\0", "\x07", "\n", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\u200b", "\ufeff"],
    ids=ascii,
)
@pytest.mark.parametrize("field", ["deviceName", "platform", "version"])
def test_characters_that_deceive_whoever_reads_the_list_are_refused(
    field: str, character: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        registered(**{field: f"a{character}b"})

    assert (refusal.value.reason, refusal.value.param) == (Reason.INVALID_REQUEST, field)


@pytest.mark.parametrize("name", ["Adas Läptop", "می‌خواهم", "👩‍👩‍👧", "机器 1"])
def test_names_of_any_script_are_taken(name: str) -> None:
    assert registered(deviceName=name).device_name == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"deviceName",
        b'{"deviceName": "x"',
        b'{"deviceName": "\xff"}',
        b'{"deviceName": "\\ud800"}',
        b'{"deviceName": NaN}',
        b"[" * 4_000,
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    refusal = refused(body)
    assert (refusal.reason, refusal.param) == (Reason.INVALID_REQUEST, None)


@pytest.mark.parametrize("body", [b"[]", b'"deviceName"', b"null", b"1"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert refused(body).reason is Reason.INVALID_REQUEST


def test_a_body_is_at_most_4_kib() -> None:
    body = json.dumps({"deviceName": "x", "pad": ""}).encode()
    whole = body.replace(b'""', b'"' + b"p" * (MAX_BODY_BYTES - len(body)) + b'"')
    assert len(whole) == 4096
    assert registration_of(whole, "", "").device_name == "x"

    refusal = refused(whole + b" ")

    assert refusal.reason is Reason.REQUEST_TOO_LARGE
    assert refusal.details == {"limit_bytes": 4096}


@given(st.binary(max_size=200))
def test_no_body_does_anything_but_be_taken_or_refused(body: bytes) -> None:
    try:
        registration_of(body, "", "")
        reason = None
    except Refusal as refusal:
        reason = refusal.reason
    assert reason in (None, Reason.INVALID_REQUEST)


@given(st.dictionaries(st.sampled_from(["deviceName", "platform", "version"]), st.text()))
def test_what_is_taken_can_be_shown_and_kept(fields: dict[str, str]) -> None:
    try:
        taken = registration_of(json.dumps(fields).encode(), "", "")
    except Refusal:
        return
    assert 1 <= len(taken.device_name) <= 100
    for text in (taken.device_name, taken.platform, taken.version):
        assert text == text.strip()
        assert not any(ord(each) < 32 for each in text)
        text.encode("utf-8")


def test_a_user_agent_is_cut() -> None:
    assert len(registration_of(b'{"deviceName":"x"}', "", "u" * 1_000).user_agent) == 256


def test_an_address_and_everybody_have_a_throttle() -> None:
    own, everybody = registered().checks()
    assert (own.guard, everybody) == (PER_ADDRESS, Check(IN_ALL, "all"))
    assert (PER_ADDRESS.burst, PER_ADDRESS.interval_ms) == (30, 120_000)
    assert (IN_ALL.burst, IN_ALL.interval_ms) == (60, 1_000)
    assert "203.0.113.9" not in own.subject


def test_neighbours_in_a_64_are_one_and_other_addresses_are_not() -> None:
    def subject(address: str) -> str:
        return Registration("x", address=address).checks()[0].subject

    assert subject("2001:db8:0:1::1") == subject("2001:db8:0:1:ffff::2")
    others = ("2001:db8:0:1::1", "2001:db8:0:2::1", "203.0.113.9", "203.0.113.8", "")
    assert len({subject(each) for each in others}) == len(others)


def test_a_guard_lets_something_through() -> None:
    for burst, interval_ms in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="nothing"):
            Guard("g", burst, interval_ms)
    assert Verdict().is_admitted
    assert not Verdict(1, Check(PER_ADDRESS, "s")).is_admitted
