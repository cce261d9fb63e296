"""What a request holds of both halves of its plan, where two scripts count them."""

from dataclasses import replace

from dataplane.domain.limiting import Demand, Denial, LayerKind, Standing, Unit
from dataplane.limits.buckets import Halves
from dataplane.limits.reservation import Reservation


class SplitReservation:
    """The reservations of a request's halves, settled and released together.

    Both ends are plain calls, as those of a `Reservation`: the operations of both halves are in
    their queues when one returns. They take effect on their own: between the two, or where a node
    is away, one half is ahead of the other.
    """

    __slots__ = (
        "_halves",
        "_own",
        "_shared",
        "_standings",
        "admitted_at_ms",
        "service_admitted_at_ms",
    )

    def __init__(self, halves: Halves, shared: Reservation, own: Reservation) -> None:
        """Hold both; made by the limiter only."""
        # Limiter time of either half: it says in which periods the request counts there.
        self.admitted_at_ms = own.admitted_at_ms
        self.service_admitted_at_ms = shared.admitted_at_ms
        self._halves = halves
        self._shared = shared
        self._own = own
        self._standings: tuple[Standing, ...] | None = None

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every layer in the plan's order, right after its half was admitted."""
        if self._standings is None:
            self._standings = self._halves.merged(self._shared.standings, self._own.standings)
        return self._standings

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what both halves hold by what the request took.

        Raises:
            ValueError: An amount is negative or above 2^53; neither half has changed.
        """
        self._own.settle(tokens, cost_nanousd)
        self._shared.settle(tokens, cost_nanousd)

    def release(self) -> None:
        """Give everything back: no byte of the request was written upstream."""
        self._own.release()
        self._shared.release()

    async def extend(self, expected_nanousd: int) -> bool:
        """Raise what the request's soft budgets hold to `expected_nanousd` in all.

        Where the organization's have no room, the shared ones hold more than is needed until the
        request is settled.

        Returns:
            False when one of them has no room for it.

        Raises:
            LimitsUnavailable: No answer in time; either half may have been raised.
            ValueError: The amount is negative or above 2^53.
        """
        if not await self._shared.extend(expected_nanousd):
            return False
        return await self._own.extend(expected_nanousd)


def whole_denial(denial: Denial, halves: Halves, shared: Reservation, demand: Demand) -> Denial:
    """Return the denial by an organization's own layer as if all layers had been asked at once.

    The shared ones stand where they stood before this request took from them; until when they are
    whole again is as it was with it.
    """
    if halves.own is None or len(denial.standings) != len(halves.own.layers):
        return denial
    before = [_given_back(each, demand) for each in shared.standings]
    return replace(denial, standings=halves.merged(before, denial.standings))


def _given_back(standing: Standing, demand: Demand) -> Standing:
    layer, amount = standing.layer, 1
    if layer.unit is Unit.TOKENS:
        amount = demand.tokens
    elif layer.kind is LayerKind.SPEND:
        amount = demand.cost_nanousd if layer.is_hard else demand.soft_nanousd
    most = layer.most_at_once if layer.kind is LayerKind.RATE else layer.capacity
    return standing._replace(remaining=min(standing.remaining + amount, most))
