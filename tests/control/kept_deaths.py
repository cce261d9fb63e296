"""A process that keeps configurations and dies at a given call to the disk, and what it told before."""

import asyncio
import itertools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dataplane.control import configuration_keeper
from tests.control.kept_configurations import Author, State, keeper, on_disk, opened, revocation

TOLD: Final = "told"
CHANGES: Final = 30
_CALLS: Final = ("write", "fsync", "fdatasync", "open", "unlink", "rename", "close")


def apply(author: Author, number: int) -> Any:
    """Put change `number` in force, always the same one."""
    if number % 9 == 7:
        names = {f"all{number}-{each}": bytes(each) for each in range(5)}
        return author.change(names, secrets={"c": b"sk"}, is_everything=True)
    return author.change({f"key{number}": bytes(number), "often": bytes(number)})


def states() -> list[State]:
    """Return what is in force after each change, by revision."""
    author, found = Author(), []
    for number in range(CHANGES):
        apply(author, number)
        found.append(author.state)
    return found


def live(directory: str, deadly_call: int) -> None:
    """Keep changes and revocations; die by SIGKILL within the given call to the disk."""
    told = os.open(Path(directory, TOLD), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    write, numbers = os.write, itertools.count(1)

    def deadly(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            if next(numbers) == deadly_call:
                if name == "write":
                    write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return counted

    for name in _CALLS:
        setattr(os, name, deadly(name, getattr(os, name)))
    configuration_keeper.MAX_JOURNAL_RECORDS = 4  # type: ignore[misc] # many generations
    asyncio.run(_keep(Path(directory, "data"), lambda text: write(told, f"{text}\n".encode())))


async def _keep(directory: Path, tell: Callable[[str], object]) -> None:
    author, lkg = Author(), await opened(directory)
    for number in range(CHANGES):
        change = apply(author, number)
        tell(f"keeping {number}")
        lkg.keep(author.holdings, change)
        if number % 3:
            await on_disk(lkg)
            tell(f"kept {number}")
        for kind in ("key", "user"):
            each = revocation(f"{kind}-{number}", change.position.revision + 1, kind)
            if await lkg.keep_revocation(each):
                tell(f"revoked {kind} {number}")
        if number % 10 == 9:
            await lkg.aclose()
            tell(f"kept {number}")
            lkg = await opened(directory)
    await lkg.aclose()


def live_on_a_small_disk(directory: str) -> None:
    """Keep more than files may hold here, then as much as they may."""
    asyncio.run(_outgrow(Path(directory)))


async def _outgrow(directory: Path) -> None:
    configuration_keeper.RETRY_SECONDS = (0.0, 10.0)  # type: ignore[misc] # quick
    author, lkg = Author(), keeper(directory)
    lkg.keep(author.holdings, author.change({"small": b""}))
    await on_disk(lkg)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    lkg.keep(author.holdings, author.change({"large": os.urandom(100_000)}))
    async with asyncio.timeout(10):
        while lkg.figures.error != "EFBIG":
            await asyncio.sleep(0.005)
    assert await lkg.keep_revocation(revocation("key")), "it is small"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    lkg.keep(author.holdings, author.change({"larger": b""}))
    await on_disk(lkg)
    assert lkg.figures.error == ""
    await lkg.aclose()
