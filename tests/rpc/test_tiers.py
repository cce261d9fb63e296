import asyncio
import secrets

import grpc
import pytest
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import tier_service_pb2 as pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.keys import sha256_of
from controlplane.domain.tiers import BUILT_IN, LAYERS, SEEDS, check_layers
from controlplane.store.database import Store
from controlplane.store.service import ensure_tiers
from controlplane.store.tables import Device
from tests.rpc.admin_api import AdminApi, mask, refused

MINUTE, DAY = limits_pb2.LIMIT_WINDOW_MINUTE, limits_pb2.LIMIT_WINDOW_DAY


def requests(window: limits_pb2.LimitWindow.ValueType, capacity: int) -> limits_pb2.Limit:
    return limits_pb2.Limit(unit=limits_pb2.LIMIT_UNIT_REQUESTS, window=window, capacity=capacity)


async def create_tier(api: AdminApi, name: str, **layers: list[limits_pb2.Limit]) -> pb.Tier:
    return await api.tiers.CreateTier(
        pb.CreateTierRequest(tier=pb.Tier(name=name, **layers))  # type: ignore[arg-type]  # lists by name
    )


async def update_tier(
    api: AdminApi, name: str, seen: pb.Tier | None = None, /, **layers: list[limits_pb2.Limit]
) -> pb.Tier:
    tier = pb.Tier(name=name, etag=seen.etag if seen else "", **layers)  # type: ignore[arg-type]  # as above
    return await api.tiers.UpdateTier(pb.UpdateTierRequest(tier=tier, update_mask=mask(*layers)))


async def names(api: AdminApi) -> list[str]:
    return [tier.name for tier in (await api.tiers.ListTiers(pb.ListTiersRequest())).tiers]


async def create_user(api: AdminApi, name: str, tier: str = "") -> user_pb.User:
    return await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name=name, tier=tier))
    )


async def add_device(store: Store, tier: str) -> Device:
    async with store.transaction("ann", "x") as tx:
        device = Device(
            id=f"device-{secrets.token_hex(2)}",
            name="laptop",
            token_sha256=sha256_of(secrets.token_hex()),
            status=2,
            tier=tier,
            created_at=tx.now,
            updated_at=tx.now,
        )
        tx.add(device)
    return device


def test_what_the_built_in_tiers_hold_is_valid() -> None:
    assert {"free", "paid"} == BUILT_IN
    for seed in SEEDS:
        check_layers({name: getattr(seed, name) for name in LAYERS}, field="tier")


async def test_free_and_paid_are_there_from_the_beginning(api: AdminApi) -> None:
    listed = (await api.tiers.ListTiers(pb.ListTiersRequest())).tiers

    shown = {
        tier.name: [
            (limits.unit, limits.window, limits.capacity)
            for layers in LAYERS
            for limits in getattr(tier, layers)
        ]
        for tier in listed
    }
    unit = limits_pb2.LIMIT_UNIT_REQUESTS
    assert shown == {
        "free": [(unit, DAY, 100), (unit, DAY, 500), (unit, DAY, 1_000), (unit, MINUTE, 5)],
        "paid": [
            (unit, DAY, 10_000),
            (unit, DAY, 50_000),
            (unit, DAY, 100_000),
            (unit, MINUTE, 100),
        ],
    }


async def test_what_an_administrator_changed_of_a_built_in_tier_survives_a_restart(
    api: AdminApi, store: Store
) -> None:
    changed = await update_tier(api, "free", device_limits=[requests(DAY, 7)])

    await ensure_tiers(store)

    assert await api.tiers.GetTier(pb.GetTierRequest(name="free")) == changed
    assert [limit.capacity for limit in changed.user_limits] == [1_000]


async def test_control_planes_that_start_together_add_the_tiers_once(store: Store) -> None:
    other = Store(store.engine.url)

    await asyncio.gather(ensure_tiers(store), ensure_tiers(other))

    async with store.transaction("ann", "x") as tx:
        assert [row.name for row in await tx.tiers.page(after="", size=9)] == ["free", "paid"]
        assert tx.committed_revision is None
    await other.close()


async def test_a_tier_is_created_changed_and_deleted(api: AdminApi) -> None:
    created = await create_tier(api, "trial", user_limits=[requests(DAY, 3)])
    assert await api.tiers.GetTier(pb.GetTierRequest(name="trial")) == created
    assert await names(api) == ["free", "paid", "trial"]

    changed = await update_tier(
        api, "trial", created, user_limits=[], ip_limits=[requests(MINUTE, 2)]
    )

    assert list(changed.user_limits) == []
    assert [limit.capacity for limit in changed.ip_limits] == [2]
    assert changed.revision == created.revision + 1
    deleted = await api.tiers.DeleteTier(pb.DeleteTierRequest(name="trial", etag=changed.etag))
    assert deleted.revision == changed.revision + 1
    assert await names(api) == ["free", "paid"]


async def test_a_stale_etag_changes_and_deletes_no_tier(api: AdminApi) -> None:
    seen = await create_tier(api, "trial")
    await update_tier(api, "trial", ip_limits=[requests(DAY, 2)])

    late = update_tier(api, "trial", seen, ip_limits=[])
    assert (await refused(late)).code is grpc.StatusCode.ABORTED
    delete = api.tiers.DeleteTier(pb.DeleteTierRequest(name="trial", etag=seen.etag))
    assert (await refused(delete)).code is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("layers", LAYERS)
