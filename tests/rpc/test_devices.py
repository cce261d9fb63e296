import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from sqlmodel import col, select
from tollkeeper.admin.v1 import device_service_pb2 as device_pb
from tollkeeper.admin.v1 import limit_service_pb2 as limit_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import devices_pb2, limits_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.devices import DeviceStatus
from controlplane.domain.keys import sha256_of
from controlplane.store import sightings
from controlplane.store.compaction import forget_pending_devices
from controlplane.store.database import Store
from controlplane.store.tables import (
    AuditEntry,
    Device,
    DeviceSighting,
    IdempotentAnswer,
    SubjectLimits,
    Tier,
    Tombstone,
)
from tests.rpc.admin_api import AdminApi, RecordingRevoker, mask, refused

PENDING = devices_pb2.DEVICE_STATUS_PENDING_APPROVAL
APPROVED = devices_pb2.DEVICE_STATUS_APPROVED
REJECTED = devices_pb2.DEVICE_STATUS_REJECTED
SUSPENDED = devices_pb2.DEVICE_STATUS_SUSPENDED
REVOKED = devices_pb2.DEVICE_STATUS_REVOKED

PHONE = "phone0000000"


async def register(store: Store, *device_ids: str) -> None:
    """Add devices as registrations do."""
    async with store.transaction("test", "Register") as tx:
        for device_id in device_ids:
            tx.add(
                Device(
                    id=device_id,
                    name="a phone",
                    token_sha256=sha256_of(device_id),
                    status=DeviceStatus.PENDING_APPROVAL,
                    address="203.0.113.7",
                    address_prefix="203.0.113.7",
                    platform="ios",
                    version="1.0",
                    user_agent="app/1.0",
                    created_at=tx.now,
                    updated_at=tx.now,
                )
            )


@pytest.fixture
async def alice(api: AdminApi) -> user_pb.User:
    """A user `acme/alice`, and a shared router `default`."""
    await api.create_organization("acme")
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="default"))
    )
    return await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"))
    )


@pytest.fixture
async def phone(store: Store, alice: user_pb.User) -> None:
    """A device that waits for approval, and somebody to give it to."""
    assert alice.name == "acme/alice"
    await register(store, PHONE)


async def approve(
    api: AdminApi, device_id: str = PHONE, user: str = "acme/alice", **fields: Any
) -> device_pb.Device:
    return await api.devices.ApproveDevice(
        device_pb.ApproveDeviceRequest(id=device_id, user=user, **fields)
    )


async def suspend(api: AdminApi, hours: int = 0, reason: str = "") -> device_pb.Device:
    request = device_pb.SuspendDeviceRequest(id=PHONE, reason=reason)
    if hours:
        request.period.FromTimedelta(timedelta(hours=hours))
    return await api.devices.SuspendDevice(request)


async def get(api: AdminApi, device_id: str = PHONE) -> device_pb.Device:
    return await api.devices.GetDevice(device_pb.GetDeviceRequest(id=device_id))


async def listed(api: AdminApi, **fields: Any) -> list[str]:
    answer = await api.devices.ListDevices(device_pb.ListDevicesRequest(**fields))
    return [device.id for device in answer.devices]


async def add_tier(store: Store, name: str) -> None:
    async with store.transaction("test", "Tier") as tx:
        tx.add(Tier(id=name, name=name, created_at=tx.now, updated_at=tx.now))


@pytest.fixture
def now(store: Store) -> Callable[[timedelta], datetime]:
    """A clock that stands still until it is moved by calling it."""
    instant = datetime(2026, 11, 21, 12, tzinfo=UTC)
    store.clock = lambda: instant

    def move(by: timedelta) -> datetime:
        nonlocal instant
        instant += by
        return instant

    return move


