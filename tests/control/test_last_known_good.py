"""A configuration that was kept on disk goes on where the running one stopped."""

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dataplane.control import configuration_keeper
from dataplane.control.kept import Kept
from dataplane.control.last_known_good import LastKnownGood, position_on_disk
from dataplane.control.revocation_file import REVOCATIONS
from dataplane.control.snapshot_file import CURRENT, PREVIOUS, SnapshotFile
from tests.control.kept_configurations import (
    NODE_KEY,
    Author,
    State,
    everything,
    journals,
    keeper,
    loaded,
    on_disk,
    opened,
    revocation,
    state_of,
)
from tests.control.usage_events import until


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture
async def lkg(tmp_path: Path) -> AsyncIterator[LastKnownGood]:
    lkg = await opened(tmp_path)
    yield lkg
    await lkg.aclose()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_keeper, "RETRY_SECONDS", (0.0, 30.0))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, quick_retries: None) -> Iterator[list[int]]:
    """Yield a list: while there is something in it, the disk is full."""
    is_full: list[int] = []
    write = os.write

    def disk(descriptor: int, data: bytes) -> int:
        if is_full:
            # As disks do: what still fits is written.
            write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", disk)
    yield is_full
    is_full.clear()


async def _keep(lkg: LastKnownGood, author: Author, **names: bytes) -> None:
    lkg.keep(author.holdings, author.change(names))
    await on_disk(lkg)


async def _state(directory: Path) -> State | None:
    return state_of(await loaded(directory))


