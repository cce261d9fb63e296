"""A configuration that was kept on disk goes on where the running one stopped."""

import os
import threading
from pathlib import Path

import pytest
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.current import CurrentSnapshot
from dataplane.control.last_known_good import LastKnownGood
from dataplane.control.snapshot_file import CURRENT, PREVIOUS, SnapshotFile
from dataplane.control.snapshot_file import Contents as FileContents
from dataplane.control.transfers import EMPTY, Contents, IncomingTransfer, RefusedTransferError
from dataplane.control.watch import Node, Watch
from tests.control.configurations import configuration, key, position_of, secret

_NODE_KEY = bytes(range(32))


def _after(
    old: Contents,
    intent: pb.TransferIntent.ValueType,
    to: position_pb2.Position,
    resources: list[resources_pb2.Resource],
    start: position_pb2.Position | None = None,
) -> Contents:
    begin = pb.TransferBegin(transfer_id=1, intent=intent, to=to)
    if start is not None:
        getattr(begin, "from").CopyFrom(start)
    transfer = IncomingTransfer(begin)
    transfer.add(pb.TransferChunk(transfer_id=1, resources=resources, secrets=[secret()]))
    return transfer.contents(old, pb.TransferEnd(transfer_id=1, chunk_count=1))


async def _kept(directory: Path, contents: Contents) -> Contents:
    """Return `contents` as the next process reads it."""
    keeper = LastKnownGood(SnapshotFile(directory, _NODE_KEY))
    keeper.keep(contents)
    await keeper.aclose()
    loaded = await LastKnownGood(SnapshotFile(directory, _NODE_KEY)).load()
    assert loaded is not None
    return loaded


async def test_what_was_applied_is_loaded_whole(tmp_path: Path) -> None:
    applied = _after(
        EMPTY, pb.TRANSFER_INTENT_FULL, position_of(configuration(3)), configuration(3)
    )
    assert await _kept(tmp_path, applied) == applied


async def test_a_loaded_configuration_takes_a_transfer_that_only_moves_it(tmp_path: Path) -> None:
    resources = configuration(3)
    applied = _after(EMPTY, pb.TRANSFER_INTENT_FULL, position_of(resources, 5), resources)
    loaded = await _kept(tmp_path, applied)

    moved = _after(loaded, pb.TRANSFER_INTENT_NONE, position_of(resources, 6), [])

    assert moved.position.revision == 6
    assert moved.resources == applied.resources


async def test_a_loaded_configuration_takes_a_difference(tmp_path: Path) -> None:
    old, new = configuration(3), [*configuration(3), key(7)]
    start = position_of(old, 5)
    loaded = await _kept(tmp_path, _after(EMPTY, pb.TRANSFER_INTENT_FULL, start, old))

    after = _after(loaded, pb.TRANSFER_INTENT_DELTA, position_of(new, 6), [key(7)], start)

    assert len(after.resources) == len(new)


async def test_a_difference_with_another_digest_is_refused_after_a_restart(tmp_path: Path) -> None:
    resources = configuration(3)
    start = position_of(resources, 5)
    loaded = await _kept(tmp_path, _after(EMPTY, pb.TRANSFER_INTENT_FULL, start, resources))

    with pytest.raises(RefusedTransferError) as caught:
        _after(loaded, pb.TRANSFER_INTENT_DELTA, position_of(resources, 6), [key(7)], start)

    assert caught.value.reason == pb.NACK_REASON_DIGEST


async def test_only_the_newest_of_many_is_written_and_never_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bool]] = []
    write = SnapshotFile.write

    def watched(file: SnapshotFile, contents: FileContents) -> None:
        on_loop = threading.current_thread() is threading.main_thread()
        written.append((contents.revision, on_loop))
        write(file, contents)

    monkeypatch.setattr(SnapshotFile, "write", watched)
    keeper = LastKnownGood(SnapshotFile(tmp_path, _NODE_KEY))
    resources = configuration()
    for revision in range(1, 6):
        to = position_of(resources, revision)
        keeper.keep(_after(EMPTY, pb.TRANSFER_INTENT_FULL, to, resources))
    await keeper.aclose()

    assert written == [(5, False)]


def _watch(current: CurrentSnapshot) -> Watch:
    node = Node("node-1", "0.1.0", "join-token")
    return Watch(("127.0.0.1:1",), node, current, lambda: 0, lambda: 0, lambda _: None)


def _file_with(directory: Path, *generations: list[resources_pb2.Resource]) -> SnapshotFile:
    """Return a file in which these were kept, the last one as the newest."""
    file = SnapshotFile(directory, _NODE_KEY)
    for revision, resources in enumerate(generations, 1):
        position = position_of(resources, revision)
        raw: list[tuple[int, str, int, bytes]] = [
            (each.kind, each.id, each.revision, each.payload) for each in resources
        ]
        file.write(FileContents(position.config_epoch, revision, position.digest, raw, []))
    return file


_UNUSABLE = resources_pb2.Resource(
    kind=resources_pb2.RESOURCE_KIND_ROUTER, id="r2", payload=b"\xff"
)


async def test_a_kept_configuration_that_cannot_be_served_gives_way_to_the_one_before(
    tmp_path: Path,
) -> None:
    current = CurrentSnapshot()
    file = _file_with(tmp_path, configuration(3), [*configuration(3), _UNUSABLE])

    assert await LastKnownGood(file).offer(_watch(current).restore)

    assert current.get().position.revision == 1
    assert len(current.get().keys_by_sha256) == 3
    # Intact, so it stays: another version of the program may be able to serve it.
    assert sorted(os.listdir(tmp_path)) == [CURRENT, PREVIOUS]


async def test_of_two_kept_configurations_the_newest_is_served(tmp_path: Path) -> None:
    current = CurrentSnapshot()
    file = _file_with(tmp_path, configuration(3), configuration(4))

    assert await LastKnownGood(file).offer(_watch(current).restore)

    assert current.get().position.revision == 2


async def test_nothing_is_served_when_nothing_that_was_kept_can_be(tmp_path: Path) -> None:
    current = CurrentSnapshot()
    assert not await LastKnownGood(SnapshotFile(tmp_path, _NODE_KEY)).offer(_watch(current).restore)

    file = _file_with(tmp_path, [_UNUSABLE], [_UNUSABLE])
    assert not await LastKnownGood(file).offer(_watch(current).restore)

    assert current.latest is None
