"""Each operation of the script as it travels: what it is given, what it answers, what it leaves behind."""

from collections.abc import Iterator
from typing import Final

import pytest

from dataplane.domain.limiting import LayerPlan, SubjectKind, Unit, Window, plan_of
from dataplane.domain.periods import FOREVER_MS
from dataplane.limits.counters import (
    LEASE_MS,
    PERIOD_GRACE_MS,
    PERIOD_REQUESTS,
    REAPED_MS,
    SOFT_SPEND,
    SPEND,
    UNREPORTED_MS,
)
from dataplane.limits.operations import (
    HELD,
    LOST,
    REAPED,
    Answer,
    Balance,
    Extend,
    Find,
    Heartbeat,
    Operation,
    Outcome,
    Reap,
    Release,
    ResetClock,
    Settle,
    decode,
    encode,
)
from dataplane.limits.script import compiled, source
from dataplane.limits.upkeep import (
    Correct,
    Forget,
    Maintain,
    OpenEpoch,
    Overdue,
    Raise,
    Resign,
    Restore,
    Unreported,
)
from tests.limits.driver import META, Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS, budget, layer, only, rate, shadowed
from tests.limits.script_runner import NOON_MS

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000
NEXT_EPOCH: Final = "the next epoch of the test"
OK: Final = [Outcome.OK]
GONE: Final = [Outcome.GONE]


@pytest.fixture
def driver(redis_under_test: str) -> Iterator[Driver]:
    with Driver(redis_under_test) as driver:
        yield driver


def ask(driver: Driver, operation: Operation) -> Answer:
    return driver.call(operation).answers[0]


def told_percent(driver: Driver, key: str) -> object:
    return driver.redis.hget(key, "a")


def lifetime_ms(driver: Driver, key: str) -> int:
    lifetime = driver.redis.pttl(key)
    assert isinstance(lifetime, int)
    return lifetime


# Rates.


def test_a_rate_lets_a_burst_through_and_then_one_every_interval(driver: Driver) -> None:
    plan = plan_of([rate(4, 60_000, burst=2)])

    answers = [driver.admit(f"a{i}", plan) for i in range(3)]
    driver.tick(14_999)
    early = driver.admit("b", plan)
    driver.tick(1)
    due = driver.admit("c", plan)

    assert [answer[0] for answer in answers] == [Outcome.OK, Outcome.OK, Outcome.DENY]
    assert [answer[3] for answer in answers] == [[1, 15_000], [0, 30_000], [0, 15_000]]
    assert (early[0], early[3]) == (Outcome.DENY, [0, 1])
    assert (due[0], due[3]) == (Outcome.OK, [0, 30_000])


def test_a_rate_whose_burst_is_not_given_lets_its_capacity_through_at_once(driver: Driver) -> None:
    plan = plan_of([rate(3, 60_000)])

    outcomes = [driver.admit(f"a{i}", plan)[0] for i in range(4)]

    assert outcomes == [Outcome.OK] * 3 + [Outcome.DENY]


def test_a_rate_that_divides_no_millisecond_is_kept_to_the_microsecond(driver: Driver) -> None:
    # 7 a minute: one in 8,571,429 µs.
    plan = plan_of([rate(7, 60_000, burst=1)])
    assert driver.admit("a", plan)[3] == [0, 8_572]

    driver.tick(8_571)
    assert driver.admit("b", plan)[3] == [0, 1]
    driver.tick(1)

    assert driver.admit("c", plan)[0] == Outcome.OK


def test_what_a_rate_let_through_is_never_given_back(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000, burst=1)])
    assert driver.admit("a", plan)[0] == Outcome.OK

    assert driver.release("a") == OK

    assert driver.admit("b", plan)[0] == Outcome.DENY


def test_a_balance_of_a_rate_says_how_much_of_its_burst_is_taken_and_until_when(
    driver: Driver,
) -> None:
    plan = plan_of([rate(6, 60_000, burst=3)])
    driver.admit("a", plan)
    driver.admit("b", plan)
    driver.tick(1)

    assert driver.balances_and_resets(plan) == ([(2, 0)], [NOON_MS + 20_000])
    driver.tick(9_999)
    assert driver.balances_and_resets(plan) == ([(1, 0)], [NOON_MS + 20_000])
    driver.tick(10_000)
    assert driver.balances_and_resets(plan) == ([(0, 0)], [0])


