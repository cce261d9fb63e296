"""Which limits bind a request, and what the limiter says about them.

A *layer* is one limit of one subject: "user u_1 may make 1,000 requests a day".
The layers of a request are counted together, all or none, by `dataplane.limits`;
this module holds the values both sides speak. Amounts are integers in the
layer's unit: requests, tokens, nano-USD, or requests in flight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# Redis counts in doubles inside a script: integers are exact up to here.
MAX_AMOUNT: Final = 2**53
# More would make one script hold the server for too long (limits page, section 5).
MAX_LAYERS: Final = 24
# Of rates (limits page, section 2): longer than a day is a quota, and below 10 µs the rounding of the
# interval to whole microseconds would be felt.
MAX_EVERY_MS: Final = 86_400_000
MAX_BURST: Final = 1_000_000_000
LEAST_INTERVAL_US: Final = 10
# `Standing.reset_ms` of a layer that never gives anything back by itself.
NEVER_MS: Final = -1


class SubjectKind(StrEnum):
    """Whom a layer counts, in the order in which layers are checked."""

    GLOBAL = "global"
    ORGANIZATION = "organization"
    USER = "user"
    KEY = "key"
    DEVICE = "device"
    IP = "ip"
    ENDPOINT = "endpoint"
    MODEL = "model"


class Unit(StrEnum):
    """What a layer counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SPEND = "spend"
    PARALLEL = "parallel"


class Window(StrEnum):
    """Over which time a layer counts; `NONE` is for requests in flight, `RATE` for so many every so often."""

    RATE = "rate"
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    NONE = "none"


class LayerKind(StrEnum):
    """The algorithm that counts a layer, in the order within one subject."""

    RATE = "g"
    ROLLING = "w"
    PERIOD = "p"
    SPEND = "s"
    PARALLEL = "c"


CALENDAR_WINDOWS: Final = (Window.DAY, Window.MONTH, Window.TOTAL)
_KINDS: Final[dict[tuple[Unit, Window], LayerKind]] = {
    (Unit.REQUESTS, Window.RATE): LayerKind.RATE,
    (Unit.REQUESTS, Window.MINUTE): LayerKind.ROLLING,
    (Unit.TOKENS, Window.MINUTE): LayerKind.ROLLING,
    **{(Unit.REQUESTS, window): LayerKind.PERIOD for window in CALENDAR_WINDOWS},
    **{(Unit.TOKENS, window): LayerKind.PERIOD for window in CALENDAR_WINDOWS},
    **{(Unit.SPEND, window): LayerKind.SPEND for window in CALENDAR_WINDOWS},
    (Unit.PARALLEL, Window.NONE): LayerKind.PARALLEL,
}
_SUBJECT_RANK: Final = {kind: rank for rank, kind in enumerate(SubjectKind)}
_KIND_RANK: Final = {kind: rank for rank, kind in enumerate(LayerKind)}
_UNIT_RANK: Final = {unit: rank for rank, unit in enumerate(Unit)}
_WINDOW_RANK: Final = {window: rank for rank, window in enumerate(Window)}


