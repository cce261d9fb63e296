"""Returns to former revisions where names, references and numbers stand in the way."""

from datetime import UTC, datetime

from sqlmodel import select
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import limit_service_pb2 as limit_pb
from tollkeeper.admin.v1 import price_service_pb2 as price_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import rates_pb2

from controlplane.store.database import Store
from controlplane.store.fleet_tables import RevocationRow
from controlplane.store.tables import ApiKey
from tests.rpc.admin_api import AdminApi, RecordingRevoker, mask
from tests.rpc.test_configuration import DAILY, create_router, diff, furnish, newest, roll_back


async def set_price(api: AdminApi) -> price_pb.Price:
    rates = rates_pb2.Rates(input_nanousd_per_million=1, output_nanousd_per_million=2)
    return await api.prices.SetPrice(
        price_pb.SetPriceRequest(price=price_pb.Price(provider="openai", model="gpt", rates=rates))
    )


async def set_limits(api: AdminApi, subject: str) -> None:
    await api.limits.SetLimits(
        limit_pb.SetLimitsRequest(limits=limit_pb.SubjectLimits(subject=subject, limits=[DAILY]))
    )


async def test_a_price_that_was_made_anew_goes_back(api: AdminApi) -> None:
    await furnish(api)
    first = await set_price(api)
    before = await newest(api)
    await api.prices.DeletePrice(price_pb.DeletePriceRequest(id=first.id))
    await set_price(api)

    await roll_back(api, before)

    assert await diff(api, before) == {}


async def test_limits_of_a_user_whose_name_somebody_else_took_go_back(api: AdminApi) -> None:
    await furnish(api)
    await set_limits(api, "user:acme/alice")
    before = await newest(api)
    await api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice", force=True))
    await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice")))
    await set_limits(api, "user:acme/alice")

    await roll_back(api, before)

    assert set(await diff(api, before)) == {"api_key acme/alice/laptop"}


async def test_a_revoked_key_does_not_hold_on_to_a_router_that_goes(api: AdminApi) -> None:
    before = await furnish(api)
    await create_router(api, "acme/second", "acme/upstream")
    await api.api_keys.UpdateApiKey(
        key_pb.UpdateApiKeyRequest(
            api_key=key_pb.ApiKey(name="acme/alice/laptop", router="acme/second"),
            update_mask=mask("router"),
        )
    )
    await api.api_keys.RevokeApiKey(key_pb.RevokeApiKeyRequest(name="acme/alice/laptop"))

    answer = await roll_back(api, before)

    assert [text.partition(": ")[2] for text in answer.skipped] == ["a revoked key stays revoked"]
    found = await diff(api, before)
    assert {field.field for field in found["api_key acme/alice/laptop"].fields} == {"revoked"}
    key = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/laptop"))
    assert key.revoked
    await api.routers.GetRouter(router_pb.GetRouterRequest(name="acme/main"))


async def test_an_expiry_that_was_brought_forward_stays(api: AdminApi) -> None:
    before = await furnish(api)
    soon = datetime(2030, 1, 1, tzinfo=UTC)
    expiring = key_pb.ApiKey(name="acme/alice/laptop")
    expiring.expires_at.FromDatetime(soon)
    await api.api_keys.UpdateApiKey(
        key_pb.UpdateApiKeyRequest(api_key=expiring, update_mask=mask("expires_at"))
    )

    answer = await roll_back(api, before)

    key = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/laptop"))
    assert key.expires_at.ToDatetime(tzinfo=UTC) == soon
    assert len(answer.skipped) == 1


async def test_many_keys_that_go_are_revoked_without_flooding_the_streams(
    api: AdminApi, store: Store, revoker: RecordingRevoker
) -> None:
    before = await furnish(api)
    async with store.reading() as session:
        first = (await session.exec(select(ApiKey))).one()
    async with store.transaction("test", "Import") as tx:
        for number in range(101):
            columns = first.model_dump() | {
                "id": f"key-{number}",
                "name": f"acme/alice/key-{number}",
                "sha256": f"{number}".encode().ljust(32),
            }
            tx.add(ApiKey(**columns))

    answer = await roll_back(api, before)

    assert len(answer.changes) == 101
    async with store.reading() as session:
        kept = (await session.exec(select(RevocationRow))).all()
    assert len(kept) == 101
    assert revoker.calls == []
