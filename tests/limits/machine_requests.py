"""What requests do, to the model and to the script."""

from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from dataplane.domain.limiting import LayerPlan
from dataplane.limits.operations import Answer, Outcome
from tests.limits import promises
from tests.limits.callers import Caller
from tests.limits.driver import Driver
from tests.limits.model import Model
from tests.limits.model_counts import Crossing
from tests.limits.script_runner import NOON_MS

# So close to the end of the day that ticks cross it.
START_MS: Final = NOON_MS + 12 * 3_600_000 - 90_000

AMOUNTS: Final = st.one_of(st.integers(0, 60), st.sampled_from([0, 1, 30, 89, 90, 91]))
# Of the upper bound of its cost, what a request is expected to cost.
EXPECTED: Final = st.sampled_from([None, 0.2, 0.5, 1.0])
SHARES: Final = st.sampled_from([0.0, 0.3, 0.9, 1.0])
USERS: Final = st.integers(0, 1)
PICK: Final = st.integers(0, 10**6)
TICKS: Final = st.one_of(
    st.integers(-20_000, 70_000),
    st.sampled_from([1, -1, 99, 100, 4_999, 5_000, 5_001, 25_000, 59_999, 60_000, 65_000]),
)


class RequestMachine(RuleBasedStateMachine):
    """Both limiters; a rule does the same to each and compares what they say."""

    def __init__(self, redis_url: str, plans: tuple[LayerPlan, LayerPlan]) -> None:
        super().__init__()
        self.driver = Driver(redis_url, now_ms=START_MS)
        self.model = Model(START_MS)
        self.plans = plans
        self.demands: dict[str, tuple[LayerPlan, int, int, int | None]] = {}
        self.dead: set[str] = set()
        self.over: set[str] = set()
        self.fences: dict[str, int] = {}
        self.newest_fence = 0
        self.is_whole = True

    def teardown(self) -> None:
        self.driver.__exit__(None, None, None)

    def caller(self, plan: LayerPlan) -> Caller | None:
        """Return who calls with a plan, by which configuration; None: it does not matter."""
        return None

    def any_request(self, pick: int) -> str:
        """Return one of the last requests, or one that nobody has heard of."""
        recent = list(self.demands)[-6:]
        return recent[pick % len(recent)] if recent else "unheard-of"

    def live_request(self, pick: int) -> str:
        recent = [each for each in list(self.demands)[-9:] if each not in self.dead]
        return recent[pick % len(recent)] if recent else "unheard-of"

    def demand(self, user: int, tokens: int, cost: int, share: float | None) -> str:
        request_id = f"r{len(self.demands)}"
        expected = None if share is None else int(cost * share)
        self.demands[request_id] = (self.plans[user], tokens, cost, expected)
        return request_id

    def assert_same(self, answer: Answer, expected: list[object]) -> None:
        """Compare answers that may tell of crossings."""
        if len(expected) == 2 and isinstance(expected[1], list):
            expected = [expected[0], [self.named(each) for each in expected[1]]]
        assert answer == expected

    def named(self, crossing: Crossing) -> list[object]:
        (layer, period), *figures = crossing
        return [self.driver.keyspace.counter(layer, period), *figures]

    @rule(user=USERS, tokens=AMOUNTS, cost=AMOUNTS, share=EXPECTED)
    def admit(self, user: int, tokens: int, cost: int, share: float | None) -> None:
        self.admit_both(self.demand(user, tokens, cost, share))

    def admit_both(self, request_id: str) -> None:
        plan, tokens, cost, expected = self.demands[request_id]
        caller = self.caller(plan)
        answer = self.driver.admit(request_id, plan, tokens, cost, expected=expected, caller=caller)
        assert answer == self.model.admit(request_id, plan, tokens, cost, expected, caller)
        if answer[0] == Outcome.OK:
            promises.assert_it_fitted(self.model, plan)

    @rule(count=st.integers(2, 5), tokens=AMOUNTS, cost=AMOUNTS, share=EXPECTED)
    def admit_a_batch(self, count: int, tokens: int, cost: int, share: float | None) -> None:
        names = [self.demand(index % 2, tokens, cost, share) for index in range(count)]
        demands = [
            (each, *self.demands[each], self.caller(self.demands[each][0])) for each in names
        ]
        admits = [
            self.driver.admission(name, plan, tokens, cost, expected=expected, caller=caller)
            for name, plan, tokens, cost, expected, caller in demands
        ]
        answers = self.driver.call(*admits).answers
        assert answers == [self.model.admit(*each) for each in demands]

    @rule(pick=PICK)
    def admit_again(self, pick: int) -> None:
        request_id = self.any_request(pick)
        entry = self.model.latest(request_id)
        if (
            request_id in self.demands
            and request_id not in self.over
            and not (entry and entry.is_restored)
        ):
            self.admit_both(request_id)

    @rule(pick=PICK)
    def admit_too_late(self, pick: int) -> None:
        late = self.driver.server_now_ms - 1
        answer = self.driver.admit("too-late", self.plans[pick % 2], not_after_ms=late)
        assert answer == [Outcome.EXPIRED]

    @rule(pick=PICK, share=SHARES)
    def settle(self, pick: int, share: float) -> None:
        request_id = self.live_request(pick)
        _, reserved_tokens, reserved_cost, _ = self.demands.get(request_id, (None, 0, 0, None))
        tokens, cost = int(reserved_tokens * share), int(reserved_cost * share)
        self.over.add(request_id)
        answer = self.driver.settle(request_id, tokens, cost)
        self.assert_same(answer, self.model.settle(request_id, tokens, cost))

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        request_id = self.live_request(pick)
        self.over.add(request_id)
        assert self.driver.release(request_id) == [self.model.release(request_id)]

    @rule(pick=PICK, is_this_one=st.sampled_from([True, True, False]))
    def cancel(self, pick: int, is_this_one: bool) -> None:
        """Another part of the request was refused; or so it was with an admission of another time."""
        entry = self.model.latest(self.live_request(pick))
        if entry is not None:
            admitted_ms = entry.admitted_ms - (0 if is_this_one else 1)
            answer = self.driver.cancel(entry.request_id, admitted_ms)
            assert answer == [self.model.cancel(entry.request_id, admitted_ms)]

    @rule(pick=PICK, expected=AMOUNTS)
    def extend(self, pick: int, expected: int) -> None:
        request_id = self.live_request(pick)
        if request_id in self.demands:
            caller = self.caller(self.demands[request_id][0])
            position = caller[0] if caller else None
            answer = self.driver.extend(request_id, expected, position)
            assert answer == self.model.extend(request_id, expected, caller)

    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        request_id = self.live_request(pick)
        if request_id in self.demands:
            assert self.driver.heartbeat(request_id) == [self.model.heartbeat(request_id)]

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        """The owner dies: from now on the request is reaped, or nothing happens to it."""
        self.dead.add(self.any_request(pick))

    @rule(by_ms=TICKS)
    def tick(self, by_ms: int) -> None:
        self.driver.tick(by_ms)
        self.model.see_clock(self.driver.server_now_ms)
