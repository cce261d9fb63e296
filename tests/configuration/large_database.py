"""A database with as many keys as a test wants, written past the admin API: that would take minutes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import insert, update
from sqlmodel import SQLModel, col

from controlplane.store import schema, tables
from controlplane.store.database import Store

AT: Final = datetime(2026, 11, 21, tzinfo=UTC)
KEYS_PER_USER: Final = 1
USERS_PER_ORGANIZATION: Final = 100
_ROWS_AT_ONCE: Final = 5_000


def sha256_of(number: int) -> bytes:
    """Return the hash of key `number`; no text has it."""
    return number.to_bytes(32, "big")


async def prepared(url: str, keys: int) -> int:
    """Make a database with `keys` keys at `url`; return its revision."""
    await schema.upgrade(url)
    store = Store(url)
    try:
        return await fill(store, keys)
    finally:
        await store.close()


async def fill(store: Store, keys: int) -> int:
    """Add `keys` keys with users and organizations of theirs, a provider and a router; return the revision."""
    async with store.ledger() as session:
        counter = await session.get_one(tables.RevisionCounter, 1)
        revision = counter.revision + 1
        common = {"revision": revision, "created_at": AT, "updated_at": AT}
        connection = await session.connection()
        for table, rows in _rows(keys):
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                part = [{**common, **row} for row in rows[start : start + _ROWS_AT_ONCE]]
                await connection.execute(insert(table), part)
        await connection.execute(
            update(tables.RevisionCounter)
            .where(col(tables.RevisionCounter.id) == 1)
            .values(revision=revision)
        )
    return revision


def _rows(keys: int) -> Iterator[tuple[type[SQLModel], list[dict[str, Any]]]]:  # Any: columns
    users = max(1, keys // KEYS_PER_USER)
    organizations = max(1, users // USERS_PER_ORGANIZATION)
    yield (
        tables.Organization,
        [{"id": f"org-{number}", "name": f"org-{number}"} for number in range(organizations)],
    )
    yield (
        tables.User,
        [
            {
                "id": f"user-{number}",
                "name": f"org-{number % organizations}/user-{number}",
                "organization_id": f"org-{number % organizations}",
            }
            for number in range(users)
        ],
    )
    yield (
        tables.Provider,
        [
            {
                "id": "provider-1",
                "name": "upstream",
                "provider_kind": "openai",
                "endpoints": [{"dialect": 1, "base_url": "https://api.example.com/v1"}],
            }
        ],
    )
    yield tables.Router, [{"id": "router-1", "name": "default"}]
    yield (
        tables.Rule,
        [
            {
                "id": "rule-1",
                "router_id": "router-1",
                "provider_id": "provider-1",
                "models": ["*"],
                "priority": 1,
            }
        ],
    )
    yield (
        tables.ApiKey,
        [
            {
                "id": f"key-{number}",
                "name": f"org-{number % users % organizations}/user-{number % users}/key-{number}",
                "user_id": f"user-{number % users}",
                "router_id": "router-1",
                "sha256": sha256_of(number),
                "display": "tk_live_…",
            }
            for number in range(keys)
        ],
    )
