import pytest

from dataplane.domain.denials import closed_denial, refusal_for, usd, window_text
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
    every_ms: int = 0,
    burst: int = 0,
    is_degraded: bool = False,
) -> Refusal:
    layer = Layer(
        subject,
        "u1",
        unit,
        window,
        capacity,
        has_public_figures=is_public,
        every_ms=every_ms,
        burst=burst,
    )
    standing = Standing(layer, 0, reset_ms, "")
    denial = Denial(standing, is_never, (standing,), 7, 3, is_degraded)
    return refusal_for(denial, principal(), "", 1_700_000_000_000, jitter)


@pytest.mark.parametrize(
    ("unit", "window", "subject", "reason"),
    [
        (Unit.REQUESTS, Window.MINUTE, SubjectKind.KEY, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.TOKENS, Window.DAY, SubjectKind.GLOBAL, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.REQUESTS, Window.DAY, SubjectKind.MODEL, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.REQUESTS, Window.TOTAL, SubjectKind.ENDPOINT, Reason.RATE_LIMIT_EXCEEDED),
        (Unit.PARALLEL, Window.NONE, SubjectKind.USER, Reason.TOO_MANY_PARALLEL_REQUESTS),
        (Unit.PARALLEL, Window.NONE, SubjectKind.MODEL, Reason.TOO_MANY_PARALLEL_REQUESTS),
        (Unit.SPEND, Window.DAY, SubjectKind.GLOBAL, Reason.BUDGET_PAUSED),
        (Unit.SPEND, Window.MONTH, SubjectKind.ORGANIZATION, Reason.INSUFFICIENT_QUOTA),
        (Unit.SPEND, Window.TOTAL, SubjectKind.KEY, Reason.INSUFFICIENT_QUOTA),
        (Unit.SPEND, Window.DAY, SubjectKind.IP, Reason.INSUFFICIENT_QUOTA),
        (Unit.SPEND, Window.MONTH, SubjectKind.GLOBAL, Reason.BUDGET_PAUSED),
        (Unit.SPEND, Window.DAY, SubjectKind.MODEL, Reason.BUDGET_PAUSED),
        (Unit.SPEND, Window.MONTH, SubjectKind.ENDPOINT, Reason.BUDGET_PAUSED),
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


def test_only_what_a_person_must_change_is_final() -> None:
    of_nothing = refusal(Unit.PARALLEL, Window.NONE, reset_ms=NEVER_MS, capacity=0, is_never=True)
    used_up = refusal(window=Window.TOTAL, reset_ms=NEVER_MS)

    assert of_nothing.is_final
    assert used_up.is_final
    assert of_nothing.retry_after_seconds == used_up.retry_after_seconds == 86_400
    assert not refusal().is_final
    assert not refusal(Unit.PARALLEL, Window.NONE, reset_ms=0).is_final


def test_a_rate_says_how_much_how_often_and_how_much_at_once() -> None:
    refused = refusal(window=Window.RATE, reset_ms=40, every_ms=1_000, burst=20)
    even = refusal(window=Window.RATE, reset_ms=40, every_ms=1_000)

    assert refused.reason is Reason.RATE_LIMIT_EXCEEDED
    assert refused.retry_after_seconds == 1
    assert refused.details == {
        "layer": "user_requests_rate",
        "window": "1s",
        "resets_at": "2023-11-14T22:13:21Z",
        "limit": 10,
        "burst": 20,
    }
    assert even.details["burst"] == 10


def test_how_fast_a_rate_is_that_others_share_is_not_told() -> None:
    refused = refusal(
        window=Window.RATE, subject=SubjectKind.GLOBAL, every_ms=1_000, is_public=False
    )

    assert set(refused.details) == {"layer", "window", "resets_at"}
    assert refused.details["window"] == "rate"


@pytest.mark.parametrize(
    ("every_ms", "text"),
    [
        (1, "1ms"),
        (1_500, "1500ms"),
        (1_000, "1s"),
        (90_000, "90s"),
        (60_000, "1m"),
        (7_200_000, "2h"),
        (86_400_000, "1d"),
    ],
)
def test_the_time_of_a_rate_is_written_in_the_largest_whole_unit(every_ms: int, text: str) -> None:
    rate = Layer(SubjectKind.USER, "u1", Unit.REQUESTS, Window.RATE, 1, every_ms=every_ms)

    assert window_text(rate) == text


def test_a_budget_of_the_service_says_which_and_for_how_long() -> None:
    words = {
        (SubjectKind.GLOBAL, Window.DAY): "The service's budget for today is used up",
        (SubjectKind.GLOBAL, Window.MONTH): "The service's budget is used up",
        (SubjectKind.MODEL, Window.DAY): "The service's budget for this model for today is used up",
        (SubjectKind.ENDPOINT, Window.TOTAL): "The service's budget for this endpoint is used up",
    }

    for (subject, window), text in words.items():
        assert refusal(Unit.SPEND, window, subject).message.startswith(f"{text}: ")


def test_what_is_larger_than_a_limit_has_no_time_to_wait_for() -> None:
    too_large = refusal(is_never=True)

    assert too_large.reason is Reason.REQUEST_TOO_LARGE_FOR_LIMIT
    assert too_large.retry_after_seconds is None
    assert too_large.details == {"layer": "user_requests_per_day", "window": "day", "limit": 10}
    assert refusal(is_never=True, capacity=0).reason is Reason.RATE_LIMIT_EXCEEDED


def test_what_refuses_everything_does_so_without_counters() -> None:
    denial = closed_denial(Layer(SubjectKind.USER, "u1", Unit.SPEND, Window.MONTH, 0))
    of_requests = closed_denial(Layer(SubjectKind.USER, "u1", Unit.REQUESTS, Window.MINUTE, 0))

    assert (denial.is_never, denial.binding.reset_ms) == (True, NEVER_MS)
    assert (denial.settled_nanousd, denial.held_nanousd) == (0, 0)
    assert (of_requests.settled_nanousd, of_requests.held_nanousd) == (None, None)


@pytest.mark.parametrize("is_never", [True, False])
def test_a_refusal_within_emergency_limits_is_known_as_one(is_never: bool) -> None:
    minute = refusal(window=Window.MINUTE, is_never=is_never, is_degraded=True)
    exact = refusal(window=Window.MINUTE, is_never=is_never)

    assert minute.is_degraded
    assert not exact.is_degraded


def test_what_only_the_counters_have_room_for_waits_for_them() -> None:
    refused = refusal(Unit.TOKENS, Window.MINUTE, reset_ms=NEVER_MS, is_degraded=True)

    assert refused.reason is Reason.LIMITS_UNAVAILABLE
    assert (refused.retry_after_seconds, refused.is_final, refused.details) == (5, False, {})
    assert refused.standings == ()


@pytest.mark.parametrize(
    "subject", [SubjectKind.GLOBAL, SubjectKind.IP, SubjectKind.ENDPOINT, SubjectKind.MODEL]
)
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
