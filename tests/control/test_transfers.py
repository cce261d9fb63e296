"""What a transfer does to what is held, and what a node refuses before anything of it counts."""

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2 as res

from dataplane.control import holdings, transfers
from dataplane.control.differences import change_of
from dataplane.control.holdings import Change, Holdings, replaced_by
from dataplane.control.refused import RefusedTransferError
from dataplane.control.slices import let_go
from dataplane.control.transfers import IncomingTransfer, position_to_proto
from dataplane.domain.digest import digest_of
from tests.control.configurations import EPOCH, configuration, key, position_of, resource, secret

Chunk = dict[str, Any]
_API_KEY = res.RESOURCE_KIND_API_KEY


def _begin(
    intent: pb.TransferIntent.ValueType,
    to: position_pb2.Position,
    start: position_pb2.Position | None = None,
    **fields: Any,
) -> pb.TransferBegin:
    begin = pb.TransferBegin(transfer_id=1, intent=intent, to=to, **fields)
    if start is not None:
        getattr(begin, "from").CopyFrom(start)
    return begin


async def _change(held: Holdings, begin: pb.TransferBegin, *chunks: Chunk) -> Change:
    """Return what a transfer of these chunks does to what is held."""
    transfer = IncomingTransfer(begin)
    for chunk in chunks:
        await transfer.add(pb.TransferChunk(transfer_id=1, **chunk), held)
    transfer.check_complete(pb.TransferEnd(transfer_id=1, chunk_count=len(chunks)))
    return await change_of(transfer, held)


async def _full(
    held: Holdings, resources: list[res.Resource], revision: int, **fields: Any
) -> Change:
    to = position_of(resources, revision)
    begin = _begin(pb.TRANSFER_INTENT_FULL, to, **fields)
    return await _change(held, begin, {"resources": resources, "secrets": [secret()]})


async def _holding(resources: list[res.Resource], revision: int = 5) -> Holdings:
    held = Holdings()
    held.commit(await _full(held, resources, revision))
    return held


def _state(held: Holdings) -> tuple[object, ...]:
    return (
        held.position,
        dict(held.resources),
        dict(held.secrets),
        dict(held.hashes),
        held.digest_sum,
        dict(held.counts),
    )


def _check_consistent(held: Holdings) -> None:
    """Check that what is held is what its position says."""
    assert held.resources.keys() == held.hashes.keys()
    assert digest_of(held.hashes.values()) == held.position.digest
    assert held.digest_sum == int.from_bytes(held.position.digest, "big")
    counts: dict[int, int] = {}
    for kind, _ in held.resources:
        counts[kind] = counts.get(kind, 0) + 1
    assert {kind: count for kind, count in held.counts.items() if count} == counts


def _ref(each: res.Resource) -> res.ResourceRef:
    return res.ResourceRef(kind=each.kind, id=each.id)


async def test_the_first_transfer_is_everything() -> None:
    held = Holdings()

    change = await _full(held, configuration(3), 5)
    held.commit(change)

    assert change.is_everything
    assert len(change.put) == len(configuration(3))
    assert [each.secret.reveal() for each in change.secrets.values()] == [b"sk-upstream-secret"]
    _check_consistent(held)


async def test_a_transfer_of_everything_that_changes_little_changes_little() -> None:
    held = await _holding(configuration(50))
    before = dict(held.resources)
    after = [*configuration(49), key(49, name="renamed")]

    change = await _full(held, after, 6)
    held.commit(change)

    assert not change.is_everything
    assert [resource_id for _, resource_id in change.put] == ["key000000049"]
    assert not change.removed
    assert not change.secrets
    same = [each for each, raw in held.resources.items() if raw is before.get(each)]
    assert len(same) == len(before) - 1
    _check_consistent(held)


async def test_a_transfer_of_another_epoch_holds_everything_and_reuses_what_is_equal() -> None:
    held = await _holding(configuration(5))
    before = dict(held.resources)
    to = position_of(configuration(4), 2)
    to.config_epoch = "epoch-2"

    change = await _change(
        held, _begin(pb.TRANSFER_INTENT_FULL, to), {"resources": configuration(4)}
    )
    held.commit(change)

    assert change.is_everything
    assert change.removed == {(res.RESOURCE_KIND_API_KEY, "key000000004")}
    assert change.dropped_secrets == {"c1"}
    assert all(raw is before[each] for each, raw in held.resources.items())
    assert (held.secrets, held.position.config_epoch) == ({}, "epoch-2")
    _check_consistent(held)


