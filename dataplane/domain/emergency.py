"""What a data plane admits by itself while counters cannot be read (limits page, section 11).

Every replica has its share of each rolling limit, rate and parallel limit, and of a small budget for each
organization and day (UTC). Shares are counted from the most replicas that may serve, not from those that
are alive, so that together they never admit more than the emergency limits:

    60 requests a minute, 4 replicas      15 a minute each
    2 requests at a time, 4 replicas      1 each: a share is at least 1
    200 USD a month, 4 replicas           2 USD a day (1 %), 0.5 USD each
    1,000 USD a month, or no budget       5 USD a day, 1.25 USD each

Quotas and budgets over days and months are not counted here: what is spent is in the ledger, and reaches
the counters from there. All times are Unix milliseconds that the caller never lets go back.
"""

from typing import Final

from dataplane.domain.limiting import (
    Layer,
    LayerKind,
    LayerPlan,
    Standing,
    SubjectKind,
    Unit,
    Window,
)
from dataplane.domain.principals import Organization

# As the counters in Redis do: so many slots to a window, and the partly expired one in full.
SLOTS: Final = 12
WINDOW_MS: Final = 60_000
SLOT_MS: Final = WINDOW_MS // SLOTS
# Of a day, for each organization, before it is divided among the replicas.
MOST_BUDGET_NANOUSD: Final = 5_000_000_000
# So many days' emergencies use up a month's budget.
BUDGET_PARTS: Final = 100


def may_fail_open(organization: Organization, plan: LayerPlan) -> bool:
    """Return whether calls of an organization are admitted while counters cannot be read.

    Never with a hard budget of its own, whatever its policy: nobody could keep it.
    """
    return organization.fails_open and not any(
        layer.is_hard and not layer.is_shadow for layer in _budgets(plan)
    )


def share_of(amount: int, max_replicas: int) -> int:
    """Return one replica's share of a limit: rounded down, at least 1."""
    return max(1, amount // max(1, max_replicas))


def budget_share(plan: LayerPlan, max_replicas: int) -> int:
    """Return what one replica may spend for an organization on a day, in nano-USD.

    1 % of what the organization may spend in a month by `plan`, and at most 5 USD, divided.
    """
    caps = (
        layer.capacity // BUDGET_PARTS
        for layer in _budgets(plan)
        if layer.window is Window.MONTH and not layer.is_shadow
    )
    return min([MOST_BUDGET_NANOUSD, *caps]) // max(1, max_replicas)


def is_counted(layer: Layer) -> bool:
    """Return whether a replica counts a layer by itself."""
    counted = (LayerKind.RATE, LayerKind.ROLLING, LayerKind.PARALLEL)
    return layer.kind in counted and not layer.is_shadow


def untouched(layer: Layer) -> Standing:
    """Return where a layer stands that nobody counts now: nothing of it is known to be used."""
    return Standing(layer, layer.capacity, 0, "")


def _budgets(plan: LayerPlan) -> list[Layer]:
    wanted = SubjectKind.ORGANIZATION, Unit.SPEND
    return [each for each in plan.layers if (each.subject_kind, each.unit) == wanted]


class RollingCount:
    """What was taken in any 60 seconds, never less than it was.

    What was taken in a slot counts in full until a window that begins at the slot's last moment is
    over: no window, wherever it begins, sees more than was admitted against `used`.
    """

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        # Rising; at most SLOTS + 1 of them count.
        self._slots: dict[int, int] = {}

    def used(self, now_ms: int) -> int:
        """Return how much of the limit is taken."""
        first = now_ms // SLOT_MS - SLOTS
        while self._slots and (oldest := next(iter(self._slots))) < first:
            del self._slots[oldest]
        return sum(self._slots.values())

    def take(self, amount: int, now_ms: int) -> int:
        """Take `amount` and return the slot that it was taken in."""
        slot = now_ms // SLOT_MS
        self._slots[slot] = self._slots.get(slot, 0) + amount
        return slot

    def correct(self, slot: int, difference: int) -> None:
        """Add to what was taken in a slot; one that counts no more stays so."""
        if slot in self._slots:
            self._slots[slot] += difference

    def wait_ms(self, missing: int, now_ms: int) -> int:
        """Return when slots worth at least `missing` have stopped to count; at most all of them."""
        slot = now_ms // SLOT_MS
        for each, amount in self._slots.items():
            missing -= amount
            if missing <= 0:
                slot = each
                break
        return (slot + SLOTS + 1) * SLOT_MS - now_ms

    def is_over(self, now_ms: int) -> bool:
        """Return whether nothing that was taken counts any more."""
        return self.used(now_ms) == 0


class RateCount:
    """A rate, counted by when the next request would arrive if all came evenly (GCRA).

    Times within are microseconds, as an interval may be shorter than a millisecond.
    """

    __slots__ = ("_due_us",)

    def __init__(self) -> None:
        self._due_us = 0

    def remaining(self, interval_us: int, most_at_once: int, now_ms: int) -> int:
        """Return how many requests would be let through at once."""
        ahead_us = max(0, self._due_us - now_ms * 1000)
        return max(0, most_at_once - -(-ahead_us // interval_us))

    def take(self, interval_us: int, now_ms: int) -> None:
        """Let one request through."""
        self._due_us = max(self._due_us, now_ms * 1000) + interval_us

    def wait_ms(self, interval_us: int, most_at_once: int, now_ms: int) -> int:
        """Return after how long one more request is let through."""
        allowed_us = interval_us * (most_at_once - 1)
        return max(0, -(-(self._due_us - allowed_us - now_ms * 1000) // 1000))

    def reset_ms(self, now_ms: int) -> int:
        """Return after how long all of it is back."""
        return max(0, -(-self._due_us // 1000) - now_ms)

    def is_over(self, now_ms: int) -> bool:
        """Return whether all of it is back."""
        return self.reset_ms(now_ms) == 0
