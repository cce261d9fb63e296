"""A node that dies at any moment has what it told, or the next of it, when it starts again."""

import multiprocessing
import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dataplane.domain.revocations import overrules
from tests.control.kept_configurations import EPOCH, loaded, state_of
from tests.control.kept_deaths import TOLD, live, live_on_a_small_disk, states

_STEP = 24


def _deadly_calls() -> Iterator[int]:
    # Another choice in every run: each call to the disk has its turn.
    return (random.randrange(start, start + _STEP) for start in range(1, 355, _STEP))


async def test_a_death_at_any_moment_leaves_what_was_told_or_the_next(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.control.kept_deaths"])
    deaths = 0
    for deadly_call in _deadly_calls():
        directory = tmp_path / str(deadly_call)
        directory.mkdir()
        process = context.Process(target=live, args=(str(directory), deadly_call))
        process.start()
        process.join(20)
        assert process.exitcode in (0, -signal.SIGKILL)
        deaths += process.exitcode != 0
        await _check(directory)
    assert deaths > 10


async def _check(directory: Path) -> None:
    told: dict[str, list[int]] = defaultdict(list)
    for line in (directory / TOLD).read_text().splitlines():
        *words, number = line.split()
        told[" ".join(words)].append(int(number))
    kept = await loaded(directory / "data")
    newest_kept = max(told["kept"], default=-1)
    if kept is None:
        assert newest_kept == -1, directory
        return
    assert kept.change is not None
    position = kept.change.position
    assert newest_kept <= position.revision - 1 <= max(told["keeping"]), directory
    assert state_of(kept) == states()[position.revision - 1], directory
    assert kept.is_complete, directory
    refused = {(each.kind, each.subject_id) for each in kept.revocations}
    for kind in ("key", "user"):
        for told_number in told[f"revoked {kind}"]:
            revision = told_number + 2
            if overrules(kind, EPOCH, revision, position.config_epoch, position.revision):
                assert (kind, f"{kind}-{told_number}") in refused, directory
    assert not list((directory / "data").glob("*.corrupt-*")), directory


async def test_a_file_that_may_not_grow_is_written_when_it_may(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.control.kept_deaths"])
    process = context.Process(target=live_on_a_small_disk, args=(str(tmp_path),))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    kept = await loaded(tmp_path)
    assert kept is not None
    assert kept.change is not None
    assert {name for _, name in kept.change.put} == {"small", "large", "larger"}
    assert [each.subject_id for each in kept.revocations] == ["key"]
