"""Whose calls could meet more layers than one call may have."""

from collections.abc import Iterable, Mapping
from itertools import product

import pytest

from dataplane.domain.entitlements import Circumstances, Entitlements
from dataplane.domain.layer_bounds import LayerBounds, LimitShapes, are_alike
from dataplane.domain.limiting import MAX_LAYERS, SubjectKind
from dataplane.domain.principals import (
    LimitEntry,
    Principal,
    Service,
    SubjectLimits,
    TemporaryEntry,
    Tier,
)
from tests.unit.dataplane.configuration import principal, user

COUNTED = [
    *product(("requests", "tokens"), ("minute", "day", "month", "total")),
    *product(("spend",), ("day", "month", "total")),
    ("parallel", "none"),
]
ENTRIES = [LimitEntry(unit, window, 9) for unit, window in COUNTED]
# Fills the plan of every caller but for two layers.
FULL = {"organization:o1": SubjectLimits((*ENTRIES,)), "global": SubjectLimits((*ENTRIES[:10],))}


def problem(
    limits: Mapping[str, SubjectLimits],
    caller: Principal | None = None,
    service: Service | None = None,
    tiers: Iterable[Tier] = (),
) -> str | None:
    entitlements = Entitlements(
        service or Service(), {**FULL, **limits}, {tier.name: tier for tier in tiers}
    )
    return LayerBounds(entitlements, noted(entitlements.limits)).problem_of(caller or principal())


def noted(limits: Mapping[str, SubjectLimits]) -> LimitShapes:
    shapes = LimitShapes()
    for subject, configured in limits.items():
        shapes.note(subject, None, configured)
    return shapes


def some(count: int) -> SubjectLimits:
    return SubjectLimits((*ENTRIES[:count],))


@pytest.mark.parametrize(
    "subject", ["user:u1", "key:k1", "ip:203.0.113.7", "endpoint:e", "model:m"]
)
def test_each_subject_of_a_call_counts_up_to_the_last_layer_that_fits(subject: str) -> None:
    assert problem({subject: some(2)}) is None
    found = problem({subject: some(3)})

    assert found is not None
    assert found.startswith("25 limits can apply to one call of it (")
    kind = subject.partition(":")[0]
    assert f"{kind} 3" in found
    assert "global 10, organization 12" in found
    assert found.endswith("at most 24 may")


def test_one_call_meets_one_address_one_endpoint_and_one_model() -> None:
    apart = {"endpoint:a": some(2), "endpoint:b": some(2), "endpoint:c": some(1)}
    together = {"endpoint:a": some(1), "model:m": some(1), "ip:203.0.113.7": some(1)}

    assert problem(apart) is None
    assert problem(together) is not None


def test_others_limits_do_not_count() -> None:
    assert problem({"user:u2": some(12), "key:k2": some(12), "organization:o2": some(12)}) is None


def test_tiers_and_defaults_count_where_nothing_takes_their_place() -> None:
    pro = Tier(
        "pro",
        user_limits=(ENTRIES[0],),
        ip_limits=(ENTRIES[0],),
        device_limits=(ENTRIES[0],),
        credential_limits=(ENTRIES[0],),
    )
    caller = principal(user=user(tier="pro"))
    none = SubjectLimits((LimitEntry("requests", "minute", 0, is_unlimited=True),))

    found = problem({}, caller, tiers=[pro])
    assert found is not None
    assert found.startswith("25 limits")
    assert problem({"user:u1": none}, caller, tiers=[pro]) is None
    # Whoever calls from one address may call from another.
    assert problem({"ip:203.0.113.7": none}, caller, tiers=[pro]) is not None
    assert problem({"user:u1": some(1)}, caller, tiers=[pro]) is not None
    assert problem({}, principal(), Service(default_user_limits=(*ENTRIES[:3],))) is not None
    assert problem({}, principal(), Service(default_global_limits=(*ENTRIES[:9],))) is None