def test_a_rate_is_kept_until_it_is_whole_again(driver: Driver) -> None:
    plan = plan_of([rate(1, 3_600_000, burst=5)])
    driver.call()
    driver.tick(-60_000)

    driver.admit("a", plan)

    # The server's clock is a minute behind the limiter's, and keys go by the server's.
    assert 3_655_000 < lifetime_ms(driver, driver.counter_key(plan.layers[0])) <= 3_660_000


def test_a_shadow_rate_refuses_nobody_and_stands_still_while_it_would(driver: Driver) -> None:
    plan = plan_of([shadowed(rate(1, 60_000, burst=1))])

    for request_id in ("a", "b", "c"):
        answer = driver.admit(request_id, plan)
        assert (answer[0], answer[3]) == (Outcome.OK, [0, 60_000])
        assert driver.balances_and_resets(plan) == ([(1, 0)], [NOON_MS + 60_000])


def test_the_longest_rate_with_the_largest_burst_is_exact_to_the_request(driver: Driver) -> None:
    plan = plan_of([rate(1, 86_400_000, burst=1_000_000_000)])

    first, second = driver.admit("a", plan), driver.admit("b", plan)

    assert [first[0], second[0]] == [Outcome.OK, Outcome.OK]
    assert first[3][0] - second[3][0] == 1
    assert second[3][1] == 2 * 86_400_000


def test_a_request_that_another_layer_refuses_takes_nothing_from_a_rate(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000, burst=1), layer(Unit.TOKENS, Window.DAY, 10)])

    assert driver.admit("a", plan, tokens=11)[:5] == [
        Outcome.DENY,
        NOON_MS,
        0,
        [1, 0, 10, 43_200_000],
        2,
    ]

    assert driver.admit("b", plan, tokens=10)[0] == Outcome.OK


# Soft budgets and what they hold.


def test_a_soft_budget_holds_what_is_expected_and_a_hard_one_the_upper_bound(
    driver: Driver,
) -> None:
    plan = plan_of([budget(100), budget(1000, Window.MONTH, is_hard=False)])

    answer = driver.admit("a", plan, cost=90, expected=20)

    assert (answer[0], answer[3][0], answer[3][2]) == (Outcome.OK, 10, 980)
    assert driver.balances(plan) == [(0, 90), (0, 20)]
    assert driver.settle("a", cost=30) == [Outcome.OK, []]
    assert driver.balances(plan) == [(30, 0), (30, 0)]


def test_both_kinds_of_budget_of_one_subject_count_in_the_same_place(driver: Driver) -> None:
    soft, hard = plan_of([budget(100, is_hard=False)]), plan_of([budget(100)])

    driver.admit("a", soft, cost=90, expected=30)

    assert driver.admit("b", hard, cost=71)[0] == Outcome.DENY
    assert driver.admit("c", hard, cost=70)[0] == Outcome.OK


def test_an_extension_raises_soft_holds_to_an_absolute_amount(driver: Driver) -> None:
    plan = plan_of([budget(100), budget(100, Window.MONTH, is_hard=False)])
    driver.admit("a", plan, cost=90, expected=20)

    assert [driver.extend("a", expected) for expected in (50, 50, 40, 0)] == [OK] * 4

    assert driver.balances(plan) == [(0, 90), (0, 50)]
    assert lifetime_ms(driver, driver.keyspace.reservation("a")) == -1
    assert driver.settle("a", cost=60) == [Outcome.OK, []]
    assert driver.balances(plan) == [(60, 0), (60, 0)]


