"""Whoever follows change by change has what is read at once, in every scope, whatever was missed in between."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tollkeeper.common.v1.limits_pb2 import SUBJECT_KIND_MODEL
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.kinds import Kind
from controlplane.snapshots.bundles import Bundler
from controlplane.snapshots.decisions import decide
from controlplane.snapshots.opening import SealedSecret
from controlplane.snapshots.scopes import EVERYTHING, Scope
from controlplane.snapshots.snapshot import Position, Snapshot, position_from_proto
from controlplane.snapshots.transfers import Message, delta_transfer, full_transfer
from controlplane.snapshots.working import WorkingState
from controlplane.store import tables
from controlplane.store.changes import Changes
from tests.distribution.conftest import NOW, key, organization, provider, router, user
from tests.distribution.node import digest_of

EPOCH = "t000000000001-000000000000"
SCOPES: tuple[Scope, ...] = (EVERYTHING, frozenset({"org-0"}), frozenset({"org-1"}))
SCOPES += (frozenset({"org-0", "org-1"}), frozenset({"nobody"}))
ORGANIZATIONS = ("org-0", "org-1")
USERS = ("user-0", "user-1", "user-2")
Held = dict[tuple[int, str], resources_pb2.Resource]


def device(row_id: str, user_id: str | None) -> tables.Device:
    return tables.Device(
        id=row_id,
        name=row_id,
        user_id=user_id,
        status=2,
        token_sha256=row_id.encode(),
        created_at=NOW,
        updated_at=NOW,
    )


def credential(provider_id: str) -> tables.Credential:
    return tables.Credential(
        id=f"credential-of-{provider_id}",
        name=provider_id,
        provider_id=provider_id,
        version=1,
        sealed_secret=b"sealed for " + provider_id.encode(),
        fingerprint=b"f",
        created_at=NOW,
        updated_at=NOW,
    )


def limits(row_id: str, subject_kind: int, subject_id: str) -> tables.SubjectLimits:
    return tables.SubjectLimits(
        id=row_id,
        name=row_id,
        subject_kind=subject_kind,
        subject_id=subject_id,
        limits=[],
        created_at=NOW,
        updated_at=NOW,
    )


def owned_provider(row_id: str, organization_id: str | None) -> tables.Provider:
    made = provider(row_id)
    made.organization_id = organization_id
    return made


def everything_at_first() -> list[tables.ConfigurationRow]:
    return [
        *(organization(each, each) for each in ORGANIZATIONS),
        *(user(each, "org-0") for each in USERS),
        router(),
        owned_provider("provider-0", None),
        credential("provider-0"),
        limits("user:user-0", 3, "user-0"),
    ]


# A step is what one transaction does: rows that are new or changed, and ids that are gone. Everything that others refer to
# stays; users change organizations, devices change users and providers change hands, whether the product allows that or not.
CHANGES = st.one_of(
    st.builds(user, st.sampled_from(USERS), st.sampled_from(ORGANIZATIONS)),
    st.builds(key, st.sampled_from(["key-0", "key-1", "key-2"]), st.sampled_from(USERS)),
    st.builds(device, st.sampled_from(["d-0", "d-1"]), st.sampled_from([None, *USERS])),
    st.builds(owned_provider, st.just("provider-0"), st.sampled_from([None, *ORGANIZATIONS])),
    st.builds(limits, st.just("model:m"), st.just(SUBJECT_KIND_MODEL), st.just("m")),
)
REMOVALS = st.sampled_from(
    [
        (Kind.API_KEY, "key-0"),
        (Kind.API_KEY, "key-1"),
        (Kind.DEVICE, "d-0"),
        (Kind.DEVICE, "d-1"),
        (Kind.SUBJECT_LIMITS, "model:m"),
    ]
)
STEPS = st.one_of(CHANGES, REMOVALS)
# What is read at once: several transactions. And which nodes look then.
READS = st.lists(
    st.tuples(st.lists(STEPS, max_size=4), st.sets(st.integers(0, len(SCOPES) - 1))),
    max_size=10,
)


class Database:
    """What a database would answer, without one."""

    def __init__(self) -> None:
        self.revision = 0
        self.rows: dict[tuple[Kind, str], tables.ConfigurationRow] = {}
        self.tombstones: list[tables.Tombstone] = []
        for row in everything_at_first():
            self.do(row)

    def do(self, step: tables.ConfigurationRow | tuple[Kind, str]) -> None:
        if isinstance(step, tables.ConfigurationRow):
            self.revision += 1
            copy = type(step)(**step.model_dump())
            copy.revision = self.revision
            self.rows[step.KIND, step.id] = copy
        elif self.rows.pop(step, None) is not None:
            self.revision += 1
            kind, row_id = step
            self.tombstones.append(
                tables.Tombstone(kind=kind, id=row_id, revision=self.revision, deleted_at=NOW)
            )

    def since(self, revision: int) -> Changes:
        rows: dict[Kind, list[tables.ConfigurationRow]] = {
            table.KIND: [] for table in tables.CONFIGURATION
        }
        for (kind, _), row in sorted(self.rows.items()):
            if row.revision > revision:
                rows[kind].append(row)
        changed = {(kind, row.id) for kind, found in rows.items() for row in found}
        gone = [
            each
            for each in self.tombstones
            if each.revision > revision and (each.kind, each.id) not in changed
        ]
        return Changes(EPOCH, self.revision, True, rows, gone)


@dataclass
class Node:
    """A dictionary that follows."""

    scope: Scope
    applied: Position = field(default_factory=Position)
    held: Held = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)

    def take(self, messages: Iterable[Message | None]) -> None:
        for message in messages:
            if isinstance(message, bytes):
                chunk = pb.StreamConfigResponse.FromString(message).transfer_chunk
                for gone in chunk.removed:
                    self.held.pop((gone.kind, gone.id), None)
                self.held |= {(each.kind, each.id): each for each in chunk.resources}
                self.secrets |= {each.credential_id for each in chunk.secrets}
            elif message is not None and message.HasField("transfer_begin"):
                begin = message.transfer_begin
                if begin.intent == pb.TRANSFER_INTENT_FULL:
                    self.held, self.secrets = {}, set()
                self.applied = position_from_proto(begin.to)
        assert digest_of(self.held.values()) == self.applied.digest

    def follow(self, snapshot: Snapshot, *, has_delta: bool) -> int:
        decision = decide(snapshot, self.scope, self.applied, has_delta=has_delta)
        to = snapshot.position_in(self.scope)
        bundler = Bundler(opened, None)
        if decision.intent == pb.TRANSFER_INTENT_NONE:
            self.applied = to
        elif decision.difference is None:
            reason = decision.reason
            self.take(full_transfer(1, snapshot, self.scope, reason, bundler, force=False).messages)
        else:
            self.take(
                delta_transfer(
                    1, decision.difference, self.applied, to, bundler, force=False
                ).messages
            )
        assert self.applied == to
        return decision.intent


def opened(sealed: SealedSecret) -> bytes:
    return sealed.sealed


@settings(max_examples=60, deadline=None)
@given(READS)
def test_followers_of_changes_and_of_wholes_arrive_at_the_same_in_every_scope(
    reads: list[tuple[list[tables.ConfigurationRow | tuple[Kind, str]], set[int]]],
) -> None:
    async def run() -> None:
        database, state = Database(), WorkingState()
        await state.apply(database.since(0))
        nodes = [Node(scope) for scope in SCOPES]
        told: dict[tuple[int, Scope], bytes] = {}
        intents: list[int] = []
        last_read: list[tuple[list[tables.ConfigurationRow | tuple[Kind, str]], set[int]]]
        last_read = [([], set(range(len(SCOPES))))]
        for steps, who in itertools.chain(last_read, reads, last_read):
            for step in steps:
                database.do(step)
            if state.revision != database.revision:
                await state.apply(database.since(state.revision))
            snapshot = state.snapshot()
            assert state.problems() == []
            for (revision, scope), digest in told.items():
                if revision < snapshot.revision:
                    assert snapshot.former_digest(revision, scope) == digest
            for scope in SCOPES:
                told[snapshot.revision, scope] = snapshot.position_in(scope).digest
            for index in sorted(who):
                intent = nodes[index].follow(snapshot, has_delta=True)
                if nodes[index].scope == EVERYTHING:
                    intents.append(intent)
        assert intents.count(pb.TRANSFER_INTENT_FULL) == 1, "only the first is a whole"
        for node in nodes:
            whole = Node(node.scope)
            whole.follow(snapshot, has_delta=False)
            assert node.held == whole.held
            assert whole.secrets <= node.secrets
        await assert_fresh_equals(database, snapshot)
        assert_only_own(database, nodes)

    asyncio.run(run())


async def assert_fresh_equals(database: Database, snapshot: Snapshot) -> None:
    """A control plane that starts now publishes the same, in every scope."""
    fresh = WorkingState()

    async def parts() -> AsyncIterator[Changes]:
        yield database.since(0)

    await fresh.load(parts())
    for scope in SCOPES:
        assert fresh.snapshot().position_in(scope) == snapshot.position_in(scope)


def assert_only_own(database: Database, nodes: list[Node]) -> None:
    """Say whose each thing is by following the rows, and not as the product does."""
    users = {
        row.id: row.organization_id
        for row in database.rows.values()
        if isinstance(row, tables.User)
    }
    for node in nodes[1:]:
        for row in database.rows.values():
            owner: str | None = None
            if isinstance(row, tables.Organization):
                owner = row.id
            elif isinstance(row, tables.User | tables.Provider):
                owner = row.organization_id
            elif isinstance(row, tables.ApiKey | tables.Device):
                owner = users[row.user_id] if row.user_id else None
            elif isinstance(row, tables.Credential):
                held_by = database.rows[Kind.PROVIDER, row.provider_id]
                assert isinstance(held_by, tables.Provider)
                owner = held_by.organization_id
            elif row.id == "user:user-0":
                owner = users["user-0"]
            is_held = any(found == row.id for _, found in node.held)
            assert is_held is (owner is None or owner in node.scope), (row, node.scope)