async def test_a_wrong_limit_of_a_tier_is_named_and_nothing_is_kept(
    api: AdminApi, layers: str
) -> None:
    twice = [requests(DAY, 1), requests(DAY, 2)]
    timeless = [requests(limits_pb2.LIMIT_WINDOW_UNSPECIFIED, 1)]

    refusal = await refused(create_tier(api, "trial", **{layers: twice}))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        [f"tier.{layers}[1]"],
    )
    assert await names(api) == ["free", "paid"]
    refusal = await refused(update_tier(api, "free", **{layers: timeless}))
    assert refusal.fields == [f"tier.{layers}[0].window"]


async def test_the_name_of_a_tier_is_taken_once_and_cannot_change(api: AdminApi) -> None:
    refusal = await refused(create_tier(api, "free"))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS

    rename = api.tiers.UpdateTier(
        pb.UpdateTierRequest(tier=pb.Tier(name="free"), update_mask=mask("name"))
    )
    assert (await refused(rename)).fields == ["update_mask"]
    assert (await refused(create_tier(api, "Not A Tier"))).fields == ["tier.name"]


async def test_no_tier_is_called_none(api: AdminApi) -> None:
    refusal = await refused(api.tiers.CreateTier(pb.CreateTierRequest(tier=pb.Tier(name="none"))))

    assert refusal.fields == ["tier.name"]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_a_built_in_tier_cannot_be_deleted(api: AdminApi, name: str) -> None:
    refusal = await refused(api.tiers.DeleteTier(pb.DeleteTierRequest(name=name)))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert name in refusal.message
    assert name in await names(api)


async def test_a_tier_that_somebody_has_is_not_deleted_and_they_are_named(
    api: AdminApi, store: Store
) -> None:
    await create_tier(api, "trial")
    await api.create_organization("acme")
    await create_user(api, "acme/alice", "trial")
    await create_user(api, "acme/bob")
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="default"))
    )
    for name, tier in (("acme/alice/k", ""), ("acme/bob/k", "trial")):
        await api.api_keys.CreateApiKey(
            key_pb.CreateApiKeyRequest(
                api_key=key_pb.ApiKey(name=name, router="default", tier=tier)
            )
        )
    device = await add_device(store, "trial")

    refusal = await refused(api.tiers.DeleteTier(pb.DeleteTierRequest(name="trial")))

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STILL_REFERENCED",
    )
    assert refusal.referrers == ["user acme/alice", "key acme/bob/k", f"device {device.id}"]
    assert "trial" in await names(api)


async def test_a_user_has_only_a_tier_that_is_there(api: AdminApi) -> None:
    await api.create_organization("acme")

    refusal = await refused(create_user(api, "acme/alice", "gold"))

    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no tier gold",
    )
    alice = await create_user(api, "acme/alice", "free")
    assert alice.tier == "free"
    for tier in ("gold", "paid", ""):
        request = user_pb.UpdateUserRequest(
            user=user_pb.User(name="acme/alice", tier=tier), update_mask=mask("tier")
        )
        if tier == "gold":
            refusal = await refused(api.users.UpdateUser(request))
            assert refusal.code is grpc.StatusCode.NOT_FOUND
        else:
            assert (await api.users.UpdateUser(request)).tier == tier


async def test_a_key_has_a_tier_of_its_own(api: AdminApi) -> None:
    await api.create_organization("acme")
    await create_user(api, "acme/alice", "free")
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="default"))
    )
    create = key_pb.CreateApiKeyRequest(
        api_key=key_pb.ApiKey(name="acme/alice/k", router="default", tier="gold")
    )
    assert (await refused(api.api_keys.CreateApiKey(create))).code is grpc.StatusCode.NOT_FOUND

    create.api_key.tier = "paid"
    created = await api.api_keys.CreateApiKey(create)

    assert created.key.tier == "paid"
    update = key_pb.UpdateApiKeyRequest(
        api_key=key_pb.ApiKey(name="acme/alice/k", tier="gold"), update_mask=mask("tier")
    )
    assert (await refused(api.api_keys.UpdateApiKey(update))).code is grpc.StatusCode.NOT_FOUND
    update.api_key.tier = ""
    assert (await api.api_keys.UpdateApiKey(update)).tier == ""
    get = key_pb.GetApiKeyRequest(name="acme/alice/k")
    assert (await api.api_keys.GetApiKey(get)).tier == ""


async def test_nobody_gets_a_tier_while_it_is_deleted(api: AdminApi) -> None:
    await api.create_organization("acme")
    for attempt in range(5):
        tier = f"trial{attempt}"
        await create_tier(api, tier)

        async def hire(name: str, tier: str) -> str:
            try:
                return (await create_user(api, name, tier)).tier
            except grpc.aio.AioRpcError as error:
                return error.code().name

        async def remove(tier: str) -> str:
            try:
                await api.tiers.DeleteTier(pb.DeleteTierRequest(name=tier))
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "deleted"

        outcomes = await asyncio.gather(hire(f"acme/u{attempt}", tier), remove(tier))

        assert tuple(outcomes) in {
            (tier, "FAILED_PRECONDITION"),
            ("NOT_FOUND", "deleted"),
            ("ABORTED", "deleted"),
        }
