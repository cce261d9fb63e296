"""How the service is, for its operator."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError
from tollkeeper.admin.v1 import operations_service_pb2 as pb
from tollkeeper.admin.v1 import operations_service_pb2_grpc

from controlplane.rpc.interception import Context
from controlplane.snapshots.snapshot import Position, position_to_proto
from controlplane.store.database import Store
from controlplane.store.operations import DatabaseState, ping, state_of

# A database that takes longer for a few rows counts as away, and the operator is not kept waiting.
DATABASE_DEADLINE_S: Final = 3.0
MAX_PROBLEMS: Final = 20

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


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Which control plane answers, and since when it serves, by the clock that `monotonic_s` returns in seconds."""

    control_plane_id: str
    version: str
    started_at_s: float
    monotonic_s: Callable[[], float] = time.monotonic


class OperationsServicer(operations_service_pb2_grpc.OperationsServiceServicer):
    """Serves OperationsService."""

    def __init__(self, store: Store, published: Published, control_plane: ControlPlane) -> None:
        self._store = store
        self._published = published
        self._control_plane = control_plane

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
        )

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
