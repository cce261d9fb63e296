"""Layers and plans that tests share."""

from dataclasses import replace

from dataplane.domain.limiting import Layer, LayerPlan, SubjectKind, Unit, Window, plan_of

WINDOW_MS = 60_000
SLOT_MS = 5_000
USD = 1_000_000_000


def layer(
    unit: Unit,
    window: Window,
    capacity: int,
    kind: SubjectKind = SubjectKind.USER,
    subject_id: str = "u_1",
) -> Layer:
    return Layer(kind, subject_id, unit, window, capacity)


def budget(
    capacity: int, window: Window = Window.DAY, is_hard: bool = True, subject_id: str = "u_1"
) -> Layer:
    return Layer(SubjectKind.USER, subject_id, Unit.SPEND, window, capacity, is_hard=is_hard)


def rate(
    capacity: int,
    every_ms: int,
    burst: int = 0,
    kind: SubjectKind = SubjectKind.USER,
    subject_id: str = "u_1",
) -> Layer:
    """Return the limit of `capacity` requests every `every_ms`, `burst` at once."""
    return Layer(
        kind, subject_id, Unit.REQUESTS, Window.RATE, capacity, every_ms=every_ms, burst=burst
    )


def only(unit: Unit, window: Window, capacity: int) -> LayerPlan:
    """Return the plan of one layer."""
    return plan_of([layer(unit, window, capacity)])


def shadowed(original: Layer) -> Layer:
    return replace(original, is_shadow=True)


def amount_of(layer: Layer, tokens: int, cost: int, expected: int | None = None) -> int:
    """Return what a request reserves from a layer; with `expected`, a soft budget reserves that."""
    if layer.unit is Unit.TOKENS:
        return tokens
    if layer.unit is not Unit.SPEND:
        return 1
    return cost if layer.is_hard or expected is None else expected
