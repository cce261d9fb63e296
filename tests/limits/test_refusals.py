"""A refused request costs nobody anything: whichever layer refuses it, no counter of any layer moves.

Each kind of layer of each subject refuses in turn, among layers of all kinds of all subjects that
have room and that count requests in flight. What Redis holds is compared byte by byte.
"""

from itertools import product

import pytest

from dataplane.domain.limiting import Layer, LayerPlan, SubjectKind, Unit, Window, plan_of
from dataplane.limits.operations import Answer, Outcome
from tests.limits.driver import Driver
from tests.limits.plans import SLOT_MS

TOKENS = 100
COST = 5_000
EXPECTED = 3_000
FAR = 10**12
HOUR_MS = 3_600_000
# Shorter than the life of any counter or record, so that one that was renewed is seen.
SHORT_MS = 30_000

KINDS = [
    (Unit.REQUESTS, Window.RATE),
    (Unit.REQUESTS, Window.MINUTE),
    (Unit.TOKENS, Window.MINUTE),
    (Unit.REQUESTS, Window.DAY),
    (Unit.TOKENS, Window.DAY),
    (Unit.REQUESTS, Window.MONTH),
    (Unit.TOKENS, Window.TOTAL),
    (Unit.SPEND, Window.DAY),
    (Unit.SPEND, Window.MONTH),
    (Unit.PARALLEL, Window.NONE),
]
EACH_LAYER = list(product(SubjectKind, KINDS))
NAMES = [f"{subject}-{unit}-{window}" for subject, (unit, window) in EACH_LAYER]


def layer(subject: SubjectKind, kind: tuple[Unit, Window], capacity: int) -> Layer:
    """Return a layer; budgets of a month are soft."""
    unit, window = kind
    return Layer(
        subject,
        "" if subject is SubjectKind.GLOBAL else f"{subject}-1",
        unit,
        window,
        capacity,
        is_hard=window is not Window.MONTH,
        every_ms=HOUR_MS if window is Window.RATE else 0,
    )


def one_request(kind: tuple[Unit, Window]) -> int:
    """Return what one request takes of a layer."""
    unit, window = kind
    if unit is Unit.TOKENS:
        return TOKENS
    if unit is Unit.SPEND:
        return EXPECTED if window is Window.MONTH else COST
    return 1


def plan_around(short: Layer) -> LayerPlan:
    """Return a plan with `short` among layers with room: two for each subject, of all kinds."""
    roomy = [
        layer(subject, kind, FAR if kind[1] is not Window.RATE else 1_000)
        for number, subject in enumerate(SubjectKind)
        for kind in (KINDS[3 * number % len(KINDS)], KINDS[(3 * number + 5) % len(KINDS)])
    ]
    counted = {(each.subject_kind, each.unit, each.window): each for each in roomy}
    counted[short.subject_kind, short.unit, short.window] = short
    assert {(each.unit, each.window) for each in counted.values()} == set(KINDS)
    return plan_of(counted.values())


def admit(driver: Driver, request_id: str, plan: LayerPlan) -> Answer:
    return driver.admit(request_id, plan, TOKENS, COST, expected=EXPECTED)


def shortened(driver: Driver) -> None:
    """Let everything that ends by itself end soon."""
    for key in driver.redis.scan_iter(f"{driver.keyspace.prefix}*", count=1000):
        if driver.redis.pttl(key) > 0:
            driver.redis.pexpire(key, SHORT_MS)


def held(driver: Driver) -> dict[bytes, tuple[bytes, bool]]:
    """Return every key but the clocks, what it holds, and whether somebody renewed its life."""
    found: dict[bytes, tuple[bytes, bool]] = {}
    for key in driver.redis.scan_iter(f"{driver.keyspace.prefix}*", count=1000):
        if not key.startswith(driver.keyspace.clock.encode()):
            content = driver.redis.dump(key)
            assert isinstance(content, bytes)
            found[key] = content, driver.redis.pttl(key) > SHORT_MS
    return found


@pytest.mark.parametrize(("subject", "kind"), EACH_LAYER, ids=NAMES)
def test_a_request_that_one_layer_refuses_changes_no_counter_of_any_layer(
    subject: SubjectKind, kind: tuple[Unit, Window], redis_under_test: str
) -> None:
    short = layer(subject, kind, one_request(kind))
    plan = plan_around(short)
    with Driver(redis_under_test) as driver:
        assert admit(driver, "in-flight", plan)[0] == Outcome.OK
        shortened(driver)
        before = held(driver)
        clock = driver.redis.get(driver.keyspace.clock)
        # Into the next slot, where whatever is counted would be seen.
        driver.tick(SLOT_MS)

        answer = admit(driver, "refused", plan)

        assert (answer[0], plan.layers[answer[4] - 1]) == (Outcome.DENY, short)
        assert held(driver) == before
        assert driver.redis.get(driver.keyspace.clock) != clock
        # Counters, the reservation of the request in flight, its lease, the epoch.
        assert len(before) == len(plan.layers) + 3


@pytest.mark.parametrize(
    ("subject", "kind"),
    [each for each in EACH_LAYER if one_request(each[1]) > 1],
    ids=[name for name in NAMES if Unit.TOKENS in name or Unit.SPEND in name],
)
def test_a_request_that_is_larger_than_a_limit_leaves_nothing_behind(
    subject: SubjectKind, kind: tuple[Unit, Window], redis_under_test: str
) -> None:
    short = layer(subject, kind, one_request(kind) - 1)
    plan = plan_around(short)
    with Driver(redis_under_test) as driver:
        answer = admit(driver, "refused", plan)

        assert (answer[0], plan.layers[answer[4] - 1]) == (Outcome.DENY, short)
        assert answer[5] == 1
        assert list(held(driver)) == [driver.keyspace.epoch.encode()]
