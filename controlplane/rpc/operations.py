"""How the service is, for its operator; its pause, and work on its counters."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from google.protobuf.message import Message
from sqlalchemy.exc import SQLAlchemyError
from tollkeeper.admin.v1 import operations_service_pb2 as pb
from tollkeeper.admin.v1 import operations_service_pb2_grpc
from tollkeeper.config.v1 import config_service_pb2 as config_pb

from controlplane.domain.errors import DeadlineError, LimitsUnavailableError
from controlplane.rpc.actors import current_actor
from controlplane.rpc.authorization import check_permission
from controlplane.rpc.changing import AdminServicer, Backend, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.redaction import audited
from controlplane.rpc.subject_names import names_of
from controlplane.snapshots.snapshot import Position, position_to_proto
from controlplane.store.audit import note_act
from controlplane.store.operations import DatabaseState, ping, state_of
from controlplane.store.recounting import recount
from controlplane.store.repositories import Repositories
from controlplane.store.service import service_settings
from controlplane.store.transactions import Transaction

# A database that takes longer for a few rows counts as away, and the operator is not kept waiting.
DATABASE_DEADLINE_S: Final = 3.0
MAX_PROBLEMS: Final = 20
# Comparing some hundred thousand counters takes seconds; an administrator waits for it.
COUNTER_TASK_DEADLINE_S: Final = 60.0
MAX_DIFFERENCES: Final = 1_000
# Some tens of millions of requests.
RECOUNT_DEADLINE_S: Final = 1_800.0

_WRITE: Final = "operations.write"
_COUNTERS: Final = "counters"
_USAGE: Final = "usage"
_MAX_TEXT: Final = 500

_log: Final = structlog.get_logger(__name__)


class Published(Protocol):
    """What a control plane publishes."""

    @property
    def position(self) -> Position:
        """The newest published position; an empty one before the first."""
        ...

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the newest content of the database is not published; none when it is."""
        ...


class CounterDesk(Protocol):
    """Who has work done on the counters, which a control plane cannot reach itself."""

    async def run_counter_task(
        self, kind: config_pb.CounterTaskKind.ValueType, deadline_s: float
    ) -> tuple[str, config_pb.CounterReport]:
        """Return the node that did it and its report.

        Raises:
            LimitsUnavailableError: Nobody does it.
            DeadlineError: It took longer than `deadline_s`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Which control plane answers, and since when it serves, by the clock that `monotonic_s` returns in seconds."""

    control_plane_id: str
    version: str
    started_at_s: float
    monotonic_s: Callable[[], float] = time.monotonic


