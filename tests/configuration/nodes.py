"""Processes full of nodes, and what they said."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Compiling a hundred thousand keys for several nodes on a busy machine.
START_DEADLINE_S = 180.0


@dataclass
class NodesProgram:
    """One process of `nodes_program`, and what it said so far."""

    names: Sequence[str]
    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def listen(self) -> None:
        """Take what it says until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self.heard:
                self.said.append(json.loads(line))
                self.heard.notify_all()

    async def until(self, holds: Callable[[], bool], deadline_s: float) -> None:
        """Wait until `holds()`, which is asked at every line."""
        async with asyncio.timeout(deadline_s), self.heard:
            await self.heard.wait_for(holds)

    def applied(self) -> dict[str, int]:
        """Return the newest revision of each node."""
        return {each["node"]: each["applied"] for each in self.said if "applied" in each}

    def newest(self, name: str) -> dict[str, Any]:  # Any: JSON
        """Return what a node said last when it applied something."""
        return next(e for e in reversed(self.said) if e["node"] == name and "applied" in e)

    async def until_applied(self, revision: int, deadline_s: float = START_DEADLINE_S) -> None:
        """Wait until each node has a revision."""

        def have_all() -> bool:
            applied = self.applied()
            return all(applied.get(name, -1) >= revision for name in self.names)

        await self.until(have_all, deadline_s)

    def revoked_at_ns(self, subject_id: str) -> dict[str, int]:
        """Return when each node refused a subject first."""
        found: dict[str, int] = {}
        for each in self.said:
            if each.get("revoked") == subject_id and each["on"]:
                found.setdefault(each["node"], each["at_ns"])
        return found


@asynccontextmanager
async def nodes(addresses: str, names: Sequence[str], token: str) -> AsyncIterator[NodesProgram]:
    """Run nodes in a process of their own until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.configuration.nodes_program",
        addresses,
        ",".join(names),
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(token.encode() + b"\n")
    await process.stdin.drain()
    program = NodesProgram(names, process)
    listening = asyncio.create_task(program.listen())
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening
