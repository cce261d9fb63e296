from datetime import UTC, datetime, timedelta

from controlplane.domain.epochs import is_epoch, new_epoch

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def test_a_later_epoch_is_greater_as_text() -> None:
    first = new_epoch(NOW, b"\xff" * 6)
    second = new_epoch(NOW + timedelta(milliseconds=1), b"\x00" * 6, after=first)
    assert is_epoch(first)
    assert first < second


def test_an_epoch_is_greater_than_the_one_before_although_the_clock_went_back() -> None:
    first = new_epoch(NOW, b"\xff" * 6)
    assert new_epoch(NOW - timedelta(days=30), b"\x00" * 6, after=first) > first


def test_an_epoch_is_greater_than_those_of_the_form_before() -> None:
    assert new_epoch(NOW, b"\x00" * 6, after="f" * 32) > "f" * 32
