"""What a node learns from Redis is refused after a restart too."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from dataplane.control.current import CurrentSnapshot
from dataplane.control.overheard import Overheard
from dataplane.domain.revocations import KEY, Revocation
from tests.control.kept_configurations import (
    EPOCH,
    NOW_MS,
    Author,
    loaded,
    on_disk,
    opened,
    revocation,
)
from tests.control.watching import Disk, until

_REVOCATION = Revocation(KEY, "key", "acme", EPOCH, 7, terminates=True)


async def test_a_node_that_is_cut_off_and_dies_goes_on_refusing_what_redis_told(
    tmp_path: Path,
) -> None:
    current, author = CurrentSnapshot(), Author()
    lkg = await opened(tmp_path)
    lkg.keep(author.holdings, author.change({"a": b"1"}))
    await on_disk(lkg)

    overheard = Overheard(current, lkg, lambda: NOW_MS)
    for _ in range(3):
        overheard.take(_REVOCATION)

    assert current.revocations == {(KEY, "key"): (EPOCH, 7)}
    await until(lambda: not overheard._keeping)
    kept = await loaded(tmp_path)
    assert kept is not None
    assert kept.revocations == (revocation("key", 7),)
    await lkg.aclose()


async def test_a_revocation_that_many_hear_of_at_once_is_kept_once_and_ends_streams() -> None:
    disk, ended = Disk(), list[object]()
    overheard = Overheard(CurrentSnapshot(ended.append), disk, lambda: NOW_MS)
    disk.is_working.clear()
    for _ in range(100):
        overheard.take(_REVOCATION)
        await asyncio.sleep(0)
    disk.is_working.set()
    await until(lambda: not overheard._keeping)
    assert disk.revocations == [revocation("key", 7)]
    assert ended == [frozenset({(KEY, "key")})] * 100


async def test_a_disk_that_does_not_take_it_is_said_and_changes_nothing_else() -> None:
    disk, current = Disk(is_full=True), CurrentSnapshot()
    overheard = Overheard(current, disk, lambda: NOW_MS)
    with capture_logs() as logs:
        overheard.take(_REVOCATION)
        await until(lambda: not overheard._keeping)
        disk.keep_revocation = lambda _: 1 / 0  # type: ignore[assignment, method-assign, return-value] # a fault
        overheard.take(_REVOCATION)
        await until(lambda: not overheard._keeping)
    assert current.revocations == {(KEY, "key"): (EPOCH, 7)}
    said = [each["event"] for each in logs]
    assert said == ["revocations_not_kept", "revocation_keeping_failed"]


async def test_a_node_that_keeps_nothing_refuses_all_the_same() -> None:
    current = CurrentSnapshot()
    Overheard(current, None, lambda: NOW_MS).take(_REVOCATION)
    assert current.pending_count == 1
