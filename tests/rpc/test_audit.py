from datetime import datetime, timedelta
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.admin.v1 import audit_service_pb2 as pb
from tollkeeper.admin.v1 import credential_service_pb2 as credential_pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb

from controlplane.rpc.pages import Page, page_of
from controlplane.store.database import Store
from controlplane.store.tables import AuditEntry
from tests.rpc.admin_api import AdminApi, mask, refused

SECRET = "sk-provider-secret-9f8e7d6c5b4a"


async def listed(api: AdminApi, **question: object) -> list[pb.AuditEntry]:
    request = pb.ListAuditEntriesRequest(**question)  # type: ignore[arg-type]  # fields by name
    return list((await api.audit.ListAuditEntries(request)).entries)


async def pause(api: AdminApi, name: str) -> None:
    await api.organizations.UpdateOrganization(
        organization_pb.UpdateOrganizationRequest(
            organization=organization_pb.Organization(name=name, paused=True),
            update_mask=mask("paused"),
        )
    )


def timestamp(instant: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(instant)
    return made


async def test_the_log_shows_who_changed_what_from_what_to_what(api: AdminApi) -> None:
    organization = await api.create_organization("acme", time_zone="Europe/Paris")
    await pause(api, "acme")
    deleted = await api.organizations.DeleteOrganization(
        organization_pb.DeleteOrganizationRequest(name="acme")
    )

    entries = await listed(api, resource="acme")

    assert [entry.rpc for entry in entries] == [
        "DeleteOrganization",
        "UpdateOrganization",
        "CreateOrganization",
    ]
    assert entries[0].revision == deleted.revision
    assert {entry.actor for entry in entries} == {"bootstrap"}
    assert entries[2].at == organization.created_at
    gone, update, creation = ([MessageToDict(change) for change in e.changes] for e in entries)
    assert update == [
        {
            "kind": "organization",
            "id": organization.id,
            "before": {"paused": False},
            "after": {"paused": True},
        }
    ]
    [created] = creation
    assert "before" not in created
    assert created["after"]["time_zone"] == "Europe/Paris"
    assert created["after"]["paused"] is False
    [removed] = gone
    assert "after" not in removed
    assert removed["before"] == created["after"] | {"paused": True}
    assert MessageToDict(entries[1].request)["organization"] == {"name": "acme", "paused": True}


async def test_no_secret_and_no_digest_is_in_the_log(api: AdminApi) -> None:
    await api.providers.CreateProvider(
        provider_pb.CreateProviderRequest(
            provider=provider_pb.Provider(name="openai", kind="openai")
        )
    )
    await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name="openai/main"), secret=SECRET
        )
    )
    rotated = SECRET[::-1]
    credential = await api.credentials.RotateCredential(
        credential_pb.RotateCredentialRequest(name="openai/main", secret=rotated)
    )

    entries = await listed(api)

    shown = str(entries)
    assert SECRET not in shown
    assert rotated not in shown
    assert credential.fingerprint not in shown
    [rotation] = [MessageToDict(each) for each in entries[0].changes]
    assert (rotation["before"], rotation["after"]) == (
        {"version": 1},
        {"version": 2, "sealed_secret": "changed", "fingerprint": "changed"},
    )


async def test_entries_are_chosen_by_every_field(api: AdminApi, store: Store) -> None:
    now = store.clock()
    store.clock = lambda: now
    moments = []
    for name in ("a", "b", "c"):
        now += timedelta(minutes=1)
        moments.append(now)
        await api.create_organization(name)
    await pause(api, "a")

    async def chosen(**question: object) -> list[str]:
        return [entry.resource for entry in await listed(api, **question)]

    assert await chosen(resource="a") == ["a", "a"]
    assert await chosen(rpc="CreateOrganization") == ["c", "b", "a"]
    assert await chosen(actor="bootstrap") == ["a", "c", "b", "a"]
    assert await chosen(actor="system") == ["paid", "free", "bootstrap"]
    assert await chosen(actor="nobody") == []
    b, c = timestamp(moments[1]), timestamp(moments[2])
    assert await chosen(since=b, until=c) == ["b"]
    assert await chosen(since=c, rpc="CreateOrganization") == ["c"]


async def test_pages_hold_every_entry_once_while_new_ones_arrive(api: AdminApi) -> None:
    for number in range(7):
        await api.create_organization(f"o{number}")
    seen: list[str] = []
    token = ""

    while True:
        page = await api.audit.ListAuditEntries(
            pb.ListAuditEntriesRequest(page_size=3, page_token=token, rpc="CreateOrganization")
        )
        seen += [entry.resource for entry in page.entries]
        await api.create_organization(f"late{len(seen)}")
        token = page.next_page_token
        if not token:
            break

    assert seen == [f"o{number}" for number in range(6, -1, -1)]


@pytest.mark.parametrize("field", ["resource", "actor", "rpc"])
async def test_a_text_that_no_entry_can_hold_is_refused(api: AdminApi, field: str) -> None:
    refusal = await refused(listed(api, **{field: "a\0b"}))

    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_token_of_another_question_is_refused(api: AdminApi) -> None:
    for name in ("a", "b"):
        await api.create_organization(name)
    page = await api.audit.ListAuditEntries(pb.ListAuditEntriesRequest(page_size=1))

    for token in (page.next_page_token, "nonsense"):
        refusal = await refused(listed(api, page_token=token, actor="bootstrap"))
        assert refusal.fields == ["page_token"]


async def test_a_token_with_a_number_that_no_entry_has_is_refused(api: AdminApi) -> None:
    for entry_id in ("9" * 40, "0" * 20 + "9" * 20, "-1"):
        digest = page_of(pb.ListAuditEntriesRequest()).list_digest
        last = SimpleNamespace(id=entry_id)
        token = Page(1, (), digest).next_token([last, last], "id")

        refusal = await refused(listed(api, page_token=token))

        assert (refusal.code, refusal.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            ["page_token"],
        )


async def test_an_entry_from_before_changes_were_kept_is_shown_without(
    api: AdminApi, store: Store
) -> None:
    async with store.ledger() as session:
        session.add(AuditEntry(at=store.clock(), actor="ann", rpc="Old", resource="x", revision=1))

    [entry] = await listed(api, rpc="Old")

    assert list(entry.changes) == []


async def test_a_dry_run_and_a_repetition_leave_one_entry(api: AdminApi) -> None:
    request = user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"), request_id="once")
    await api.create_organization("acme")
    await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"), validate_only=True)
    )

    for _ in range(2):
        await api.users.CreateUser(request)

    assert [entry.rpc for entry in await listed(api, resource="acme/alice")] == ["CreateUser"]