@dataclass(frozen=True, slots=True)
class Layer:
    """One limit of one subject.

    Attributes:
        subject_kind: Whom the layer counts.
        subject_id: Id or digest of the subject; never a key, token or prompt.
        unit: What is counted.
        window: Over which time; it must fit the unit.
        capacity: The limit, in the unit (spend: nano-USD); 0 refuses everything.
        time_zone: IANA zone whose midnights end a day or month.
        reset_generation: Raised by an administrator to start counting anew.
        is_hard: Whether requests reserve their upper bound; both kinds deny at 100 %.
        is_shadow: Counted and shown, but never refusing.
        has_public_figures: Whether the caller may see how much is left; the figures of layers
            that count other tenants too would leak their traffic.
        every_ms: Of a rate: the milliseconds in which `capacity` requests pass; else 0.
        burst: Of a rate: how many may come at once after a pause; 0 reads as `capacity`.
        kind: The algorithm that counts it; follows from unit and window.
        name: Its public name, such as `user_requests_per_day` or `key_parallel`.

    Raises:
        ValueError: The window does not fit the unit, a number is out of range, or there is no
            such time zone.
    """

    subject_kind: SubjectKind
    subject_id: str
    unit: Unit
    window: Window
    capacity: int
    time_zone: str = "UTC"
    reset_generation: int = 0
    is_hard: bool = True
    is_shadow: bool = False
    has_public_figures: bool = True
    every_ms: int = 0
    burst: int = 0

    kind: LayerKind = field(init=False, repr=False)
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kind = _KINDS.get((self.unit, self.window))
        if kind is None:
            raise ValueError(f"{self.unit} cannot be limited per {self.window}")
        if not 0 <= self.capacity <= MAX_AMOUNT:
            raise ValueError(f"capacity {self.capacity} is outside 0..2^53")
        if self.reset_generation < 0:
            raise ValueError("a reset generation is never negative")
        self._check_rate()
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"there is no time zone {self.time_zone!r}") from None
        # Worked out once: every request asks for them.
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "name", public_name(self.subject_kind, self.unit, self.window))

    @property
    def emission_interval_us(self) -> int:
        """The microseconds after which a rate lets the next request through, rounded up."""
        return -(-self.every_ms * 1000 // max(1, self.capacity))

    @property
    def most_at_once(self) -> int:
        """How many requests a rate lets through at once after a pause."""
        return self.burst or self.capacity

    def _check_rate(self) -> None:
        if self.window is not Window.RATE:
            if self.every_ms or self.burst:
                raise ValueError("only a rate has a time and a burst")
            return
        if not (0 < self.every_ms <= MAX_EVERY_MS and 0 <= self.burst <= MAX_BURST):
            raise ValueError("a rate passes every 1 ms to 1 day, at most 1e9 at once")
        if self.capacity and self.every_ms * 1000 < LEAST_INTERVAL_US * self.capacity:
            raise ValueError(f"a rate passes at most one request in {LEAST_INTERVAL_US} µs")


def public_name(subject_kind: SubjectKind, unit: Unit, window: Window) -> str:
    """Return the name of a layer, such as `user_requests_per_day` or `key_parallel`."""
    if window is Window.NONE:
        return f"{subject_kind}_{unit}"
    if window is Window.RATE:
        return f"{subject_kind}_{unit}_rate"
    joint = "_" if window is Window.TOTAL else "_per_"
    return f"{subject_kind}_{unit}{joint}{window}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LayerPlan:
    """The layers of a request in the order in which they bind; build with `plan_of`.

    One plan per API key is computed when a snapshot is applied and reused by
    every request, so that the limiter can keep what it derives from it. Plans
    compare by identity.

    Attributes:
        layers: At most 24, sorted, no two with the same counter.
        closed_layer: The first layer whose capacity is 0, if one refuses everything.
        valid_until_ms: Unix milliseconds at which a temporary limit among them expires; None: none is.
        organization_id: Whose callers it counts. Where several servers count, it says which of them
            counts the layers that organizations do not share.
        generations: Reset generations other than 0 by a layer's name: of the layers, and of what has
            no layer yet and would be counted under it.
        counts_output: A layer that refuses reserves an upper bound of the output: it must have one.
        has_hard_budget: A budget that refuses reserves the upper bound of the cost.
        has_soft_budget: A budget reserves what the call will probably cost.
        charges_expected: One of those refuses: a call that nobody ever learns more of is charged what it
            was expected to cost, so that no budget holds less than is charged.
    """

    layers: tuple[Layer, ...]
    closed_layer: Layer | None
    valid_until_ms: int | None = None
    organization_id: str = ""
    generations: tuple[tuple[str, int], ...] = ()

    # Worked out once: every request asks for them.
    counts_output: bool = field(init=False, repr=False)
    has_hard_budget: bool = field(init=False, repr=False)
    has_soft_budget: bool = field(init=False, repr=False)
    charges_expected: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        budgets = [each for each in self.layers if each.unit is Unit.SPEND]
        is_hard = any(each.is_hard and not each.is_shadow for each in budgets)
        counts_tokens = any(each.unit is Unit.TOKENS and not each.is_shadow for each in self.layers)
        object.__setattr__(self, "has_hard_budget", is_hard)
        object.__setattr__(self, "has_soft_budget", any(not each.is_hard for each in budgets))
        is_soft = any(not each.is_hard and not each.is_shadow for each in budgets)
        object.__setattr__(self, "charges_expected", is_soft)
        object.__setattr__(self, "counts_output", is_hard or counts_tokens)


@dataclass(frozen=True, slots=True)
class Demand:
    """The most one request can take; it also takes one request and one parallel slot.

    Attributes:
        tokens: An upper bound, what token layers reserve.
        cost_nanousd: An upper bound, what hard budgets reserve.
        expected_nanousd: What it will probably cost, what soft budgets reserve; None: the upper bound.

    Raises:
        ValueError: An amount is negative or above 2^53.
    """

    tokens: int
    cost_nanousd: int
    expected_nanousd: int | None = None

    def __post_init__(self) -> None:
        amounts = (self.tokens, self.cost_nanousd, self.expected_nanousd or 0)
        if not all(0 <= amount <= MAX_AMOUNT for amount in amounts):
            raise ValueError("a demand is between 0 and 2^53 in each unit")

    @property
    def soft_nanousd(self) -> int:
        """What soft budgets reserve."""
        return self.cost_nanousd if self.expected_nanousd is None else self.expected_nanousd


class Standing(NamedTuple):
    """Where one layer stands after a request was admitted, or when it was denied.

    A named tuple: a request makes one per layer, and a frozen dataclass costs five times as much.

    Attributes:
        layer: The layer.
        remaining: What is left, in the layer's unit, never below 0.
        reset_ms: For a layer with room: until all of it is back. For a short one: until this
            request would fit. 0 for parallel layers (a slot may come free at any moment),
            `NEVER_MS` where nothing comes back.
        period_id: `20261121`, `202611` or `total`; empty for rolling and parallel layers.
    """

    layer: Layer
    remaining: int
    reset_ms: int
    period_id: str


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request was not admitted; no counter of any layer has moved.

    Attributes:
        binding: The first layer, in order, that was short.
        is_never: The request alone is larger than the limit: waiting does not help.
        standings: Every layer, in the plan's order; only the binding one when a capacity is 0, and
            within emergency limits only those that this process counts.
        settled_nanousd: Spent so far, for a spend layer; else None.
        held_nanousd: Reserved by requests in flight, for a spend layer; else None.
        is_degraded: Within emergency limits: what is short is this process' share of a limit. With a
            `binding.reset_ms` of `NEVER_MS` the request is larger than the share alone.
    """

    binding: Standing
    is_never: bool
    standings: tuple[Standing, ...]
    settled_nanousd: int | None = None
    held_nanousd: int | None = None
    is_degraded: bool = False


class Denied(Exception):  # noqa: N818 - a verdict, not a fault
    """A layer was short. `denial` says which and until when."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(f"{denial.binding.layer.name} is exhausted")
        self.denial = denial


class LimitsUnavailable(Exception):  # noqa: N818 - a state of the service, not a fault of the call
    """The counters could not be read in time, so nothing can be admitted."""


def plan_of(
    layers: Iterable[Layer],
    valid_until_ms: int | None = None,
    organization_id: str = "",
    generations: Iterable[tuple[str, int]] = (),
) -> LayerPlan:
    """Return `layers` as a plan: sorted in the order in which they bind.

    `generations` are those of what has no layer; those of the layers are added.

    Subjects go from the widest to the narrowest (global, organization, user, key,
    device, IP, endpoint, model); within a subject rates before rolling before period before
    spend before parallel.

    Raises:
        ValueError: More than 24 layers, or two layers of one counter.
    """
    ordered = tuple(sorted(layers, key=_rank))
    if len(ordered) > MAX_LAYERS:
        raise ValueError(f"{len(ordered)} layers apply; at most {MAX_LAYERS} may")
    counters = {(each.subject_kind, each.subject_id, each.unit, each.window) for each in ordered}
    if len(counters) != len(ordered):
        raise ValueError("two layers share one counter")
    closed = (each for each in ordered if each.capacity == 0 and not each.is_shadow)
    raised = {
        **dict(generations),
        **{each.name: each.reset_generation for each in ordered if each.reset_generation},
    }
    return LayerPlan(
        ordered, next(closed, None), valid_until_ms, organization_id, tuple(raised.items())
    )


def _rank(layer: Layer) -> tuple[int, int, int, int, str]:
    return (
        _SUBJECT_RANK[layer.subject_kind],
        _KIND_RANK[layer.kind],
        _UNIT_RANK[layer.unit],
        _WINDOW_RANK[layer.window],
        layer.subject_id,
    )