@pytest.mark.usefixtures("phone")
async def test_a_device_waits_and_then_belongs_to_somebody(api: AdminApi) -> None:
    waiting = await get(api)
    approved = await approve(api, allowed_models=["gpt-*"])

    assert (waiting.status, waiting.user, waiting.router) == (PENDING, "", "")
    assert (approved.status, approved.user, approved.router) == (APPROVED, "acme/alice", "default")
    assert list(approved.allowed_models) == ["gpt-*"]
    assert approved.approved_by == "bootstrap"
    assert approved.approved_at == approved.updated_at
    assert approved.revision == waiting.revision + 1
    assert await get(api) == approved


@pytest.mark.usefixtures("phone")
async def test_the_default_router_is_the_organizations_own_where_it_has_one(
    api: AdminApi, store: Store
) -> None:
    await register(store, "tablet000000")
    await approve(api)
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="acme/default"))
    )

    assert (await approve(api, "tablet000000")).router == "acme/default"
    assert (await get(api)).router == "default"


@pytest.mark.usefixtures("phone")
async def test_an_approval_needs_what_it_names(api: AdminApi, store: Store) -> None:
    for fields, field in (
        ({"user": "acme/bob"}, "user"),
        ({"router": "other"}, "router"),
        ({"tier": "gold"}, "tier"),
        ({"device_id": "nothing"}, "id"),
    ):
        refusal = await refused(approve(api, **fields))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), field

    assert (await get(api)).status == PENDING
    await add_tier(store, "gold")
    assert (await approve(api, tier="gold")).tier == "gold"


@pytest.mark.usefixtures("phone")
async def test_what_does_not_follow_is_refused_by_its_state(api: AdminApi) -> None:
    refusal = await refused(suspend(api))
    assert (refusal.code, refusal.reason, refusal.message) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "INVALID_REQUEST",
        "cannot suspend a pending device",
    )

    await api.devices.RevokeDevice(device_pb.RevokeDeviceRequest(id=PHONE))
    refusal = await refused(approve(api))
    assert refusal.message == "cannot approve a revoked device"


@pytest.mark.usefixtures("phone")
async def test_a_rejected_device_can_still_be_approved(api: AdminApi) -> None:
    rejected = await api.devices.RejectDevice(device_pb.RejectDeviceRequest(id=PHONE))

    assert rejected.status == REJECTED
    assert (await approve(api)).status == APPROVED


@pytest.mark.usefixtures("phone")
async def test_a_suspension_lasts_a_day_unless_said_and_ends_by_hand(
    api: AdminApi, now: Callable[[timedelta], datetime], store: Store
) -> None:
    await approve(api)
    first = await suspend(api, reason="lost")
    second = await suspend(api, hours=1, reason="found")

    assert (first.status, first.suspension_reason) == (SUSPENDED, "lost")
    assert first.suspended_until.ToDatetime(UTC) == now(timedelta(hours=0)) + timedelta(hours=24)
    assert second.suspended_until.ToDatetime(UTC) == now(timedelta(hours=0)) + timedelta(hours=1)
    assert second.suspension_reason == "found"
    resumed = await api.devices.ResumeDevice(device_pb.ResumeDeviceRequest(id=PHONE))
    assert resumed.status == APPROVED
    assert not resumed.HasField("suspended_until")
    assert resumed.suspension_reason == ""
    async with store.reading() as session:
        row = await session.get_one(Device, PHONE)
    assert (row.suspended_until, row.suspension_reason) == (None, "")


@pytest.mark.usefixtures("phone")
async def test_a_suspension_lifts_by_itself_everywhere(
    api: AdminApi, now: Callable[[timedelta], datetime], store: Store
) -> None:
    await approve(api)
    suspended = await suspend(api, hours=2, reason="lost")
    now(timedelta(hours=1, minutes=59))
    assert (await get(api)).status == SUSPENDED
    assert await listed(api, status=SUSPENDED) == [PHONE]
    assert await listed(api, status=APPROVED) == []

    now(timedelta(minutes=1))

    shown = await get(api)
    assert shown.status == APPROVED
    assert not shown.HasField("suspended_until")
    assert shown.suspension_reason == ""
    assert shown.revision == suspended.revision
    assert await listed(api, status=SUSPENDED) == []
    assert await listed(api, status=APPROVED) == [PHONE]
    refusal = await refused(
        api.devices.ResumeDevice(device_pb.ResumeDeviceRequest(id=PHONE, validate_only=True))
    )
    assert refusal.message == "cannot resume an approved device"
    again = await suspend(api, hours=1)
    assert (again.status, again.suspension_reason) == (SUSPENDED, "")
    async with store.reading() as session:
        row = await session.get_one(Device, PHONE)
    assert row.suspended_until == now(timedelta(0)) + timedelta(hours=1)


