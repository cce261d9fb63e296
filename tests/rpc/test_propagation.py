"""Waiting for the data planes with any change, and what is kept of a revocation."""

import asyncio
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tollkeeper.admin.v1
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from sqlmodel import select
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import changes_pb2
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb

from controlplane.store.database import Store
from controlplane.store.fleet_tables import RevocationRow
from controlplane.store.tables import AuditEntry
from tests.rpc.admin_api import AdminApi, RecordingRevoker, mask, refused


def seconds(number: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(number * 10**9))
    return duration


def creation(**fields: Any) -> organization_pb.CreateOrganizationRequest:  # Any: fields by name
    return organization_pb.CreateOrganizationRequest(
        organization=organization_pb.Organization(name="acme"), **fields
    )


@pytest.fixture
async def laptop(api: AdminApi) -> key_pb.ApiKey:
    """A key `acme/alice/laptop` that takes the shared router `default`."""
    await api.create_organization("acme")
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="default"))
    )
    await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice")))
    key = key_pb.ApiKey(name="acme/alice/laptop", router="default")
    created = await api.api_keys.CreateApiKey(key_pb.CreateApiKeyRequest(api_key=key))
    return created.key


def changing_methods() -> Iterator[MethodDescriptor]:
    for module in pkgutil.iter_modules(tollkeeper.admin.v1.__path__):
        if module.name.endswith("_service_pb2"):
            contract = importlib.import_module(f"tollkeeper.admin.v1.{module.name}")
            for service in contract.DESCRIPTOR.services_by_name.values():
                yield from service.methods


def test_every_change_that_can_be_waited_for_has_room_for_the_answer() -> None:
    waiting = {
        method.name: method.output_type
        for method in changing_methods()
        if "wait_for_propagation" in method.input_type.fields_by_name
    }

    assert len(waiting) > 40
    without = {
        name for name, answer in waiting.items() if "propagation" not in answer.fields_by_name
    }
    # Their whole answer is a receipt.
    assert without == {"RevokeApiKey", "RevokeDevice"}


