"""What a request holds between its admission and its settlement."""

from collections.abc import Callable

from dataplane.domain.limiting import MAX_AMOUNT, Denial, LayerPlan, Standing, Unit
from dataplane.limits.counters import BoundPlan
from dataplane.limits.operations import Answer, Operation, Release, Settle


class Reservation:
    """A request's hold on every layer of its plan, until it is settled or released.

    The first of `settle` and `release` counts; later ones do nothing. Both are plain
    calls that cannot be cancelled: the operation is in the queue when they return,
    ahead of every admit that is asked for later. Forgetting both keeps the hold until
    `Limiter.forfeit`.
    """

    __slots__ = (
        "_answer",
        "_bound",
        "_close",
        "_plan",
        "_standings",
        "admitted_at_ms",
        "is_open",
        "request_id",
        "since",
    )

    def __init__(
        self,
        request_id: str,
        plan: LayerPlan,
        bound: BoundPlan,
        answer: Answer,
        since: float,
        close: Callable[["Reservation", Operation], None],
    ) -> None:
        """Wrap an answer of the script; made by the limiter only.

        Args:
            request_id: The request.
            plan: Its layers.
            bound: The keys and periods that were sent.
            answer: `[OK | DUPLICATE, now, nexts, pairs]`.
            since: When it was admitted, by the loop's clock in seconds.
            close: Queues the operation that ends the reservation.
        """
        self.request_id = request_id
        self.admitted_at_ms: int = answer[1]
        self.since = since
        self.is_open = True
        self._plan = plan
        self._bound = bound
        self._answer = answer
        self._close = close
        self._standings: tuple[Standing, ...] | None = None

    @property
    def bound(self) -> BoundPlan:
        """The keys that hold it."""
        return self._bound

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every layer in the plan's order, right after this request was admitted."""
        if self._standings is None:
            self._standings = standings_of(self._plan, self._bound, self._answer)
        return self._standings

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what is held by what the request took.

        Raises:
            ValueError: An amount is negative or above 2^53.
        """
        if not (0 <= tokens <= MAX_AMOUNT and 0 <= cost_nanousd <= MAX_AMOUNT):
            raise ValueError("a settlement is between 0 and 2^53 in each unit")
        self._end(Settle(self.request_id, tokens, cost_nanousd, self._bound))

    def release(self) -> None:
        """Give everything back: no byte of the request was written upstream."""
        self._end(Release(self.request_id, self._bound))

    def _end(self, operation: Operation) -> None:
        if self.is_open:
            self.is_open = False
            self._close(self, operation)


def standings_of(plan: LayerPlan, bound: BoundPlan, answer: Answer) -> tuple[Standing, ...]:
    """Return the standings of an answer `[outcome, now, nexts, pairs, …]`."""
    nexts: int = answer[2]
    pairs: list[int] = answer[3]
    return tuple(
        Standing(
            layer=layer,
            remaining=pairs[2 * index],
            reset_ms=pairs[2 * index + 1],
            period_id=bound.period_ids[index][nexts >> index & 1],
        )
        for index, layer in enumerate(plan.layers)
    )


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
