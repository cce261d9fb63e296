"""The spool: what was flushed is there after any death, until the ledger has it."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dataplane.control import spool as spool_module
from dataplane.control import spool_records
from dataplane.control.spool import Spool, SpoolInUseError
from dataplane.control.spool_records import Kind, encode_event
from dataplane.control.spool_recovery import Recovered
from dataplane.domain.calls import NO_LAYERS, UsageEvent, UsageState
from tests.control.usage_events import until, usage_event

_SMALL = 4_000


def _leave(spool: Spool) -> None:
    """Give the directory back as a process does that dies: without a word."""
    if spool._emptier._task is not None:
        spool._emptier._task.cancel()
    for segment in spool._segments:
        if segment.descriptor is not None:
            os.close(segment.descriptor)
    spool._thread.shutdown()
    assert spool._lock is not None
    os.close(spool._lock)


def _files(directory: Path, suffix: str = ".spool") -> list[str]:
    return sorted(path.name for path in directory.glob(f"*{suffix}"))


def _write(directory: Path, events: list[UsageEvent]) -> None:
    spool, _ = Spool.open(directory)
    for event in events:
        spool.append_close(event)
    spool.flush()
    _leave(spool)


async def test_an_unfinished_request_and_an_unsent_one_are_recovered(tmp_path: Path) -> None:
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered()
    unfinished, unsent = usage_event(UsageState.ABANDONED), usage_event()
    spool.append_open(unfinished)
    spool.append_open(usage_event(UsageState.ABANDONED, unsent.request_id))
    spool.append_close(unsent)
    spool.flush()
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered((unfinished,), (unsent.request_id,))
    assert await spool.read_closes(recovered.closes) == [unsent]
    await spool.aclose()


async def test_what_was_not_flushed_is_not_there(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path)
    spool.append_close(usage_event())
    _leave(spool)
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered()
    await spool.aclose()


async def test_a_request_that_was_opened_twice_is_recovered_once_as_it_was_last(
    tmp_path: Path,
) -> None:
    spool, _ = Spool.open(tmp_path, segment_bytes=1)
    first = usage_event(UsageState.ABANDONED)
    second = usage_event(UsageState.ABANDONED, first.request_id)
    spool.append_open(first)
    spool.append_open(second)
    await spool.aclose()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.opens == (second,)
    await spool.aclose()


async def test_what_the_ledger_has_is_not_sent_again_after_a_restart(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path, segment_bytes=_SMALL)
    events = [usage_event() for _ in range(40)]
    for event in events:
        spool.append_open(event)
    for event in events:
        spool.append_close(event)
    spool.flush()
    spool.acknowledge([event.request_id for event in events if event is not events[7]])
    _leave(spool)
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered((), (events[7].request_id,))
    spool.acknowledge([events[7].request_id])
    await spool.aclose()
    assert _files(tmp_path) == _files(tmp_path, ".acknowledged") == []


async def test_segments_are_deleted_while_running_once_the_ledger_has_them(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path, segment_bytes=_SMALL)
    events = [usage_event() for _ in range(40)]
    for event in events:
        spool.append_close(event)
        spool.flush()
    assert len(_files(tmp_path)) > 4
    size = spool.size_bytes
    spool.acknowledge([event.request_id for event in events])
    await until(lambda: len(_files(tmp_path)) == 1)
    kept = [f"{spool._active.number:012d}.acknowledged"]
    await until(lambda: _files(tmp_path, ".acknowledged") == kept)
    assert 0 < spool.size_bytes <= _SMALL + 1_500 < size
    await spool.aclose()
    assert os.listdir(tmp_path) == ["lock"]


async def test_a_long_request_keeps_the_segment_in_which_it_began(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path, segment_bytes=1)
    long = usage_event(UsageState.ABANDONED)
    spool.append_open(long)
    others = [usage_event() for _ in range(3)]
    for event in others:
        spool.append_close(event)
    spool.append_close(usage_event(request=long.request_id))
    spool.flush()
    spool.acknowledge([event.request_id for event in others])
    await until(lambda: len(_files(tmp_path)) == 2)
    _leave(spool)
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered((), (long.request_id,))
    await spool.aclose()


async def test_a_full_spool_says_so_and_still_takes_what_ends(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path, capacity_bytes=3 * _SMALL, segment_bytes=_SMALL)
    events = []
    while not spool.is_full:
        events.append(usage_event())
        spool.append_close(events[-1])
        spool.flush()
    assert 3 * _SMALL <= spool.size_bytes < 3 * _SMALL + 1_500
    last = usage_event()
    spool.append_close(last)
    spool.flush()
    assert await spool.read_closes([last.request_id]) == [last]
    spool.acknowledge([event.request_id for event in events])
    assert not spool.is_full
    await spool.aclose()


def test_a_second_process_is_refused_in_one_line(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path)
    code = (
        "import sys; from pathlib import Path; from dataplane.control.spool import *\n"
        "try: Spool.open(Path(sys.argv[1]))\nexcept SpoolInUseError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=20
    )
    assert done.stdout == f"usage spool {tmp_path} is in use by another process\n"
    with pytest.raises(SpoolInUseError):
        Spool.open(tmp_path)
    _leave(spool)


_WRITER = """
import asyncio, json, sys
from pathlib import Path
from dataplane.control.spool import Spool
from dataplane.control.spool_records import Kind, encode_event
from dataplane.domain.calls import UsageState
from tests.control.usage_events import usage_event