async def test_a_change_says_who_has_applied_it_when_asked_to_wait(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    created = await api.organizations.CreateOrganization(
        creation(wait_for_propagation=seconds(1.5))
    )

    assert revoker.waits == [(created.revision, 1500)]
    assert created.propagation.revision == created.revision
    assert [(each.node, each.ms) for each in created.propagation.applied] == [("node-1", 1)]
    assert list(created.propagation.missing) == ["node-2"]


@pytest.mark.parametrize(
    "request_fields",
    [{}, {"wait_for_propagation": seconds(0)}],
    ids=["without the field", "for no time"],
)
async def test_a_change_that_nobody_waits_for_is_answered_at_once(
    api: AdminApi, revoker: RecordingRevoker, request_fields: dict[str, object]
) -> None:
    created = await api.organizations.CreateOrganization(creation(**request_fields))

    assert revoker.waits == []
    assert not created.HasField("propagation")


async def test_a_dry_run_waits_for_nobody(api: AdminApi, revoker: RecordingRevoker) -> None:
    answer = await api.organizations.CreateOrganization(
        creation(wait_for_propagation=seconds(1), validate_only=True)
    )

    assert revoker.waits == []
    assert not answer.HasField("propagation")


async def test_a_change_of_nothing_waits_for_the_newest_revision(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    await api.create_organization("acme")
    newest = await api.create_organization("other")
    pause = organization_pb.UpdateOrganizationRequest(
        organization=organization_pb.Organization(name="acme"),
        update_mask=mask("paused"),
        wait_for_propagation=seconds(0.0001),
    )

    unchanged = await api.organizations.UpdateOrganization(pause)

    assert unchanged.revision < newest.revision
    # Less than a millisecond is one.
    assert revoker.waits == [(newest.revision, 1)]
    assert unchanged.propagation.revision == newest.revision


async def test_a_repetition_waits_anew_and_has_figures_of_its_own(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    request = creation(request_id="r", wait_for_propagation=seconds(2))

    first = await api.organizations.CreateOrganization(request)
    again = await api.organizations.CreateOrganization(request)
    hasty = await api.organizations.CreateOrganization(creation(request_id="r"))

    assert [each.propagation.applied[0].ms for each in (first, again)] == [1, 2]
    assert len(revoker.waits) == 2
    # How long somebody waits is no part of the change, and figures are no part of its answer.
    assert not hasty.HasField("propagation")
    assert hasty.id == again.id == first.id


async def test_what_a_request_says_of_propagation_is_neither_kept_nor_repeated(
    api: AdminApi, store: Store
) -> None:
    request = creation(request_id="r", wait_for_propagation=seconds(1))
    request.organization.propagation.CopyFrom(
        changes_pb2.Propagation(revision=99, missing=["invented"])
    )

    created = await api.organizations.CreateOrganization(request)
    request.ClearField("wait_for_propagation")
    again = await api.organizations.CreateOrganization(request)

    assert list(created.propagation.missing) == ["node-2"]
    assert not again.HasField("propagation")
    async with store.reading() as session:
        entries = (await session.exec(select(AuditEntry))).all()
    (entry,) = (each for each in entries if each.rpc == "CreateOrganization")
    assert entry.request == {"organization": {"name": "acme"}, "request_id": "r"}


async def test_others_change_things_while_somebody_waits(
    api: AdminApi, revoker: RecordingRevoker, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting, go_on = asyncio.Event(), asyncio.Event()
    propagated = revoker.propagated

    async def slow(revision: int, *, wait_ms: int) -> object:
        is_waiting.set()
        await go_on.wait()
        return await propagated(revision, wait_ms=wait_ms)

    monkeypatch.setattr(revoker, "propagated", slow)
    waiting = asyncio.ensure_future(
        api.organizations.CreateOrganization(creation(wait_for_propagation=seconds(60)))
    )
    async with asyncio.timeout(10):
        await is_waiting.wait()
        await api.create_organization("other")
        go_on.set()
        created = await waiting

    assert created.propagation.revision == created.revision


async def test_nobody_waits_for_more_than_a_minute(api: AdminApi) -> None:
    refusal = await refused(
        api.organizations.CreateOrganization(creation(wait_for_propagation=seconds(61)))
    )

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["wait_for_propagation"]


async def test_a_revocation_waits_as_long_as_the_general_field_says(
    api: AdminApi, revoker: RecordingRevoker, laptop: key_pb.ApiKey
) -> None:
    request = key_pb.RevokeApiKeyRequest(name=laptop.name, wait_ms=9_000)
    request.wait_for_propagation.FromMilliseconds(250)

    receipt = await api.api_keys.RevokeApiKey(request)

    assert [call[4] for call in revoker.calls] == [250]
    assert [each.is_kept for each in receipt.applied] == [True]


async def kept_revocations(store: Store) -> list[tuple[str, int, str, bool]]:
    async with store.reading() as session:
        rows = (await session.exec(select(RevocationRow))).all()
    return [
        (row.subject_id, row.revision, row.organization_id, row.terminate_streams) for row in rows
    ]


async def test_a_revocation_is_kept_with_its_change_and_names_the_organization(
    api: AdminApi, store: Store, revoker: RecordingRevoker, laptop: key_pb.ApiKey
) -> None:
    acme = await api.organizations.GetOrganization(
        organization_pb.GetOrganizationRequest(name="acme")
    )

    receipts = [
        await api.api_keys.RevokeApiKey(key_pb.RevokeApiKeyRequest(name=laptop.name))
        for _ in range(2)
    ]

    assert receipts[0].revision == receipts[1].revision
    assert revoker.organization_ids == [acme.id, acme.id]
    assert await kept_revocations(store) == [(laptop.id, receipts[0].revision, acme.id, False)]


async def test_streams_that_are_to_end_after_all_are_kept_too(
    api: AdminApi, store: Store, laptop: key_pb.ApiKey
) -> None:
    plain = key_pb.RevokeApiKeyRequest(name=laptop.name)
    ending = key_pb.RevokeApiKeyRequest(name=laptop.name, terminate_streams=True)

    first = await api.api_keys.RevokeApiKey(plain)
    second = await api.api_keys.RevokeApiKey(ending)
    third = await api.api_keys.RevokeApiKey(ending)

    assert second.revision == first.revision + 1 == third.revision
    kept = await kept_revocations(store)
    assert [(row[1], row[3]) for row in kept] == [(first.revision, False), (second.revision, True)]


async def test_a_deleted_owner_speaks_for_what_is_below_it(
    api: AdminApi, store: Store, revoker: RecordingRevoker, laptop: key_pb.ApiKey
) -> None:
    acme = await api.organizations.GetOrganization(
        organization_pb.GetOrganizationRequest(name="acme")
    )

    result = await api.organizations.DeleteOrganization(
        organization_pb.DeleteOrganizationRequest(name="acme", force=True)
    )

    assert f"key {laptop.name}" in result.also_deleted
    assert revoker.subjects == [acme.id]
    assert await kept_revocations(store) == [(acme.id, result.revision, acme.id, False)]


async def test_a_deletion_that_only_breaks_a_way_revokes_each_who_took_it(
    api: AdminApi, store: Store, revoker: RecordingRevoker, laptop: key_pb.ApiKey
) -> None:
    result = await api.routers.DeleteRouter(
        router_pb.DeleteRouterRequest(name="default", force=True)
    )

    assert revoker.subjects == [laptop.id]
    ((subject_id, revision, organization_id, _),) = await kept_revocations(store)
    assert (subject_id, revision) == (laptop.id, result.revision)
    assert organization_id == revoker.organization_ids[0] != ""


async def test_a_dry_run_of_a_deletion_keeps_no_revocation(
    api: AdminApi, store: Store, revoker: RecordingRevoker, laptop: key_pb.ApiKey
) -> None:
    await api.api_keys.DeleteApiKey(
        key_pb.DeleteApiKeyRequest(name=laptop.name, validate_only=True)
    )

    assert revoker.calls == []
    assert await kept_revocations(store) == []