def test_an_extension_that_one_budget_has_no_room_for_raises_none(driver: Driver) -> None:
    plan = plan_of([budget(100, Window.TOTAL, is_hard=False), budget(60, is_hard=False)])
    driver.admit("a", plan, cost=90, expected=20)

    assert driver.extend("a", 61) == [Outcome.DENY]
    assert driver.balances(plan) == [(0, 20), (0, 20)]
    assert driver.extend("a", 60) == OK
    assert driver.balances(plan) == [(0, 60), (0, 60)]


def test_a_shadow_budget_refuses_no_extension(driver: Driver) -> None:
    plan = plan_of(
        [shadowed(budget(10, is_hard=False)), shadowed(budget(0, Window.MONTH, is_hard=False))]
    )
    driver.admit("a", plan, cost=90, expected=5)

    assert driver.extend("a", 50) == OK

    assert driver.balances(plan) == [(0, 50), (0, 50)]


def test_a_budget_whose_period_is_long_over_is_not_made_anew_by_an_extension(
    driver: Driver,
) -> None:
    plan = plan_of([budget(100, is_hard=False)])
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan, expected=10)
    driver.redis.delete(key)

    assert driver.extend("a", 20) == OK
    assert driver.settle("a", cost=20) == [Outcome.OK, []]

    assert driver.redis.exists(key) == 0


@pytest.mark.parametrize("window", [Window.MINUTE, Window.DAY])
def test_tokens_whose_window_is_gone_are_not_counted_anew_by_a_settle(
    driver: Driver, window: Window
) -> None:
    plan = only(Unit.TOKENS, window, 900)
    key = driver.counter_key(plan.layers[0])
    for request_id in ("a", "b"):
        driver.admit(request_id, plan, tokens=10)
    driver.redis.delete(key)

    assert driver.settle("a", tokens=7) == [Outcome.OK, []]
    assert driver.settle("b", tokens=12) == [Outcome.OK, []]

    assert driver.redis.exists(key) == 0


def test_a_settle_takes_no_tokens_from_a_window_that_began_without_it(driver: Driver) -> None:
    plan = only(Unit.TOKENS, Window.MINUTE, 900)
    driver.admit("a", plan, tokens=10)
    driver.redis.delete(driver.counter_key(plan.layers[0]))
    driver.tick(SLOT_MS)
    driver.admit("b", plan, tokens=30)

    assert driver.settle("a", tokens=7) == [Outcome.OK, []]

    assert driver.balances(plan) == [(30, 0)]


def test_only_a_request_that_is_held_can_be_extended(driver: Driver) -> None:
    plan = plan_of([budget(100, is_hard=False)])
    for request_id in ("settled", "reaped", "lost"):
        driver.admit(request_id, plan, expected=10)
    driver.settle("settled", cost=10)
    driver.reap("reaped")

    assert driver.extend("settled", 20) == GONE
    assert driver.extend("reaped", 20) == GONE
    assert ask(driver, OpenEpoch(NEXT_EPOCH)) == OK
    assert driver.extend("lost", 20) == GONE
    assert driver.balances(plan) == [(20, 10)]


# Budgets that come to 80 and 100 percent.


def test_the_settle_that_brings_a_budget_to_80_and_to_100_percent_tells_so_once(
    driver: Driver,
) -> None:
    plan = plan_of([budget(101)])
    key = driver.counter_key(plan.layers[0])
    costs = (80, 1, 1, 18, 1)
    for index in range(len(costs)):
        driver.admit(f"a{index}", plan, cost=0)

    told = [driver.settle(f"a{index}", cost=cost)[1] for index, cost in enumerate(costs)]

    # 80 percent of 101 is 80.8.
    assert told == [[], [[key, 80, 101, 81, 0]], [], [], [[key, 100, 101, 101, 0]]]
    assert told_percent(driver, key) == b"100"


def test_a_settle_that_crosses_both_edges_tells_of_both(driver: Driver) -> None:
    plan = plan_of([budget(100), budget(150, Window.MONTH, is_hard=False)])
    day, month = (driver.counter_key(each) for each in plan.layers)
    driver.admit("a", plan, cost=70)
    driver.admit("b", plan, cost=30)

    crossings = driver.settle("a", cost=90)[1]

    assert sorted(crossings) == sorted(
        [[day, 80, 100, 90, 30], [day, 100, 100, 90, 30], [month, 80, 150, 90, 30]]
    )


