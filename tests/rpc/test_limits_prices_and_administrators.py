from datetime import UTC, datetime

import grpc
from tollkeeper.admin.v1 import administrator_service_pb2 as admin_pb
from tollkeeper.admin.v1 import limit_service_pb2 as pb
from tollkeeper.admin.v1 import price_service_pb2 as price_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2, rates_pb2

from controlplane.domain.keys import is_administrator_token
from tests.rpc.admin_api import AdminApi, refused
from tests.rpc.test_organizations_and_users import create_user

REQUESTS, TOKENS = limits_pb2.LIMIT_UNIT_REQUESTS, limits_pb2.LIMIT_UNIT_TOKENS
DAY, MINUTE = limits_pb2.LIMIT_WINDOW_DAY, limits_pb2.LIMIT_WINDOW_MINUTE


async def set_limits(
    api: AdminApi, subject: str, *limits: limits_pb2.Limit, etag: str = ""
) -> pb.SubjectLimits:
    return await api.limits.SetLimits(
        pb.SetLimitsRequest(limits=pb.SubjectLimits(subject=subject, limits=limits, etag=etag))
    )


def limit(
    unit: limits_pb2.LimitUnit.ValueType, window: limits_pb2.LimitWindow.ValueType, capacity: int
) -> limits_pb2.Limit:
    return limits_pb2.Limit(unit=unit, window=window, capacity=capacity)


async def test_setting_a_limit_leaves_the_others_as_they_are(api: AdminApi) -> None:
    await set_limits(api, "global", limit(REQUESTS, DAY, 10), limit(TOKENS, DAY, 99))

    changed = await set_limits(api, "global", limit(REQUESTS, DAY, 20), limit(REQUESTS, MINUTE, 1))

    assert [(item.unit, item.window, item.capacity) for item in changed.limits] == [
        (REQUESTS, MINUTE, 1),
        (REQUESTS, DAY, 20),
        (TOKENS, DAY, 99),
    ]
    listed = await api.limits.ListLimits(pb.ListLimitsRequest())
    assert list(listed.limits) == [changed]


async def test_limits_are_removed_one_by_one_or_all(api: AdminApi) -> None:
    await api.create_organization("acme")
    subject = "organization:acme"
    before = await set_limits(api, subject, limit(REQUESTS, DAY, 10), limit(TOKENS, DAY, 99))

    await api.limits.DeleteLimits(
        pb.DeleteLimitsRequest(subject=subject, limits=[limit(TOKENS, DAY, 0)], etag=before.etag)
    )
    left = await api.limits.GetLimits(pb.GetLimitsRequest(subject=subject))
    stale = await refused(
        api.limits.DeleteLimits(pb.DeleteLimitsRequest(subject=subject, etag=before.etag))
    )
    result = await api.limits.DeleteLimits(pb.DeleteLimitsRequest(subject=subject))
    again = await api.limits.DeleteLimits(pb.DeleteLimitsRequest(subject=subject))

    assert [item.unit for item in left.limits] == [REQUESTS]
    assert stale.code is grpc.StatusCode.ABORTED
    assert result.revision == again.revision == left.revision + 1
    assert await api.limits.GetLimits(pb.GetLimitsRequest(subject=subject)) == pb.SubjectLimits(
        subject=subject
    )


async def test_a_subject_that_does_not_exist_has_no_limits(api: AdminApi) -> None:
    for subject in ("user:acme/nobody", "key:a/b/c", "organization:x"):
        for call in (
            api.limits.GetLimits(pb.GetLimitsRequest(subject=subject)),
            set_limits(api, subject, limit(REQUESTS, DAY, 1)),
            api.limits.DeleteLimits(pb.DeleteLimitsRequest(subject=subject)),
        ):
            assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND


async def test_what_is_no_subject_is_refused(api: AdminApi) -> None:
    for subject in ("alice", "user:acme", "ip:1.2.3.0/24", "user:", "key:a/b"):
        refusal = await refused(api.limits.GetLimits(pb.GetLimitsRequest(subject=subject)))

        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["subject"])


async def test_limits_go_with_their_user_and_a_new_one_has_none(api: AdminApi) -> None:
    await api.create_organization("acme")
    await create_user(api, "acme/alice")
    await set_limits(api, "user:acme/alice", limit(REQUESTS, DAY, 1))

    result = await api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice"))
    await create_user(api, "acme/alice")

    assert list(result.also_deleted) == ["limits user:acme/alice"]
    found = await api.limits.GetLimits(pb.GetLimitsRequest(subject="user:acme/alice"))
    assert list(found.limits) == []


def price(model: str = "gpt-4o*", **fields: object) -> price_pb.SetPriceRequest:
    rates = rates_pb2.Rates(input_nanousd_per_million=150_000_000, cache_read_nanousd_per_million=0)
    given: dict[str, object] = {"provider": "openai", "rates": rates, **fields}
    return price_pb.SetPriceRequest(price=price_pb.Price(model=model, **given))  # type: ignore[arg-type]  # fields by name


