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


def only(unit: Unit, window: Window, capacity: int) -> LayerPlan:
    """Return the plan of one layer."""
    return plan_of([layer(unit, window, capacity)])


def shadowed(original: Layer) -> Layer:
    return replace(original, is_shadow=True)
