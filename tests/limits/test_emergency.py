"""Admission within emergency limits: shares, a budget that is kept, and what gives it back."""

import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dataplane.admissions import Reservation
from dataplane.domain.emergency import SLOT_MS, WINDOW_MS
from dataplane.domain.limiting import (
    NEVER_MS,
    Demand,
    Denied,
    Layer,
    LayerPlan,
    LimitsUnavailable,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.limits import emergency as emergency_module
from dataplane.limits.emergency import Emergency, LocalReservation
from dataplane.limits.emergency_spend import STEPS, EmergencySpend

USD = 10**9
NOON_MS = 1_795_262_400_000  # 21 November 2026
DAY_MS = 86_400_000
NOTHING = Demand(0, 0)


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now_ms = NOON_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emergency(tmp_path: Path, clock: Clock) -> Emergency:
    return Emergency(tmp_path, clock)


def layer(
    unit: Unit = Unit.REQUESTS, window: Window = Window.MINUTE, capacity: int = 8, **changes: Any
) -> Layer:
    values = {"subject_kind": SubjectKind.USER, "subject_id": "u1", **changes}
    return Layer(unit=unit, window=window, capacity=capacity, **values)


def reserve(
    emergency: Emergency,
    plan: LayerPlan,
    demand: Demand = NOTHING,
    organization_id: str = "o1",
    max_replicas: int = 4,
) -> LocalReservation:
    return emergency.reserve("r1", plan, demand, organization_id, max_replicas)


def spent(emergency: Emergency, organization_id: str = "o1") -> int:
    return emergency._spend._spent.get(organization_id, 0)


def test_a_rolling_limit_admits_this_replicas_share_of_any_minute(
    emergency: Emergency, clock: Clock
) -> None:
    plan = plan_of([layer()])
    first = reserve(emergency, plan)
    reserve(emergency, plan).settle(0, 0)

    with pytest.raises(Denied) as denied:
        reserve(emergency, plan)

    assert first.standings[0].remaining == 1
    denial = denied.value.denial
    assert (denial.binding.remaining, denial.is_never) == (0, False)
    clock.now_ms += denial.binding.reset_ms - 1
    with pytest.raises(Denied):
        reserve(emergency, plan)
    clock.now_ms += 1
    reserve(emergency, plan)


_MAX_EXAMPLES = settings(max_examples=50, deadline=None)


@_MAX_EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 2)), max_size=60),
    st.integers(3, 12),
)
def test_replicas_together_admit_no_more_than_the_limit_in_any_minute(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]], limit: int
) -> None:
    clock = Clock()
    directory = tmp_path_factory.mktemp("emergency")
    replicas = [Emergency(directory, clock) for _ in range(3)]
    plan = plan_of([layer(capacity=limit)])
    admitted: list[int] = []
    for now_ms, (_, place) in zip(
        accumulate((gap for gap, _ in calls), initial=NOON_MS), calls, strict=False
    ):
        clock.now_ms = now_ms
        try:
            reserve(replicas[place], plan, max_replicas=3)
        except Denied:
            continue
        admitted.append(now_ms)

    for first_ms in admitted:
        assert sum(first_ms <= at < first_ms + WINDOW_MS for at in admitted) <= limit


def test_tokens_are_reserved_corrected_and_given_back(emergency: Emergency, clock: Clock) -> None:
    plan = plan_of([layer(Unit.TOKENS, capacity=400)])
    large = reserve(emergency, plan, Demand(90, 0))
    assert large.standings[0].remaining == 10
    with pytest.raises(Denied):
        reserve(emergency, plan, Demand(11, 0))

    large.settle(30, 0)
    assert reserve(emergency, plan, Demand(70, 0)).standings[0].remaining == 0
    with pytest.raises(Denied):
        reserve(emergency, plan, Demand(1, 0))

    clock.now_ms += WINDOW_MS + SLOT_MS
    given_back = reserve(emergency, plan, Demand(100, 0))
    given_back.release()
    given_back.settle(100, 0)
    assert reserve(emergency, plan, Demand(100, 0)).standings[0].remaining == 0


