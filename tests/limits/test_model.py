"""A model and the script, driven side by side through every order of events.

After each step the answers, the balances and resets, the reservations and the leases are equal,
and promises L1 to L4 hold; equality after a refusal is L5, after a repetition L6.
"""

from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dataplane.domain.limiting import (
    Layer,
    LayerKind,
    LayerPlan,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.limits.operations import Outcome
from tests.limits.driver import NOON_MS, Driver
from tests.limits.model import Model, State, amount_of, period_of
from tests.limits.plans import WINDOW_MS, layer, shadowed

# So close to the end of the day that ticks cross it.
START_MS: Final = NOON_MS + 12 * 3_600_000 - 90_000


def two_users(*layers: Layer) -> tuple[LayerPlan, LayerPlan]:
    """Return the plans of two users that share every layer that is not a user's own."""
    return tuple(  # type: ignore[return-value] # two names make a pair
        plan_of(
            layer(each.unit, each.window, each.capacity, each.subject_kind, user)
            if each.subject_kind is SubjectKind.USER
            else each
            for each in layers
        )
        for user in ("u_1", "u_2")
    )


def shared(unit: Unit, window: Window, capacity: int) -> Layer:
    return layer(unit, window, capacity, SubjectKind.ORGANIZATION, "o_1")


ROLLING: Final = (
    shared(Unit.TOKENS, Window.MINUTE, 120),
    layer(Unit.REQUESTS, Window.MINUTE, 3),
    layer(Unit.TOKENS, Window.MINUTE, 90),
)
PERIOD: Final = (
    shared(Unit.REQUESTS, Window.DAY, 5),
    shared(Unit.TOKENS, Window.TOTAL, 400),
    layer(Unit.TOKENS, Window.DAY, 90),
)
SPEND: Final = (
    shared(Unit.SPEND, Window.MONTH, 200),
    layer(Unit.SPEND, Window.DAY, 90),
)
PARALLEL: Final = (
    shared(Unit.PARALLEL, Window.NONE, 3),
    layer(Unit.PARALLEL, Window.NONE, 2),
)
MIX: Final = (
    *ROLLING,
    *PERIOD,
    *SPEND,
    *PARALLEL,
    shadowed(layer(Unit.REQUESTS, Window.DAY, 2, SubjectKind.KEY, "k_1")),
)
PROFILES: Final = {
    "rolling": two_users(*ROLLING),
    "period": two_users(*PERIOD),
    "spend": two_users(*SPEND),
    "parallel": two_users(*PARALLEL),
    "mix": two_users(*MIX),
}

AMOUNTS: Final = st.one_of(st.integers(0, 60), st.sampled_from([0, 1, 30, 89, 90, 91]))
SHARES: Final = st.sampled_from([0.0, 0.3, 1.0])
USERS: Final = st.integers(0, 1)
PICK: Final = st.integers(0, 10**6)


class LimiterMachine(RuleBasedStateMachine):
    """Both limiters; a rule does the same to each and compares what they say."""

    def __init__(self, redis_url: str, plans: tuple[LayerPlan, LayerPlan]) -> None:
        super().__init__()
        self.driver = Driver(redis_url, now_ms=START_MS)
        self.model = Model(START_MS)
        self.plans = plans
        self.request_ids: list[str] = []
        self.dead: set[str] = set()
        self.demands: dict[str, tuple[int, LayerPlan, int]] = {}

    def teardown(self) -> None:
        self.driver.__exit__(None, None, None)

    def any_request(self, pick: int) -> str:
        """Return one of the last requests, or one that nobody has heard of."""
        recent = self.request_ids[-6:]
        return recent[pick % len(recent)] if recent else "unheard-of"

    def live_request(self, pick: int) -> str:
        recent = [each for each in self.request_ids[-9:] if each not in self.dead]
        return recent[pick % len(recent)] if recent else "unheard-of"

    def admit_both(self, request_id: str) -> None:
        tokens, plan, cost = self.demands[request_id]
        answer = self.driver.admit(request_id, plan, tokens, cost)
        assert answer == self.model.admit(request_id, plan, tokens, cost)

    @rule(user=USERS, tokens=AMOUNTS, cost=AMOUNTS)
    def admit(self, user: int, tokens: int, cost: int) -> None:
        request_id = f"r{len(self.request_ids)}"
        self.request_ids.append(request_id)
        self.demands[request_id] = (tokens, self.plans[user], cost)
        self.admit_both(request_id)

    @rule(count=st.integers(2, 5), tokens=AMOUNTS, cost=AMOUNTS)
    def admit_a_batch(self, count: int, tokens: int, cost: int) -> None:
        admits = []
        for index in range(count):
            request_id = f"r{len(self.request_ids)}"
            self.request_ids.append(request_id)
            self.demands[request_id] = (tokens, self.plans[index % 2], cost)
            admits.append(self.driver.admission(request_id, self.plans[index % 2], tokens, cost))
        answers = self.driver.call(*admits).answers
        assert answers == [
            self.model.admit(each.request_id, each.plan, tokens, cost) for each in admits
        ]

    @rule(pick=PICK)
    def admit_again(self, pick: int) -> None:
        request_id = self.any_request(pick)
        if request_id in self.demands:
            self.admit_both(request_id)

    @rule(pick=PICK)
    def admit_too_late(self, pick: int) -> None:
        late = self.driver.server_now_ms - 1
        answer = self.driver.admit("too-late", self.plans[pick % 2], not_after_ms=late)
        assert answer == [Outcome.EXPIRED]

    @rule(pick=PICK, share=SHARES)
    def settle(self, pick: int, share: float) -> None:
        request_id = self.live_request(pick)
        reserved_tokens, _, reserved_cost = self.demands.get(request_id, (0, None, 0))
        tokens, cost = int(reserved_tokens * share), int(reserved_cost * share)
        answer = self.driver.settle(request_id, tokens, cost)
        assert answer == [self.model.settle(request_id, tokens, cost)]

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        request_id = self.live_request(pick)
        assert self.driver.release(request_id) == [self.model.release(request_id)]

    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        request_id = self.live_request(pick)
        if request_id in self.demands:
            assert self.driver.heartbeat(request_id) == [self.model.heartbeat(request_id)]

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        """The owner dies: from now on the request is reaped, or nothing happens to it."""
        self.dead.add(self.any_request(pick))

    @rule(pick=PICK)
    def reap(self, pick: int) -> None:
        request_id = self.any_request(pick)
        assert self.driver.reap(request_id) == [self.model.reap(request_id)]

    @rule(
        by_ms=st.one_of(
            st.integers(-20_000, 70_000),
            st.sampled_from([1, -1, 4_999, 5_000, 5_001, 59_999, 60_000, 65_000, 30_000]),
        )
    )
    def tick(self, by_ms: int) -> None:
        self.driver.tick(by_ms)
        self.model.see_clock(self.driver.server_now_ms)

    @invariant()
    def both_count_the_same(self) -> None:
        layers = [each for plan in self.plans for each in plan.layers]
        balances, resets = self.driver.balances_and_resets(*self.plans)
        assert balances == [self.model.balance(each) for each in layers]
        assert resets == [self.model.resets_at_ms(each) for each in layers]
        assert self.driver.limiter_now_ms == self.model.now_ms
        assert self.driver.reservations() == self.model.reservations()
        assert self.driver.leases() == self.model.leases()

    @invariant()
    def no_promise_is_broken(self) -> None:
        """L1 to L4, from what was admitted rather than from how it is counted."""
        hard = {each for plan in self.plans for each in plan.layers if not each.is_shadow}
        for each in hard:
            entries = [entry for entry in self.model.entries if each in entry.plan.layers]
            if each.kind is LayerKind.ROLLING:
                begin_ms = self.model.now_ms - WINDOW_MS
                entries = [entry for entry in entries if entry.admitted_ms >= begin_ms]
                used = sum(amount_of(each, entry.tokens, entry.cost) for entry in entries)
            elif each.kind is LayerKind.PARALLEL:
                entries = [entry for entry in entries if entry.state is State.HELD]
                used = sum(entry.slots.get(each, 0) > self.model.now_ms for entry in entries)
            else:
                period = period_of(each, self.model.now_ms)
                entries = [e for e in entries if period_of(each, e.admitted_ms) == period]
                used = sum(
                    entry.is_request
                    if each.unit is Unit.REQUESTS
                    else amount_of(each, entry.tokens, entry.cost)
                    for entry in entries
                )
            assert used <= each.capacity, each.name


def explore(redis_url: str, profile: str, examples: int) -> None:
    plans = PROFILES[profile]

    class Machine(LimiterMachine):
        def __init__(self) -> None:
            super().__init__(redis_url, plans)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_and_the_model_agree(profile: str, redis_url: str) -> None:
    explore(redis_url, profile, examples=25)


@pytest.mark.long
@pytest.mark.parametrize("examples", [200, 1000])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_and_the_model_agree_at_length(
    profile: str, examples: int, redis_url: str
) -> None:
    # 1,000 for each of the five profiles: 5,000 in all.
    explore(redis_url, profile, examples=examples)
