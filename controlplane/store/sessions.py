"""Which nodes are connected to which control plane, as all of them on one PostgreSQL tell each other.

Ages go by the clock of the database, so that the hosts' clocks may differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ARRAY, LargeBinary, Text, bindparam, delete, text
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.database import Store
from controlplane.store.fleet_tables import NodeSession

LIVE_S: Final = 15.0
"""A row that was not written for so long is of a dead control plane."""

# Arrays, because a statement with a thousand rows of parameters takes longer to put together than to run.
_SAVE: Final = text("""
WITH gone AS (
    DELETE FROM node_sessions
    WHERE control_plane_id = :control_plane_id AND node_id <> ALL (:node_ids)
)
INSERT INTO node_sessions (control_plane_id, node_id, state, heard_at)
SELECT :control_plane_id, node_id, state, now()
FROM unnest(CAST(:node_ids AS text[]), CAST(:states AS bytea[])) AS live (node_id, state)
ON CONFLICT (control_plane_id, node_id)
DO UPDATE SET state = excluded.state, heard_at = excluded.heard_at
""").bindparams(
    bindparam("node_ids", type_=ARRAY(Text)),
    bindparam("states", type_=ARRAY(LargeBinary)),
    bindparam("control_plane_id", type_=Text),
)

_ELSEWHERE: Final = text("""
SELECT control_plane_id, node_id, state,
       CAST(extract(epoch FROM now() - heard_at) AS double precision) AS age_s
FROM node_sessions
WHERE control_plane_id <> :control_plane_id AND heard_at > now() - make_interval(secs => :live_s)
ORDER BY heard_at
""")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A node on another control plane."""

    control_plane_id: str
    node_id: str
    state: bytes
    """A serialized `tollkeeper.admin.v1.Node`."""
    age_s: float
    """Since that control plane wrote it; it writes every 5 s."""


async def save_sessions(store: Store, control_plane_id: str, states: Mapping[str, bytes]) -> None:
    """Make the rows of a control plane those of `states`, node id → state, in one statement. PostgreSQL only.

    Raises:
        SQLAlchemyError, OSError, TimeoutError: The database cannot be written to.
    """
    values = {
        "control_plane_id": control_plane_id,
        "node_ids": list(states),
        "states": list(states.values()),
    }
    async with store.ledger() as session:
        await (await session.connection()).execute(_SAVE, values)


async def forget_sessions(store: Store, control_plane_id: str) -> None:
    """Remove the rows of a control plane that stops.

    Raises:
        SQLAlchemyError, OSError, TimeoutError: The database cannot be written to; they are of no use soon anyway.
    """
    async with store.ledger() as session:
        await session.exec(
            delete(NodeSession).where(col(NodeSession.control_plane_id) == control_plane_id)
        )


async def sessions_elsewhere(session: AsyncSession, control_plane_id: str) -> list[Elsewhere]:
    """Return the nodes on other control planes that live, each once: where it was written last. PostgreSQL only."""
    values = {"control_plane_id": control_plane_id, "live_s": LIVE_S}
    rows = await (await session.connection()).execute(_ELSEWHERE, values)
    newest = {row.node_id: Elsewhere(*row) for row in rows}
    return list(newest.values())
