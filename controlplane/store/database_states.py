"""Which database this is and where its revisions stand: read, compared with what is known, and moved to a new epoch."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import zip_longest
from typing import Final

from sqlalchemy import func
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.epochs import is_epoch, new_epoch
from controlplane.store.position_marker import SeenPosition
from controlplane.store.service import SYSTEM_ACTOR
from controlplane.store.tables import AuditEntry, RevisionCounter
from controlplane.store.transactions import COUNTER_ID, NOTIFY_CHANNEL

RPC_NAME: Final = "StartConfigEpoch"
"""The method that the audit row of a new epoch names; its resource is the `Cause`."""

CLAIM_PAUSE: Final = timedelta(hours=1)
"""So long after an epoch that a node's claim began no other one begins for that reason."""


MAX_FORMER_EPOCHS: Final = 20
"""More restored databases than a node ever sleeps through."""


class Cause(StrEnum):
    """Why a new epoch begins."""

    OTHER_DATABASE = "other_database"
    WENT_BACK = "went_back"
    NODE_AHEAD = "node_ahead"


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The counter's row, and what the server says of itself: two identities, whose unknown parts are empty."""

    config_epoch: str
    revision: int
    stored_identity: str
    identity: str

    def cause(self, seen: SeenPosition | None) -> Cause | None:
        """Return why the database cannot go on in its epoch, or None; `seen` is the highest position known of it."""
        if is_other_database(self.stored_identity, self.identity):
            return Cause.OTHER_DATABASE
        return Cause.WENT_BACK if seen is not None and self.is_older_than(seen) else None

    def is_older_than(self, seen: SeenPosition) -> bool:
        """Say whether the revisions went back, or the epoch did: that of a backup that is put back once more.

        A backup brings the epoch along that it was made in, whatever began since: going on in it would give its numbers
        another content a second time.
        """
        is_former = is_epoch(self.config_epoch) and self.config_epoch < seen.config_epoch
        return self.is_behind(seen) or (is_former and is_epoch(seen.config_epoch))

    def is_behind(self, seen: SeenPosition) -> bool:
        """Say whether the revisions went back in the same epoch."""
        return self.config_epoch == seen.config_epoch and self.revision < seen.revision

    @property
    def identity_to_store(self) -> str:
        """What is known of the database by now; what is stored, where nothing new was said."""
        return _merged(self.stored_identity, self.identity)


async def read_state(
    session: AsyncSession, *, with_identity: bool, for_update: bool = False
) -> DatabaseState:
    """Return how it is; with `for_update` nobody else changes it until the transaction ends."""
    counter = await session.get_one(RevisionCounter, COUNTER_ID, with_for_update=for_update)
    identity = await database_identity(session) if with_identity else ""
    return DatabaseState(
        counter.config_epoch, counter.revision, counter.database_identity, identity
    )


async def store_identity(session: AsyncSession, state: DatabaseState) -> None:
    """Write what is known of the database; the epoch stays."""
    counter = await session.get_one(RevisionCounter, COUNTER_ID)
    counter.database_identity = state.identity_to_store
    session.add(counter)


async def begin_epoch(
    session: AsyncSession,
    state: DatabaseState,
    cause: Cause,
    *,
    highest_known: int,
    now: datetime,
    random: bytes,
    latest_known: str = "",
) -> DatabaseState:
    """Write a new epoch and its audit row, and have it announced; return how it is then.

    It is later than that of `state` and than the epoch `latest_known`.
    `state` was read for update in this session. Revisions go on from where they are, so whatever was kept by revision
    (tombstones, former versions) stays true.
    """
    epoch = new_epoch(now, random, after=max(state.config_epoch, latest_known))
    counter = await session.get_one(RevisionCounter, COUNTER_ID)
    counter.config_epoch = epoch
    former = dict.fromkeys([*counter.former_epochs, state.config_epoch, latest_known])
    counter.former_epochs = [each for each in former if each][-MAX_FORMER_EPOCHS:]
    counter.database_identity = state.identity or state.stored_identity
    session.add(counter)
    request = {"before": state.config_epoch, "after": epoch, "highest_known": highest_known}
    session.add(
        AuditEntry(
            at=now,
            actor=SYSTEM_ACTOR,
            rpc=RPC_NAME,
            resource=cause,
            request=request,
            revision=state.revision,
            changes=[],
        )
    )
    if session.get_bind().dialect.name == "postgresql":
        await session.exec(select(func.pg_notify(NOTIFY_CHANNEL, str(state.revision))))
    return DatabaseState(epoch, state.revision, counter.database_identity, state.identity)


async def followed_a_claim_since(session: AsyncSession, instant: datetime) -> bool:
    """Say whether an epoch began after `instant` because a node was ahead, on any control plane."""
    found = select(AuditEntry.id).where(
        col(AuditEntry.at) > instant,
        col(AuditEntry.rpc) == RPC_NAME,
        col(AuditEntry.resource) == Cause.NODE_AHEAD,
    )
    return (await session.exec(found.limit(1))).first() is not None


async def database_identity(session: AsyncSession) -> str:
    """Return which database this is: `<system identifier of the cluster>:<number of the database>`.

    The first part is empty where the role may not ask for it; all of it on SQLite, which has neither. Replication and
    failing over keep both; a dump that is read elsewhere does not, and neither does a copy.
    """
    if session.get_bind().dialect.name != "postgresql":
        return ""
    number = await _scalar(
        session, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    )
    try:
        async with session.begin_nested():
            cluster = await _scalar(session, "SELECT system_identifier FROM pg_control_system()")
    except DBAPIError:
        cluster = ""
    return f"{cluster}:{number}"


async def _scalar(session: AsyncSession, statement: str) -> str:
    return str((await (await session.connection()).execute(text(statement))).scalar_one())


def is_other_database(stored: str, found: str) -> bool:
    """Say whether two identities are of different databases; a part that one of them does not know is not compared."""
    pairs = zip(stored.split(":"), found.split(":"), strict=False)
    return any(one and other and one != other for one, other in pairs)


def _merged(stored: str, found: str) -> str:
    pairs = zip_longest(stored.split(":"), found.split(":"), fillvalue="")
    return ":".join(other or one for one, other in pairs)
