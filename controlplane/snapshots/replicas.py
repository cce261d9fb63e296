"""The control planes beside this one, on the same PostgreSQL.

Who is connected where stands in the database: each writes its nodes every 5 s, and soon after one comes or goes, and
reads those of the others as often. What receipts need goes by announcements; see `PeerQuestions`.

All of it is for showing and for receipts. A control plane whose announcements are lost reads every change from the
database within a second all the same; its nodes are then named as missing in receipts.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from controlplane.domain.errors import DomainError
from controlplane.snapshots.peer_messages import (
    CHANNEL,
    Answer,
    Moved,
    PeerMessage,
    Question,
    answers,
    from_text,
    to_text,
)
from controlplane.snapshots.peer_questions import PeerQuestions
from controlplane.snapshots.peers import Ask, News, PeerNews
from controlplane.store.database import Store
from controlplane.store.listening import Listening
from controlplane.store.sessions import (
    LIVE_S,
    Elsewhere,
    forget_sessions,
    save_sessions,
    sessions_elsewhere,
)

SAVE_INTERVAL_S: Final = 5.0
MOVED_INTERVAL_S: Final = 0.25
GROUP_S: Final = 0.02

_MAX_OUTGOING: Final = 1_000
_DEADLINE_S: Final = 5.0
# A program that stops does not wait long for a database that is away: its rows are of no use after 15 s anyway.
_LEAVING_DEADLINE_S: Final = 1.0
_ERRORS: Final = (DomainError, SQLAlchemyError, OSError, TimeoutError)

_log: Final = structlog.get_logger(__name__)

Describe = Callable[[], Mapping[str, bytes]]
"""Returns the live nodes of this control plane, each as a serialized `tollkeeper.admin.v1.Node`."""


class Replicas:
    """Implements `Peers`; `run` does the work. On SQLite there are no others, and nothing is done."""

    def __init__(self, store: Store, listening: Listening, control_plane_id: str) -> None:
        """Prepare; `listening` is not running yet."""
        self._store = store
        self._listening = listening
        self._control_plane_id = control_plane_id
        self._questions = PeerQuestions(control_plane_id, self._say)
        self._elsewhere: dict[str, tuple[Elsewhere, float]] = {}
        self._written: frozenset[str] = frozenset()
        self._outgoing: asyncio.Queue[PeerMessage] = asyncio.Queue(_MAX_OUTGOING)
        self._moved = asyncio.Event()
        self._wants_reading = asyncio.Event()
        listening.listen(CHANNEL, self._hear)
        listening.on_connected(self._wants_reading.set)

    # ── Peers ────────────────────────────────────────────────────────────────────────────────

    def live_nodes(self) -> Mapping[str, str]:
        """Return the nodes on other control planes, heard within 15 s: node id → control plane id."""
        return {each.node_id: each.control_plane_id for each in self._live()}

    def states(self) -> Mapping[str, bytes]:
        """Return them as serialized `tollkeeper.admin.v1.Node`, by node id; at most about 5 s old."""
        return {each.node_id: each.state for each in self._live() if each.state}

    def ask(self, ask: Ask) -> None:
        """Ask the others. What they tell arrives at the fleet until `wait_ms` are over."""
        if self._store.is_shared:
            self._questions.ask(ask)

    def answer(self, news: News) -> None:
        """Tell whoever waits for it what a node of this control plane said; note who came and went."""
        if not self._store.is_shared:
            return
        if news.is_connected != (news.node_id in self._written):
            self._moved.set()
        self._questions.hear_news(news)

    # ── The work ─────────────────────────────────────────────────────────────────────────────

    async def run(self, fleet: PeerNews, describe: Describe) -> None:
        """Keep the link between `fleet` and the other control planes until cancelled; then this one's nodes are gone."""
        if not self._store.is_shared:
            return
        self._questions.fleet = fleet
        fleet.on_news = self.answer
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._saving(describe))
                group.create_task(self._reading())
                group.create_task(self._speaking())
                group.create_task(self._grouping())
        finally:
            fleet.on_news = None
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(_LEAVING_DEADLINE_S):
                await forget_sessions(self._store, self._control_plane_id)
                await self._announce(Moved(self._control_plane_id))
        except _ERRORS as error:
            _log.warning("nodes not signed off", error=type(error).__name__)

    async def _saving(self, describe: Describe) -> None:
        is_failing = False
        while True:
            self._moved.clear()
            try:
                states = describe()
                async with asyncio.timeout(_DEADLINE_S):
                    await save_sessions(self._store, self._control_plane_id, states)
            except Exception as error:  # task boundary: one failing round must not end the link
                if not is_failing:
                    is_outage = isinstance(error, _ERRORS)
                    _log.warning("nodes not written", exc_info=not is_outage, error=repr(error))
                is_failing = True
            else:
                is_failing = False
                if self._written != states.keys():
                    self._written = frozenset(states)
                    self._say(Moved(self._control_plane_id))
            await asyncio.sleep(MOVED_INTERVAL_S)
            await _wait(self._moved, SAVE_INTERVAL_S - MOVED_INTERVAL_S)

    async def _reading(self) -> None:
        is_failing = False
        while True:
            self._wants_reading.clear()
            try:
                async with asyncio.timeout(_DEADLINE_S), self._store.reading() as session:
                    found = await sessions_elsewhere(session, self._control_plane_id)
            except _ERRORS as error:
                if not is_failing:
                    _log.warning("nodes elsewhere not read", error=type(error).__name__)
                is_failing = True
            else:
                is_failing = False
                live_until_s = _now_s() + LIVE_S
                self._elsewhere = {
                    each.node_id: (each, live_until_s - each.age_s) for each in found
                }
            await asyncio.sleep(MOVED_INTERVAL_S)
            await _wait(self._wants_reading, SAVE_INTERVAL_S - MOVED_INTERVAL_S)

    async def _speaking(self) -> None:
        while True:
            await self._announce(await self._outgoing.get())

    async def _grouping(self) -> None:
        while True:
            await self._questions.has_lines.wait()
            await asyncio.sleep(GROUP_S)
            for message in answers(self._control_plane_id, self._questions.take_lines()):
                self._say(message)

    async def _announce(self, message: PeerMessage) -> None:
        await self._listening.notify(CHANNEL, to_text(message))

    def _say(self, message: PeerMessage) -> None:
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            _log.warning("too much to tell other control planes")

    def _hear(self, payload: str) -> None:
        message = from_text(payload)
        if message is None or message.control_plane_id == self._control_plane_id:
            return
        match message:
            case Moved():
                self._wants_reading.set()
            case Question():
                self._questions.hear_question(message)
            case Answer():
                for node_id in self._questions.hear_answer(message):
                    self._note_live(node_id, message.control_plane_id)

    def _live(self) -> list[Elsewhere]:
        now_s = _now_s()
        return [each for each, until_s in self._elsewhere.values() if now_s < until_s]

    def _note_live(self, node_id: str, control_plane_id: str) -> None:
        known, _ = self._elsewhere.get(node_id, (None, 0.0))
        found = Elsewhere(control_plane_id, node_id, known.state if known else b"", age_s=0.0)
        self._elsewhere[node_id] = (found, _now_s() + LIVE_S)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    try:
        async with asyncio.timeout(at_most_s):
            await event.wait()
    except TimeoutError:
        return