async def test_a_price_of_the_same_identity_is_replaced(api: AdminApi) -> None:
    first = await api.prices.SetPrice(price())
    second = await api.prices.SetPrice(price(rates=rates_pb2.Rates(request_nanousd=5)))
    other = price()
    other.price.effective_from.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    third = await api.prices.SetPrice(other)

    assert first.rates.HasField("cache_read_nanousd_per_million")
    assert not first.rates.HasField("cache_write_5m_nanousd_per_million")
    assert not first.HasField("effective_from")
    assert second.id == first.id
    assert second.rates == rates_pb2.Rates(request_nanousd=5)
    assert third.id != first.id
    listed = await api.prices.ListPrices(price_pb.ListPricesRequest())
    assert list(listed.prices) == [second, third]


async def test_prices_are_listed_in_pages_by_provider_model_and_beginning(api: AdminApi) -> None:
    for model in ("b", "a", "c*"):
        await api.prices.SetPrice(price(model))
        await api.prices.SetPrice(price(model, provider="anthropic"))
        dated = price(model)
        dated.price.effective_from.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
        await api.prices.SetPrice(dated)

    seen: list[tuple[str, str, bool]] = []
    token = ""
    while True:
        page = await api.prices.ListPrices(
            price_pb.ListPricesRequest(page_size=2, page_token=token)
        )
        seen += [(p.provider, p.model, p.HasField("effective_from")) for p in page.prices]
        token = page.next_page_token
        if not token:
            break

    assert seen == sorted(seen)
    assert len(set(seen)) == 9
    only = await api.prices.ListPrices(price_pb.ListPricesRequest(provider="openai", model="a"))
    assert [p.model for p in only.prices] == ["a", "a"]


async def test_a_price_that_says_nothing_or_two_things_is_refused(api: AdminApi) -> None:
    negative = rates_pb2.Rates(input_nanousd_per_million=-1)
    for request, field in (
        (price(rates=rates_pb2.Rates()), "price.rates"),
        (price(free=True), "price.free"),
        (price("a*b"), "price.model"),
        (price("*a*"), "price.model"),
        (price(rates=negative), "price.rates.input_nanousd_per_million"),
    ):
        assert (await refused(api.prices.SetPrice(request))).fields == [field]


async def test_a_price_is_of_a_known_provider_or_kind(api: AdminApi) -> None:
    refusal = await refused(api.prices.SetPrice(price(provider="acme/up")))

    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_a_price_is_found_by_id_and_removed(api: AdminApi) -> None:
    free = await api.prices.SetPrice(price(free=True, rates=rates_pb2.Rates()))

    assert await api.prices.GetPrice(price_pb.GetPriceRequest(id=free.id)) == free
    await api.prices.DeletePrice(price_pb.DeletePriceRequest(id=free.id, etag=free.etag))
    gone = await refused(api.prices.GetPrice(price_pb.GetPriceRequest(id=free.id)))
    assert gone.code is grpc.StatusCode.NOT_FOUND


async def create_administrator(
    api: AdminApi, name: str, role: admin_pb.Role.ValueType
) -> admin_pb.CreateAdministratorResponse:
    return await api.administrators.CreateAdministrator(
        admin_pb.CreateAdministratorRequest(
            administrator=admin_pb.Administrator(name=name, role=role)
        )
    )


async def test_a_new_administrator_may_call_and_a_deleted_one_may_not(api: AdminApi) -> None:
    created = await create_administrator(api, "ops-bot", admin_pb.ROLE_ADMIN)
    assert is_administrator_token(created.token)
    bot = AdminApi(api.address, created.token)
    await bot.create_organization("acme")

    await api.administrators.DeleteAdministrator(
        admin_pb.DeleteAdministratorRequest(name="ops-bot")
    )

    refusal = await refused(bot.create_organization("acme-2"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_API_KEY")
    await bot.channel.close()


async def test_the_last_owner_stays(api: AdminApi) -> None:
    delete = admin_pb.DeleteAdministratorRequest(name="bootstrap")
    refusal = await refused(api.administrators.DeleteAdministrator(delete))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION

    await create_administrator(api, "second", admin_pb.ROLE_OWNER)
    await api.administrators.DeleteAdministrator(delete)


async def test_administrators_are_listed_without_tokens(api: AdminApi) -> None:
    created = await create_administrator(api, "ops-bot", admin_pb.ROLE_AUDITOR)

    page = await api.administrators.ListAdministrators(admin_pb.ListAdministratorsRequest())

    assert [row.name for row in page.administrators] == ["bootstrap", "ops-bot"]
    assert page.administrators[1] == created.administrator
