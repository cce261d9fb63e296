"""Both planes call counters the same: the ledger's sums are compared with them by name."""

from datetime import UTC, datetime

import pytest

from controlplane.domain import counters
from controlplane.domain.limits import LimitUnit, LimitWindow
from controlplane.domain.names import SubjectKind
from dataplane.domain.entitlements import Circumstances, Entitlements
from dataplane.domain.limiting import Layer, Unit, Window
from dataplane.domain.limiting import SubjectKind as LayerSubject
from dataplane.domain.periods import periods_at
from dataplane.domain.principals import (
    LimitEntry,
    Organization,
    Principal,
    Service,
    SubjectLimits,
    User,
)

WINDOWS = [Window.DAY, Window.MONTH, Window.TOTAL]


@pytest.mark.parametrize("kind", SubjectKind)
@pytest.mark.parametrize("unit", [Unit.REQUESTS, Unit.TOKENS, Unit.SPEND])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_layer_has_one_name(kind: SubjectKind, unit: Unit, window: Window) -> None:
    layer = Layer(LayerSubject(kind.name.lower()), "x", unit, window, 1)

    assert counters.layer_name(kind, LimitUnit[unit.name], LimitWindow[window.name]) == layer.name


@pytest.mark.parametrize("prefix", ["203.0.113.7", "2001:db8:0:1::/64"])
def test_an_address_has_one_id(prefix: str) -> None:
    user = User("u1", "acme/alice", Organization("o1", "acme"))
    limits = SubjectLimits(own=(LimitEntry("requests", "day", 1),))
    caller = Principal(LayerSubject.KEY, "k1", "laptop", user, "r1")
    plan = Entitlements(Service(), {f"ip:{prefix}": limits}, {}).plan(
        caller, Circumstances(address_prefix=prefix), now_ms=0
    )

    assert [layer.subject_id for layer in plan.layers] == [counters.address_subject_id(prefix)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("time_zone", ["UTC", "Pacific/Kiritimati", "America/New_York"])
@pytest.mark.parametrize("hour", range(0, 24, 6))
def test_a_period_has_one_id(window: Window, time_zone: str, hour: int) -> None:
    now = datetime(2026, 12, 31, hour, 59, 59, tzinfo=UTC)
    now_ms = int(now.timestamp() * 1000)

    assert (
        counters.period_at(LimitWindow[window.name], time_zone, now)
        == periods_at(window, time_zone, now_ms).period_id
    )