def test_a_reaped_request_tells_of_the_edge_that_others_had_not_reached(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan, cost=80)

    assert driver.reap("a") == [Outcome.OK, [[key, 80, 100, 80, 0]]]


def test_a_release_leaves_the_telling_to_a_settle(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan, cost=10)
    driver.admit("b", plan, cost=80)

    assert driver.release("a") == OK
    assert told_percent(driver, key) is None
    assert driver.settle("b", cost=80) == [Outcome.OK, [[key, 80, 100, 80, 0]]]


def test_a_shadow_budget_tells_and_one_of_nothing_does_not(driver: Driver) -> None:
    plan = plan_of([shadowed(budget(10)), shadowed(budget(0, Window.MONTH))])
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan, cost=9)

    assert driver.settle("a", cost=9)[1] == [[key, 80, 10, 9, 0]]


# What becomes of requests whose owner died.


def test_find_tells_the_state_the_counters_the_meta_and_the_holds(driver: Driver) -> None:
    plan = plan_of(
        [
            rate(5, 60_000),
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.TOKENS, Window.MINUTE, 9),
            budget(100),
            budget(100, Window.MONTH, is_hard=False),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    keys = [driver.counter_key(each) for each in plan.layers]
    driver.admit("a", plan, cost=40, expected=30)
    meta = META.decode()

    assert ask(driver, Find("unheard-of")) == GONE
    holds = [keys[3], 40, keys[4], 30]
    assert ask(driver, Find("a")) == [Outcome.OK, HELD, keys[2:], meta, holds]
    driver.reap("a")
    assert ask(driver, Find("a")) == [Outcome.OK, REAPED, keys[2:], meta, []]
    driver.admit("b", plan)
    ask(driver, OpenEpoch(NEXT_EPOCH))
    assert ask(driver, Find("b")) == [Outcome.OK, LOST, keys[2:], meta, []]


def test_a_lease_that_has_run_out_is_overdue_and_the_reaper_takes_no_other(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    keys = [driver.counter_key(plan.layers[0])]
    fence = driver.maintain("n1")[1]
    driver.admit("a", plan)
    driver.tick(1)
    driver.admit("b", plan)
    driver.tick(LEASE_MS - 1)

    assert ask(driver, Overdue(10)) == [Outcome.OK, NOON_MS + LEASE_MS, ["a"]]
    assert ask(driver, Reap("b", keys, fence)) == [Outcome.MOVED]
    assert ask(driver, Reap("a", keys, fence)) == [Outcome.OK, []]
    assert ask(driver, Overdue(10))[2] == []
    assert driver.balances(plan) == [(1, 1)]


def test_a_node_may_reap_its_own_request_before_its_lease_runs_out(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    driver.admit("a", plan, cost=7)

    assert ask(driver, Reap("a", [driver.counter_key(plan.layers[0])])) == [Outcome.OK, []]
    assert ask(driver, Reap("a", [])) == [Outcome.DUPLICATE]
    assert driver.balances(plan) == [(7, 0)]


def test_a_lease_without_a_reservation_is_removed_by_the_reaper(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    driver.admit("a", plan)
    driver.redis.delete(driver.keyspace.reservation("a"))
    driver.tick(LEASE_MS)

    assert ask(driver, Reap("a", [])) == GONE

    assert driver.overdue() == []
    assert driver.unreported() == []


def test_every_budget_is_charged_what_the_record_of_a_reaped_request_charges(
    driver: Driver,
) -> None:
    plan = plan_of([budget(100), budget(100, Window.MONTH, is_hard=False)])
    keys = [driver.counter_key(each) for each in plan.layers]
    driver.admit("a", plan, cost=60, expected=20)

    assert ask(driver, Reap("a", keys, charged_nanousd=60)) == [Outcome.OK, []]
    assert driver.balances(plan) == [(60, 0), (60, 0)]
    assert driver.settle("a", cost=25)[0] == Outcome.OK
    assert driver.balances(plan) == [(25, 0), (25, 0)]


def test_a_reaped_request_is_unreported_until_it_is_forgotten_and_still_corrected_after(
    driver: Driver,
) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.DAY, 100), budget(100)])
    record = driver.keyspace.reservation("a")
    driver.admit("a", plan, tokens=60, cost=50)
    driver.reap("a")
    kept_ms = lifetime_ms(driver, record)

    assert UNREPORTED_MS - 5_000 < kept_ms <= UNREPORTED_MS
    assert ask(driver, Unreported(10)) == [Outcome.OK, NOON_MS, ["a"]]
    assert ask(driver, Forget("a")) == OK
    assert ask(driver, Forget("a")) == GONE
    assert ask(driver, Unreported(10))[2] == []
    assert REAPED_MS - 5_000 < lifetime_ms(driver, record) <= REAPED_MS
    assert driver.settle("a", tokens=40, cost=20)[0] == Outcome.OK
    assert driver.balances(plan) == [(40, 0), (20, 0)]


@pytest.mark.parametrize("ending", ["settle", "release"])
def test_a_reaped_request_whose_owner_lives_is_no_longer_listed(
    driver: Driver, ending: str
) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.MINUTE, 100), budget(100)])
    driver.admit("a", plan, tokens=60, cost=50)
    driver.reap("a")

    assert getattr(driver, ending)("a")[0] == Outcome.OK

    assert driver.unreported() == []
    assert driver.balances(plan) == ([(1, 0)] * 2 if ending == "settle" else [(0, 0)] * 2)