async def test_a_transfer_of_nothing_moves_the_position_also_to_another_epoch() -> None:
    held = await _holding(configuration(3))
    resources = dict(held.resources)
    same = await _change(
        held, _begin(pb.TRANSFER_INTENT_NONE, position_of(configuration(3), 9)), {}
    )
    held.commit(same)
    assert (len(same.put), same.is_everything, held.position.revision) == (0, False, 9)

    to = position_of(configuration(3), 1)
    to.config_epoch = "epoch-2"
    other = await _change(held, _begin(pb.TRANSFER_INTENT_NONE, to), {})
    held.commit(other)

    assert other.is_everything
    assert (other.put, held.resources, len(held.secrets)) == (resources, resources, 1)
    _check_consistent(held)


async def test_a_change_that_is_kept_stays_as_it_was_when_more_changes_follow() -> None:
    held = Holdings()
    first = await _full(held, configuration(3), 5)
    held.commit(first)
    held.commit(await _full(held, configuration(1), 6))
    assert len(first.put) == len(first.hashes) == len(configuration(3))


async def _commit(held: Holdings, change: Change) -> None:
    """Take a change over as whoever applies it does."""
    replaced = await replaced_by(change, held)
    await held.prepare(change)
    held.commit(change)
    await let_go(replaced)
    assert not replaced


