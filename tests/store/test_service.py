import secrets
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlmodel import select

from controlplane.domain.errors import InvalidError
from controlplane.domain.keys import mint_administrator_token, sha256_of
from controlplane.domain.kinds import Kind
from controlplane.domain.roles import Role
from controlplane.domain.service import ServiceDefaults
from controlplane.store.administrators import Administrators
from controlplane.store.changes import Changes, changes_since
from controlplane.store.compaction import TOMBSTONE_LIFETIME, compact
from controlplane.store.database import Store
from controlplane.store.idempotency import ANSWER_LIFETIME, Idempotency
from controlplane.store.service import apply_service_settings, ensure_bootstrap_owner
from controlplane.store.tables import IdempotentAnswer, Organization, ServiceSettings

DEFAULTS = ServiceDefaults(
    max_replicas=3,
    daily_budget_nanousd=50_000_000_000,
    daily_requests=10_000,
    default_daily_requests=1_000,
    default_daily_tokens=100_000,
    default_monthly_spend_nanousd=50_000_000_000,
    upgrade_url="https://example.test/upgrade",
)
TOKEN, OTHER_TOKEN = (mint_administrator_token(bytes([n]) * 32) for n in (1, 2))


async def newest(store: Store, since: int = 0) -> Changes:
    async with store.reading() as session:
        return await changes_since(session, since)


async def test_settings_are_written_only_where_they_differ(store: Store) -> None:
    await apply_service_settings(store, DEFAULTS)
    await apply_service_settings(store, DEFAULTS)
    assert (await newest(store)).revision == 1

    await apply_service_settings(store, replace(DEFAULTS, max_replicas=4, daily_requests=None))

    changes = await newest(store)
    [row] = changes.rows[Kind.SERVICE]
    assert isinstance(row, ServiceSettings)
    assert (row.id, row.revision, changes.revision) == ("service", 2, 2)
    assert row.max_replicas == 4
    assert [item["capacity"] for item in row.default_global_limits] == [50_000_000_000]
    assert len(row.default_user_limits) == 3


async def test_a_pause_by_an_administrator_survives_a_restart(store: Store) -> None:
    await apply_service_settings(store, DEFAULTS)
    async with store.transaction("ann", "x") as tx:
        row = await tx.session.get(ServiceSettings, "service")
        assert row is not None
        row.paused = True

    await apply_service_settings(store, replace(DEFAULTS, max_replicas=9))

    [found] = (await newest(store)).rows[Kind.SERVICE]
    assert isinstance(found, ServiceSettings)
    assert found.paused


async def test_the_bootstrap_owner_is_made_once_and_follows_its_token(store: Store) -> None:
    for token in (TOKEN, TOKEN, OTHER_TOKEN, OTHER_TOKEN):
        await ensure_bootstrap_owner(store, token, secrets.randbelow)

    async with store.reading() as session:
        administrators = Administrators(session)
        owner = await administrators.by_token(sha256_of(OTHER_TOKEN))
        assert owner is not None
        assert (owner.name, owner.role) == ("bootstrap", Role.OWNER)
        assert await administrators.by_token(sha256_of(TOKEN)) is None
    assert (await newest(store)).revision == 2


async def test_a_token_of_another_form_is_refused_without_showing_it(store: Store) -> None:
    with pytest.raises(InvalidError) as caught:
        await ensure_bootstrap_owner(store, "secret-password", secrets.randbelow)

    assert "secret-password" not in str(caught.value)


async def test_an_answer_is_kept_for_a_day(store: Store) -> None:
    now = store.clock()
    store.clock = lambda: now

    async def call(answer: bytes) -> bytes | None:
        async with store.transaction("ann", "x") as tx:
            repetition = Idempotency(tx, "r1", b"\x00" * 32)
            kept = await repetition.replay()
            if kept is None:
                await repetition.keep(answer)
        return kept

    assert await call(b"first") is None
    now += ANSWER_LIFETIME - timedelta(seconds=1)
    assert await call(b"second") == b"first"
    now += timedelta(seconds=1)
    assert await call(b"third") is None
    assert await call(b"fourth") == b"third"


async def test_an_id_belongs_to_its_actor_method_and_request(store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        assert await Idempotency(tx, "r1", b"\x00" * 32).replay() is None

    for actor, rpc in (("bob", "x"), ("ann", "y")):
        async with store.transaction(actor, rpc) as tx:
            assert await Idempotency(tx, "r1", b"\x01" * 32).replay() is None
    with pytest.raises(InvalidError, match="another request"):
        async with store.transaction("ann", "x") as tx:
            await Idempotency(tx, "r1", b"\x01" * 32).replay()


async def test_old_deletions_are_forgotten_and_nobody_is_told_half_of_them(store: Store) -> None:
    now = store.clock()
    store.clock = lambda: now
    for name in ("a", "b"):
        async with store.transaction("ann", "x") as tx:
            tx.add(Organization(id=name, name=name, created_at=tx.now, updated_at=tx.now))
            await Idempotency(tx, name, b"\x00" * 32).replay()
        async with store.transaction("ann", "x") as tx:
            await tx.delete(await tx.organizations.get(name))
        now += timedelta(days=1)
    assert await compact(store) == 0

    now += TOMBSTONE_LIFETIME - timedelta(days=2)
    assert await compact(store) == 1

    assert not (await newest(store, since=1)).is_complete
    after = await newest(store, since=2)
    assert after.is_complete
    assert [stone.id for stone in after.tombstones] == ["b"]
    assert (await newest(store)).is_complete
    async with store.reading() as session:
        assert (await session.exec(select(IdempotentAnswer))).all() == []
