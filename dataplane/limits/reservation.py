"""What a request holds between its admission and its settlement."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dataplane.domain.limiting import (
    MAX_AMOUNT,
    Denial,
    LayerPlan,
    LimitsUnavailable,
    Standing,
    Unit,
)
from dataplane.limits.counters import (
    PARALLEL,
    PERIOD_REQUESTS,
    PERIOD_TOKENS,
    SOFT_SPEND,
    SPEND,
    SPEND_CODES,
    BoundPlan,
)
from dataplane.limits.operations import (
    Admit,
    Answer,
    Cancel,
    Extend,
    Operation,
    Outcome,
    Release,
    Settle,
)


@dataclass(frozen=True, slots=True)
class Held:
    """What a reservation holds, for a rebuild of counters that were lost.

    Attributes:
        request_id: The request.
        counters: In the form of the script's records, `COUNTER_FIELDS` values each; those that
            are rebuilt: periods, budgets and parallel sets.
        meta: As its admit had it.
        admitted_at_ms: Limiter time of its admission.
    """

    request_id: str
    counters: list[int | str]
    meta: bytes
    admitted_at_ms: int


class Reservation:
    """A request's hold on every layer of its plan, until it is settled or released.

    The first of `settle`, `release` and `cancel` counts; later ones do nothing. They are plain
    calls that cannot be cancelled: the operation is in the queue when they return,
    ahead of every admit that is asked for later. Forgetting both keeps the hold until
    `Limiter.forfeit`.
    """

    __slots__ = (
        "_admit",
        "_answer",
        "_ask",
        "_close",
        "_soft_nanousd",
        "_standings",
        "admitted_at_ms",
        "is_open",
        "since",
    )

    def __init__(
        self,
        admit: Admit,
        answer: Answer,
        since: float,
        close: Callable[["Reservation", Operation], None],
        ask: Callable[[Operation], Awaitable[Answer]],
    ) -> None:
        """Wrap an answer of the script; made by the limiter only.

        Args:
            admit: What was asked, with the keys and periods that were sent last.
            answer: `[OK | DUPLICATE, now, nexts, pairs]`.
            since: When it was admitted, by the loop's clock in seconds.
            close: Queues the operation that ends the reservation.
            ask: Queues an operation and waits for its answer, or raises `LimitsUnavailable`.
        """
        self.admitted_at_ms: int = answer[1]
        self.since = since
        self.is_open = True
        self._admit = admit
        self._soft_nanousd = admit.soft_nanousd
        self._answer = answer
        self._close = close
        self._ask = ask
        self._standings: tuple[Standing, ...] | None = None

    @property
    def request_id(self) -> str:
        """The request."""
        return self._admit.request_id

    @property
    def service_admitted_at_ms(self) -> int:
        """Limiter time of its admission where organizations share counters: here they have one clock."""
        return self.admitted_at_ms

    @property
    def bound(self) -> BoundPlan:
        """The keys that hold it."""
        return self._admit.bound

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every layer in the plan's order, right after this request was admitted."""
        if self._standings is None:
            self._standings = standings_of(self._admit.plan, self._admit.bound, self._answer)
        return self._standings

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what is held by what the request took.

        Raises:
            ValueError: An amount is negative or above 2^53.
        """
        if not (0 <= tokens <= MAX_AMOUNT and 0 <= cost_nanousd <= MAX_AMOUNT):
            raise ValueError("a settlement is between 0 and 2^53 in each unit")
        self._end(Settle(self.request_id, tokens, cost_nanousd, self.bound))

    def release(self) -> None:
        """Give everything back: no byte of the request was written upstream."""
        self._end(Release(self.request_id, self.bound))

    def cancel(self) -> None:
        """Undo the admission: another part of the request was refused.

        Other than after a release, rolling request counts move back too, and the same request may
        be asked for again.
        """
        self._end(Cancel(self.request_id, self.bound, self.admitted_at_ms))

    async def extend(self, expected_nanousd: int) -> bool:
        """Raise what the request's soft budgets hold to `expected_nanousd` in all.

        Repeating it, or asking for less than they hold, changes nothing. When it is cancelled or
        fails, the hold may have been raised: the settle gives it back.

        Returns:
            False when one of them has no room for it, or streams of who asked are to end; nothing
            has changed then.

        Raises:
            LimitsUnavailable: No answer in time.
            ValueError: The amount is negative or above 2^53.
        """
        if not 0 <= expected_nanousd <= MAX_AMOUNT:
            raise ValueError("a hold is between 0 and 2^53")
        is_soft = any(layer[0] == SOFT_SPEND for layer in self.bound.layers)
        if not (self.is_open and is_soft and expected_nanousd > self._soft_nanousd):
            return True
        position = self._admit.position
        answer = await self._ask(Extend(self.request_id, self.bound, expected_nanousd, position))
        match answer[0]:
            case Outcome.DENY | Outcome.REVOKED:
                return False
            case Outcome.OK:
                self._soft_nanousd = max(self._soft_nanousd, expected_nanousd)
            case Outcome.GONE:
                # Its counters were lost or it was reaped: no hold is left that could be too small.
                pass
            case _:
                raise LimitsUnavailable("the hold could not be raised")
        return True

    def held(self) -> Held:
        """Return what it holds of counters that can be rebuilt."""
        nexts: int = self._answer[2]
        counters: list[int | str] = []
        for index, layer in enumerate(self.bound.layers):
            code, offset, capacity, is_shadow = layer[:4]
            is_next = nexts >> index & 1
            key = self.bound.keys[offset + is_next]
            if code == PARALLEL:
                counters += (code, key, 1, 0, 0)
            elif code in (PERIOD_REQUESTS, PERIOD_TOKENS):
                amount = 1 if code == PERIOD_REQUESTS else self._admit.tokens
                counters += (code, key, amount, 0, layer[5 + is_next])
            elif code in SPEND_CODES:
                amount = self._admit.cost_nanousd if code == SPEND else self._soft_nanousd
                budget = -capacity if is_shadow else capacity
                counters += (code, key, amount, budget, layer[5 + is_next])
        return Held(self.request_id, counters, self._admit.meta, self.admitted_at_ms)

    def _end(self, operation: Operation) -> None:
        if self.is_open:
            self.is_open = False
            self._close(self, operation)


def standings_of(plan: LayerPlan, bound: BoundPlan, answer: Answer) -> tuple[Standing, ...]:
    """Return the standings of an answer `[outcome, now, nexts, pairs, …]`."""
    nexts: int = answer[2]
    pairs: list[int] = answer[3]
    period_ids = [ids[nexts >> index & 1] for index, ids in enumerate(bound.period_ids)]
    # Every request does this, and a loop of our own takes twice as long.
    rows = zip(plan.layers, pairs[::2], pairs[1::2], period_ids, strict=True)
    return tuple(map(Standing._make, rows))


def denial_of(plan: LayerPlan, bound: BoundPlan, answer: Answer) -> Denial:
    """Return the denial of an answer `[DENY, now, nexts, pairs, binding, never, settled, held]`."""
    standings = standings_of(plan, bound, answer)
    binding = standings[answer[4] - 1]
    is_money = binding.layer.unit is Unit.SPEND
    return Denial(
        binding=binding,
        is_never=bool(answer[5]),
        standings=standings,
        settled_nanousd=answer[6] if is_money else None,
        held_nanousd=answer[7] if is_money else None,
    )
