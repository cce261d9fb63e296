"""Long requests do not fill a spool: what is live leaves the segments that hold little else."""

import asyncio
import errno
import multiprocessing
import os
import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from dataplane.control.spool import Spool
from dataplane.control.spool_records import Kind, encode_event
from dataplane.domain.calls import UsageEvent, UsageState
from tests.control.spool_deaths import JOURNAL, live
from tests.control.usage_events import until, usage_event

_SEGMENT_BYTES = 24_000
_CAPACITY_BYTES = 10 * _SEGMENT_BYTES


def _opened(spool: Spool, request: str = "") -> UsageEvent:
    event = usage_event(UsageState.ABANDONED, request)
    spool.append_open(event)
    return event


def _closed(spool: Spool, request: str = "") -> UsageEvent:
    event = usage_event(request=request)
    spool.append_close(event)
    return event


def _fill(spool: Spool, segments: int = 1) -> list[str]:
    """End so many requests that as many segments more are sealed; return them."""
    until_number, names = spool._active.number + segments, []
    while spool._active.number < until_number:
        names.append(_closed(spool).request_id)
        spool.flush()
    return names


def _numbers(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("*.spool"))


@pytest_asyncio.fixture
async def spool(tmp_path: Path) -> Spool:
    opened, _ = Spool.open(tmp_path, _CAPACITY_BYTES, _SEGMENT_BYTES)
    return opened


async def test_a_few_long_requests_among_many_short_ones_never_fill_the_spool(
    spool: Spool, tmp_path: Path
) -> None:
    long, short, largest = [], [], 0
    for number in range(1_500):
        if number % 100 == 0:
            long.append(_opened(spool))
        name = _opened(spool).request_id
        _closed(spool, name)
        spool.flush()
        short.append(name)
        if len(short) == 25:
            spool.acknowledge(short)
            short.clear()
            await until(lambda: not any(each.is_thin for each in spool._segments))
        largest = max(largest, spool.size_bytes)
        assert not spool.is_full
    # More than an eighth of a segment is live, or it is being filled, delivered or emptied.
    record_bytes = len(encode_event(Kind.OPEN, long[0]))
    assert largest <= 8 * len(long) * record_bytes + 4 * _SEGMENT_BYTES < _CAPACITY_BYTES
    await spool.aclose()

    spool, recovered = Spool.open(tmp_path)
    assert (set(recovered.opens), recovered.closes) == (set(long), ())
    await spool.aclose()


async def test_an_end_that_the_ledger_does_not_have_moves_and_can_be_read(
    spool: Spool, tmp_path: Path
) -> None:
    late = _closed(spool)
    spool.acknowledge(_fill(spool))
    await until(lambda: _numbers(tmp_path) == [2])
    assert await spool.read_closes([late.request_id]) == [late]
    spool.acknowledge([late.request_id])
    await spool.aclose()
    assert os.listdir(tmp_path) == ["lock"]


async def test_a_request_that_ended_later_is_not_opened_again(spool: Spool, tmp_path: Path) -> None:
    long = _opened(spool)
    short = _fill(spool)
    end = _closed(spool, long.request_id)
    spool.flush()
    spool.acknowledge(short)
    size = spool._active.size
    await until(lambda: _numbers(tmp_path) == [2])
    assert spool._active.size == size
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert (recovered.opens, recovered.closes) == ((), (end.request_id,))
    await spool.aclose()


async def test_a_request_that_was_opened_again_later_stays_as_it_was_opened_last(
    spool: Spool, tmp_path: Path
) -> None:
    first = _opened(spool)
    short = _fill(spool)
    last = _opened(spool, first.request_id)
    spool.flush()
    spool.acknowledge(short)
    await until(lambda: _numbers(tmp_path) == [2])
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.opens == (last,)
    await spool.aclose()


async def test_what_the_ledger_takes_while_it_moves_stays_taken(
    spool: Spool, tmp_path: Path
) -> None:
    long = [_closed(spool).request_id for _ in range(3)]
    spool.acknowledge(_fill(spool))
    while len(_numbers(tmp_path)) > 1:
        # One at a time, at whatever moment of the move.
        spool.acknowledge(long[:1])
        del long[:1]
        await asyncio.sleep(0)
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.closes == tuple(long)
    await spool.aclose()


