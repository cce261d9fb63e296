"""A model and the script, driven side by side through every order of events."""

from typing import Any, Final  # Any: what a strategy draws

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from dataplane.limits.operations import Balance, Outcome
from tests.limits import promises
from tests.limits.machine_requests import AMOUNTS, PICK, RequestMachine

# It runs out by the time of the server, which no test waits for.
MAINTENANCE_MS: Final = 3_600_000
NODES: Final = st.sampled_from(["n1", "n2"])


class LimiterMachine(RequestMachine):
    """The same with upkeep and losses, and what must hold after each step."""

    def fence(self, node_id: str) -> int:
        """Return the number a node last had; one that never was given out, if it had none."""
        return self.fences.get(node_id, 1)

    def is_fenced(self, node_id: str) -> bool:
        return self.fence(node_id) != self.newest_fence

    @rule(node_id=NODES)
    def maintain(self, node_id: str) -> None:
        answer = self.driver.maintain(node_id, MAINTENANCE_MS)
        is_held = node_id == self.model.owner
        expected = self.model.maintain(node_id)
        if expected == [Outcome.OK]:
            assert answer[0] == Outcome.OK
            assert answer[1] == self.newest_fence if is_held else answer[1] > self.newest_fence
            self.fences[node_id] = self.newest_fence = answer[1]
        else:
            assert answer == expected

    @rule(node_id=NODES)
    def resign(self, node_id: str) -> None:
        assert self.driver.resign(node_id) == [self.model.resign(node_id)]

    @rule()
    def lapse(self) -> None:
        self.driver.lapse()
        self.model.owner = ""

    @rule(pick=PICK, charged=st.one_of(st.none(), st.integers(0, 60)))
    def forfeit(self, pick: int, charged: int | None) -> None:
        """A node that started again charges what it had in flight when it died."""
        request_id = self.any_request(pick)
        answer = self.driver.reap(request_id, charged=charged)
        self.assert_same(answer, self.model.reap(request_id, charged))

    @rule(node_id=NODES)
    def reap(self, node_id: str) -> None:
        overdue = self.driver.overdue()
        assert overdue == self.model.overdue()
        for request_id in overdue:
            answer = self.driver.reap(request_id, self.fence(node_id))
            if self.is_fenced(node_id):
                assert answer == [Outcome.FENCED]
            else:
                self.assert_same(answer, self.model.reap(request_id))

    @rule(pick=PICK)
    def forget(self, pick: int) -> None:
        request_id = self.any_request(pick)
        assert self.driver.forget(request_id) == [self.model.forget(request_id)]

    @rule(pick=PICK, after=st.one_of(st.none(), AMOUNTS), is_read=st.booleans(), node_id=NODES)
    def correct(self, pick: int, after: int | None, is_read: bool, node_id: str) -> None:
        """Set a counter to what the ledger says, or to anything; or do it with a figure of before."""
        counters = list(self.model.counters().items())
        if not counters:
            return
        counter, at_ms = counters[pick % len(counters)]
        settled, held = self.model.balance(*counter)
        before = (settled, held) if is_read else (settled + 1, held)
        goal = (self.model.ledger(counter) if after is None else after, held)
        answer = self.driver.correct(
            counter[0], before, goal, period_ms=at_ms, fence=self.fence(node_id)
        )
        if self.is_fenced(node_id):
            assert answer == [Outcome.FENCED]
        else:
            self.is_whole = self.is_whole and not (is_read and goal != before)
            self.assert_same(answer, self.model.correct(counter, before, goal))

    @rule(
        pick=PICK,
        wanted=st.one_of(st.none(), AMOUNTS),
        counts_held=st.booleans(),
        repeats=st.booleans(),
        node_id=NODES,
    )
    def raise_to(
        self, pick: int, wanted: int | None, counts_held: bool, repeats: bool, node_id: str
    ) -> None:
        """Raise a counter to what the ledger says, or to anything, whatever it is; perhaps twice."""
        counters = list(self.model.counters().items())
        if not counters:
            return
        counter, at_ms = counters[pick % len(counters)]
        goal = self.model.ledger(counter) if wanted is None else wanted
        for _ in range(1 + repeats):
            answer = self.driver.raise_to(
                counter[0],
                goal,
                counts_held=counts_held,
                period_ms=at_ms,
                fence=self.fence(node_id),
            )
            if self.is_fenced(node_id):
                assert answer == [Outcome.FENCED]
            else:
                self.is_whole = self.is_whole and answer[0] != Outcome.OK
                self.assert_same(
                    answer, self.model.raise_to(counter, goal, counts_held=counts_held)
                )

    @rule(is_wiped=st.booleans(), pick=PICK, is_cold_for_long=st.sampled_from([False] * 3 + [True]))
    def lose(self, is_wiped: bool, pick: int, is_cold_for_long: bool) -> None:
        self.is_whole = False
        self.model.is_cold = True
        if is_wiped:
            self.driver.wipe()
            self.model.wipe(self.driver.server_now_ms)
            self.newest_fence = 0
        else:
            self.driver.redis.delete(self.driver.keyspace.epoch)
        if not is_cold_for_long:
            self.rebuild(pick)

    @precondition(lambda self: self.model.is_cold)
    @rule(pick=PICK)
    def rebuild(self, pick: int) -> None:
        """Set all counters to the ledger's sums; of what is in flight, some is told of in time."""
        counters = self.model.counters()
        before = {each: self.model.balance(*each) for each in counters}
        told = [each for index, each in enumerate(self.in_flight()) if pick >> index & 1]
        holdings = {each: self.holdings(each) for each in told}
        crossings = self.model.rebuild(told)
        epoch = f"epoch {self.model.epoch}"
        corrections = [
            self.driver.correction(
                layer, before[layer, period], self.model.corrections[layer, period], at_ms
            )
            for (layer, period), at_ms in counters.items()
        ]
        answers = self.driver.call(*corrections).answers if corrections else []
        assert [each[0] for each in answers] == [Outcome.OK] * len(corrections)
        news = [crossing for each in answers for crossing in each[1]]
        assert news == [self.named(each) for each in crossings]
        for request_id in told:
            self.restore(request_id, holdings[request_id], epoch)
        assert self.driver.open_epoch(epoch) == [Outcome.OK]

    def in_flight(self) -> list[str]:
        """Return what living nodes have in flight."""
        alive = [self.model.latest(each) for each in self.demands if each not in self.dead]
        return [each.request_id for each in alive if each and not each.is_closed]

    def restore(self, request_id: str, holdings: list[Any], epoch: str) -> None:
        """Restore a request, and once more, as two that rebuild would."""
        entry = self.model.latest(request_id)
        assert entry is not None
        for outcome in (Outcome.OK, Outcome.DUPLICATE):
            answer = self.driver.restore(request_id, holdings, epoch, admitted_ms=entry.admitted_ms)
            assert answer == [outcome]

    def holdings(self, request_id: str) -> list[Any]:
        entry = self.model.latest(request_id)
        assert entry is not None
        return self.driver.holdings(
            entry.plan, entry.tokens, entry.cost, expected=entry.expected, at_ms=entry.admitted_ms
        )

    @invariant()
    def both_count_the_same(self) -> None:
        layers = [each for plan in self.plans for each in plan.layers]
        if self.model.is_cold:
            assert self.driver.ask(Balance(self.driver.bind(self.plans[0]))) == [Outcome.COLD]
        else:
            balances, resets = self.driver.balances_and_resets(*self.plans)
            assert balances == [self.model.balance(each) for each in layers]
            assert resets == [self.model.resets_at_ms(each) for each in layers]
        assert self.driver.limiter_now_ms == self.model.now_ms
        assert self.driver.reservations() == self.model.reservations()
        assert self.driver.leases() == self.model.leases()
        assert self.driver.listed() == self.model.unreported

    @invariant()
    def no_promise_is_broken(self) -> None:
        promises.assert_kept(self.model, self.plans)
        if self.is_whole:
            promises.assert_equal_to_the_ledger(self.model)