async def test_every_change_is_on_the_disk_soon_after_it_is_in_force(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    changes = [
        {"put": {"a": b"1", "b": b"2"}, "secrets": {"c1": b"sk-1", "c2": b"sk-2"}},
        {"put": {"c": b"3", "a": b"new"}},
        {"removed": ["b"], "dropped": ["c1"]},
        {"secrets": {"c2": b"sk-turned"}},
        {},
    ]
    for each in changes:
        lkg.keep(author.holdings, author.change(**each))  # type: ignore[arg-type] # as they are named
        await on_disk(lkg)
        assert await _state(tmp_path) == author.state
        assert position_on_disk(tmp_path, NODE_KEY) == author.holdings.position
    assert lkg.figures.journal_records == 4
    assert lkg.figures.bytes_written == sum(
        path.stat().st_size
        for path in (tmp_path / CURRENT, tmp_path / REVOCATIONS, *journals(tmp_path))
    )


async def test_nothing_was_kept_on_a_first_start(tmp_path: Path) -> None:
    assert await loaded(tmp_path / "not made") is None
    assert position_on_disk(tmp_path, NODE_KEY) is None


async def test_a_transfer_that_changes_nothing_writes_nothing(
    lkg: LastKnownGood, author: Author
) -> None:
    await _keep(lkg, author, a=b"1")
    same = author.change()
    lkg.keep(author.holdings, same)
    await on_disk(lkg)
    before = lkg.figures
    lkg.keep(author.holdings, same)
    assert lkg.figures == before
    assert before.journal_records == 1


async def test_a_restart_goes_on_with_the_journal(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, a=b"1")
    for number in range(3):
        await lkg.aclose()
        lkg = await opened(tmp_path)
        await _keep(lkg, author, **{f"key{number}": b"x"})
        assert lkg.figures.journal_records == number + 1
    await lkg.aclose()
    assert await _state(tmp_path) == author.state
    assert not (tmp_path / PREVIOUS).exists()


async def test_a_long_journal_gives_way_to_a_new_generation(
    lkg: LastKnownGood, author: Author, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration_keeper, "MAX_JOURNAL_RECORDS", 5)
    for number in range(14):
        await _keep(lkg, author, **{f"key{number}": b"x"})
    assert lkg.figures.journal_records == 3
    assert len(journals(tmp_path)) == 2
    assert await _state(tmp_path) == author.state


async def test_a_journal_worth_half_the_configuration_gives_way_to_a_new_generation(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, large=os.urandom(1_000_000))
    sizes = []
    for _ in range(9):
        await _keep(lkg, author, often=os.urandom(100_000))
        sizes.append(lkg.figures.journal_records)
    assert sizes == [1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert await _state(tmp_path) == author.state


async def test_a_change_of_most_of_the_configuration_is_a_generation(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, a=b"1")
    await _keep(lkg, author, **{f"key{number}": b"x" for number in range(1_500)})
    assert lkg.figures.journal_records == 0
    lkg.keep(author.holdings, author.change({"b": b"1"}, is_everything=True))
    await on_disk(lkg)
    assert lkg.figures.journal_records == 0
    assert await _state(tmp_path) == author.state


async def test_changes_that_come_together_are_written_together_and_never_on_the_event_loop(
    lkg: LastKnownGood, author: Author, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _keep(lkg, author, a=b"1")
    threads: list[threading.Thread] = []
    write = os.write

    def watched(descriptor: int, data: bytes) -> int:
        threads.append(threading.current_thread())
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", watched)
    for number in range(100):
        lkg.keep(author.holdings, author.change({f"key{number}": b"x"}))
    await on_disk(lkg)
    assert len(threads) <= 2
    assert threading.main_thread() not in threads
    assert lkg.figures.journal_records == 100
    assert await _state(tmp_path) == author.state


async def test_more_changes_than_are_worth_queueing_become_a_generation(
    lkg: LastKnownGood, author: Author, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _keep(lkg, author, a=b"1")
    monkeypatch.setattr(configuration_keeper, "MAX_QUEUED_CHANGES", 10)
    for number in range(11):
        lkg.keep(author.holdings, author.change({f"key{number}": b"x"}))
    await on_disk(lkg)
    assert lkg.figures.journal_records == 0
    assert (tmp_path / PREVIOUS).exists()
    assert await _state(tmp_path) == author.state


async def test_a_configuration_that_changes_while_it_is_written_is_kept_as_it_is_then(
    lkg: LastKnownGood, author: Author, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    begin = SnapshotFile.begin

    def slow(file: SnapshotFile, *args: object) -> object:
        begun.set()
        goes_on.wait(10)
        return begin(file, *args)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(SnapshotFile, "begin", slow)
    lkg.keep(author.holdings, author.change({"a": b"1", "b": b"2"}))
    await until(begun.is_set)
    lkg.keep(author.holdings, author.change({"a": b"new"}, ["b"]))
    goes_on.set()
    await on_disk(lkg)
    assert lkg.figures.journal_records == 1
    assert await _state(tmp_path) == author.state


async def _two_generations(directory: Path, author: Author) -> list[State]:
    """Keep two generations with a journal each; return the states they end with."""
    lkg, states = await opened(directory), []
    for number in range(2):
        lkg.keep(author.holdings, author.change({f"all{number}": b"x"}, is_everything=True))
        await on_disk(lkg)
        await _keep(lkg, author, **{f"later{number}": b"x"})
        states.append(author.state)
    await lkg.aclose()
    return states


async def test_a_corrupt_generation_is_set_aside_and_the_older_one_used_with_its_journal(
    author: Author, tmp_path: Path
) -> None:
    states = await _two_generations(tmp_path, author)
    assert await _state(tmp_path) == states[1]
    (tmp_path / CURRENT).write_bytes((tmp_path / CURRENT).read_bytes()[:-1])
    assert await _state(tmp_path) == states[0]
    assert (tmp_path / f"{CURRENT}.corrupt-1").exists()

    # The next configuration is whole again, and the one that was used stays as the older one.
    lkg = await opened(tmp_path)
    await _keep(lkg, author, next=b"x")
    await lkg.aclose()
    assert await _state(tmp_path) == author.state
    (tmp_path / CURRENT).unlink()
    assert await _state(tmp_path) == states[0]


async def test_a_generation_is_not_used_with_the_journal_of_another(
    author: Author, tmp_path: Path
) -> None:
    states = await _two_generations(tmp_path, author)
    (tmp_path / CURRENT).rename(tmp_path / "x")
    (tmp_path / PREVIOUS).rename(tmp_path / CURRENT)
    (tmp_path / "x").rename(tmp_path / PREVIOUS)
    assert await _state(tmp_path) == states[0]


async def test_a_journal_that_was_changed_gives_the_state_before_and_a_new_generation_follows(
    author: Author, tmp_path: Path, lkg: LastKnownGood
) -> None:
    await _keep(lkg, author, a=b"1")
    await _keep(lkg, author, b=b"2")
    good = author.state
    size = journals(tmp_path)[0].stat().st_size
    await _keep(lkg, author, c=b"3")
    await _keep(lkg, author, d=b"4")
    data = bytearray(journals(tmp_path)[0].read_bytes())
    data[size + 30] ^= 1
    journals(tmp_path)[0].write_bytes(data)

    # No control plane is heard between these starts: none of them goes back behind the one before.
    for _ in range(3):
        again = keeper(tmp_path)
        kept = await again.load(everything)
        assert kept is not None
        assert state_of(kept) == good
        assert [path.name for path in tmp_path.glob("*.corrupt-*")] == ["journal.corrupt-1"]
    held = Author()
    assert kept is not None
    assert kept.change is not None
    held.holdings.commit(kept.change)
    await _keep(again, held, e=b"5")
    assert again.figures.journal_records == 0
    await again.aclose()
    assert await _state(tmp_path) == held.state


async def test_another_key_reads_nothing_and_says_so(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, a=b"1")
    with capture_logs() as logs:
        assert await loaded(tmp_path, NODE_KEY[::-1]) is None
    assert {entry["error"] for entry in logs} == {"it was written under another node key"}


async def test_what_cannot_be_served_gives_way_to_the_one_before_and_stays(
    author: Author, tmp_path: Path
) -> None:
    states = await _two_generations(tmp_path, author)
    offered: list[State | None] = []

    async def only_the_second(kept: Kept) -> bool:
        offered.append(state_of(kept))
        return len(offered) == 2

    lkg = keeper(tmp_path)
    assert state_of(await lkg.load(only_the_second)) == states[0]
    assert offered == [states[1], states[0]]
    assert not list(tmp_path.glob("*.corrupt-*"))

    # What nobody could serve does not take the place of what somebody could.
    await _keep(lkg, author, next=b"x")
    await lkg.aclose()
    (tmp_path / CURRENT).unlink()
    assert await _state(tmp_path) == states[0]


async def test_nothing_is_returned_when_nothing_can_be_served(
    author: Author, tmp_path: Path
) -> None:
    await _two_generations(tmp_path, author)

    async def nothing(_kept: Kept) -> bool:
        return False

    lkg = keeper(tmp_path)
    assert await lkg.load(nothing) is None
    await lkg.aclose()


async def test_a_full_disk_is_said_once_and_what_was_missed_is_there_when_it_is_over(
    lkg: LastKnownGood, author: Author, tmp_path: Path, full_disk: list[int]
) -> None:
    await _keep(lkg, author, a=b"1")
    await _keep(lkg, author, b=b"2")
    before = author.state
    full_disk.append(1)
    with capture_logs() as logs:
        for number in range(3):
            lkg.keep(author.holdings, author.change({f"key{number}": b"x"}))
            await until(lambda: lkg.figures.error == "ENOSPC")
        assert lkg.figures.is_behind
        assert not await lkg.keep_revocation(revocation("key"))
        assert await _state(tmp_path) == before
        full_disk.clear()
        await _keep(lkg, author, after=b"x")
        assert await lkg.keep_revocation(revocation("key"))
    said = [entry["event"] for entry in logs if entry.get("what") == "configuration"]
    assert said == ["not_kept_on_disk", "kept_on_disk_again"]
    assert lkg.figures.error == ""
    assert await _state(tmp_path) == author.state


async def test_a_full_disk_is_asked_again_without_a_change(
    lkg: LastKnownGood, author: Author, full_disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration_keeper, "RETRY_SECONDS", (0.0, 0.02))
    full_disk.append(1)
    lkg.keep(author.holdings, author.change({"a": b"1"}))
    await until(lambda: lkg.figures.error == "ENOSPC")
    full_disk.clear()
    await on_disk(lkg)
    assert lkg.figures.error == ""


async def test_a_stop_on_a_full_disk_ends(
    author: Author, tmp_path: Path, full_disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration_keeper, "RETRY_SECONDS", (60.0, 120.0))
    lkg = await opened(tmp_path)
    full_disk.append(1)
    lkg.keep(author.holdings, author.change({"a": b"1"}))
    await until(lambda: lkg.figures.error == "ENOSPC")
    async with asyncio.timeout(5):
        await lkg.aclose()


async def test_a_directory_that_cannot_be_written_stops_nothing(
    author: Author, tmp_path: Path, quick_retries: None
) -> None:
    (tmp_path / "file").touch()
    lkg = await opened(tmp_path / "file")
    lkg.keep(author.holdings, author.change({"a": b"1"}))
    await until(lambda: lkg.figures.error in ("EEXIST", "ENOTDIR"))
    assert not await lkg.keep_revocation(revocation("key"))
    await lkg.aclose()


async def test_revocations_are_loaded_with_the_configuration(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, a=b"1")
    assert await lkg.keep_revocation(revocation("key", 2))
    kept = await loaded(tmp_path)
    assert kept is not None
    assert kept.revocations == (revocation("key", 2),)
    assert lkg.figures.revocations == 1


@pytest.mark.parametrize("is_first_start", [False, True])
async def test_revocations_are_told_alone_where_no_configuration_can_be_read(
    author: Author, tmp_path: Path, is_first_start: bool
) -> None:
    if not is_first_start:
        await _two_generations(tmp_path, author)
    lkg = await opened(tmp_path)
    assert await lkg.keep_revocation(revocation("key", 9))
    await lkg.aclose()
    for name in (CURRENT, PREVIOUS):
        (tmp_path / name).write_bytes(b"?")
    told: list[Kept] = []

    async def takes(kept: Kept) -> bool:
        told.append(kept)
        return False

    again = keeper(tmp_path)
    assert await again.load(takes) is None
    assert told == [Kept(None, (revocation("key", 9),))]
    await again.aclose()


async def test_revocations_are_kept_until_both_generations_contain_them(
    lkg: LastKnownGood, author: Author, tmp_path: Path
) -> None:
    await _keep(lkg, author, a=b"1")
    assert await lkg.keep_revocation(revocation("alice", 2, "user"))
    counts = []
    for _ in range(3):
        lkg.keep(author.holdings, author.change({"a": b"1"}, is_everything=True))
        await on_disk(lkg)
        counts.append(lkg.figures.revocations)
    # The first of these still has the generation of revision 1 beside it.
    assert counts == [1, 0, 0]


@pytest.mark.parametrize("harm", ["gone", "changed"])
async def test_lost_revocations_are_not_forgotten_before_no_older_configuration_is_left(
    author: Author, tmp_path: Path, harm: str
) -> None:
    await _two_generations(tmp_path, author)
    path = tmp_path / REVOCATIONS
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for _ in range(2):
        lkg = keeper(tmp_path)
        kept = await lkg.load(everything)
        assert kept is not None
        assert not kept.is_complete
        assert await lkg.keep_revocation(revocation("later"))
        await lkg.aclose()

    lkg = await opened(tmp_path)
    lkg.keep(author.holdings, author.change())
    await on_disk(lkg)
    await lkg.aclose()
    kept = await loaded(tmp_path)
    assert kept is not None
    assert kept.is_complete
    assert kept.revocations == (revocation("later"),)
    assert state_of(kept) == author.state
    assert not (tmp_path / PREVIOUS).exists()


_CANARIES = (b"sk-canary-of-a-provider", b"hash-of-a-key-canary", b"canary-of-a-name")


async def test_nothing_that_is_kept_can_be_read_in_any_file_at_any_time(
    author: Author, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration_keeper, "MAX_JOURNAL_RECORDS", 2)
    written: list[bytes] = []
    write = os.write

    def watched(descriptor: int, data: bytes) -> int:
        written.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", watched)
    secret, key_hash, name = _CANARIES
    lkg = await opened(tmp_path / "data")
    for number in range(6):
        change = author.change(
            {f"{name.decode()}-{number}": key_hash}, secrets={f"c-{name.decode()}": secret}
        )
        lkg.keep(author.holdings, change)
        await on_disk(lkg)
        assert await lkg.keep_revocation(revocation(name.decode(), number))
    await lkg.aclose()
    files = [path.read_bytes() for path in (tmp_path / "data").iterdir()]
    assert len(files) == 5
    for canary in _CANARIES:
        assert canary not in b"".join(written)
        assert canary not in b"".join(files)
        assert canary.decode() not in repr(lkg.figures)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert (modes, (tmp_path / "data").stat().st_mode & 0o777) == ({0o600}, 0o700)


_NAMES = st.sampled_from("abcdef")
_Step = tuple[str, dict[str, bytes], set[str]]
_STEPS: st.SearchStrategy[_Step] = st.one_of(
    st.tuples(
        st.just("change"),
        st.dictionaries(_NAMES, st.binary(max_size=40), max_size=4),
        st.sets(_NAMES, max_size=3),
    ),
    st.tuples(
        st.just("everything"), st.dictionaries(_NAMES, st.binary(max_size=40)), st.just(set())
    ),
    st.tuples(st.just("restart"), st.just({}), st.just(set())),
    st.tuples(st.just("wait"), st.just({}), st.just(set())),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_STEPS, max_size=25))
def test_after_any_changes_and_restarts_the_last_state_is_loaded(
    steps: list[_Step],
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration_keeper, "MAX_JOURNAL_RECORDS", 3)
        patch.setattr(configuration_keeper, "MAX_QUEUED_CHANGES", 4)
        asyncio.run(_live(Path(name), steps))


async def _live(directory: Path, steps: list[_Step]) -> None:
    author, lkg = Author(), await opened(directory)
    for what, put, names in steps:
        if what == "restart":
            await lkg.aclose()
            lkg = keeper(directory)
            kept = await lkg.load(everything)
            assert (state_of(kept) or Author().state) == author.state
            author = Author()
            if kept is not None:
                assert kept.change is not None
                author.holdings.commit(kept.change)
        elif what == "wait":
            await on_disk(lkg)
        else:
            held = author.holdings
            gone = [each for each in names if (3, each) in held.resources and each not in put]
            dropped = [each for each in sorted(names)[:1] if each in held.secrets]
            secrets = {each: b"sk" for each in sorted(put)[:1] if each not in dropped}
            change = (
                author.change(put, secrets=secrets, is_everything=True)
                if what == "everything"
                else author.change(put, gone, secrets, dropped)
            )
            lkg.keep(held, change)
    await lkg.aclose()
    assert (await _state(directory) or Author().state) == author.state