async def test_the_old_records_go_only_when_the_new_ones_outlive_the_host(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    fsync, unlink = os.fsync, os.unlink

    def note_sync(descriptor: int) -> None:
        calls.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_unlink(path: Path) -> None:
        calls.append(("unlink", path.stat().st_ino))
        unlink(path)

    _opened(spool)
    short = _fill(spool)
    first = (tmp_path / f"{1:012d}.spool").stat().st_ino
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "unlink", note_unlink)
    monkeypatch.setattr(spool, "_sync", lambda: None)
    spool.acknowledge(short)
    await until(lambda: _numbers(tmp_path) == [2])
    second = (tmp_path / f"{2:012d}.spool").stat().st_ino
    assert calls[:3] == [("sync", second), ("sync", tmp_path.stat().st_ino), ("unlink", first)]
    monkeypatch.undo()
    await spool.aclose()


async def test_a_disk_that_does_not_keep_its_promise_keeps_the_old_records(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    long = _opened(spool)
    short = _fill(spool)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(os, "fsync", broken)
        spool.acknowledge(short)
        await until(lambda: any("not_emptied" in entry["event"] for entry in logs))
        spool.acknowledge(_fill(spool))
    assert _numbers(tmp_path)[0] == 1
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.opens == (long,)
    await spool.aclose()


async def test_a_full_disk_keeps_the_old_records_until_it_takes_the_new_ones(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, is_disk_full = os.write, True

    def disk(descriptor: int, data: bytes) -> int:
        if is_disk_full and len(data) > 600:  # acknowledgements still fit
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    long = _opened(spool)
    short = _fill(spool)
    monkeypatch.setattr(os, "write", disk)
    spool.acknowledge(short)
    await until(lambda: spool.is_full)
    assert _numbers(tmp_path) == [1, 2]
    is_disk_full = False
    await until(lambda: _numbers(tmp_path) == [2])
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.opens == (long,)
    await spool.aclose()


async def test_a_read_that_a_move_overtakes_finds_the_record_where_it_is_now(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = _closed(spool)
    short = _fill(spool)
    to_thread = asyncio.to_thread

    async def after_the_move(*args: object) -> object:
        if _numbers(tmp_path)[0] == 1:
            spool.acknowledge(short)
            await until(lambda: _numbers(tmp_path) == [2])
        return await to_thread(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", after_the_move)
        assert await spool.read_closes([late.request_id]) == [late]
    assert not (tmp_path / "refused").exists()
    await spool.aclose()


async def test_a_segment_that_cannot_be_read_any_more_stays_as_it_is(
    spool: Spool, tmp_path: Path
) -> None:
    _opened(spool)
    short = _fill(spool)
    path = tmp_path / f"{1:012d}.spool"
    path.write_bytes(b"\0" * path.stat().st_size)
    with capture_logs() as logs:
        spool.acknowledge(short)
        await until(lambda: any("not_emptied" in entry["event"] for entry in logs))
    assert path.exists()
    await spool.aclose()


def _deadly_calls() -> Iterator[int]:
    # Another choice in every run: each call to the disk has its turn.
    return (random.randrange(start, start + 36) for start in range(1, 900, 36))


def test_a_death_at_any_moment_leaves_exactly_what_is_live(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.control.spool_deaths"])
    deaths = 0
    for deadly_call in _deadly_calls():
        directory = tmp_path / str(deadly_call)
        directory.mkdir()
        process = context.Process(target=live, args=(str(directory), deadly_call))
        process.start()
        process.join(20)
        assert process.exitcode in (0, -signal.SIGKILL)
        deaths += process.exitcode != 0
        _check(directory)
    assert deaths > 10


def _check(directory: Path) -> None:
    told: dict[str, set[str]] = defaultdict(set)
    for line in (directory / JOURNAL).read_text().splitlines():
        word, request_id = line.split()
        told[word].add(request_id)
    spool, recovered = Spool.open(directory)
    opens, closes = {event.request_id for event in recovered.opens}, set(recovered.closes)
    # All but what was being done when it died; that may be done or not.
    assert told["opened"] - told["acknowledging"] <= opens | closes, directory
    assert told["closed"] - told["acknowledging"] <= closes, directory
    assert not told["acknowledged"] & (opens | closes), directory
    assert not opens & closes
    assert len((opens | closes) - told["opened"]) <= 1
    assert len(closes - told["closed"]) <= 1
    assert len(recovered.closes) == len(closes) == len(asyncio.run(_read(spool)))


async def _read(spool: Spool) -> list[UsageEvent]:
    names = [name for segment in spool._segments for name in segment.closed_ids()]
    events = await spool.read_closes(list(dict.fromkeys(names)))
    await spool.aclose()
    return events
