"""Undoing one admission exactly: the operation behind a half whose other half was refused."""

from collections.abc import Iterator

import pytest

from dataplane.domain.limiting import LayerPlan, Unit, Window, plan_of
from dataplane.limits.operations import Admit, Answer, Cancel, Outcome, Settle
from dataplane.limits.upkeep import OpenEpoch, Restore
from tests.limits.plans import SLOT_MS, WINDOW_MS, budget, layer, only, rate, shadowed
from tests.limits.script_runner import ScriptRunner

# 10 requests in 10 s, 5 at once.
RATE = plan_of([rate(10, 10_000, burst=5)])
MINUTE = only(Unit.REQUESTS, Window.MINUTE, 3)
MIXED = plan_of(
    [
        rate(10, 10_000),
        layer(Unit.REQUESTS, Window.MINUTE, 10),
        layer(Unit.TOKENS, Window.MINUTE, 100),
        layer(Unit.REQUESTS, Window.DAY, 10),
        layer(Unit.TOKENS, Window.DAY, 100),
        budget(1_000),
        layer(Unit.PARALLEL, Window.NONE, 10),
    ]
)


@pytest.fixture
def runner(redis_url: str) -> Iterator[ScriptRunner]:
    with ScriptRunner(redis_url) as runner:
        yield runner


def admit(runner: ScriptRunner, request_id: str, plan: LayerPlan = MIXED) -> Answer:
    return runner.ask(Admit(request_id, plan, runner.bind(plan), 7, 70, b"{}", 2**52))


def cancel(runner: ScriptRunner, request_id: str, answer: Answer, plan: LayerPlan = MIXED) -> int:
    outcome: int = runner.ask(Cancel(request_id, runner.bind(plan), answer[1]))[0]
    return outcome


def taken(runner: ScriptRunner, plan: LayerPlan) -> int:
    return runner.balances(plan)[0][0]


def test_every_kind_of_counter_goes_back_and_nothing_is_left(runner: ScriptRunner) -> None:
    admit(runner, "stays")
    before = runner.balances(MIXED)
    answer = admit(runner, "goes")

    assert cancel(runner, "goes", answer) == Outcome.OK

    assert runner.balances(MIXED) == before
    assert runner.reservations() == {"stays"}
    assert runner.leases().keys() == {"stays"}


def test_a_cancelled_request_may_be_asked_for_again_and_the_old_cancellation_leaves_that_alone(
    runner: ScriptRunner,
) -> None:
    first = admit(runner, "a")
    cancel(runner, "a", first)
    runner.tick(1)
    second = admit(runner, "a")
    held = runner.balances(MIXED)

    assert second[0] == Outcome.OK
    assert cancel(runner, "a", first) == Outcome.GONE
    assert runner.balances(MIXED) == held


def test_what_is_over_is_not_cancelled(runner: ScriptRunner) -> None:
    answer = admit(runner, "a")
    runner.ask(Settle("a", 3, 30, runner.bind(MIXED)))
    settled = runner.balances(MIXED)

    assert cancel(runner, "a", answer) == Outcome.GONE
    assert cancel(runner, "never", answer) == Outcome.GONE
    assert runner.balances(MIXED) == settled
    assert runner.reservations() == set()


def test_a_minute_gives_the_place_back_in_the_slot_where_it_was_taken(runner: ScriptRunner) -> None:
    runner.tick(SLOT_MS - 1)
    answer = admit(runner, "a", MINUTE)
    runner.tick(1)
    admit(runner, "b", MINUTE)

    cancel(runner, "a", answer, MINUTE)

    assert taken(runner, MINUTE) == 1
    runner.tick(WINDOW_MS - 1)
    assert taken(runner, MINUTE) == 1


def test_a_minute_that_is_over_is_not_written_again(runner: ScriptRunner) -> None:
    answer = admit(runner, "a", MINUTE)
    runner.tick(WINDOW_MS + SLOT_MS)
    [minute] = MINUTE.layers
    runner.redis.delete(runner.counter_key(minute))

    cancel(runner, "a", answer, MINUTE)

    assert not runner.redis.exists(runner.counter_key(minute))


def test_a_rate_under_pressure_is_as_if_the_request_had_never_been(runner: ScriptRunner) -> None:
    for number in range(3):
        admit(runner, f"before {number}", RATE)
    answer = admit(runner, "a", RATE)
    runner.tick(400)
    admit(runner, "after", RATE)
    assert admit(runner, "too much", RATE)[0] == Outcome.DENY

    assert cancel(runner, "a", answer, RATE) == Outcome.OK

    assert taken(runner, RATE) == 4
    assert admit(runner, "in its place", RATE)[0] == Outcome.OK
    assert admit(runner, "too much", RATE)[0] == Outcome.DENY


def test_a_rate_that_was_idle_since_gives_nothing_back_twice(runner: ScriptRunner) -> None:
    answer = admit(runner, "a", RATE)
    # By now the request has no effect any more; those that come find the rate idle.
    runner.tick(1_000)
    for number in range(5):
        assert admit(runner, f"b{number}", RATE)[0] == Outcome.OK

    cancel(runner, "a", answer, RATE)

    assert taken(runner, RATE) == 5
    assert admit(runner, "too much", RATE)[0] == Outcome.DENY


def test_a_rate_with_nobody_else_is_new_again(runner: ScriptRunner) -> None:
    [only_layer] = RATE.layers
    answer = admit(runner, "a", RATE)

    cancel(runner, "a", answer, RATE)

    assert not runner.redis.exists(runner.counter_key(only_layer))


def test_a_shadow_rate_keeps_what_it_may_not_have_counted(runner: ScriptRunner) -> None:
    shadow = plan_of([shadowed(rate(1, 10_000))])
    admit(runner, "a", shadow)
    answer = admit(runner, "b", shadow)

    cancel(runner, "b", answer, shadow)

    assert taken(runner, shadow) == 1


def test_a_request_that_a_rebuild_restored_takes_nothing_from_windows_that_began_empty(
    runner: ScriptRunner,
) -> None:
    answer = admit(runner, "a")
    counter = runner.bind(MIXED)
    runner.wipe()
    runner.ask(Restore("a", [6, counter.keys[-1], 1, 0, 0], b"{}", answer[1], "next"))
    runner.ask(OpenEpoch("next"))
    runner.epoch = "next"
    admit(runner, "b")
    held = runner.balances(MIXED)

    assert cancel(runner, "a", answer) == Outcome.OK

    assert runner.balances(MIXED) == [*held[:-1], (held[-1][0] - 1, 0)]


def test_a_request_of_lost_counters_moves_nothing(runner: ScriptRunner) -> None:
    answer = admit(runner, "a", MINUTE)
    runner.ask(OpenEpoch("next"))
    runner.epoch = "next"

    assert cancel(runner, "a", answer, MINUTE) == Outcome.GONE

    assert taken(runner, MINUTE) == 1
    assert runner.leases() == {}