async def main():
    spool, _ = Spool.open(Path(sys.argv[1]), segment_bytes=20_000)
    while True:
        opened = usage_event(UsageState.ABANDONED)
        spool.append_open(opened)
        spool.flush()
        print(json.dumps(["open", opened.request_id]), flush=True)
        if int(opened.client_request_id.removeprefix("client-")) % 3:
            spool.append_close(usage_event(request=opened.request_id))
            spool.flush()
            print(json.dumps(["close", opened.request_id]), flush=True)
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_killed_process_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "generated:."},
    )
    try:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(300)]
    finally:
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout is not None
        rest = writer.stdout.read().splitlines()
        writer.communicate(timeout=10)
    flushed = [json.loads(line) for line in [*lines, *rest] if line.rstrip().endswith("]")]
    opened = {name for kind, name in flushed if kind == "open"}
    closed = {name for kind, name in flushed if kind == "close"}
    spool, recovered = Spool.open(tmp_path)
    still_open = {event.request_id for event in recovered.opens}
    assert closed <= set(recovered.closes)
    assert opened <= still_open | set(recovered.closes)
    # The last of each may have been written without being told.
    assert len(set(recovered.closes) - closed) <= 1
    read = asyncio.run(spool.read_closes(recovered.closes))
    assert len(read) == len(recovered.closes) >= 100
    _leave(spool)


