"""What a control plane does because others may work on the same database, and because a database may be restored.

Together here, so that a test and the program put the same things together.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from controlplane.rpc.node_views import node_to_proto
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.publisher import Publisher
from controlplane.snapshots.replicas import Replicas
from controlplane.store.database import Store
from controlplane.store.epochs import Epochs
from controlplane.store.leadership import Leadership
from controlplane.store.listening import Listening
from controlplane.store.position_marker import PositionMarker
from controlplane.store.transactions import NOTIFY_CHANNEL
from controlplane.tasks import running

PERIODIC_WORK: Final = "periodic work"


class Replication:
    """Everything of that kind for one control plane. `replicas` are the peers of its fleet."""

    def __init__(self, store: Store, data_dir: Path, control_plane_id: str) -> None:
        self.control_plane_id = control_plane_id
        self.epochs = Epochs(store, None if store.is_shared else PositionMarker(data_dir))
        self.listening = Listening(store)
        self.replicas = Replicas(store, self.listening, control_plane_id)
        self.leadership = Leadership(store, PERIODIC_WORK)

    async def start(self) -> None:
        """See whether the database was restored; to be awaited before anything of it is published.

        Raises:
            SQLAlchemyError, OSError, TimeoutError: The database cannot be used.
        """
        await self.epochs.start()

    @asynccontextmanager
    async def running(
        self,
        fleet: Fleet,
        publisher: Publisher,
        periodic: Callable[[], Coroutine[Any, Any, None]],
    ) -> AsyncIterator[None]:
        """Link `fleet` and `publisher` with the database and the other control planes while the block runs.

        `periodic` is work that one of all control planes does: it runs while this one leads.
        """
        self.listening.listen(NOTIFY_CHANNEL, lambda _payload: publisher.wake())
        self.listening.on_connected(publisher.wake)
        self.listening.on_connected(self.epochs.check)
        fleet.on_position_ahead = lambda position: self.epochs.position_ahead(
            position.config_epoch, position.revision
        )
        async with (
            running(self.epochs.run()),
            running(self.listening.run()),
            running(self.replicas.run(fleet, lambda: self._states(fleet))),
            running(self.leadership.run(periodic)),
        ):
            yield

    def _states(self, fleet: Fleet) -> Mapping[str, bytes]:
        now, now_s = datetime.now(UTC), fleet.now_s()
        return {
            each.node_id: node_to_proto(each, now, now_s, self.control_plane_id).SerializeToString()
            for each in fleet.watchers()
            if each.is_live(now_s)
        }