# Another counter epoch.


def test_a_request_of_another_epoch_moves_no_counter_whatever_ends_it(driver: Driver) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.MINUTE, 900), budget(900)])
    bound = driver.bind(plan)
    for request_id in ("settled", "released", "reaped", "renewed"):
        driver.admit(request_id, plan, tokens=10, cost=10)
    ask(driver, OpenEpoch(NEXT_EPOCH))

    assert driver.settle("settled", 1, 1) == GONE
    assert driver.release("released") == GONE
    assert ask(driver, Heartbeat("renewed", bound)) == GONE
    assert driver.reap("reaped") == [Outcome.OK, []]
    assert driver.settle("reaped", 1, 1) == GONE

    assert driver.balances(plan) == [(40, 0), (0, 40)]
    assert driver.reservations() == {"released", "renewed"}
    assert set(driver.leases()) == {"renewed"}


def test_an_epoch_that_was_opened_admits_only_those_who_know_it(driver: Driver) -> None:
    plan = only(Unit.REQUESTS, Window.DAY, 9)
    driver.redis.delete(driver.keyspace.epoch)
    assert driver.admit("a", plan) == [Outcome.COLD]

    assert driver.call(OpenEpoch(NEXT_EPOCH), epoch="").answers == [OK]

    assert driver.admit("b", plan) == [Outcome.COLD]
    assert driver.admit("c", plan, epoch=NEXT_EPOCH)[0] == Outcome.OK


# The node that maintains the counters.


def test_one_node_has_the_maintenance_lease_and_its_number_rises_with_the_owner(
    driver: Driver,
) -> None:
    first = ask(driver, Maintain("n1", 15_000))
    assert ask(driver, Maintain("n1", 15_000)) == first
    assert ask(driver, Maintain("n2", 15_000)) == [Outcome.TAKEN, "n1"]
    assert 10_000 < lifetime_ms(driver, driver.keyspace.maintenance) <= 15_000

    assert ask(driver, Resign("n2")) == GONE
    assert ask(driver, Resign("n1")) == OK
    second = ask(driver, Maintain("n2", 15_000))

    assert (first[0], second[0]) == (Outcome.OK, Outcome.OK)
    assert second[1] > first[1]
    assert lifetime_ms(driver, driver.keyspace.fence) == -1


def test_a_lease_that_ran_out_is_taken_with_a_higher_number_even_by_its_owner(
    driver: Driver,
) -> None:
    first = driver.maintain("n1")[1]
    driver.redis.delete(driver.keyspace.maintenance)

    assert driver.maintain("n1")[1] > first


