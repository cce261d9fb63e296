"""What a change costs, and what it leaves alone."""

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control import compile as compiling
from dataplane.control.compile import Compiled, Compiler, InvalidConfigurationError
from dataplane.control.compiling.references import References, ReferencesEdition
from dataplane.control.compiling.releasing import Releasing
from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.slices import Slices
from dataplane.domain.limiting import LayerPlan
from dataplane.domain.principals import ApiKey
from dataplane.domain.secret import Secret
from dataplane.domain.sharded_map import MapEdition, ShardedMap
from dataplane.domain.snapshot import Snapshot
from tests.control import large
from tests.control.configurations import limit, resource, sha256_of, subject_limits

_KEYS = 400
_MANY = [limit(unit, window) for unit in (1, 2) for window in (1, 2, 3, 4)]
_BROKEN = b"\xff\xff\xff"


class Node:
    """Holds a configuration, and compiles changes of it."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.compiler = Compiler()

    async def take(self, change: Change) -> Compiled:
        compiled = await self.compiler.compile(self.holdings, change, 1_000)
        self.holdings.commit(change)
        self.compiler.commit(compiled)
        return compiled

    async def put(self, *resources: pb.Resource) -> Snapshot:
        return (await self.take(large.change_of(large.raw(resources)))).snapshot

    async def remove(self, *keys: Key) -> Snapshot:
        return (await self.take(large.change_of({}, keys))).snapshot


@pytest_asyncio.fixture
async def node() -> Node:
    """A node with 400 keys in 4 organizations."""
    it = Node()
    everything = large.raw(large.large_configuration(_KEYS))
    await it.take(large.change_of(everything, secrets=large.large_secrets(), is_everything=True))
    return it


def _current(node: Node) -> Mapping[bytes, ApiKey]:
    return node.compiler._state.keys.by_sha256


def _others(
    before: Mapping[bytes, ApiKey], after: Mapping[bytes, ApiKey | None], changed: Iterable[int]
) -> Iterator[bool]:
    """Yield of each key whether it is what it was, where it should be."""
    numbers = frozenset(changed)
    for number in range(_KEYS):
        digest = sha256_of(number)
        yield (before[digest] is after[digest]) == (number not in numbers)


async def test_a_changed_key_is_the_only_one_that_is_another(node: Node) -> None:
    before = _current(node)
    snapshot = await node.put(large.api_key(7, 2, revoked=True))

    assert snapshot.keys_by_sha256[sha256_of(7)].is_revoked
    assert all(_others(before, snapshot.keys_by_sha256, [7]))


async def test_of_a_changed_organization_only_the_users_and_keys_are_others(node: Node) -> None:
    before = _current(node)
    paused = pb.Organization(name="organization-2", paused=True)
    organization = resource(pb.RESOURCE_KIND_ORGANIZATION, large.organization_id(2), paused)
    snapshot = await node.put(organization)

    found = snapshot.keys_by_sha256
    assert all(_others(before, found, range(200, 300)))
    assert found[sha256_of(250)].principal.user.organization.is_paused
    assert not found[sha256_of(150)].principal.user.organization.is_paused


async def test_what_changes_its_revision_only_changes_nobody(node: Node) -> None:
    before = _current(node)
    same = pb.Organization(name="organization-2", time_zone="Europe/Paris")
    kept = await node.put(
        resource(pb.RESOURCE_KIND_ORGANIZATION, large.organization_id(2), same, revision=9)
    )

    assert kept.keys_by_sha256 is before


async def test_a_changed_router_changes_no_key_and_no_other_router(node: Node) -> None:
    before, routers = _current(node), node.compiler._state.routers
    snapshot = await node.put(large.router(3, 2, name="other"))

    assert snapshot.keys_by_sha256 is before
    assert [each for each in routers if routers[each] is not snapshot.routers[each]] == ["r3"]


async def test_a_new_secret_reaches_every_router_of_its_provider_and_no_other(node: Node) -> None:
    routers = node.compiler._state.routers
    lone = pb.Router(name="lone", rules=[pb.Rule(id="lone", provider_id="p4", models=["*"])])
    await node.put(resource(pb.RESOURCE_KIND_ROUTER, "lone", lone))
    alone = node.compiler._state.routers["lone"]
    newer = RawSecret("c5", 1, Secret(b"sk-newer"))
    change = large.change_of({}, secrets={"c5": newer})
    snapshot = (await node.take(change)).snapshot

    assert snapshot.routers["lone"] is alone
    found = {rule.provider.provider_id: rule.provider for rule in snapshot.routers["r0"].rules}
    secret = found["p5"].credentials[0].secret
    assert secret is not None
    assert secret.reveal() == b"sk-newer"
    assert found["p4"] is routers["r0"].rules[4].provider


async def test_a_limit_of_everybody_leaves_every_caller_as_they_are(node: Node) -> None:
    before = _current(node)
    snapshot = await node.put(subject_limits("global", [limit(capacity=5)]))

    assert snapshot.keys_by_sha256 is before
    plan = snapshot.plan_for(before[sha256_of(1)].principal, "", "", "", 0)
    assert [layer.capacity for layer in plan.layers] == [5]


def _plan(snapshot: Snapshot, number: int) -> LayerPlan:
    principal = snapshot.keys_by_sha256[sha256_of(number)].principal
    return snapshot.plan_for(principal, "203.0.113.7", "chat", "m", snapshot.applied_at_ms)


async def test_a_changed_key_leaves_the_plans_of_others_and_a_changed_limit_leaves_none(
    node: Node,
) -> None:
    before = await node.put(large.api_key(8, 2, revoked=True))
    plans = [_plan(before, number) for number in (0, 7)]

    after = await node.put(large.api_key(7, 2, name="another"))
    assert _plan(after, 0) is plans[0]
    assert _plan(after, 7) is not plans[1]

    limited = await node.put(large.limits_of_user(0, capacity=7))
    assert [layer.capacity for layer in _plan(limited, 0).layers] == [7, 7_000_000]
    # Whoever began before goes on with what held then.
    assert _plan(before, 0) is plans[0]


async def test_plans_of_callers_that_were_replaced_do_not_pile_up(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "MOST_PLANS", 0)
    await node.put(large.limits_of_user(0, capacity=7))
    for revision in range(2, 900):
        _plan(await node.put(large.api_key(7, revision, name=f"{revision}")), 7)
    assert len(node.compiler._state.plans) <= 2 * _KEYS


async def test_plans_are_let_go_in_steps_when_nobody_has_them(node: Node) -> None:
    snapshot = await node.put(large.limits_of_user(0, capacity=7))
    for number in range(_KEYS):
        _plan(snapshot, number)
    parts = snapshot._plans.remains()

    await node.put(large.limits_of_user(0, capacity=8))
    await asyncio.sleep(0)
    assert sum(map(len, parts)) == _KEYS
    del snapshot
    await _until(lambda: not node.compiler._releasing.pending)
    assert not parts


async def test_callers_that_a_limit_of_everybody_crowds_out_come_back_when_it_goes(
    node: Node,
) -> None:
    before = _current(node)
    of_organization = subject_limits(f"organization:{large.organization_id(1)}", _MANY)
    of_users = [subject_limits(f"user:{large.user_id(each)}", _MANY) for each in (101, 102)]
    await node.put(of_organization, *of_users)
    crowded = await node.take(
        large.change_of(
            large.raw([subject_limits("global", _MANY), subject_limits("model:m", [limit()])])
        )
    )
    found = crowded.snapshot.keys_by_sha256

    assert [each.resource_id for each in crowded.quarantined] == ["k00000000101", "k00000000102"]
    assert sha256_of(101) not in found
    assert all(before[each] is found[each] for each in found)
    after = await node.take(large.change_of({}, [(pb.RESOURCE_KIND_SUBJECT_LIMITS, "model:m")]))
    assert after.quarantined == ()
    assert len(after.snapshot.keys_by_sha256) == _KEYS


_OWN = (
    f"organization:{large.organization_id(1)}",
    f"user:{large.user_id(101)}",
    "key:k00000000101",
)


@pytest.mark.parametrize("subject", _OWN)
async def test_limits_of_their_own_crowd_callers_out_until_they_go(
    node: Node, subject: str
) -> None:
    others = (*(each for each in _OWN if each != subject), "model:m")
    almost = [subject_limits(each, _MANY if each != "model:m" else [limit()]) for each in others]
    before = (await node.put(*almost)).keys_by_sha256
    too_many = large.raw([subject_limits(subject, _MANY)])
    crowded = await node.take(large.change_of(too_many))

    assert [each.resource_id for each in crowded.quarantined] == ["k00000000101"]
    found = crowded.snapshot.keys_by_sha256
    assert all(_others(before, {**found, sha256_of(101): found.get(sha256_of(101))}, [101]))
    after = await node.take(large.change_of({}, too_many))
    assert after.quarantined == ()
    assert sha256_of(101) in after.snapshot.keys_by_sha256


async def test_the_twin_of_a_key_that_goes_works_again(node: Node) -> None:
    twin = pb.ApiKey.FromString(large.api_key(8).payload)
    twin.key_sha256 = sha256_of(7)
    snapshot = await node.put(resource(pb.RESOURCE_KIND_API_KEY, "twin", twin))

    assert sha256_of(7) not in snapshot.keys_by_sha256
    snapshot = await node.remove((pb.RESOURCE_KIND_API_KEY, "k00000000007"))
    assert snapshot.keys_by_sha256[sha256_of(7)].key_id == "twin"
    assert node.compiler._state.quarantined == ()


async def test_keys_of_a_bad_user_are_set_aside_until_the_user_is_good(node: Node) -> None:
    bad = pb.Resource(kind=pb.RESOURCE_KIND_USER, id=large.user_id(7), payload=_BROKEN)
    snapshot = await node.put(bad)

    assert sha256_of(7) not in snapshot.keys_by_sha256
    assert [each.resource_id for each in node.compiler._state.quarantined] == [
        large.user_id(7),
        "k00000000007",
    ]
    snapshot = await node.put(large.user(7, 3))
    assert sha256_of(7) in snapshot.keys_by_sha256
    assert node.compiler._state.quarantined == ()


async def test_all_that_are_set_aside_are_named_at_every_change(node: Node) -> None:
    bad = pb.Resource(kind=pb.RESOURCE_KIND_API_KEY, id="bad", payload=_BROKEN)
    await node.put(bad)
    compiled = await node.take(large.change_of(large.raw([large.router(3, 2, name="other")])))

    assert [each.resource_id for each in compiled.quarantined] == ["bad"]


async def test_callers_find_their_router_when_it_comes_and_lose_it_when_it_goes(
    node: Node,
) -> None:
    before = _current(node)
    named = [number for number in range(_KEYS) if number % large.ROUTERS == 3]
    snapshot = await node.remove((pb.RESOURCE_KIND_ROUTER, "r3"))

    assert all(_others(before, snapshot.keys_by_sha256, named))
    assert snapshot.keys_by_sha256[sha256_of(3)].principal.router_id == ""
    without = snapshot.keys_by_sha256
    snapshot = await node.put(large.router(3))
    assert all(_others(without, snapshot.keys_by_sha256, named))
    assert snapshot.keys_by_sha256[sha256_of(3)].principal.router_id == "r3"


async def test_a_temporary_limit_is_left_out_from_its_end_on_whatever_changes(node: Node) -> None:
    message = pb.SubjectLimits(
        subject_kind=limits_pb2.SUBJECT_KIND_USER, subject_id=large.user_id(7)
    )
    message.temporary_limits.add(limit=limit()).until.FromMilliseconds(2_000)
    name = f"user:{large.user_id(7)}"
    snapshot = await node.put(resource(pb.RESOURCE_KIND_SUBJECT_LIMITS, name, message))
    assert snapshot.limits[name].temporary

    change = large.change_of(large.raw([large.router(3, 2, name="other")]))
    later = await node.compiler.compile(node.holdings, change, 2_000)

    assert not later.snapshot.limits[name].temporary
    # Whoever began before goes on with what they have.
    assert snapshot.limits[name].temporary


async def test_whether_anybody_is_served_while_counters_are_away_follows_the_organizations(
    node: Node,
) -> None:
    def organization(number: int, policy: pb.LimitsUnavailablePolicy.ValueType) -> pb.Resource:
        message = pb.Organization(on_limits_unavailable=policy)
        return resource(pb.RESOURCE_KIND_ORGANIZATION, large.organization_id(number), message)

    is_open, is_closed = pb.LIMITS_UNAVAILABLE_POLICY_OPEN, pb.LIMITS_UNAVAILABLE_POLICY_CLOSED
    snapshots = [
        await node.put(organization(1, is_open), organization(2, is_open)),
        await node.put(organization(1, is_closed)),
        await node.put(organization(2, is_closed)),
        await node.put(organization(9, is_open)),
        await node.remove((pb.RESOURCE_KIND_ORGANIZATION, large.organization_id(9))),
    ]

    assert [each.has_fail_open for each in snapshots] == [True, True, False, True, False]


async def test_what_calls_meet_is_known_by_name_as_long_as_it_is_limited(node: Node) -> None:
    names = ("endpoint:chat", "model:m", "ip:203.0.113.7")
    limited = await node.put(*(subject_limits(each, [limit()]) for each in names))
    free = await node.remove(*((pb.RESOURCE_KIND_SUBJECT_LIMITS, each) for each in names))

    assert (*limited.limited_endpoints, *limited.limited_models) == ("chat", "m")
    assert limited.has_address_limits
    assert not free.limited_endpoints | free.limited_models
    assert not free.has_address_limits


async def test_a_refused_change_leaves_everything_as_it_was(node: Node) -> None:
    before = node.compiler._state
    bad = pb.Router(rules=[pb.Rule(id="a", provider_id="nobody", models=["*"])])
    changed = (resource(pb.RESOURCE_KIND_ROUTER, "r3", bad), large.api_key(7, 2, revoked=True))
    with pytest.raises(InvalidConfigurationError, match="its provider 'nobody' is not there"):
        await node.put(*changed)

    assert node.compiler._state is before
    snapshot = await node.put(large.api_key(8, 2, revoked=True))
    assert not snapshot.keys_by_sha256[sha256_of(7)].is_revoked
    assert snapshot.keys_by_sha256[sha256_of(8)].is_revoked


async def test_what_is_cancelled_leaves_everything_as_it_was() -> None:
    node, all_of_it = Node(), large.raw(large.large_configuration(5_000))
    change = large.change_of(all_of_it, secrets=large.large_secrets(), is_everything=True)
    compiling = asyncio.create_task(node.compiler.compile(node.holdings, change, 0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not compiling.done()
    compiling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await compiling

    assert len((await node.take(change)).snapshot.keys_by_sha256) == 5_000


async def test_what_was_compiled_before_another_commit_is_not_committed(node: Node) -> None:
    change = large.change_of(large.raw([large.api_key(7, 2, revoked=True)]))
    stale = await node.compiler.compile(node.holdings, change, 0)
    await node.put(large.api_key(8, 2, revoked=True))

    with pytest.raises(ValueError, match="something else"):
        node.compiler.commit(stale)
    assert _current(node)[sha256_of(8)].is_revoked


async def test_a_former_snapshot_stays_as_it_is(node: Node) -> None:
    former = await node.put(large.api_key(7, 2, name="former"))
    for number in range(_KEYS):
        await node.put(large.api_key(number, 3, name="newer"))

    names = {each.principal.name for each in former.keys_by_sha256.values()}
    assert former.keys_by_sha256[sha256_of(7)].principal.name == "former"
    assert "newer" not in names
    assert len(former.keys_by_sha256) == _KEYS


class CountingResources(dict[Key, RawResource]):
    """Counts what is asked for, and is not looked through."""

    asked = 0

    def get(self, key: Key, default: Any = None) -> Any:  # Any: as a dict has it
        self.asked += 1
        return super().get(key, default)

    def __iter__(self) -> Iterator[Key]:
        raise AssertionError("everything was looked through")


async def test_a_small_change_does_not_look_at_the_others(node: Node) -> None:
    node.holdings.resources = counting = CountingResources(node.holdings.resources)
    changed = (large.api_key(7, 2), large.router(3, 2, name="other"), large.limits_of_user(100, 9))
    change = large.change_of(large.raw((*changed, subject_limits("global", [limit()]))))
    await node.compiler.compile(node.holdings, change, 1_000)

    assert counting.asked < 20


async def test_the_garbage_collector_has_nothing_to_look_through_for_each_caller(
    node: Node,
) -> None:
    state = node.compiler._state
    [some_key, *_] = state.keys.by_sha256.values()
    callers = (some_key, some_key.principal, some_key.principal.user)
    shards = (*state.keys.by_sha256.parts(), *state.users.parts())

    assert not any(map(gc.is_tracked, (*callers, *shards)))


async def test_those_that_many_name_are_found_one_by_one() -> None:
    keys: list[Key] = [(pb.RESOURCE_KIND_USER, f"u{number}") for number in range(600)]
    edition = ReferencesEdition(References())
    for key in keys:
        edition.add("acme", key)
    edition.add("bond", keys[0])
    named = await edition.done(Slices())
    assert sorted(named.of("acme")) == sorted(keys)
    assert list(named.of("bond")) == [keys[0]]
    assert list(named.of("nobody")) == []

    edition = ReferencesEdition(named)
    edition.discard("nobody", keys[0])
    assert await edition.done(Slices()) is named
    edition = ReferencesEdition(named)
    for key in keys[:-1]:
        edition.discard("acme", key)
    edition.discard("bond", keys[0])
    fewer = await edition.done(Slices())
    assert list(fewer.of("acme")) == [keys[-1]]
    assert "bond" not in fewer.members
    assert sorted(named.of("acme")) == sorted(keys)


async def test_what_a_replaced_map_held_is_let_go_when_nobody_has_it_and_not_before() -> None:
    releasing = Releasing()
    origin = ShardedMap((number, object()) for number in range(20_000))
    edition = MapEdition(origin)
    edition.put(5, object())
    kept = edition.done()
    releasing.watch([origin])

    await asyncio.sleep(0)
    assert len(set(origin)) == 20_000
    del origin, edition
    await _until(lambda: not releasing.pending)
    assert len(set(kept)) == 20_000


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0)
