"""What the audit log keeps of each row that a transaction wrote."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import LargeBinary, inspect
from sqlmodel import select

from controlplane.domain.names import SubjectKind, SubjectName
from controlplane.store.database import Store
from controlplane.store.row_changes import MAX_ENTRY_BYTES, MAX_ROWS, TOO_LARGE
from controlplane.store.tables import (
    CONFIGURATION,
    Administrator,
    ApiKey,
    AuditEntry,
    ConfigurationRow,
    Organization,
    Router,
    User,
)
from controlplane.store.transactions import Transaction

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def stamps(tx: Transaction) -> dict[str, Any]:  # Any: arguments of any row
    return {"created_at": tx.now, "updated_at": tx.now}


def organization(tx: Transaction, name: str, **values: Any) -> Organization:
    return Organization(id=f"id-{name}", name=name, **stamps(tx), **values)


async def created(store: Store, *names: str) -> None:
    async with store.transaction("ann", "x") as tx:
        for name in names:
            tx.add(organization(tx, name))


async def last_changes(store: Store) -> list[dict[str, Any]]:
    async with store.reading() as session:
        entries = (await session.exec(select(AuditEntry))).all()
    newest = max(entries, key=lambda entry: entry.id or 0)
    assert newest.changes is not None
    return newest.changes


async def test_a_created_row_has_no_before_and_a_deleted_one_no_after(store: Store) -> None:
    await created(store, "a")
    [creation] = await last_changes(store)
    async with store.transaction("ann", "x") as tx:
        await tx.delete(await tx.organizations.get_for_change("a"))
    [deletion] = await last_changes(store)

    held = {
        "name": "a",
        "time_zone": "",
        "on_limits_unavailable": 0,
        "paused": False,
        "default_output_cap_tokens": 0,
    }
    assert creation == {"kind": "organization", "id": "id-a", "before": None, "after": held}
    assert deletion == {"kind": "organization", "id": "id-a", "before": held, "after": None}


async def test_only_columns_that_changed_are_kept(store: Store) -> None:
    await created(store, "a", "b")
    async with store.transaction("ann", "x") as tx:
        row = await tx.organizations.get_for_change("a")
        row.paused = True
        row.time_zone = ""
        untouched = await tx.organizations.get_for_change("b")
        untouched.paused = False

    assert await last_changes(store) == [
        {
            "kind": "organization",
            "id": "id-a",
            "before": {"paused": False},
            "after": {"paused": True},
        }
    ]


async def test_a_row_that_is_written_several_times_shows_its_first_and_its_last_value(
    store: Store,
) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        row = await tx.organizations.get_for_change("a")
        for tokens in (1, 2, 3):
            row.default_output_cap_tokens = tokens
            row.paused = tokens == 2
            await tx.session.flush()

    [change] = await last_changes(store)
    assert change["before"] == {"default_output_cap_tokens": 0}
    assert change["after"] == {"default_output_cap_tokens": 3}


async def test_a_row_that_is_created_and_changed_shows_what_it_holds(store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        row = organization(tx, "a")
        tx.add(row)
        await tx.session.flush()
        row.paused = True
        await tx.session.flush()

    [change] = await last_changes(store)
    assert change["before"] is None
    assert change["after"]["paused"] is True


async def test_a_row_that_is_changed_and_deleted_shows_what_it_held_first(store: Store) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        row = await tx.organizations.get_for_change("a")
        row.time_zone = "Europe/Paris"
        await tx.session.flush()
        row.paused = True
        await tx.delete(row)

    [change] = await last_changes(store)
    assert change["after"] is None
    assert (change["before"]["time_zone"], change["before"]["paused"]) == ("", False)


async def test_what_came_and_went_and_what_was_only_touched_is_left_out(store: Store) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        passing = organization(tx, "b")
        tx.add(passing)
        await tx.session.flush()
        await tx.delete(passing)
        tx.touch(await tx.organizations.get("a"))

    assert await last_changes(store) == []


def columns_of_bytes(table: type[ConfigurationRow]) -> set[str]:
    return {c.name for c in inspect(table).columns if isinstance(c.type, LargeBinary)}


def test_every_secret_and_every_digest_is_kept_as_bytes() -> None:
    """Bytes are what the log leaves out, so a secret in a text would be shown."""
    found = {name for table in CONFIGURATION for name in columns_of_bytes(table)}

    assert found == {"sealed_secret", "fingerprint", "sha256", "token_sha256"}
    for table in CONFIGURATION:
        for column in inspect(table).columns:
            is_sensitive = any(word in column.name for word in ("secret", "token", "sha256"))
            is_amount = column.name.endswith("_tokens")
            assert not is_sensitive or is_amount or column.name in columns_of_bytes(table)


async def test_of_a_secret_it_is_kept_only_that_it_changed(store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        row = Administrator(id="a", name="ann", role=1, token_sha256=b"1" * 32, **stamps(tx))
        tx.add(row)
    [creation] = await last_changes(store)
    async with store.transaction("ann", "x") as tx:
        (await tx.administrators.get_for_change("ann")).token_sha256 = b"2" * 32
    [rotation] = await last_changes(store)

    assert creation["after"] == {"name": "ann", "role": 1}
    assert (rotation["before"], rotation["after"]) == ({}, {"token_sha256": "changed"})


async def test_instants_lists_and_nothing_are_kept_as_json(store: Store) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        router = Router(id="r", name="r", **stamps(tx))
        user = User(id="u", name="a/u", organization_id="id-a", **stamps(tx))
        for row in (router, user):
            tx.add(row)
            await tx.session.flush()
        tx.add(
            ApiKey(
                id="k",
                name="a/u/k",
                user_id="u",
                router_id="r",
                sha256=b"",
                display="",
                **stamps(tx),
            )
        )
    async with store.transaction("ann", "x") as tx:
        key = await tx.api_keys.get_for_change("a/u/k")
        key.expires_at = NOW
        key.allowed_models = ["gpt-4o"]

    [change] = await last_changes(store)
    assert change["before"] == {"allowed_models": [], "expires_at": None}
    assert change["after"] == {
        "allowed_models": ["gpt-4o"],
        "expires_at": "2026-11-21T12:00:00Z",
    }


async def test_an_entry_has_at_most_fifty_rows_and_their_owner_is_among_them(
    store: Store,
) -> None:
    async with store.transaction("ann", "x") as tx:
        tx.add(Organization(id="z", name="a", **stamps(tx)))
    async with store.transaction("ann", "x") as tx:
        for number in range(2 * MAX_ROWS):
            tx.add(User(id=f"u{number}", name=f"a/{number}", organization_id="z", **stamps(tx)))
        await tx.session.flush()
        (await tx.organizations.get_for_change("a")).paused = True

    changes = await last_changes(store)

    assert len(changes) == MAX_ROWS
    assert changes[0]["kind"] == "organization"


@pytest.mark.parametrize("models", [["m" * 5_000], ["m" * 100] * 50])
async def test_a_large_value_is_not_kept(store: Store, models: list[str]) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        router = Router(id="r", name="r", **stamps(tx))
        tx.add(router)
        tx.add(User(id="u", name="a/u", organization_id="id-a", **stamps(tx)))
        await tx.session.flush()
        key = ApiKey(
            id="k",
            name="a/u/k",
            user_id="u",
            router_id="r",
            sha256=b"",
            display="",
            allowed_models=models,
            **stamps(tx),
        )
        tx.add(key)

    changes = {change["kind"]: change["after"] for change in await last_changes(store)}

    assert changes["api_key"]["allowed_models"] == TOO_LARGE
    assert changes["api_key"]["name"] == "a/u/k"


async def test_an_entry_has_a_largest_size(store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        for number in range(MAX_ROWS):
            limits = [{"unit": 1, "window": 2, "capacity": number}] * 40
            subject = SubjectName(SubjectKind.USER, f"a/{number}")
            row = tx.limits.new_row(subject, str(number), **stamps(tx))
            row.limits = limits
            tx.add(row)

    changes = await last_changes(store)

    assert 20 < len(changes) < MAX_ROWS
    assert len(json.dumps(changes)) <= MAX_ENTRY_BYTES + 2 * MAX_ROWS