def test_whoever_lost_the_maintenance_lease_is_fenced_off(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan, cost=5)
    old = driver.maintain("n1")[1]
    driver.resign("n1")
    driver.maintain("n2")
    operations: tuple[Operation, ...] = (
        Reap("a", [key], old),
        Correct(key, SPEND, 0, 9, 5, 0, MIDNIGHT_MS, old),
        Raise(key, SPEND, 9, False, MIDNIGHT_MS, old),
        Restore("b", [SPEND, key, 9, 100, MIDNIGHT_MS], META, NOON_MS, NEXT_EPOCH, old),
        OpenEpoch(NEXT_EPOCH, old),
        ResetClock(old),
    )

    answers = driver.call(*operations).answers

    assert answers == [[Outcome.FENCED]] * len(operations)
    assert driver.balances(plan) == [(0, 5)]
    assert driver.reservations() == {"a"}


# Corrections.


def test_a_correction_replaces_a_count_that_is_still_what_was_read(driver: Driver) -> None:
    plan = only(Unit.REQUESTS, Window.DAY, 9)
    key = driver.counter_key(plan.layers[0])
    driver.admit("a", plan)
    before_ms = lifetime_ms(driver, key)

    assert ask(driver, Correct(key, PERIOD_REQUESTS, 0, 5, 0, 0, MIDNIGHT_MS)) == [Outcome.MOVED]
    assert ask(driver, Correct(key, PERIOD_REQUESTS, 1, 5, 7, 7, MIDNIGHT_MS)) == [Outcome.OK, []]

    assert driver.balances(plan) == [(5, 0)]
    assert before_ms - 5_000 < lifetime_ms(driver, key) <= before_ms


@pytest.mark.parametrize("before", [(4, 6), (3, 7), (0, 0)])
def test_a_correction_of_money_compares_both_amounts(
    driver: Driver, before: tuple[int, int]
) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    driver.redis.hset(key, mapping={"s": 3, "h": 6})

    moved = ask(driver, Correct(key, SPEND, before[0], 50, before[1], 0, MIDNIGHT_MS))
    right = ask(driver, Correct(key, SOFT_SPEND, 3, 50, 6, 2, MIDNIGHT_MS))

    assert (moved, right) == ([Outcome.MOVED], [Outcome.OK, []])
    assert driver.balances(plan) == [(50, 2)]


def test_what_is_raised_is_as_large_as_was_asked_for_once_and_tells_what_it_crosses(
    driver: Driver,
) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.DAY, 99), budget(100)])
    requests, money = (driver.counter_key(each) for each in plan.layers)
    driver.admit("a", plan, cost=15)
    driver.admit("b", plan, cost=5)
    driver.settle("b", cost=5)
    batch = (
        Raise(requests, PERIOD_REQUESTS, 7, True, MIDNIGHT_MS),
        Raise(money, SOFT_SPEND, 20, True, MIDNIGHT_MS, capacity=100),
        Raise(money, SPEND, 70, True, MIDNIGHT_MS, capacity=100),
    )

    first, second = driver.call(*batch).answers, driver.call(*batch).answers

    assert first == [[Outcome.OK, []], [Outcome.MOVED], [Outcome.OK, [[money, 80, 100, 70, 15]]]]
    assert second == [[Outcome.MOVED]] * 3
    assert driver.balances(plan) == [(7, 0), (70, 15)]
    assert driver.settle("a", cost=15)[0] == Outcome.OK
    assert driver.balances(plan) == [(7, 0), (85, 0)]