@pytest.mark.parametrize("large", [0, 1_000])
async def test_chains_of_changes_lead_where_transfers_of_everything_lead(
    monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(holdings, "_LARGE", large)
    chance = random.Random(7)
    by_changes, by_everything = await _holding(configuration(20)), Holdings()
    now = {(each.kind, each.id): each for each in configuration(20)}
    for revision in range(6, 60):
        after = dict(now)
        changed = [key(number, name=f"r{revision}") for number in chance.sample(range(40), 3)]
        keys = [each for each in now if each[0] == res.RESOURCE_KIND_API_KEY]
        gone = [now[each] for each in chance.sample(keys, 2)]
        changed = [
            each for each in changed if each not in gone and _key(each) not in map(_key, gone)
        ]
        for each in gone:
            del after[_key(each)]
        after.update({_key(each): each for each in changed})
        to = position_of(after.values(), revision)
        start = position_to_proto(by_changes.position)
        # What it never had may be named as gone too: it came and went in between.
        removed = [*map(_ref, gone), res.ResourceRef(kind=_API_KEY, id=f"passing{revision}")]
        begin = _begin(pb.TRANSFER_INTENT_DELTA, to, start)
        half = len(changed) // 2
        change = await _change(
            by_changes,
            begin,
            {"resources": changed[:half], "removed": removed},
            {"resources": changed[half:]},
        )
        await _commit(by_changes, change)
        everything = await _full(by_everything, list(after.values()), revision)
        await _commit(by_everything, everything)
        now = after
        assert _state(by_changes) == _state(by_everything)
        _check_consistent(by_changes)


def _key(each: res.Resource) -> tuple[res.ResourceKind.ValueType, str]:
    return each.kind, each.id


async def test_a_secret_goes_with_its_credential_and_is_replaced_by_a_newer_one() -> None:
    held = await _holding(configuration(1))
    credential = resource(res.RESOURCE_KIND_CREDENTIAL, "c1", res.Credential(version=4))
    after = [*(each for each in configuration(1) if each.id != "c1"), credential]
    begin = _begin(
        pb.TRANSFER_INTENT_DELTA, position_of(after, 6), position_of(configuration(1), 5)
    )
    held.commit(
        await _change(held, begin, {"resources": [credential], "secrets": [secret(version=4)]})
    )
    assert held.secrets["c1"].version == 4

    rest = [each for each in after if each.id != "c1"]
    begin = _begin(pb.TRANSFER_INTENT_DELTA, position_of(rest, 7), position_of(after, 6))
    change = await _change(held, begin, {"removed": [_ref(credential)]})
    held.commit(change)

    assert change.dropped_secrets == {"c1"}
    assert held.secrets == {}
    _check_consistent(held)


_OLD = configuration(3)
_AT_5 = position_of(_OLD, 5)
_FULL, _DELTA, _NONE = pb.TRANSFER_INTENT_FULL, pb.TRANSFER_INTENT_DELTA, pb.TRANSFER_INTENT_NONE
_NEW = [*_OLD, key(7)]
_AT_6 = position_of(_NEW, 6)
_BACK = position_of(_NEW, 4)
_NO_EPOCH = position_pb2.Position(revision=6, digest=_AT_6.digest)
_SHORT = position_pb2.Position(config_epoch=EPOCH, revision=6, digest=b"short")
_BELOW = position_pb2.Position(config_epoch=EPOCH, revision=-1, digest=_AT_6.digest)
_ELSEWHERE = position_pb2.Position(config_epoch="epoch-9", revision=5, digest=_AT_5.digest)
_NEGATIVE_KIND = res.Resource(kind=-1, id="x")  # type: ignore[arg-type] # no peer of ours sends it
_NEGATIVE_REVISION = res.Resource(kind=res.RESOURCE_KIND_USER, id="x", revision=-1)
_LARGE = key(8, name="x" * (1024 * 1024))
_GONE = _ref(key(7))


@pytest.mark.parametrize(
    ("reason", "begin", "chunks"),
    [
        ("POSITION", _begin(_DELTA, _AT_6), [{"resources": [key(7)]}]),
        ("POSITION", _begin(_DELTA, _AT_6, position_of(_OLD, 4)), [{"resources": [key(7)]}]),
        ("POSITION", _begin(_DELTA, _AT_6, _ELSEWHERE), [{"resources": [key(7)]}]),
        ("POSITION", _begin(_DELTA, _ELSEWHERE, _AT_5), []),
        ("POSITION", _begin(_FULL, _BACK), [{"resources": _NEW}]),
        ("POSITION", _begin(_NONE, position_of(_OLD, 4)), []),
        ("POSITION", _begin(_FULL, _NO_EPOCH), []),
        ("POSITION", _begin(_FULL, _BELOW), []),
        ("POSITION", _begin(pb.TRANSFER_INTENT_UNSPECIFIED, _AT_6), []),
        ("POSITION", _begin(17, _AT_6), []),  # type: ignore[arg-type] # newer
        ("POSITION", _begin(_NONE, _AT_5), [{"resources": [key(7)]}]),
        ("POSITION", _begin(_NONE, _AT_5), [{"removed": [_GONE]}]),
        ("POSITION", _begin(_FULL, _AT_6), [{"removed": [_GONE]}]),
        ("POSITION", _begin(_FULL, _AT_6), [{"resources": _NEW}, {"resources": [key(7)]}]),
        ("POSITION", _begin(_DELTA, _AT_6, _AT_5), [{"resources": [key(7)], "removed": [_GONE]}]),
        ("POSITION", _begin(_DELTA, _AT_6, _AT_5), [{"removed": [_GONE]}, {"resources": [key(7)]}]),
        ("POSITION", _begin(_FULL, _AT_6), [{"resources": [_NEGATIVE_KIND]}]),
        ("POSITION", _begin(_FULL, _AT_6), [{"resources": [_NEGATIVE_REVISION]}]),
        ("POSITION", _begin(_FULL, _AT_6, resource_count=3), [{"resources": _NEW}]),
        ("POSITION", _begin(_FULL, _AT_6, payload_bytes=3), [{"resources": _NEW}]),
        ("DIGEST", _begin(_FULL, _SHORT), []),
        ("DIGEST", _begin(_FULL, _AT_6), [{"resources": _OLD}]),
        ("DIGEST", _begin(_FULL, _AT_5), [{"resources": _NEW}]),
        ("DIGEST", _begin(_DELTA, _AT_6, _AT_5), [{"resources": [key(8)]}]),
        ("DIGEST", _begin(_DELTA, _AT_6, _AT_5), []),
        ("DIGEST", _begin(_NONE, _AT_6), []),
        ("GUARD", _begin(_FULL, _AT_6, resource_count=1_000_001), []),
        ("GUARD", _begin(_FULL, _AT_6, payload_bytes=512 * 1024 * 1024 + 1), []),
        ("GUARD", _begin(_FULL, _AT_6), [{"resources": [_LARGE]}]),
        ("INVALID", _begin(_NONE, _AT_5), [{"secrets": [pb.SecretBundle(sealed=b"x")]}]),
    ],
)
async def test_what_a_node_cannot_take_is_refused_and_nothing_of_it_counts(
    reason: str, begin: pb.TransferBegin, chunks: list[Chunk]
) -> None:
    held = await _holding(_OLD)
    before = _state(held)

    with pytest.raises(RefusedTransferError) as caught:
        await _change(held, begin, *chunks)

    assert pb.NackReason.Name(caught.value.reason) == f"NACK_REASON_{reason}"
    assert caught.value.problems
    assert _state(held) == before


@pytest.mark.parametrize(
    ("limit", "chunk"),
    [
        ("MAX_RESOURCES", {"resources": configuration(20)}),
        ("MAX_RESOURCES", {"removed": [_ref(key(each)) for each in range(20)]}),
        (
            "MAX_RESOURCES",
            {"secrets": [pb.SecretBundle(credential_id=str(each)) for each in range(20)]},
        ),
        ("MAX_BYTES", {"resources": [key(1)]}),
        ("MAX_BYTES", {"removed": [res.ResourceRef(kind=_API_KEY, id="x" * 20)]}),
        ("MAX_BYTES", {"secrets": [pb.SecretBundle(credential_id="c", secret=b"x" * 20)]}),
    ],
)
async def test_nothing_that_travels_grows_beyond_the_ceilings(
    monkeypatch: pytest.MonkeyPatch, limit: str, chunk: Chunk
) -> None:
    monkeypatch.setattr(transfers, limit, 10)
    begin = _begin(_DELTA, _AT_6, _AT_5)
    with pytest.raises(RefusedTransferError) as caught:
        await _change(Holdings(), begin, chunk)
    assert caught.value.reason == pb.NACK_REASON_GUARD


async def test_a_refusal_says_little_whatever_it_was_sent() -> None:
    twice = res.Resource(kind=res.RESOURCE_KIND_USER, id="x" * 100_000)
    with pytest.raises(RefusedTransferError) as caught:
        await _change(Holdings(), _begin(_FULL, _AT_6), {"resources": [twice, twice]})
    assert len(caught.value.problems[0]) < 200
    refused = RefusedTransferError(pb.NACK_REASON_INVALID, *["y" * 10_000] * 100)
    assert sum(map(len, refused.problems)) == 20 * 500


@pytest.mark.parametrize(("kept", "is_refused"), [(74, True), (75, False)])
async def test_half_of_a_kind_may_go_and_more_needs_force(kept: int, is_refused: bool) -> None:
    held = await _holding(configuration(150))
    if is_refused:
        with pytest.raises(RefusedTransferError, match="76 of 150 resources of kind 4"):
            await _full(held, configuration(kept), 6)
    change = await _full(held, configuration(kept), 6, force=is_refused)
    assert len(change.removed) == 150 - kept


async def test_a_small_kind_may_go_as_a_whole() -> None:
    held = await _holding(configuration(100))
    assert len((await _full(held, configuration(0), 6)).removed) == 100


async def test_mutated_transfers_are_refused_or_are_what_they_say() -> None:
    chance = random.Random(11)
    held = await _holding(_OLD)
    outcomes = {"refused": 0, "taken": 0, "unreadable": 0}
    messages = [
        _begin(_DELTA, _AT_6, _AT_5).SerializeToString(),
        pb.TransferChunk(
            transfer_id=1, resources=[key(7)], removed=[_ref(key(9))], secrets=[secret()]
        ).SerializeToString(),
    ]
    for _ in range(3_000):
        begin, chunk = (_mutated(chance, each) for each in messages)
        before = _state(held)
        try:
            transfer = IncomingTransfer(pb.TransferBegin.FromString(begin))
            await transfer.add(pb.TransferChunk.FromString(chunk), held)
            change = await change_of(transfer, held)
        except DecodeError:
            outcomes["unreadable"] += 1
        except RefusedTransferError:
            outcomes["refused"] += 1
        else:
            outcomes["taken"] += 1
            copy = Holdings()
            copy.commit(_everything(held))
            copy.commit(change)
            _check_consistent(copy)
        assert _state(held) == before
    assert min(outcomes.values()) > 50, outcomes


def _everything(held: Holdings) -> Change:
    return Change(
        position=held.position,
        put=held.resources,
        removed=frozenset(),
        secrets=held.secrets,
        dropped_secrets=frozenset(),
        hashes=held.hashes,
        is_everything=True,
    )


def _mutated(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((0, 0, 1, 1, 3))):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                del changed[place]
            case 2:
                changed.insert(place, chance.randrange(256))
            case _:
                changed[place : place + 4] = bytes(chance.randrange(256) for _ in range(4))
    return bytes(changed)