@pytest.mark.usefixtures("phone")
async def test_a_revocation_answers_with_a_receipt_and_can_be_repeated(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    approved = await approve(api)
    request = device_pb.RevokeDeviceRequest(id=PHONE, wait_ms=1500, terminate_streams=True)

    receipts = [await api.devices.RevokeDevice(request) for _ in range(2)]

    assert receipts[0] == receipts[1]
    assert receipts[0].revision == approved.revision + 1
    assert [applied.node for applied in receipts[0].applied] == ["node-1"]
    expected = (
        resources_pb2.RESOURCE_KIND_DEVICE,
        PHONE,
        receipts[0].revision,
        True,
        1500,
    )
    assert revoker.calls == [expected, expected]
    assert (await get(api)).status == REVOKED


@pytest.mark.usefixtures("phone")
async def test_another_token_is_shown_once_and_kept_as_its_digest(
    api: AdminApi, store: Store
) -> None:
    await approve(api)
    request = device_pb.RotateSessionTokenRequest(id=PHONE, request_id="once")

    first = await api.devices.RotateSessionToken(request)
    second = await api.devices.RotateSessionToken(request)
    request.request_id, request.validate_only = "", True
    dry = await api.devices.RotateSessionToken(request)

    assert re.fullmatch(r"tks_[0-9A-Za-z]{43}", first.session_token)
    assert second.device == first.device
    assert (second.session_token, dry.session_token) == ("", "")
    async with store.reading() as session:
        row = await session.get_one(Device, PHONE)
        kept = (await session.exec(select(IdempotentAnswer))).one()
        entries = (await session.exec(select(AuditEntry).order_by(col(AuditEntry.id)))).all()
    assert row.token_sha256 == sha256_of(first.session_token)
    assert first.session_token.encode() not in kept.response
    assert first.session_token not in str([entry.model_dump() for entry in entries])


@pytest.mark.usefixtures("phone")
async def test_a_device_is_changed_as_its_mask_says(api: AdminApi, store: Store) -> None:
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="acme/r"))
    )
    await add_tier(store, "gold")
    given = device_pb.Device(
        id=PHONE, name="Alice's", router="r", allowed_models=["claude-*"], tier="gold"
    )

    def update(*paths: str, etag: str = "") -> Any:
        given.etag = etag
        return api.devices.UpdateDevice(
            device_pb.UpdateDeviceRequest(device=given, update_mask=mask(*paths))
        )

    assert (await update("name")).name == "Alice's"
    refusal = await refused(update("router"))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    approved = await approve(api)
    changed = await update("router", "allowed_models", "tier", etag=approved.etag)
    assert (changed.router, list(changed.allowed_models), changed.tier) == (
        "acme/r",
        ["claude-*"],
        "gold",
    )
    assert (await refused(update("name", etag=approved.etag))).code is grpc.StatusCode.ABORTED
    assert (await refused(update("status"))).fields == ["update_mask"]
    given.name = "\x1b[2J"
    assert (await refused(update("name"))).fields == ["device.name"]


