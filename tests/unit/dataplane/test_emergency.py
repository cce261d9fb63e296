"""What may be admitted while counters cannot be read, and how it is counted."""

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.emergency import (
    MOST_BUDGET_NANOUSD,
    SLOT_MS,
    WINDOW_MS,
    RateCount,
    RollingCount,
    budget_share,
    is_counted,
    may_fail_open,
    share_of,
)
from dataplane.domain.limiting import (
    Layer,
    LayerPlan,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.domain.principals import Organization

USD = 10**9
OPEN = Organization("o1", "Open", fails_open=True)
CLOSED = Organization("o2", "Closed")


def budget(
    capacity: int = 200 * USD,
    window: Window = Window.MONTH,
    subject_kind: SubjectKind = SubjectKind.ORGANIZATION,
    **changes: Any,
) -> Layer:
    values = {"is_hard": False, **changes}
    return Layer(subject_kind, "s1", Unit.SPEND, window, capacity, **values)


@pytest.mark.parametrize(
    ("organization", "layers", "is_served"),
    [
        (OPEN, [], True),
        (CLOSED, [], False),
        (OPEN, [budget()], True),
        (OPEN, [budget(is_hard=True)], False),
        (OPEN, [budget(window=Window.DAY, is_hard=True)], False),
        (OPEN, [budget(window=Window.TOTAL, is_hard=True)], False),
        (OPEN, [budget(is_hard=True, is_shadow=True)], True),
        (OPEN, [budget(subject_kind=SubjectKind.USER, is_hard=True)], True),
        (OPEN, [budget(), budget(window=Window.DAY, is_hard=True)], False),
        (CLOSED, [budget()], False),
    ],
)
def test_only_an_organization_that_chose_it_and_has_no_hard_budget_fails_open(
    organization: Organization, layers: list[Layer], is_served: bool
) -> None:
    assert may_fail_open(organization, plan_of(layers)) is is_served


@pytest.mark.parametrize(
    ("limit", "replicas", "share"), [(60, 4, 15), (7, 2, 3), (3, 4, 1), (1, 1, 1), (9, 0, 9)]
)
def test_a_share_is_rounded_down_and_at_least_one(limit: int, replicas: int, share: int) -> None:
    assert share_of(limit, replicas) == share


@pytest.mark.parametrize(
    ("layers", "replicas", "share"),
    [
        ([], 1, 5 * USD),
        ([], 4, 5 * USD // 4),
        ([budget(200 * USD)], 1, 2 * USD),
        ([budget(200 * USD)], 4, USD // 2),
        ([budget(1_000 * USD)], 1, 5 * USD),
        ([budget(99)], 1, 0),
        ([budget(100 * USD, is_shadow=True)], 1, 5 * USD),
        ([budget(USD, window=Window.DAY)], 1, 5 * USD),
        ([budget(USD, subject_kind=SubjectKind.USER)], 1, 5 * USD),
    ],
)
def test_the_emergency_budget_is_a_part_of_the_monthly_one_and_never_more_than_five_usd(
    layers: list[Layer], replicas: int, share: int
) -> None:
    assert budget_share(plan_of(layers), replicas) == share


@given(st.integers(0, 9_000_000 * USD), st.integers(1, 1_000))
def test_replicas_together_never_spend_more_than_the_emergency_budget(
    cap: int, replicas: int
) -> None:
    plan: LayerPlan = plan_of([budget(cap)])
    assert replicas * budget_share(plan, replicas) <= min(MOST_BUDGET_NANOUSD, cap / 100)


@pytest.mark.parametrize(
    ("unit", "window", "counted"),
    [
        (Unit.REQUESTS, Window.MINUTE, True),
        (Unit.TOKENS, Window.MINUTE, True),
        (Unit.PARALLEL, Window.NONE, True),
        (Unit.REQUESTS, Window.RATE, True),
        (Unit.REQUESTS, Window.DAY, False),
        (Unit.TOKENS, Window.MONTH, False),
        (Unit.SPEND, Window.DAY, False),
        (Unit.SPEND, Window.TOTAL, False),
    ],
)
def test_what_is_counted_over_days_is_left_to_the_ledger(
    unit: Unit, window: Window, counted: bool
) -> None:
    every_ms = 1_000 if window is Window.RATE else 0
    layer = Layer(SubjectKind.USER, "u1", unit, window, 5, every_ms=every_ms)
    shadow = Layer(SubjectKind.USER, "u1", unit, window, 5, every_ms=every_ms, is_shadow=True)
    assert is_counted(layer) is counted
    assert not is_counted(shadow)


_CALLS = st.lists(
    st.tuples(st.integers(0, 20_000), st.integers(1, 9), st.integers(0, 9)), max_size=60
)


@given(_CALLS, st.integers(0, SLOT_MS), st.integers(1, 20))
def test_no_window_wherever_it_begins_sees_more_than_the_limit(
    calls: list[tuple[int, int, int]], start_ms: int, limit: int
) -> None:
    count = RollingCount()
    admitted: list[tuple[int, int]] = []
    times = accumulate((gap for gap, _, _ in calls), initial=10**12 + start_ms)
    for now_ms, (_, reserved, used) in zip(times, calls, strict=False):
        if count.used(now_ms) + reserved > limit:
            continue
        slot = count.take(reserved, now_ms)
        # What was really used is known later, and is no more than was reserved.
        count.correct(slot, min(used, reserved) - reserved)
        admitted.append((now_ms, min(used, reserved)))

    for first_ms, _ in admitted:
        window = [amount for at, amount in admitted if first_ms <= at < first_ms + WINDOW_MS]
        assert sum(window) <= limit


@given(_CALLS, st.integers(1, 20))
def test_a_wait_is_long_enough_and_no_longer_than_needed(
    calls: list[tuple[int, int, int]], limit: int
) -> None:
    count = RollingCount()
    now_ms = 10**12
    for gap_ms, amount, _ in calls:
        now_ms += gap_ms
        if count.used(now_ms) + amount <= limit:
            count.take(amount, now_ms)
        elif amount <= limit:
            missing = count.used(now_ms) + amount - limit
            wait_ms = count.wait_ms(missing, now_ms)
            assert 0 < wait_ms <= WINDOW_MS + SLOT_MS
            # Looking forgets: at the earlier moment first.
            assert count.used(now_ms + wait_ms - 1) + amount > limit
            assert count.used(now_ms + wait_ms) + amount <= limit
            now_ms += wait_ms


def test_a_request_at_the_last_moment_of_a_slot_counts_for_a_whole_window() -> None:
    count = RollingCount()
    last_ms = 10**12 + SLOT_MS - 1
    count.take(1, last_ms)

    assert count.used(last_ms + WINDOW_MS - 1) == 1
    assert count.used(last_ms + WINDOW_MS) == 1
    assert count.used(last_ms + WINDOW_MS + 1) == 0
    assert count.is_over(last_ms + WINDOW_MS + 1)


def test_a_correction_of_what_counts_no_more_changes_nothing() -> None:
    count = RollingCount()
    slot = count.take(5, 10**12)
    assert count.used(10**12 + WINDOW_MS + SLOT_MS) == 0

    count.correct(slot, 3)

    assert count.used(10**12 + WINDOW_MS + SLOT_MS) == 0


@given(st.lists(st.integers(0, 400), max_size=80), st.integers(1, 5), st.integers(10, 150_000))
def test_a_rate_lets_through_its_burst_and_then_one_per_interval(
    gaps_ms: list[int], most: int, interval_us: int
) -> None:
    rate = RateCount()
    let_through: list[int] = []
    for now_ms in accumulate(gaps_ms, initial=10**12):
        room = rate.remaining(interval_us, most, now_ms)
        assert 0 <= room <= most
        assert (room > 0) == (rate.wait_ms(interval_us, most, now_ms) == 0)
        if room:
            rate.take(interval_us, now_ms)
            assert rate.remaining(interval_us, most, now_ms) == room - 1
            let_through.append(now_ms)

    for index, first_ms in enumerate(let_through):
        for number, at_ms in enumerate(let_through[index:], start=1):
            assert (number - most) * interval_us <= (at_ms - first_ms) * 1000


def test_a_rate_says_when_the_next_and_when_all_of_it_is_back() -> None:
    rate = RateCount()
    now_ms = 10**12
    assert rate.is_over(now_ms)
    for _ in range(3):
        rate.take(1_500, now_ms)

    assert rate.remaining(1_500, 3, now_ms) == 0
    assert rate.wait_ms(1_500, 3, now_ms) == 2
    assert rate.remaining(1_500, 3, now_ms + 2) == 1
    assert rate.reset_ms(now_ms) == 5
    assert not rate.is_over(now_ms + 4)
    assert rate.is_over(now_ms + 5)
