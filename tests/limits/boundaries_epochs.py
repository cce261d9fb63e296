"""Directed cases of counters that were lost: another counter epoch, and requests that outlive it."""

from collections.abc import Callable
from typing import Final

from dataplane.domain.limiting import Unit, Window, plan_of
from dataplane.limits.counters import LEASE_MS, ROLLING_TOKENS
from dataplane.limits.operations import Answer, Balance, Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS, budget, layer, rate
from tests.limits.script_runner import NOON_MS

REQUESTS: Final = layer(Unit.REQUESTS, Window.DAY, 100)
TOKENS: Final = layer(Unit.TOKENS, Window.DAY, 100)
MONEY: Final = budget(100)
SOFT: Final = budget(100, Window.MONTH, is_hard=False)
PARALLEL: Final = layer(Unit.PARALLEL, Window.NONE, 1)


def a_request_of_another_counter_epoch_moves_no_counter(driver: Driver) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.MINUTE, 100), TOKENS, MONEY, SOFT])
    ends: dict[str, Callable[[], Answer]] = {
        "settle": lambda: driver.settle("a", 0, 0),
        "release": lambda: driver.release("a"),
        "extend": lambda: driver.extend("a", 50),
        "heartbeat": lambda: driver.heartbeat("a"),
    }
    for name, end in ends.items():
        driver.wipe()
        assert driver.open_epoch(f"before {name}") == [Outcome.OK]
        assert driver.admit("a", plan, 30, 30)[0] == Outcome.OK
        assert driver.open_epoch(f"after {name}") == [Outcome.OK]
        before = driver.balances(plan)
        assert end() == [Outcome.GONE], name
        assert driver.balances(plan) == before, name
    driver.settle("a", 0, 0)
    assert (driver.reservations(), driver.leases()) == (set(), {})


def a_dead_request_of_another_counter_epoch_is_listed_and_moves_no_counter(
    driver: Driver,
) -> None:
    plan = plan_of([TOKENS, MONEY])
    assert driver.admit("a", plan, 30, 30)[0] == Outcome.OK
    assert driver.open_epoch("second") == [Outcome.OK]
    driver.tick(LEASE_MS)
    assert driver.overdue() == ["a"]
    assert driver.reap("a", driver.maintain("n1")[1]) == [Outcome.OK, []]
    assert driver.balances(plan) == [(30, 0), (0, 30)]
    assert (driver.overdue(), driver.unreported()) == ([], ["a"])
    assert driver.settle("a", 10, 10) == [Outcome.GONE]
    assert driver.balances(plan) == [(30, 0), (0, 30)]


def a_request_of_another_counter_epoch_that_asks_again_is_counted(driver: Driver) -> None:
    plan = plan_of([REQUESTS, MONEY])
    assert driver.admit("a", plan, cost=30)[0] == Outcome.OK
    driver.redis.delete(driver.counter_key(REQUESTS), driver.counter_key(MONEY))
    assert driver.open_epoch("second") == [Outcome.OK]
    assert driver.admit("a", plan, cost=30)[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0), (0, 30)]
    assert driver.settle("a", cost=20)[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0), (20, 0)]


def lost_counters_admit_nobody_and_can_be_maintained(driver: Driver) -> None:
    plan = plan_of([MONEY])
    driver.wipe()
    assert driver.admit("a", plan) == [Outcome.COLD]
    assert driver.settle("a") == [Outcome.GONE]
    assert (driver.reservations(), driver.leases()) == (set(), {})
    assert driver.ask(Balance(driver.bind(plan))) == [Outcome.COLD]
    fence = driver.maintain("n1")[1]
    assert driver.correct(MONEY, (0, 0), (60, 0), fence=fence)[0] == Outcome.OK
    assert driver.admit("b", plan) == [Outcome.COLD]
    assert driver.open_epoch("second", fence) == [Outcome.OK]
    assert driver.admit("c", plan, cost=41)[0] == Outcome.DENY
    assert driver.admit("d", plan, cost=40)[0] == Outcome.OK
    assert driver.admit("e", plan, epoch="epoch of the test") == [Outcome.COLD]


