"""What control planes ask each other for receipts, and what they answer.

An asker says what it waits for and how long. The others name their live nodes, then those that obey, as they hear of it,
until the wait is over; answers are grouped. When nobody waits nothing is said.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.peer_messages import Answer, Line, PeerMessage, Question, Told
from controlplane.snapshots.peers import Ask, News, PeerNews
from controlplane.snapshots.snapshot import Position

# The longest wait that an admin call may ask for is far below.
_LONGEST_WAIT_MS: Final = 60_000

# Of questions at once, and of acknowledgements that a question may come after.
_MAX_QUESTIONS: Final = 1_000
_MAX_ACKNOWLEDGEMENTS: Final = 10_000


@dataclass(slots=True, eq=False)
class _Asked:
    """A question, until nobody waits for answers any more, and the most that was told of each node."""

    question: Question
    revocation_id: str
    until_s: float
    told: dict[str, Told] = field(default_factory=dict)


_Questions = OrderedDict[str, _Asked]


class PeerQuestions:
    """The questions of this control plane and those of others. Nothing waits here, and nothing is sent but by `say`."""

    def __init__(self, control_plane_id: str, say: Callable[[PeerMessage], None]) -> None:
        self.fleet: PeerNews | None = None
        """Who is asked and told here; None: nothing is heard."""
        self.has_lines = asyncio.Event()
        """There are lines to be taken and announced."""
        self._control_plane_id = control_plane_id
        self._say = say
        self._own: _Questions = OrderedDict()
        self._others: _Questions = OrderedDict()
        self._acknowledged: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._lines: list[Line] = []

    def ask(self, ask: Ask) -> None:
        """Announce a question of this control plane."""
        question = Question(
            control_plane_id=self._control_plane_id,
            ask_id=secrets.token_hex(4),
            wait_ms=min(ask.wait_ms, _LONGEST_WAIT_MS),
            config_epoch=ask.config_epoch,
            revision=ask.revision,
            revocation=ask.revocation.SerializeToString() if ask.revocation else b"",
        )
        if question.wait_ms > 0:
            revocation_id = ask.revocation.revocation_id if ask.revocation else ""
            _keep(self._own, question, revocation_id)
        self._say(question)

    def hear_news(self, news: News) -> None:
        """Answer those who wait for what a node of this control plane said."""
        if news.revocation_id:
            self._acknowledged[news.revocation_id, news.node_id] = news.is_kept
            if len(self._acknowledged) > _MAX_ACKNOWLEDGEMENTS:
                self._acknowledged.popitem(last=False)
        _drop_old(self._others)
        for asked in self._others.values():
            self._tell(asked, news.node_id, news.applied)

    def take_lines(self) -> list[Line]:
        """Return what there is to announce, in its order, and begin anew."""
        self.has_lines.clear()
        lines, self._lines = self._lines, []
        return lines

    def hear_question(self, question: Question) -> None:
        """Pass a revocation on, and tell how the nodes of this control plane stand."""
        fleet = self.fleet
        # A control plane that has not read of a new epoch yet cannot say anything about it.
        if fleet is None or question.config_epoch != fleet.config_epoch:
            return
        revocation_id = ""
        if question.revocation:
            try:
                revocation = pb.Revocation.FromString(question.revocation)
            except DecodeError:
                return
            revocation_id = revocation.revocation_id
            fleet.hear_peer_revocation(revocation)
        if question.wait_ms > 0:
            self._answer(_keep(self._others, question, revocation_id), fleet.own_nodes())

    def hear_answer(self, answer: Answer) -> set[str]:
        """Tell the fleet what nodes of another control plane do; return those that were named as live."""
        fleet = self.fleet
        lines = [(self._own[line[0]], line) for line in answer.lines if line[0] in self._own]
        if fleet is None:
            return set()
        live = {node_id for _, (_, node_id, told) in lines if told == Told.LIVE}
        if live:
            fleet.hear_peer_nodes(live)
        for asked, (_, node_id, told) in lines:
            match told:
                case Told.APPLIED:
                    position = Position(asked.question.config_epoch, asked.question.revision)
                    fleet.hear_peer_applied(node_id, position)
                case Told.ACKNOWLEDGED | Told.KEPT:
                    is_kept = told == Told.KEPT
                    fleet.hear_peer_revocation_ack(node_id, asked.revocation_id, is_kept)
        return live

    def _answer(self, asked: _Asked, nodes: Mapping[str, Position]) -> None:
        # All of them come first: the asker must not be content before it knows for whom to wait.
        for node_id in nodes:
            self._add_line(asked, node_id, Told.LIVE)
        for node_id, applied in nodes.items():
            self._tell(asked, node_id, applied)

    def _tell(self, asked: _Asked, node_id: str, applied: Position) -> None:
        """Tell an asker what a node does, if that is what it waits for."""
        question = asked.question
        is_kept = self._acknowledged.get((asked.revocation_id, node_id))
        if is_kept is not None:
            self._add_line(asked, node_id, Told.KEPT if is_kept else Told.ACKNOWLEDGED)
        elif applied.is_at_least(question.revision, question.config_epoch):
            self._add_line(asked, node_id, Told.APPLIED)

    def _add_line(self, asked: _Asked, node_id: str, told: Told) -> None:
        if asked.told.get(node_id, -1) >= told:
            return
        asked.told[node_id] = told
        self._lines.append((asked.question.ask_id, node_id, told))
        self.has_lines.set()


def _keep(questions: _Questions, question: Question, revocation_id: str) -> _Asked:
    _drop_old(questions)
    if len(questions) >= _MAX_QUESTIONS:
        questions.popitem(last=False)
    wait_s = min(question.wait_ms, _LONGEST_WAIT_MS) / 1000
    asked = _Asked(question, revocation_id, _now_s() + wait_s)
    questions[question.ask_id] = asked
    return asked


def _drop_old(questions: _Questions) -> None:
    now_s = _now_s()
    for ask_id in [key for key, asked in questions.items() if asked.until_s <= now_s]:
        del questions[ask_id]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