def test_no_time_makes_a_request_fit_that_is_larger_than_the_share_or_than_the_limit(
    emergency: Emergency,
) -> None:
    plan = plan_of([layer(Unit.TOKENS, capacity=400)])
    with pytest.raises(Denied) as of_share:
        reserve(emergency, plan, Demand(101, 0))
    with pytest.raises(Denied) as of_limit:
        reserve(emergency, plan, Demand(401, 0))

    assert not of_share.value.denial.is_never
    assert of_share.value.denial.binding.remaining == 100
    assert of_share.value.denial.binding.reset_ms == NEVER_MS
    assert of_limit.value.denial.is_never
    # One that fits the share waits for what others took of it.
    reserve(emergency, plan, Demand(1, 0))
    with pytest.raises(Denied) as of_rest:
        reserve(emergency, plan, Demand(100, 0))
    assert of_rest.value.denial.binding.reset_ms > WINDOW_MS


def test_a_denial_tells_only_of_what_is_counted_here(emergency: Emergency) -> None:
    plan = plan_of(
        [
            layer(capacity=4),
            layer(Unit.TOKENS, capacity=400),
            layer(window=Window.DAY, capacity=1_000),
            layer(Unit.TOKENS, window=Window.DAY, capacity=1_000, is_shadow=True),
            layer(Unit.SPEND, Window.MONTH, USD),
        ]
    )
    reserve(emergency, plan)

    with pytest.raises(Denied) as denied:
        reserve(emergency, plan)

    denial = denied.value.denial
    assert denial.is_degraded
    names = [each.layer.name for each in denial.standings]
    assert names == ["user_requests_per_minute", "user_tokens_per_minute"]
    assert denial.binding == denial.standings[0]


def test_requests_in_flight_are_divided_and_at_least_one(emergency: Emergency) -> None:
    plan = plan_of([layer(Unit.PARALLEL, Window.NONE, 3)])
    only = reserve(emergency, plan)
    with pytest.raises(Denied):
        reserve(emergency, plan)

    only.settle(1, 0)
    only.release()
    reserve(emergency, plan).release()
    again = reserve(emergency, plan)

    assert again.standings[0].remaining == 0
    assert emergency._parallel == {("user_parallel", "u1", 0): 1}
    again.release()
    assert emergency._parallel == {}


def test_a_rate_is_slower_by_the_number_of_replicas(emergency: Emergency, clock: Clock) -> None:
    plan = plan_of([layer(window=Window.RATE, capacity=10, every_ms=1_000, burst=8)])
    for _ in range(2):
        reserve(emergency, plan)
    with pytest.raises(Denied) as denied:
        reserve(emergency, plan)

    assert denied.value.denial.binding.reset_ms == 400
    clock.now_ms += 399
    with pytest.raises(Denied):
        reserve(emergency, plan)
    clock.now_ms += 1
    reserve(emergency, plan)


def test_a_capacity_of_zero_refuses(emergency: Emergency) -> None:
    for closed in (
        layer(capacity=0),
        layer(Unit.SPEND, Window.MONTH, 0),
        layer(window=Window.DAY, capacity=0),
    ):
        with pytest.raises(Denied) as denied:
            reserve(emergency, plan_of([closed]))
        assert denied.value.denial.is_never
    reserve(emergency, plan_of([layer(capacity=0, is_shadow=True)]))


def test_quotas_other_budgets_and_shadows_do_not_bind(emergency: Emergency) -> None:
    layers = [
        layer(window=Window.DAY, capacity=1),
        layer(Unit.TOKENS, Window.MONTH, 1),
        layer(Unit.SPEND, Window.DAY, 1),
        layer(capacity=1, subject_kind=SubjectKind.KEY, is_shadow=True),
    ]
    plan = plan_of(layers)
    for _ in range(3):
        reservation = reserve(emergency, plan, Demand(10, 10))

    assert [each.layer for each in reservation.standings] == list(plan.layers)
    assert {each.remaining for each in reservation.standings} == {1}