async def test_a_full_disk_loses_nothing_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_RETRY_SECONDS", 0.01)
    spool, _ = Spool.open(tmp_path, segment_bytes=_SMALL)
    write, free = os.write, [700]

    def disk(descriptor: int, data: bytes) -> int:
        if not free[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(descriptor, bytes(data)[: free[0]])
        free[0] -= count
        return count

    monkeypatch.setattr(os, "write", disk)
    events = [usage_event() for _ in range(10)]
    with capture_logs() as logs:
        for event in events:
            spool.append_close(event)
            spool.flush()
    assert spool.is_full
    assert [entry["event"] for entry in logs] == ["usage_spool_cannot_write"]
    ids = [event.request_id for event in events]
    assert await spool.read_closes(ids) == events
    free[0] = 10**6
    await until(lambda: not spool.is_full)
    _leave(spool)
    spool, recovered = Spool.open(tmp_path)
    assert recovered.closes == tuple(ids)
    assert await spool.read_closes(ids) == events
    await spool.aclose()


async def test_what_was_written_is_synced_soon_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    spool, _ = Spool.open(tmp_path)
    for _ in range(20):
        spool.append_close(usage_event())
        spool.flush()
    assert synced == []
    await until(lambda: len(synced) == 2, 1.0)  # the file and its directory, once for all
    await spool.aclose()


async def test_a_refused_record_is_put_aside_and_not_sent_again(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path)
    refused, other = usage_event(), usage_event()
    spool.append_close(refused)
    spool.append_close(other)
    spool.flush()
    spool.refuse(refused.request_id)
    _leave(spool)
    assert refused.request_id.encode() in (tmp_path / "refused").read_bytes()
    spool, recovered = Spool.open(tmp_path)
    assert recovered.closes == (other.request_id,)
    await spool.aclose()


async def test_texts_of_callers_cannot_break_a_record(tmp_path: Path) -> None:
    spool, _ = Spool.open(tmp_path)
    event = usage_event()
    strange = [
        type(event)(
            **{**{n: getattr(event, n) for n in event.__struct_fields__}, "request_id": n, "ip": t}
        )
        for n, t in (("endless", "x" * 200_000), ("no-text", "\ud800"), ("fine", "ü\0"))
    ]
    for each in strange:
        spool.append_close(each)
    spool.flush()
    read = await spool.read_closes(["endless", "no-text", "fine"])
    assert [each.ip for each in read] == ["x" * 1_000, "?", "ü\0"]
    await spool.aclose()


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 6),
    position=st.integers(0, 10**6),
    change=st.one_of(st.none(), st.integers(1, 255)),
)
def test_of_a_changed_file_the_records_before_the_change_are_read(
    count: int, position: int, change: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        events = [usage_event() for _ in range(count)]
        _write(Path(name), events)
        path = next(Path(name).glob("*.spool"))
        data = bytearray(path.read_bytes())
        position %= len(data)
        if change is None:
            del data[position:]
        else:
            data[position] ^= change
        path.write_bytes(data)
        spool, recovered = Spool.open(Path(name))
        assert recovered.opens == ()
        whole = [event.request_id for event in events][: len(recovered.closes)]
        assert list(recovered.closes) == whole
        ends = accumulate(len(encode_event(Kind.CLOSE, event)) for event in events)
        assert len(whole) == sum(end <= position for end in ends)
        assert asyncio.run(spool.read_closes(whole)) == events[: len(whole)]
        _leave(spool)


async def test_damage_in_the_middle_is_counted_and_said(tmp_path: Path) -> None:
    events = [usage_event() for _ in range(4)]
    _write(tmp_path, events)
    _write(tmp_path, [late := usage_event()])
    path = tmp_path / _files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 50] ^= 1
    path.write_bytes(data)
    with capture_logs() as logs:
        spool, recovered = Spool.open(tmp_path)
    assert recovered.damaged_segments == 1
    assert [entry["event"] for entry in logs] == ["usage_spool_damaged"]
    assert recovered.closes == (*(event.request_id for event in events[:2]), late.request_id)
    await spool.aclose()


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 10**6), change=st.one_of(st.none(), st.integers(1, 255)))
def test_of_changed_acknowledgements_some_records_are_sent_again_and_none_is_lost(
    position: int, change: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        events = [usage_event() for _ in range(4)]
        spool, _ = Spool.open(Path(name))
        for event in events:
            spool.append_close(event)
        spool.flush()
        for event in events[:3]:
            spool.acknowledge([event.request_id])
        _leave(spool)
        path = next(Path(name).glob("*.acknowledged"))
        data = bytearray(path.read_bytes())
        position %= len(data)
        data[position:] = (
            b"" if change is None else bytes([data[position] ^ change]) + data[position + 1 :]
        )
        path.write_bytes(data)
        spool, recovered = Spool.open(Path(name))
        ids = [event.request_id for event in events]
        assert list(recovered.closes) == ids[4 - len(recovered.closes) :]
        assert len(recovered.closes) >= 1
        _leave(spool)


_LATER_FIELDS = {"address_subjects", "layers", "is_degraded", "output_cap_tokens", "rates"}


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.CLOSE])
async def test_an_event_of_the_version_before_is_read(tmp_path: Path, kind: Kind) -> None:
    event = usage_event()
    fields = msgspec.structs.asdict(event)
    payload = msgspec.msgpack.encode(
        {name: value for name, value in fields.items() if name not in _LATER_FIELDS}
    )
    (tmp_path / "000000000001.spool").write_bytes(spool_records._framed(kind, payload))

    spool, recovered = Spool.open(tmp_path)

    found = [*recovered.opens, *await spool.read_closes(recovered.closes)]
    assert found == [
        msgspec.structs.replace(
            event,
            address_subjects=(),
            layers=NO_LAYERS,
            is_degraded=False,
            output_cap_tokens=0,
            rates=None,
        )
    ]
    assert found != [event]
    await spool.aclose()


async def test_an_event_says_the_same_after_the_disk(tmp_path: Path) -> None:
    event = usage_event()
    spool, _ = Spool.open(tmp_path)
    spool.append_close(event)
    spool.flush()

    assert await spool.read_closes([event.request_id]) == [event]
    await spool.aclose()