def test_a_correction_makes_what_is_missing_until_its_period_is_long_over(driver: Driver) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.DAY, 9), budget(9), budget(9, Window.TOTAL)])
    tokens, money, total = (driver.counter_key(each) for each in plan.layers)
    over_ms = NOON_MS - PERIOD_GRACE_MS

    answers = driver.call(
        Correct(tokens, PERIOD_REQUESTS, 0, 5, 0, 0, MIDNIGHT_MS),
        Correct(money, SPEND, 0, 5, 0, 0, MIDNIGHT_MS),
        Correct(total, SPEND, 0, 5, 0, 0, FOREVER_MS),
        Correct(f"{tokens}:old", PERIOD_REQUESTS, 0, 5, 0, 0, over_ms),
        Correct(f"{money}:old", SPEND, 0, 5, 0, 0, over_ms),
    ).answers

    assert answers == [[Outcome.OK, []]] * 5
    assert driver.balances(plan) == [(5, 0)] * 3
    until_end = MIDNIGHT_MS - NOON_MS + PERIOD_GRACE_MS
    for key in (tokens, money):
        assert until_end - 5_000 < lifetime_ms(driver, key) <= until_end
    assert lifetime_ms(driver, total) == -1
    assert driver.redis.exists(f"{tokens}:old", f"{money}:old") == 0


def test_a_correction_tells_of_an_edge_when_it_knows_the_capacity(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])

    silent = ask(driver, Correct(key, SPEND, 0, 85, 0, 0, MIDNIGHT_MS))
    told = ask(driver, Correct(key, SPEND, 85, 90, 0, 5, MIDNIGHT_MS, capacity=100))
    again = ask(driver, Correct(key, SPEND, 90, 91, 5, 5, MIDNIGHT_MS, capacity=100))

    assert (silent[1], told[1], again[1]) == ([], [[key, 80, 100, 90, 5]], [])


# Rebuilding.


def test_a_restored_request_holds_what_it_held_and_is_settled_in_the_new_epoch(
    driver: Driver,
) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.TOKENS, Window.TOTAL, 900),
            budget(100),
            budget(100, Window.MONTH, is_hard=False),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    driver.admit("a", plan, tokens=60, cost=50, expected=20)
    driver.wipe()
    counters = driver.holdings(plan, 60, 50, expected=20, at_ms=NOON_MS)
    restore = Restore("a", counters, META, NOON_MS - 7, NEXT_EPOCH)

    assert driver.call(restore, restore).answers == [OK, [Outcome.DUPLICATE]]
    assert ask(driver, OpenEpoch(NEXT_EPOCH)) == OK

    assert driver.balances(plan) == [(1, 0), (60, 0), (0, 50), (0, 20), (1, 0)]
    assert driver.leases() == {"a": NOON_MS + LEASE_MS}
    assert ask(driver, Find("a"))[3] == META.decode()
    assert lifetime_ms(driver, driver.counter_key(plan.layers[1])) == -1
    until_end = MIDNIGHT_MS - NOON_MS + PERIOD_GRACE_MS
    for index in (0, 2):
        lifetime = lifetime_ms(driver, driver.counter_key(plan.layers[index]))
        assert until_end - 5_000 < lifetime <= until_end
    assert driver.settle("a", tokens=40, cost=30)[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0), (40, 0), (30, 0), (30, 0), (0, 0)]


def test_a_restored_request_takes_nothing_from_a_window_that_does_not_hold_it(
    driver: Driver,
) -> None:
    plan = only(Unit.TOKENS, Window.MINUTE, 900)
    key, slot = driver.counter_key(plan.layers[0]), NOON_MS // SLOT_MS
    counters: list[int | str] = [2, key, 60, slot, NOON_MS + SLOT_MS + WINDOW_MS]
    ask(driver, Restore("a", counters, META, NOON_MS, NEXT_EPOCH))
    driver.open_epoch(NEXT_EPOCH)
    driver.admit("b", plan, tokens=100)

    assert driver.call(Settle("a", 10, 10, driver.bind(plan))).answers[0] == [Outcome.OK, []]

    assert driver.balances(plan) == [(100, 0)]


def test_what_was_released_or_reaped_before_a_rebuild_is_put_right_by_it(driver: Driver) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    counters: list[int | str] = [SPEND, key, 9, 100, MIDNIGHT_MS]
    driver.admit("reaped", plan, cost=9)
    driver.reap("reaped")
    driver.release("released")
    driver.redis.delete(key)

    answers = driver.call(
        *(Restore(each, counters, META, NOON_MS, NEXT_EPOCH) for each in ("reaped", "released"))
    ).answers

    assert answers == [OK, [Outcome.RELEASED]]
    assert driver.balances(plan) == [(0, 9)]
    assert driver.unreported() == []


