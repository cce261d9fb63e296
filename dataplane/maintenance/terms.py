"""The lease of the one node that maintains the counters, and its term of office."""

import asyncio
from dataclasses import dataclass, field

import structlog

from dataplane.limits.operations import Answer, Outcome
from dataplane.limits.upkeep import Maintain, Resign
from dataplane.maintenance.ports import Desk

_log = structlog.get_logger(__name__)


class FencedError(Exception):
    """Another node maintains the counters by now: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Term:
    """One uninterrupted holding of the lease; Redis refuses what carries an older `fence`."""

    fence: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class MaintenanceLease:
    """Takes and renews the lease; a term ends with it, by this process' own clock at the latest."""

    def __init__(self, desk: Desk, node_id: str, lease_ms: int) -> None:
        """Prepare; `renew` asks for the lease."""
        self._desk = desk
        self._node_id = node_id
        self._lease_ms = lease_ms
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self.term: Term | None = None

    async def renew(self) -> None:
        """Take the lease if it is free, and keep it if it is ours.

        Raises:
            RedisError, OSError: Redis did not answer; a running term ends when its lease does.
        """
        sent_at = self._loop.time()
        [answer] = await self._desk.run(Maintain(self._node_id, self._lease_ms))
        if answer[0] != Outcome.OK:
            self._end()
            return
        if self.term is None or self.term.fence != answer[1]:
            self._end()
            self.term = Term(answer[1])
            self._begun.set()
            _log.info("maintenance_begun", node_id=self._node_id, fence=self.term.fence)
        if self._alarm is not None:
            self._alarm.cancel()
        # Counted from the question: the server's lease ends later than ours, never earlier.
        self._alarm = self._loop.call_at(sent_at + self._lease_ms / 1000, self._end)

    async def next_term(self) -> Term:
        """Return the running term, or wait for one."""
        while self.term is None:
            self._begun.clear()
            await self._begun.wait()
        return self.term

    async def resign(self) -> None:
        """Give the lease up, so that another node need not wait for its end.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        if self.term is not None:
            self._end()
            await self._desk.run(Resign(self._node_id))

    def _end(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.term is not None:
            _log.info("maintenance_ended", node_id=self._node_id, fence=self.term.fence)
            self.term.ended.set()
            self.term = None


def unfenced(answers: list[Answer]) -> list[Answer]:
    """Return the answers of operations that carry a fence.

    Raises:
        FencedError: The caller's term is over.
    """
    if any(answer[0] == Outcome.FENCED for answer in answers):
        raise FencedError
    return answers
