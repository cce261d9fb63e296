import pytest

from dataplane.domain.denials import refusal_for, usd
from dataplane.domain.limiting import NEVER_MS, Denial, Layer, Standing, SubjectKind, Unit, Window
from dataplane.domain.refusals import Reason, Refusal
from tests.unit.dataplane.configuration import principal

HOUR_MS = 3_600_000


def refusal(
    unit: Unit = Unit.REQUESTS,
    window: Window = Window.DAY,
    subject: SubjectKind = SubjectKind.USER,
    *,
    reset_ms: int = HOUR_MS,
    is_never: bool = False,
    jitter: float = 0.0,
    capacity: int = 10,
    is_public: bool = True,
) -> Refusal:
    layer = Layer(subject, "u1", unit, window, capacity, has_public_figures=is_public)
    standing = Standing(layer, 0, reset_ms, "")
    denial = Denial(standing, is_never, (standing,), 7, 3)
    return refusal_for(denial, principal(), "", 1_700_000_000_000, jitter)


@pytest.mark.parametrize(
    ("unit", "window", "subject", "reason"),
    [
        (Unit.REQUESTS, Window.MINUTE, SubjectKind.KEY, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.TOKENS, Window.DAY, SubjectKind.GLOBAL, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.PARALLEL, Window.NONE, SubjectKind.USER, Reason.TOO_MANY_PARALLEL_REQUESTS),
        (Unit.SPEND, Window.DAY, SubjectKind.GLOBAL, Reason.BUDGET_PAUSED),
        (Unit.SPEND, Window.MONTH, SubjectKind.ORGANIZATION, Reason.INSUFFICIENT_QUOTA),
        (Unit.SPEND, Window.TOTAL, SubjectKind.KEY, Reason.INSUFFICIENT_QUOTA),
    ],
)
def test_each_kind_of_layer_has_its_reason(
    unit: Unit, window: Window, subject: SubjectKind, reason: Reason
) -> None:
    assert refusal(unit, window, subject).reason is reason


def test_a_retry_is_never_before_the_reset_and_at_most_three_percent_late() -> None:
    waits = [refusal(jitter=part / 100).retry_after_seconds for part in range(100)]

    assert min(each for each in waits if each is not None) == 3600
    assert max(each for each in waits if each is not None) <= 3708
    assert refusal(reset_ms=1).retry_after_seconds == 1
    assert refusal(reset_ms=0).retry_after_seconds == 1
    assert refusal(reset_ms=1001).retry_after_seconds == 2


def test_what_never_resets_is_tried_again_tomorrow_and_names_no_time() -> None:
    never = refusal(Unit.SPEND, Window.TOTAL, reset_ms=NEVER_MS)

    assert never.retry_after_seconds == 86_400
    assert "resets_at" not in never.details


def test_what_is_larger_than_a_limit_has_no_time_to_wait_for() -> None:
    too_large = refusal(is_never=True)

    assert too_large.reason is Reason.REQUEST_TOO_LARGE_FOR_LIMIT
    assert too_large.retry_after_seconds is None
    assert refusal(is_never=True, capacity=0).reason is Reason.RATE_LIMIT_EXCEEDED


@pytest.mark.parametrize("subject", [SubjectKind.GLOBAL, SubjectKind.IP])
@pytest.mark.parametrize("unit", [Unit.REQUESTS, Unit.SPEND])
def test_layers_that_others_share_have_no_figures(subject: SubjectKind, unit: Unit) -> None:
    details = refusal(unit, subject=subject, is_public=False).details

    assert set(details) == {"layer", "window", "resets_at"}


def test_times_are_in_utc() -> None:
    assert refusal().details["resets_at"] == "2023-11-14T23:13:20Z"


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(0, "0"), (1, "0.000000001"), (10**9, "1"), (1_500_000_000, "1.5"), (10**18, "1000000000")],
)
def test_money_is_written_exactly(nanousd: int, text: str) -> None:
    assert usd(nanousd) == text
