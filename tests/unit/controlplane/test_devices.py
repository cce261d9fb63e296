import itertools
from datetime import UTC, datetime, timedelta

import pytest
from tollkeeper.common.v1 import devices_pb2

from controlplane.domain.devices import (
    MAX_PENDING,
    MAX_PENDING_OF_ADDRESS,
    DeviceAction,
    DeviceStatus,
    InvalidTransitionError,
    check_room,
    check_said,
    next_status,
    status_at,
    without_controls,
)
from controlplane.domain.errors import ExhaustedError, InvalidError, PreconditionError

PENDING, APPROVED, REJECTED, SUSPENDED, REVOKED = DeviceStatus
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

# What the contract says, once more and by hand: status → what may follow → where that leads.
AFTER: dict[DeviceStatus, dict[str, DeviceStatus]] = {
    PENDING: {"approve": APPROVED, "reject": REJECTED, "revoke": REVOKED},
    APPROVED: {"suspend": SUSPENDED, "rotate": APPROVED, "revoke": REVOKED},
    SUSPENDED: {
        "resume": APPROVED,
        "suspend": SUSPENDED,
        "rotate": SUSPENDED,
        "revoke": REVOKED,
    },
    REJECTED: {"approve": APPROVED, "revoke": REVOKED},
    REVOKED: {},
}


@pytest.mark.parametrize(
    ("status", "action"),
    list(itertools.product(DeviceStatus, DeviceAction)),
    ids=lambda value: value.name.lower(),
)
def test_what_may_follow_on_what(status: DeviceStatus, action: DeviceAction) -> None:
    expected = AFTER[status].get(action.value)

    if expected is not None:
        assert next_status(status, action) is expected
        return
    with pytest.raises(InvalidTransitionError, match=rf"^cannot {action} an? \w+ device$"):
        next_status(status, action)


def test_a_transition_that_is_refused_is_a_matter_of_state_and_not_of_form() -> None:
    with pytest.raises(PreconditionError) as caught:
        next_status(REVOKED, DeviceAction.APPROVE)

    assert caught.value.detail == "cannot approve a revoked device"


def test_statuses_have_the_numbers_of_the_contract() -> None:
    numbers = {f"DEVICE_STATUS_{status.name}": int(status) for status in DeviceStatus}

    assert {"DEVICE_STATUS_UNSPECIFIED": 0, **numbers} == dict(devices_pb2.DeviceStatus.items())


def test_a_suspension_is_over_from_its_end_on() -> None:
    moment = timedelta(microseconds=1)

    assert status_at(SUSPENDED, NOW, NOW - moment) is SUSPENDED
    assert status_at(SUSPENDED, NOW, NOW) is APPROVED
    assert status_at(SUSPENDED, None, NOW) is SUSPENDED


@pytest.mark.parametrize("status", [PENDING, APPROVED, REJECTED, REVOKED])
def test_time_changes_nothing_else(status: DeviceStatus) -> None:
    assert status_at(status, NOW - timedelta(days=1), NOW) is status


def test_the_last_place_is_taken_and_no_more() -> None:
    check_room(waiting=MAX_PENDING - 1, waiting_of_address=MAX_PENDING_OF_ADDRESS - 1)

    for waiting, of_address in ((MAX_PENDING, 0), (MAX_PENDING_OF_ADDRESS, MAX_PENDING_OF_ADDRESS)):
        with pytest.raises(ExhaustedError) as caught:
            check_room(waiting=waiting, waiting_of_address=of_address)
        assert caught.value.retry_after > timedelta(0)


@pytest.mark.parametrize("text", ["a\x00", "\x1b[2J", "a\nb", "\x7f", "\x9b"])
def test_a_device_cannot_steer_an_administrators_terminal(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_said(text, field="device_name")

    assert caught.value.field == "device_name"


@pytest.mark.parametrize("text", ["", "Алиса's Mac", "👩‍💻 laptop"])
def test_a_device_may_have_any_other_name(text: str) -> None:
    check_said(text, field="device_name")


def test_what_a_program_sent_along_is_kept_without_what_steers_terminals() -> None:
    assert without_controls("curl/8\x1b[2J\x9b né") == "curl/8[2J né"