# The clock.


def test_a_clock_that_is_reset_goes_back_and_so_do_leases_and_windows(driver: Driver) -> None:
    plan = plan_of(
        [rate(1, 3_600_000, burst=2), layer(Unit.REQUESTS, Window.MINUTE, 1), budget(100)]
    )
    driver.tick(86_400_000)
    driver.admit("a", plan)
    driver.set_clock(NOON_MS)
    assert driver.admit("b", plan)[0] == Outcome.DENY

    assert ask(driver, ResetClock()) == OK
    assert driver.call().now_ms == NOON_MS

    assert driver.leases() == {"a": NOON_MS + LEASE_MS}
    assert driver.balances_and_resets(plan)[0] == [(1, 0), (0, 0), (0, 0)]
    admitted = driver.admit("c", plan)
    assert (admitted[0], admitted[3][:2]) == (Outcome.OK, [0, 7_200_000])
    driver.tick(WINDOW_MS + SLOT_MS)
    assert driver.admit("d", plan)[3][:2] == [0, 3_600_000 - WINDOW_MS - SLOT_MS]


# Batches.


def test_an_operation_that_meets_a_foreign_key_does_not_disturb_the_others(
    driver: Driver,
) -> None:
    plan = plan_of([budget(100)])
    key = driver.counter_key(plan.layers[0])
    driver.redis.set(f"{key}:text", "text")
    driver.admit("a", plan)
    batch: list[Operation] = [
        Correct(f"{key}:text", SPEND, 0, 1, 0, 0, MIDNIGHT_MS),
        Correct(f"{key}:text", PERIOD_REQUESTS, 1, 1, 0, 0, MIDNIGHT_MS),
        Settle("a", 1, 1, driver.bind(plan)),
        Release("b"),
        Balance(driver.bind(plan)),
    ]
    keys, arguments = encode(batch, driver.keyspace)

    packed = driver.redis.eval(driver._script.text, len(keys), *keys, driver.epoch, *arguments)

    assert isinstance(packed, bytes)
    outcomes = [answer[0] for answer in decode(packed).answers]
    assert outcomes == [Outcome.FAULT, Outcome.MOVED, Outcome.OK, Outcome.GONE, Outcome.OK]
    assert driver.balances(plan) == [(1, 0)]


def test_all_keys_that_a_batch_touches_are_declared_under_one_hash_tag(driver: Driver) -> None:
    plan: LayerPlan = plan_of(
        [budget(100), layer(Unit.PARALLEL, Window.NONE, 1, SubjectKind.KEY, "k_1")]
    )
    bound = driver.bind(plan)
    key = bound.keys[0]
    batch: list[Operation] = [
        driver.admission("a", plan),
        Extend("a", bound, 5),
        Reap("a", [key], 5),
        Maintain("n1", 5),
        Resign("n1"),
        Correct(key, SPEND, 0, 1, 0, 0, MIDNIGHT_MS, 5),
        Restore("b", [SPEND, f"{key}x", 1, 1, MIDNIGHT_MS], META, 1, NEXT_EPOCH, 5),
        OpenEpoch(NEXT_EPOCH, 5),
        Forget("a"),
    ]

    keys, _ = encode(batch, driver.keyspace)

    space = driver.keyspace
    assert all(each.startswith(space.prefix) for each in keys)
    assert {space.fence, space.maintenance, space.reaped, f"{key}x", *bound.keys} <= set(keys)


def test_a_constant_stands_in_the_script_as_its_value_and_texts_stay_as_they_are() -> None:
    written = 'local a = now - NEVER + LEASES_KEY -- LEASES_KEY\nlocal b = "OK", TOMBSTONE, KEYS'

    script = compiled(written)

    assert script.text == (
        'local a = now - (-1) + 3 -- LEASES_KEY\nlocal b = "OK", "released", KEYS'
    )
    assert "SLOTS" in source("")
