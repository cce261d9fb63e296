"""The data plane's side of the configuration stream, against a control plane that plays a script."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tollkeeper.common.v1 import errors_pb2, limits_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2 as res

from dataplane.domain.refusals import Refusal
from tests.control.configurations import (
    configuration,
    key,
    limit,
    position_of,
    resource,
    secret,
    sha256_of,
    subject_limits,
)
from tests.control.scripted import delta, full, revocation
from tests.control.watching import Watching, watching


@pytest_asyncio.fixture
async def it() -> AsyncIterator[Watching]:
    async with watching() as each:
        yield each


async def test_a_full_transfer_is_applied_and_acknowledged_with_its_position(it: Watching) -> None:
    resources = [*configuration(0), key(1)]

    it.control_plane.say(*full(1, resources, 5, secrets=[secret()]))
    ack = (await it.control_plane.hear("ack")).ack

    assert (ack.transfer_id, ack.applied) == (1, position_of(resources, 5))
    snapshot = it.current.get()
    found = snapshot.keys_by_sha256[sha256_of(1)]
    assert found.principal.user.organization.time_zone == "Europe/Paris"
    [first, second] = snapshot.routers["r1"].rules
    assert (first.rule_id, second.rule_id) == ("first", "second")
    [credential] = first.provider.credentials
    assert credential.secret is not None
    assert credential.secret.reveal() == b"sk-upstream-secret"
    assert [each.position.revision for each in it.disk.changes] == [5]


async def test_the_node_introduces_itself_with_its_token_and_what_it_has(it: Watching) -> None:
    hello = (await it.control_plane.hear("hello")).hello

    assert (hello.node_id, hello.protocol_version, hello.applied.revision) == ("node-1", 2, 0)
    assert it.control_plane.tokens == ["Bearer join-token"]


async def test_before_the_first_configuration_requests_are_refused_with_a_wait(
    it: Watching,
) -> None:
    with pytest.raises(Refusal, match="configuration_unavailable") as refused:
        it.current.get()

    assert refused.value.retry_after_seconds


@pytest.mark.parametrize(
    "fault", ["digest", "chunks", "dangling", "undecodable", "bad zone", "bad limit"]
)
async def test_a_transfer_that_is_structurally_wrong_is_refused_whole_and_the_old_one_stays(
    it: Watching, fault: str
) -> None:
    it.control_plane.say(*full(1, [*configuration(0), key(1)], 5))
    await it.control_plane.hear("ack")
    messages = full(2, [*configuration(0), key(2)], 6)
    reason = pb.NACK_REASON_INVALID
    if fault == "digest":
        messages[0].transfer_begin.to.digest = bytes(32)
        reason = pb.NACK_REASON_DIGEST
    elif fault == "chunks":
        del messages[1]
        reason = pb.NACK_REASON_POSITION
    else:
        messages = full(2, [*configuration(0), key(2), _bad(fault)], 6)

    it.control_plane.say(*messages)
    nack = (await it.control_plane.hear("nack")).nack

    assert (nack.transfer_id, nack.reason, nack.applied.revision) == (2, reason, 5)
    assert nack.problems
    assert sha256_of(1) in it.current.get().keys_by_sha256
    assert sha256_of(2) not in it.current.get().keys_by_sha256


def _bad(fault: str) -> res.Resource:
    match fault:
        case "dangling":
            rule = res.Rule(id="x", provider_id="nobody")
            return resource(res.RESOURCE_KIND_ROUTER, "r2", res.Router(name="r2", rules=[rule]))
        case "undecodable":
            return res.Resource(
                kind=res.RESOURCE_KIND_PROVIDER, id="p9", revision=1, payload=b"\xff\xff"
            )
        case "bad zone":
            return resource(
                res.RESOURCE_KIND_ORGANIZATION, "o9", res.Organization(time_zone="Mars/Base")
            )
        case _:
            per_minute = limit(limits_pb2.LIMIT_UNIT_SPEND, limits_pb2.LIMIT_WINDOW_MINUTE, 1)
            return subject_limits("user:u9", [per_minute])


async def test_a_bad_leaf_is_set_aside_denies_and_is_named(it: Watching) -> None:
    broken_key = resource(
        res.RESOURCE_KIND_API_KEY, "short", res.ApiKey(user_id="alice", key_sha256=b"short")
    )
    orphan = key(3, user_id="nobody")
    free_of_charge = resource(
        res.RESOURCE_KIND_PRICE, "price2", res.Price(provider="openai", model="x")
    )
    resources = [*configuration(0), key(1), broken_key, orphan, free_of_charge]

    it.control_plane.say(*full(1, resources, 5))
    ack = (await it.control_plane.hear("ack")).ack

    assert {each.resource.id for each in ack.quarantined} == {"short", "key000000003", "price2"}
    assert ack.applied == position_of(resources, 5)
    snapshot = it.current.get()
    assert set(snapshot.keys_by_sha256) == {sha256_of(1)}
    assert snapshot.prices.find(("openai",), "x", 10**15) is None


async def test_kinds_and_values_of_a_newer_control_plane_match_nothing(it: Watching) -> None:
    unknown = res.Resource(kind=99, id="z", revision=1, payload=b"whatever")  # type: ignore[arg-type] # that is the point

    it.control_plane.say(*full(1, [*configuration(0), unknown], 5))

    assert (await it.control_plane.hear("ack")).ack.applied.revision == 5


async def test_a_delta_builds_on_the_position_that_it_names_and_on_no_other(it: Watching) -> None:
    before = [*configuration(0), key(1), key(2)]
    after = [*configuration(0), key(2, user_id="alice", name="renamed"), key(3)]
    it.control_plane.say(*full(1, before, 5))
    await it.control_plane.hear("ack")
    changed = [key(2, user_id="alice", name="renamed"), key(3)]
    removed = [res.ResourceRef(kind=res.RESOURCE_KIND_API_KEY, id="key000000001")]

    it.control_plane.say(*delta(2, position_of(before, 5), position_of(after, 6), changed, removed))
    ack = (await it.control_plane.hear("ack")).ack
    it.control_plane.say(*delta(3, position_of(before, 5), position_of(after, 7), changed, removed))
    nack = (await it.control_plane.hear("nack")).nack

    assert ack.applied == position_of(after, 6)
    assert set(it.current.get().keys_by_sha256) == {sha256_of(2), sha256_of(3)}
    assert nack.reason == pb.NACK_REASON_POSITION


async def test_a_revocation_counts_at_once_and_until_a_transfer_contains_it(it: Watching) -> None:
    it.control_plane.say(*full(1, [*configuration(0), key(1)], 5))
    await it.control_plane.hear("ack")

    it.control_plane.say(revocation("key000000001", 7))
    answer = (await it.control_plane.hear("revocation_ack")).revocation_ack
    assert answer.revocation_id == "key000000001:7"
    assert it.current.get().revoked == {("key", "key000000001")}

    it.control_plane.say(*full(2, [*configuration(0), key(1)], 6))
    await it.control_plane.hear("ack")
    assert it.current.get().revoked == {("key", "key000000001")}

    it.control_plane.say(*full(3, [*configuration(0), key(1, revoked=True)], 7))
    await it.control_plane.hear("ack")
    assert it.current.get().revoked == frozenset()
    assert it.current.get().keys_by_sha256[sha256_of(1)].is_revoked


async def test_a_revocation_overtakes_a_large_transfer_that_is_being_applied(it: Watching) -> None:
    it.control_plane.say(
        *full(1, [*configuration(0), *map(key, range(4_000))], 5), revocation("key000000007", 6)
    )

    heard = [(await it.control_plane.heard.get()).WhichOneof("message") for _ in range(3)]

    assert heard == ["hello", "revocation_ack", "ack"]
    assert it.current.get().revoked == {("key", "key000000007")}


async def test_a_revocation_that_ends_streams_says_so_even_when_it_is_known(it: Watching) -> None:
    it.control_plane.say(*full(1, [*configuration(0), key(1)], 5))
    await it.control_plane.hear("ack")

    it.control_plane.say(revocation("key000000001", 4, terminate=True))
    await it.control_plane.hear("revocation_ack")

    assert it.terminated == [frozenset({("key", "key000000001")})]


async def test_removing_most_of_a_kind_needs_force(it: Watching) -> None:
    it.control_plane.say(*full(1, [*configuration(0), *map(key, range(150))], 5))
    await it.control_plane.hear("ack")

    it.control_plane.say(*full(2, [*configuration(0), *map(key, range(20))], 6))
    nack = (await it.control_plane.hear("nack")).nack
    it.control_plane.say(*full(3, [*configuration(0), *map(key, range(20))], 6, force=True))
    ack = (await it.control_plane.hear("ack")).ack

    assert nack.reason == pb.NACK_REASON_GUARD
    assert ack.applied.revision == 6


async def test_a_lost_stream_is_opened_again_with_the_applied_position_of(it: Watching) -> None:
    it.control_plane.say(*full(1, [*configuration(0), key(1)], 5))
    await it.control_plane.hear("ack")

    it.control_plane.say(None)
    hello = (await it.control_plane.hear("hello", 15)).hello

    assert hello.applied.revision in (0, 5)
    if hello.applied.revision == 0:
        hello = (await it.control_plane.hear("hello", 15)).hello
    assert hello.applied == position_of([*configuration(0), key(1)], 5)


async def test_heartbeats_tell_the_position_and_silence_ends_the_stream() -> None:
    async with watching(heartbeat_ms=50) as it:
        it.control_plane.say(*full(1, [*configuration(0), key(1)], 5))
        beat = (await it.control_plane.hear("heartbeat")).heartbeat
        again = (await it.control_plane.hear("hello", 10)).hello

    assert again.applied.revision == 5
    assert beat.unreported_records == 3
    assert len(it.control_plane.tokens) >= 2


async def test_heartbeats_say_that_nothing_is_served_until_something_was_applied() -> None:
    async with watching(heartbeat_ms=50) as it:
        before = (await it.control_plane.hear("heartbeat")).heartbeat
        it.control_plane.say(*full(1, configuration(), 5))
        await it.control_plane.hear("ack")
        after = (await it.control_plane.hear("heartbeat")).heartbeat

    assert before.not_ready == errors_pb2.ERROR_REASON_CONFIGURATION_UNAVAILABLE
    assert (after.position.revision, after.not_ready) == (5, errors_pb2.ERROR_REASON_UNSPECIFIED)