def test_a_denied_request_takes_nothing(emergency: Emergency) -> None:
    roomy = layer(Unit.TOKENS, capacity=400)
    plan = plan_of([roomy, layer(Unit.PARALLEL, Window.NONE, 4)])
    holder = reserve(emergency, plan, Demand(10, USD))
    with pytest.raises(Denied):
        reserve(emergency, plan, Demand(10, USD // 10))
    holder.release()

    assert reserve(emergency, plan_of([roomy]), Demand(100, 0)).standings[0].remaining == 0
    assert spent(emergency) == 0


def test_an_exhausted_budget_takes_nothing_of_the_layers(emergency: Emergency) -> None:
    plan = plan_of([layer(Unit.TOKENS, capacity=400), layer(Unit.PARALLEL, Window.NONE, 4)])
    with pytest.raises(LimitsUnavailable):
        reserve(emergency, plan, Demand(100, 2 * USD))

    assert reserve(emergency, plan, Demand(100, 0)).standings[0].remaining == 0


def test_the_emergency_budget_counts_reservations_and_settles_to_the_true_figure(
    emergency: Emergency,
) -> None:
    plan = plan_of([])
    large = reserve(emergency, plan, Demand(1, USD))
    with pytest.raises(LimitsUnavailable):
        reserve(emergency, plan, Demand(1, USD))
    # Another organization has its own.
    reserve(emergency, plan, Demand(1, USD), organization_id="o2")

    large.settle(1, USD // 4)
    large.settle(1, 0)
    assert spent(emergency) == USD // 4
    reserve(emergency, plan, Demand(1, USD)).release()
    reserve(emergency, plan, Demand(1, USD))
    assert spent(emergency) == USD + USD // 4
    with pytest.raises(LimitsUnavailable):
        reserve(emergency, plan, Demand(1, 0))


def test_the_monthly_budget_bounds_the_emergency_one(emergency: Emergency) -> None:
    organization = SubjectKind.ORGANIZATION
    cap = layer(Unit.SPEND, Window.MONTH, 200 * USD, subject_kind=organization, is_hard=False)
    plan = plan_of([cap])
    reserve(emergency, plan, Demand(1, USD // 2))
    with pytest.raises(LimitsUnavailable):
        reserve(emergency, plan, Demand(1, 1))


def test_a_new_day_has_a_new_budget_and_late_settles_of_the_old_one_do_not_touch_it(
    emergency: Emergency, clock: Clock, tmp_path: Path
) -> None:
    plan = plan_of([])
    late = reserve(emergency, plan, Demand(1, 5 * USD // 4))
    clock.now_ms += DAY_MS
    reserve(emergency, plan, Demand(1, USD))

    late.settle(1, 0)

    assert spent(emergency) == USD
    for _ in range(5):
        clock.now_ms += DAY_MS
        reserve(emergency, plan, Demand(1, USD))
    assert len(list(tmp_path.glob("*.spend"))) == 3


def test_a_clock_that_goes_back_gives_no_second_budget(emergency: Emergency, clock: Clock) -> None:
    reserve(emergency, plan_of([]), Demand(1, 5 * USD // 4))
    clock.now_ms -= DAY_MS
    with pytest.raises(LimitsUnavailable):
        reserve(emergency, plan_of([]), Demand(1, 1))


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_restart_gives_no_second_budget(tmp_path: Path, clock: Clock, is_closed: bool) -> None:
    before = Emergency(tmp_path, clock)
    reserve(before, plan_of([]), Demand(1, USD), max_replicas=1).settle(1, USD // 2)
    reserve(before, plan_of([]), Demand(1, 4 * USD), max_replicas=1)
    if is_closed:
        before.close()
        before.close()

    after = Emergency(tmp_path, clock)

    # One that died loses what it had written ahead: a step at most.
    lost = 0 if is_closed else 5 * USD // STEPS + USD // 2
    assert 4 * USD + USD // 2 <= spent(after) <= 4 * USD + USD // 2 + lost
    with pytest.raises(LimitsUnavailable):
        reserve(after, plan_of([]), Demand(1, USD), max_replicas=1)


def test_budgets_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from dataplane.domain.limiting import Demand, plan_of
from dataplane.limits.emergency import Emergency
emergency = Emergency(Path({str(tmp_path)!r}), lambda: {NOON_MS})
emergency.reserve("r1", plan_of([]), Demand(1, 5_000_000_000), "o1", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    assert done.returncode == -9

    with pytest.raises(LimitsUnavailable):
        reserve(Emergency(tmp_path, Clock()), plan_of([]), Demand(1, 1), max_replicas=1)


def test_a_budget_takes_few_writes_whatever_the_number_of_requests(
    emergency: Emergency, tmp_path: Path
) -> None:
    for _ in range(1_000):
        reserve(emergency, plan_of([]), Demand(1, USD // 800)).settle(1, USD // 801)

    [file] = tmp_path.glob("*.spend")
    assert file.name == "emergency-20261121.spend"
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_bytes().splitlines()) <= STEPS + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-5],
        lambda data: data.replace(b" 1", b" 2", 1),
        lambda data: b"\0" * 100,
        lambda data: data + b"rubbish\n",
        lambda data: b"\n" + data,
        lambda data: b"\xff\xfe 1 00000000\n",
    ],
    ids=["no end", "half", "changed", "zeros", "more", "empty line", "no text"],
)
def test_a_damaged_file_counts_as_spent_and_says_so(
    tmp_path: Path, clock: Clock, damage: Any
) -> None:
    before = Emergency(tmp_path, clock)
    reserve(before, plan_of([]), Demand(1, USD))
    before.close()
    [file] = tmp_path.glob("*.spend")
    file.write_bytes(damage(file.read_bytes()))

    with capture_logs() as logs:
        after = Emergency(tmp_path, clock)

    assert [each["event"] for each in logs] == ["emergency_spend_damaged"]
    for organization_id in ("o1", "o2"):
        with pytest.raises(LimitsUnavailable):
            reserve(after, plan_of([]), NOTHING, organization_id)
    clock.now_ms += DAY_MS
    reserve(after, plan_of([]), Demand(1, USD))
    after.close()


def test_a_file_that_cannot_be_read_counts_as_spent(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "emergency-20261121.spend").mkdir()
    with capture_logs() as logs:
        after = Emergency(tmp_path, clock)
    assert [each["event"] for each in logs] == ["emergency_spend_unreadable"]
    with pytest.raises(LimitsUnavailable):
        reserve(after, plan_of([]), NOTHING)


def test_what_the_disk_does_not_take_is_not_spent(tmp_path: Path, clock: Clock) -> None:
    gone = tmp_path / "gone"
    emergency = Emergency(gone, clock)
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(LimitsUnavailable):
                reserve(emergency, plan_of([]), Demand(1, USD))
    assert [each["event"] for each in logs] == ["emergency_spend_not_kept"]

    gone.mkdir()
    reserve(emergency, plan_of([]), Demand(1, USD))
    assert spent(Emergency(gone, clock)) >= USD


def test_half_a_line_on_a_full_disk_ends_the_days_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = EmergencySpend(tmp_path, "20261121")
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:4])

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(os, "write", half)
        assert not spend.take("o1", 1, 100)
    assert [each["event"] for each in logs] == ["emergency_spend_damaged"]
    assert not spend.take("o2", 1, 100)
    spend.close()
    assert EmergencySpend(tmp_path, "20261121").is_lost


def test_a_cost_above_its_reservation_is_kept_too(tmp_path: Path, clock: Clock) -> None:
    before = Emergency(tmp_path, clock)
    reserve(before, plan_of([]), Demand(1, 10)).settle(1, 3 * USD)

    assert spent(Emergency(tmp_path, clock)) >= 3 * USD
    with pytest.raises(LimitsUnavailable):
        reserve(before, plan_of([]), Demand(1, 0))


def test_what_is_counted_is_bounded_and_room_comes_with_time(
    emergency: Emergency, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emergency_module, "MAX_COUNTS", 4)

    def plan(user: str) -> LayerPlan:
        rate = layer(window=Window.RATE, capacity=9, every_ms=1_000, subject_id=user)
        return plan_of([layer(subject_id=user), rate])

    reserve(emergency, plan("u1"))
    reserve(emergency, plan("u2"))
    with capture_logs() as logs, pytest.raises(LimitsUnavailable):
        reserve(emergency, plan("u3"))
    assert [each["event"] for each in logs] == ["emergency_counts_full"]
    assert spent(emergency) == 0
    clock.now_ms += 1_000
    # Those who are counted already are served on.
    reserve(emergency, plan("u1"))

    clock.now_ms += WINDOW_MS + SLOT_MS
    reserve(emergency, plan("u3"))
    assert len(emergency._rolling) + len(emergency._rates) <= 4


async def test_a_reservation_is_what_a_bill_needs(emergency: Emergency) -> None:
    reservation = reserve(emergency, plan_of([layer()]), Demand(5, 7))
    for_bills: Reservation = reservation

    assert for_bills.admitted_at_ms == NOON_MS
    assert await for_bills.extend(10**12)
    assert reservation.is_degraded
    assert reservation.is_open
    with pytest.raises(ValueError, match="between 0"):
        for_bills.settle(-1, 0)
    for_bills.settle(5, 7)
    assert not reservation.is_open