class OperationsServicer(AdminServicer, operations_service_pb2_grpc.OperationsServiceServicer):
    """Serves OperationsService."""

    def __init__(
        self,
        backend: Backend,
        published: Published,
        control_plane: ControlPlane,
        counters: CounterDesk,
    ) -> None:
        super().__init__(backend)
        self._store = backend.store
        self._published = published
        self._control_plane = control_plane
        self._counters = counters

    async def GetServiceStatus(
        self, _request: pb.GetServiceStatusRequest, _context: Context
    ) -> pb.ServiceStatus:
        """Return how this control plane is. It answers without its database too, and says so among the problems."""
        own, problems = self._control_plane, list(self._published.problems)
        state, database_ms = await self._database()
        if state is None:
            problems.insert(0, "the database does not answer")
        return pb.ServiceStatus(
            control_plane_id=own.control_plane_id,
            version=own.version,
            uptime_seconds=int(own.monotonic_s() - own.started_at_s),
            database=self._store.engine.dialect.name,
            database_ms=database_ms,
            schema=state.schema if state else "",
            position=position_to_proto(self._published.position),
            problems=problems[:MAX_PROBLEMS],
            pending_devices=state.pending_devices if state else 0,
            paused=state.is_paused if state else False,
        )

    @changing(pb.ServicePause)
    async def PauseService(
        self, tx: Transaction, _request: pb.PauseServiceRequest
    ) -> Callable[[], pb.ServicePause]:
        """Have every call refused; data planes learn of it as of any change."""
        return await _pause(tx, paused=True)

    @changing(pb.ServicePause)
    async def ResumeService(
        self, tx: Transaction, _request: pb.ResumeServiceRequest
    ) -> Callable[[], pb.ServicePause]:
        """End the pause."""
        return await _pause(tx, paused=False)

    async def VerifyCounters(
        self, request: pb.VerifyCountersRequest, _context: Context
    ) -> pb.CounterVerification:
        """Have every counter compared with the ledger, and with `repair` set to what the ledger says.

        Whoever reads may compare; repairing is for those who write.
        """
        if request.repair:
            check_permission(current_actor(), _WRITE)
            await self._note("VerifyCounters", request)
            node_id, report = await self._run(config_pb.COUNTER_TASK_KIND_REPAIR)
        else:
            node_id, report = await self._run(config_pb.COUNTER_TASK_KIND_VERIFY)
        differences = report.differences[:MAX_DIFFERENCES]
        subjects = [(each.counter.subject_kind, each.counter.subject_id) for each in differences]
        async with self._store.reading() as session:
            names = await names_of(Repositories(session), subjects)
        return pb.CounterVerification(
            node_id=node_id,
            compared=report.compared,
            differing=report.differing,
            differences=[
                pb.NamedDifference(subject=names[subject], difference=difference)
                for subject, difference in zip(subjects, differences, strict=True)
            ],
        )

    async def ResetLimiterClock(
        self, request: pb.ResetLimiterClockRequest, _context: Context
    ) -> pb.ResetLimiterClockResponse:
        """Let the limiter's time go back to the clock of Redis."""
        await self._note("ResetLimiterClock", request)
        node_id, _ = await self._run(config_pb.COUNTER_TASK_KIND_RESET_CLOCK)
        return pb.ResetLimiterClockResponse(node_id=node_id)

    async def RecountUsage(
        self, request: pb.RecountUsageRequest, _context: Context
    ) -> pb.RecountUsageResponse:
        """Set the ledger's sums to what its rows add up to, at once or not at all."""
        try:
            async with (
                asyncio.timeout(RECOUNT_DEADLINE_S),
                self._store.transaction(current_actor().name, "RecountUsage") as tx,
            ):
                await note_act(tx, _USAGE, audited(request))
                requests = await recount(tx.session)
        except TimeoutError as error:
            raise DeadlineError("the ledger has too many rows to be recounted in time") from error
        return pb.RecountUsageResponse(requests=requests)

    async def _note(self, rpc: str, request: Message) -> None:
        """Have it in the audit log before it happens, so that nothing is repaired unseen."""
        async with self._store.transaction(current_actor().name, rpc) as tx:
            await note_act(tx, _COUNTERS, audited(request))

    async def _run(
        self, kind: config_pb.CounterTaskKind.ValueType
    ) -> tuple[str, config_pb.CounterReport]:
        """Have a task done.

        Raises:
            LimitsUnavailableError: Nobody does it, or it could not be done.
            DeadlineError: It took too long.
        """
        node_id, report = await self._counters.run_counter_task(kind, COUNTER_TASK_DEADLINE_S)
        if report.problem:
            raise LimitsUnavailableError(f"data plane {node_id}: {report.problem[:_MAX_TEXT]}")
        return node_id, report

    async def _database(self) -> tuple[DatabaseState | None, float]:
        """Return how the database is (None: away), and how long it took to answer, in milliseconds."""
        began_s = self._control_plane.monotonic_s()

        def passed_ms() -> float:
            return (self._control_plane.monotonic_s() - began_s) * 1000

        try:
            async with asyncio.timeout(DATABASE_DEADLINE_S), self._store.reading() as session:
                await ping(session)
                database_ms = passed_ms()
                return await state_of(session), database_ms
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("database away", error=type(error).__name__)
            return None, passed_ms()


async def _pause(tx: Transaction, *, paused: bool) -> Callable[[], pb.ServicePause]:
    row = await service_settings(tx)
    row.paused = paused
    return lambda: pb.ServicePause(paused=paused, revision=tx.revision)
