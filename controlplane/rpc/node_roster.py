"""Which nodes joined and which are banned: held in memory, followed in the database.

Every call of a node is checked here, without a query. Changes of this process are read at once, those of other control
planes within `POLL_S`, so that a ban is in force everywhere within a second.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from controlplane.domain.errors import OverloadedError
from controlplane.store.database import Store
from controlplane.store.nodes import Nodes, RosterState
from controlplane.store.tables import NodeIdentity

# 0.4 s: with the time of a reading well under the second that a ban may take, at 2 small queries a second.
POLL_S: Final = 0.4
_JITTER: Final = 0.1
_READ_DEADLINE_S: Final = 5.0

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownNode:
    """What the roster says of a node. `enrolled_at_ms` is None for one that was banned before it ever joined."""

    organization_ids: frozenset[str]
    enrolled_at_ms: int | None
    is_banned: bool


class NodeRoster:
    """The nodes of a database. `run` follows it; without that it knows what `refresh` read last."""

    def __init__(
        self,
        store: Store,
        *,
        poll_s: float = POLL_S,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store = store
        self._poll_s = poll_s
        self._jitter = jitter
        self._nodes: dict[str, KnownNode] = {}
        self._state: RosterState | None = None
        self._listeners: list[Callable[[frozenset[str]], None]] = []
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._is_failing = False

    def get(self, node_id: str) -> KnownNode | None:
        """Return what is known of a node; None for one that neither joined nor is banned."""
        return self._nodes.get(node_id)

    def listen(self, callback: Callable[[frozenset[str]], None]) -> None:
        """Call `callback(node_ids)` whenever something about these changed; it must not block or raise."""
        self._listeners.append(callback)

    def wake(self) -> None:
        """Have the database read now."""
        self._woken.set()

    async def refresh(self) -> None:
        """Read what changed since the last time.

        Whoever asks while another reads shares the next reading: refused nodes that call without end delay no ban.

        Raises:
            OverloadedError: The database does not answer.
        """
        self._asked += 1
        own = self._asked
        try:
            async with asyncio.timeout(_READ_DEADLINE_S), self._turn:
                if self._answered >= own:
                    return
                asked = self._asked
                await self._read()
                self._answered = asked
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise OverloadedError("the database does not answer; try again later") from error

    async def run(self) -> None:
        """Follow the database until cancelled. While it is away, what was known stays in force."""
        stop_listening = self._store.changed.listen(lambda _revision: self.wake())
        try:
            while True:
                await self._refresh_or_log()
                spread = self._poll_s * _JITTER
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s + self._jitter(-spread, spread)):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            stop_listening()

    async def _refresh_or_log(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # task boundary: without this task no ban of another control plane would be heard
            if not self._is_failing:
                is_outage = isinstance(error, OverloadedError)
                _log.error("nodes not read", exc_info=not is_outage, error=repr(error))
            self._is_failing = True
            return
        if self._is_failing:
            _log.info("nodes read again")
        self._is_failing = False

    async def _read(self) -> None:
        async with self._store.reading() as session:
            nodes = Nodes(session)
            state = await nodes.state()
            if state == self._state:
                return
            found = {row.id: _known(row) for row in await nodes.all()}
        former, self._nodes, self._state = self._nodes, found, state
        changed = frozenset(
            node_id
            for node_id in former.keys() | found.keys()
            if former.get(node_id) != found.get(node_id)
        )
        if changed:
            for callback in self._listeners:
                callback(changed)


def _known(row: NodeIdentity) -> KnownNode:
    enrolled_at = row.enrolled_at
    return KnownNode(
        organization_ids=frozenset(row.organization_ids),
        enrolled_at_ms=None if enrolled_at is None else round(enrolled_at.timestamp() * 1000),
        is_banned=row.banned_at is not None,
    )