def a_restored_request_counts_once_and_is_settled_as_ever(driver: Driver) -> None:
    plan = plan_of([REQUESTS, TOKENS, MONEY, SOFT, PARALLEL])
    assert driver.admit("a", plan, 60, 60, expected=20)[0] == Outcome.OK
    driver.wipe()
    counters = driver.holdings(plan, 60, 60, expected=20)
    assert driver.restore("a", counters, "second") == [Outcome.OK]
    assert driver.restore("a", counters, "second") == [Outcome.DUPLICATE]
    held = [(1, 0), (60, 0), (0, 60), (0, 20), (1, 0)]
    assert driver.open_epoch("second") == [Outcome.OK]
    assert driver.restore("a", counters, "second") == [Outcome.DUPLICATE]
    assert driver.balances(plan) == held
    assert driver.leases() == {"a": driver.limiter_now_ms + LEASE_MS}
    assert driver.admit("b", plan)[0] == Outcome.DENY
    assert driver.heartbeat("a") == [Outcome.OK]
    assert driver.extend("a", 101) == [Outcome.DENY]
    assert driver.extend("a", 30) == [Outcome.OK]
    assert driver.settle("a", 25, 25)[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0), (25, 0), (25, 0), (25, 0), (0, 0)]


def a_request_that_is_still_known_is_restored_in_its_place(driver: Driver) -> None:
    plan = plan_of([MONEY, PARALLEL])
    assert driver.admit("a", plan, cost=60)[0] == Outcome.OK
    assert driver.correct(MONEY, (0, 60), (0, 0))[0] == Outcome.OK
    assert driver.restore("a", driver.holdings(plan, 1, 60), "second") == [Outcome.OK]
    assert driver.open_epoch("second") == [Outcome.OK]
    assert driver.balances(plan) == [(0, 60), (1, 0)]
    assert driver.settle("a", cost=50)[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0), (0, 0)]


def a_restored_request_takes_nothing_from_the_windows_of_others(driver: Driver) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.MINUTE, 100), rate(1, 60_000, burst=2)])
    assert driver.admit("a", plan, tokens=60)[0] == Outcome.OK
    slot, ends_ms = NOON_MS // SLOT_MS, NOON_MS + WINDOW_MS + SLOT_MS
    counters: list[int | str] = [
        ROLLING_TOKENS,
        driver.counter_key(plan.layers[1]),
        60,
        slot,
        ends_ms,
    ]
    driver.wipe()
    assert driver.restore("a", counters, "second") == [Outcome.OK]
    assert driver.open_epoch("second") == [Outcome.OK]
    assert driver.balances(plan) == [(0, 0), (0, 0)]
    assert driver.admit("b", plan, tokens=90)[0] == Outcome.OK
    assert driver.settle("a", tokens=0)[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0), (90, 0)]


def a_request_that_was_given_back_is_not_restored(driver: Driver) -> None:
    plan = plan_of([MONEY])
    driver.wipe()
    assert driver.release("a") == [Outcome.GONE]
    restored = driver.restore("a", driver.holdings(plan, 1, 60), "second")
    assert restored == [Outcome.RELEASED]
    assert driver.open_epoch("second") == [Outcome.OK]
    assert driver.balances(plan) == [(0, 0)]


CASES: Final[tuple[Case, ...]] = (
    a_request_of_another_counter_epoch_moves_no_counter,
    a_dead_request_of_another_counter_epoch_is_listed_and_moves_no_counter,
    a_request_of_another_counter_epoch_that_asks_again_is_counted,
    lost_counters_admit_nobody_and_can_be_maintained,
    a_restored_request_counts_once_and_is_settled_as_ever,
    a_request_that_is_still_known_is_restored_in_its_place,
    a_restored_request_takes_nothing_from_the_windows_of_others,
    a_request_that_was_given_back_is_not_restored,
)
