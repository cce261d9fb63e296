"""Promises L1 to L4 and L8, from what was admitted rather than from how it is counted."""

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan
from tests.limits.model import Model
from tests.limits.model_counts import State
from tests.limits.plans import WINDOW_MS


def assert_it_fitted(model: Model, plan: LayerPlan) -> None:
    """L2, L3, L4: right after an admission nothing that was counted is over its capacity."""
    for layer in plan.layers:
        if layer.kind is not LayerKind.RATE and not layer.is_shadow:
            assert sum(model.balance(layer)) <= layer.capacity, layer.name


def assert_kept(model: Model, plans: tuple[LayerPlan, ...]) -> None:
    """L1, L4, and of rates: no stretch of time sees more than the burst and its share."""
    for layer in {each for plan in plans for each in plan.layers if not each.is_shadow}:
        if layer.kind is LayerKind.ROLLING:
            begin_ms = model.now_ms - WINDOW_MS
            entries = [each for each in model.entries if each.admitted_ms >= begin_ms]
            assert sum(each.counted.get(layer, 0) for each in entries) <= layer.capacity
        elif layer.kind is LayerKind.PARALLEL:
            running = [each for each in model.entries if model.has_slot(each, layer)]
            # Of those that were restored each may have lost its slot to another before.
            assert len(running) <= layer.capacity or any(each.is_restored for each in running)
        elif layer.kind is LayerKind.RATE:
            _assert_paced(
                layer, [each.admitted_ms for each in model.entries if layer in each.counted]
            )


def _assert_paced(layer: Layer, passed_ms: list[int]) -> None:
    for first, begin_ms in enumerate(passed_ms):
        share = (passed_ms[-1] - begin_ms) * 1000 // layer.emission_interval_us
        assert len(passed_ms) - first <= layer.most_at_once + share


def assert_equal_to_the_ledger(model: Model) -> None:
    """L8: what was settled is what the ledger has, and what is held belongs to a request in flight."""
    for counter in model.counters():
        layer, period = counter
        settled, held = model.balance(layer, period)
        in_flight = [
            each
            for each in model.entries
            if each.state is State.HELD
            and layer in each.plan.layers
            and each.period(layer) == period
        ]
        if layer.kind is LayerKind.SPEND:
            assert settled == model.ledger(counter), layer.name
            assert held == sum(each.held[layer] for each in in_flight), layer.name
        else:
            reserved = sum(each.counted[layer] for each in in_flight)
            assert settled - reserved == model.ledger(counter), layer.name