@pytest.mark.usefixtures("phone")
async def test_devices_are_listed_by_id_status_and_user(api: AdminApi, store: Store) -> None:
    await register(store, "a00000000000", "z00000000000")
    await approve(api)

    assert await listed(api) == ["a00000000000", PHONE, "z00000000000"]
    assert await listed(api, status=PENDING) == ["a00000000000", "z00000000000"]
    assert await listed(api, user="acme/alice") == [PHONE]
    assert (await refused(listed(api, user="acme/bob"))).code is grpc.StatusCode.NOT_FOUND
    first = await api.devices.ListDevices(device_pb.ListDevicesRequest(page_size=2))
    assert len(first.devices) == 2
    assert await listed(api, page_token=first.next_page_token) == ["z00000000000"]


@pytest.mark.usefixtures("phone")
async def test_a_device_is_shown_with_what_it_was_last_seen_with(
    api: AdminApi, store: Store
) -> None:
    before = await get(api)
    seen_at = datetime(2026, 11, 21, 13, tzinfo=UTC)
    async with store.ledger() as session:
        await sightings.record(
            session,
            [
                {
                    "device_id": PHONE,
                    "seen_at": seen_at,
                    "address": "198.51.100.2",
                    "user_agent": "app/1.1",
                    "platform": "",
                    "version": "1.1",
                }
            ],
        )

    after = await get(api)

    assert (before.address, before.platform, before.version, before.user_agent) == (
        "203.0.113.7",
        "ios",
        "1.0",
        "app/1.0",
    )
    assert not before.HasField("last_seen_at")
    assert (after.address, after.platform, after.version, after.user_agent) == (
        "198.51.100.2",
        "ios",
        "1.1",
        "app/1.1",
    )
    assert after.last_seen_at.ToDatetime(UTC) == seen_at
    assert after.etag == before.etag


def day_limit(subject: str, capacity: int = 5) -> limit_pb.SetLimitsRequest:
    limit = limits_pb2.Limit(
        unit=limits_pb2.LIMIT_UNIT_REQUESTS,
        window=limits_pb2.LIMIT_WINDOW_DAY,
        capacity=capacity,
    )
    return limit_pb.SetLimitsRequest(limits=limit_pb.SubjectLimits(subject=subject, limits=[limit]))


@pytest.mark.usefixtures("phone")
async def test_a_deleted_device_takes_its_limits_and_its_sightings_with_it(
    api: AdminApi, store: Store, revoker: RecordingRevoker
) -> None:
    await api.limits.SetLimits(day_limit(f"device:{PHONE}"))
    async with store.ledger() as session:
        session.add(DeviceSighting(device_id=PHONE, seen_at=store.clock()))

    result = await api.devices.DeleteDevice(device_pb.DeleteDeviceRequest(id=PHONE))

    assert list(result.also_deleted) == [f"limits device:{PHONE}"]
    assert revoker.calls == [(resources_pb2.RESOURCE_KIND_DEVICE, PHONE, result.revision, False, 0)]
    assert (await refused(get(api))).code is grpc.StatusCode.NOT_FOUND
    async with store.reading() as session:
        assert (await session.exec(select(SubjectLimits))).all() == []
        assert (await session.exec(select(DeviceSighting))).all() == []
        stones = (await session.exec(select(Tombstone))).all()
    assert {(stone.kind, stone.id) for stone in stones} == {
        ("device", PHONE),
        ("subject_limits", f"device:{PHONE}"),
    }