def test_temporary_limits_count_whenever_they_end() -> None:
    lifted = TemporaryEntry(LimitEntry("requests", "minute", 0, is_unlimited=True), 9)
    more = tuple(TemporaryEntry(entry, 9) for entry in ENTRIES[:3])

    assert problem({"user:u1": SubjectLimits((), more)}) is not None
    assert problem({"ip:203.0.113.7": SubjectLimits((), more)}) is not None
    assert problem({"user:u1": SubjectLimits((*ENTRIES[:2],), more[:2])}) is None
    # When it ends there are three again.
    assert problem({"user:u1": SubjectLimits((*ENTRIES[:3],), (lifted,))}) is not None


def test_a_problem_that_callers_share_is_each_one_s() -> None:
    entitlements = Entitlements(Service(), {**FULL, "user:u1": some(3), "key:k9": some(1)}, {})
    bounds = LayerBounds(entitlements, noted(entitlements.limits))
    keys = [principal(principal_id=f"k{number}") for number in range(10)]
    device = principal(kind=SubjectKind.DEVICE, principal_id="d1")

    told = [bounds.problem_of(each) for each in (*keys, device)]

    assert all(told)
    assert told[0] == told[1] != told[9]


def test_what_passes_is_what_can_be_admitted() -> None:
    limits = {"endpoint:e": some(1), "model:m": some(1)}
    entitlements = Entitlements(Service(), {**FULL, **limits}, {})

    plan = entitlements.plan(principal(), Circumstances(endpoint="e", model="m"), 0)

    assert problem(limits) is None
    assert len(plan.layers) == MAX_LAYERS


def test_a_limit_that_is_lifted_for_a_while_counts_and_one_that_is_lifted_for_good_does_not() -> (
    None
):
    unlimited = LimitEntry("requests", "minute", 0, is_unlimited=True)
    for_good = SubjectLimits((unlimited,))
    for_a_while = SubjectLimits((), (TemporaryEntry(unlimited, 9),))
    pro = Tier("pro", ip_limits=(*ENTRIES[:3],))
    caller = principal(user=user(tier="pro"))
    shapes = noted({"ip:203.0.113.7": for_good, "ip:203.0.113.8": for_a_while})

    assert not are_alike(for_good, for_a_while)
    assert len(shapes.of(SubjectKind.IP)) == 2
    assert shapes.most_of(SubjectKind.IP, pro.ip_limits) == 3
    assert problem({"ip:203.0.113.7": for_good}, caller, tiers=[pro]) is not None


def test_what_is_noted_and_taken_back_leaves_nothing() -> None:
    shapes = noted({"user:u1": some(2), "user:u2": some(2), "user:u3": some(3)})
    before = shapes.copy()

    shapes.note("user:u3", some(3), some(1))
    shapes.note("user:u1", some(2), None)

    assert shapes.most_of(SubjectKind.USER) == 2
    shapes.note("user:u2", some(2), None)
    assert shapes.most_of(SubjectKind.USER) == 1
    assert before.most_of(SubjectKind.USER) == 3


def test_nobody_is_looked_at_where_the_most_of_each_kind_fit_together() -> None:
    def bounds(limits: Mapping[str, SubjectLimits], *tiers: Tier) -> LayerBounds:
        by_name = {tier.name: tier for tier in tiers}
        return LayerBounds(Entitlements(Service(), limits, by_name), noted(limits))

    pro = Tier("pro", user_limits=(*ENTRIES[:2],))

    # Two callers might have the most of each kind, or one might have both.
    assert not bounds({**FULL, "user:u1": some(2), "user:u2": some(1)}).can_be_exceeded
    assert bounds({**FULL, "user:u1": some(2), "key:k2": some(1)}).can_be_exceeded
    assert not bounds(FULL, pro).can_be_exceeded
    assert bounds({**FULL, "user:u9": some(1)}, pro).can_be_exceeded


def test_figures_are_not_what_callers_share_but_how_many_there_are() -> None:
    def shared(**limits: SubjectLimits) -> tuple[object, ...]:
        return LayerBounds(Entitlements(Service(), limits, {}), noted(limits)).shared()

    higher = SubjectLimits((LimitEntry("requests", "minute", 10),))

    assert shared(**{"global": some(1)}) == shared(**{"global": higher})
    assert shared(**{"global": some(1)}) != shared(**{"global": some(2)})
    assert shared(**{"user:u1": some(1)}) == shared()
    assert shared(**{"model:m": some(1)}) != shared()