async def test_a_user_with_devices_is_deleted_only_by_force(
    api: AdminApi, phone: None, revoker: RecordingRevoker, alice: user_pb.User
) -> None:
    assert phone is None
    await approve(api)
    refusal = await refused(api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice")))
    by_router = await refused(
        api.routers.DeleteRouter(router_pb.DeleteRouterRequest(name="default"))
    )

    result = await api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice", force=True))

    assert refusal.referrers == by_router.referrers == [f"device {PHONE}"]
    assert list(result.also_deleted) == [f"device {PHONE}"]
    assert revoker.subjects == [alice.id]


@pytest.mark.usefixtures("phone")
async def test_a_router_deleted_by_force_has_its_devices_revoked(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    await approve(api)

    await api.routers.DeleteRouter(router_pb.DeleteRouterRequest(name="default", force=True))

    assert revoker.subjects == [PHONE]


@pytest.mark.usefixtures("phone")
async def test_devices_and_addresses_have_limits(api: AdminApi) -> None:
    for subject, canonical in (
        (f"device:{PHONE}", f"device:{PHONE}"),
        ("ip:2001:db8::9", "ip:2001:db8::/64"),
        ("ip:203.0.113.7", "ip:203.0.113.7"),
    ):
        stored = await api.limits.SetLimits(day_limit(subject, capacity=7))
        shown = await api.limits.GetLimits(limit_pb.GetLimitsRequest(subject=canonical))
        assert shown == stored
        assert (shown.subject, shown.limits[0].capacity) == (canonical, 7)

    subjects = (await api.limits.ListLimits(limit_pb.ListLimitsRequest())).limits
    assert len(subjects) == 3
    refusal = await refused(api.limits.SetLimits(day_limit("device:000000000000")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    await api.limits.DeleteLimits(limit_pb.DeleteLimitsRequest(subject="ip:2001:db8::1"))
    gone = await api.limits.GetLimits(limit_pb.GetLimitsRequest(subject="ip:2001:db8::1"))
    assert list(gone.limits) == []


@pytest.mark.usefixtures("phone")
async def test_the_audit_names_devices_by_their_ids(api: AdminApi, store: Store) -> None:
    await approve(api, router="default")
    await api.devices.UpdateDevice(
        device_pb.UpdateDeviceRequest(
            device=device_pb.Device(id=PHONE, name="x"), update_mask=mask("name")
        )
    )
    await suspend(api)

    async with store.reading() as session:
        entries = (await session.exec(select(AuditEntry).order_by(col(AuditEntry.id)))).all()
    assert [(entry.rpc, entry.resource) for entry in entries[-3:]] == [
        ("ApproveDevice", PHONE),
        ("UpdateDevice", PHONE),
        ("SuspendDevice", PHONE),
    ]


async def test_one_of_two_administrators_decides(api: AdminApi, phone: None) -> None:
    assert phone is None

    async def outcome(call: Any) -> str:
        try:
            return str((await call).status)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    approval, rejection = await asyncio.gather(
        outcome(approve(api)),
        outcome(api.devices.RejectDevice(device_pb.RejectDeviceRequest(id=PHONE))),
    )

    # A rejection that comes first does not keep the approval from following.
    assert approval == str(APPROVED)
    assert rejection in {"FAILED_PRECONDITION", str(REJECTED)}
    assert (await get(api)).status == APPROVED


async def test_who_waits_for_longer_than_a_week_is_forgotten(
    api: AdminApi, alice: user_pb.User, store: Store, now: Callable[[timedelta], datetime]
) -> None:
    assert alice.name == "acme/alice"
    await register(store, "approved0000")
    await approve(api, "approved0000")
    await register(store, *(f"old{number:09}" for number in range(230)))
    await api.limits.SetLimits(day_limit("device:old000000007"))
    async with store.ledger() as session:
        session.add(DeviceSighting(device_id="old000000007", seen_at=store.clock()))
    now(timedelta(days=6))
    await register(store, "young0000000")
    assert await forget_pending_devices(store) == 0

    now(timedelta(days=1))
    assert await forget_pending_devices(store) == 230
    assert await forget_pending_devices(store) == 0

    assert await listed(api) == ["approved0000", "young0000000"]
    async with store.reading() as session:
        assert (await session.exec(select(SubjectLimits))).all() == []
        assert (await session.exec(select(DeviceSighting))).all() == []
        entries = (await session.exec(select(AuditEntry).order_by(col(AuditEntry.id)))).all()
    forgetting = [entry for entry in entries if entry.rpc == "ForgetPendingDevices"]
    assert [(entry.actor, entry.request) for entry in forgetting] == [
        ("system", {"count": 100}),
        ("system", {"count": 100}),
        ("system", {"count": 30}),
    ]
