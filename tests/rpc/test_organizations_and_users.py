import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlmodel import select
from tollkeeper.admin.v1 import limit_service_pb2 as limit_pb
from tollkeeper.admin.v1 import organization_service_pb2 as pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.store.database import Store
from controlplane.store.fleet_tables import RevocationRow
from tests.rpc.admin_api import AdminApi, RecordingRevoker, mask, refused

REQUESTS_A_DAY = limits_pb2.Limit(
    unit=limits_pb2.LIMIT_UNIT_REQUESTS, window=limits_pb2.LIMIT_WINDOW_DAY, capacity=5
)
MONTHLY_BUDGET = limits_pb2.Limit(
    unit=limits_pb2.LIMIT_UNIT_SPEND, window=limits_pb2.LIMIT_WINDOW_MONTH, capacity=10**11
)
OPEN = resources_pb2.LIMITS_UNAVAILABLE_POLICY_OPEN


async def create_user(api: AdminApi, name: str, **fields: object) -> user_pb.User:
    return await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name=name, **fields))  # type: ignore[arg-type]  # fields by name
    )


async def test_what_was_created_is_found_listed_and_changed(api: AdminApi) -> None:
    created = await api.create_organization("acme", time_zone="Europe/Paris")

    changed = await api.organizations.UpdateOrganization(
        pb.UpdateOrganizationRequest(
            organization=pb.Organization(
                name="acme", default_output_cap_tokens=99, time_zone="ignored", etag=created.etag
            ),
            update_mask=mask("default_output_cap_tokens"),
        )
    )

    assert len(created.id) == 12
    assert (changed.id, changed.time_zone) == (created.id, "Europe/Paris")
    assert changed.revision == created.revision + 1
    assert changed.etag != created.etag
    assert changed.created_at == created.created_at
    assert changed.updated_at != Timestamp()
    assert (
        await api.organizations.GetOrganization(pb.GetOrganizationRequest(name="acme")) == changed
    )
    listed = await api.organizations.ListOrganizations(pb.ListOrganizationsRequest())
    assert list(listed.organizations) == [changed]


async def test_a_stale_etag_is_aborted_and_changes_nothing(api: AdminApi) -> None:
    created = await api.create_organization("acme")
    request = pb.UpdateOrganizationRequest(
        organization=pb.Organization(name="acme", paused=True, etag=created.etag),
        update_mask=mask("paused"),
    )
    await api.organizations.UpdateOrganization(request)
    request.organization.paused = False

    refusal = await refused(api.organizations.UpdateOrganization(request))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")
    found = await api.organizations.GetOrganization(pb.GetOrganizationRequest(name="acme"))
    assert found.paused


async def test_a_mask_with_an_unknown_field_names_it(api: AdminApi) -> None:
    await api.create_organization("acme")
    for path in ("colour", "name", "id", ""):
        refusal = await refused(
            api.organizations.UpdateOrganization(
                pb.UpdateOrganizationRequest(
                    organization=pb.Organization(name="acme"),
                    update_mask=mask(path) if path else None,
                )
            )
        )
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.fields == ["update_mask"]
        assert path in refusal.message


async def test_a_field_that_breaks_a_rule_is_named(api: AdminApi) -> None:
    refusal = await refused(api.create_organization("Not A Name"))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.domain, refusal.reason) == ("tollkeeper", "INVALID_REQUEST")
    assert refusal.fields == ["organization.name"]

    assert (await refused(api.create_organization("acme", time_zone="Mars/North"))).fields == [
        "organization.time_zone"
    ]


async def test_a_name_is_taken_once(api: AdminApi) -> None:
    await api.create_organization("acme")

    refusal = await refused(api.create_organization("acme"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "CONFLICT")


async def test_what_does_not_exist_is_not_found(api: AdminApi) -> None:
    get = api.organizations.GetOrganization(pb.GetOrganizationRequest(name="nobody"))
    assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND

    refusal = await refused(create_user(api, "nobody/alice"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_a_user_is_created_with_limits_in_one_revision(api: AdminApi) -> None:
    await api.create_organization("acme")

    user = await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"), limits=[REQUESTS_A_DAY])
    )

    limits = await api.limits.GetLimits(limit_pb.GetLimitsRequest(subject="user:acme/alice"))
    assert list(limits.limits) == [REQUESTS_A_DAY]
    assert limits.revision == user.revision


async def test_a_wrong_limit_keeps_the_user_from_being_created(api: AdminApi) -> None:
    await api.create_organization("acme")
    wrong = limits_pb2.Limit(
        unit=limits_pb2.LIMIT_UNIT_SPEND, window=limits_pb2.LIMIT_WINDOW_MINUTE, capacity=1
    )

    refusal = await refused(
        api.users.CreateUser(
            user_pb.CreateUserRequest(
                user=user_pb.User(name="acme/alice"), limits=[REQUESTS_A_DAY, wrong]
            )
        )
    )

    assert refusal.fields == ["limits[1].window"]
    get = api.users.GetUser(user_pb.GetUserRequest(name="acme/alice"))
    assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND


async def test_a_hard_budget_and_admission_without_counters_exclude_each_other(
    api: AdminApi,
) -> None:
    create = pb.CreateOrganizationRequest(
        organization=pb.Organization(name="acme", on_limits_unavailable=OPEN),
        limits=[MONTHLY_BUDGET],
    )
    refusal = await refused(api.organizations.CreateOrganization(create))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION

    await api.create_organization("acme", on_limits_unavailable=OPEN)
    refusal = await refused(
        api.limits.SetLimits(
            limit_pb.SetLimitsRequest(
                limits=limit_pb.SubjectLimits(subject="organization:acme", limits=[MONTHLY_BUDGET])
            )
        )
    )
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION

    soft = limits_pb2.Limit()
    soft.CopyFrom(MONTHLY_BUDGET)
    soft.soft = True
    await api.limits.SetLimits(
        limit_pb.SetLimitsRequest(
            limits=limit_pb.SubjectLimits(subject="organization:acme", limits=[soft])
        )
    )


async def test_a_dry_run_makes_every_check_and_keeps_nothing(api: AdminApi, store: Store) -> None:
    request = pb.CreateOrganizationRequest(
        organization=pb.Organization(name="acme"), validate_only=True, limits=[REQUESTS_A_DAY]
    )

    answer = await api.organizations.CreateOrganization(request)

    assert answer.name == "acme"
    get = api.organizations.GetOrganization(pb.GetOrganizationRequest(name="acme"))
    assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND
    await api.create_organization("acme")
    refusal = await refused(api.organizations.CreateOrganization(request))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_repeated_request_gets_the_first_answer(api: AdminApi) -> None:
    request = pb.CreateOrganizationRequest(
        organization=pb.Organization(name="acme"), request_id="r1"
    )

    first = await api.organizations.CreateOrganization(request)
    second = await api.organizations.CreateOrganization(request)

    assert first == second
    request.organization.paused = True
    refusal = await refused(api.organizations.CreateOrganization(request))
    assert refusal.fields == ["request_id"]


async def test_a_request_that_failed_may_be_repeated(api: AdminApi) -> None:
    request = user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"), request_id="r1")
    await refused(api.users.CreateUser(request))
    await api.create_organization("acme")

    assert (await api.users.CreateUser(request)).name == "acme/alice"


async def test_pages_hold_everything_once_in_order(api: AdminApi) -> None:
    names = [f"o-{n}" for n in (3, 1, 2, 5, 4)]
    for name in names:
        await api.create_organization(name)
    await create_user(api, "o-1/alice")

    seen: list[str] = []
    token = ""
    while True:
        page = await api.organizations.ListOrganizations(
            pb.ListOrganizationsRequest(page_size=2, page_token=token)
        )
        seen += [organization.name for organization in page.organizations]
        token = page.next_page_token
        if not token:
            break

    assert seen == sorted(names)


async def test_a_token_of_another_list_is_refused(api: AdminApi) -> None:
    for name in ("a", "b"):
        await api.create_organization(name)
        await create_user(api, f"{name}/x")
        await create_user(api, f"{name}/y")
    page = await api.users.ListUsers(user_pb.ListUsersRequest(page_size=1, organization="a"))

    for token in (page.next_page_token, "nonsense", "bm9uc2Vuc2U="):
        refusal = await refused(
            api.users.ListUsers(user_pb.ListUsersRequest(organization="b", page_token=token))
        )
        assert refusal.fields == ["page_token"]


async def test_users_are_listed_by_organization(api: AdminApi) -> None:
    for name in ("a", "a-b"):
        await api.create_organization(name)
        await create_user(api, f"{name}/x")

    page = await api.users.ListUsers(user_pb.ListUsersRequest(organization="a"))

    assert [user.name for user in page.users] == ["a/x"]
    nobody = api.users.ListUsers(user_pb.ListUsersRequest(organization="c"))
    assert (await refused(nobody)).code is grpc.StatusCode.NOT_FOUND


async def test_an_organization_with_users_is_deleted_only_by_force(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    organization = await api.create_organization("acme")
    await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"), limits=[REQUESTS_A_DAY])
    )

    refusal = await refused(
        api.organizations.DeleteOrganization(pb.DeleteOrganizationRequest(name="acme"))
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STILL_REFERENCED",
    )
    assert refusal.referrers == ["user acme/alice"]

    result = await api.organizations.DeleteOrganization(
        pb.DeleteOrganizationRequest(name="acme", force=True)
    )
    assert list(result.also_deleted) == ["user acme/alice", "limits user:acme/alice"]
    assert revoker.calls == [
        (resources_pb2.RESOURCE_KIND_ORGANIZATION, organization.id, result.revision, False, 0)
    ]
    get = api.users.GetUser(user_pb.GetUserRequest(name="acme/alice"))
    assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND


async def test_who_can_be_let_in_again_is_not_revoked(
    api: AdminApi, store: Store, revoker: RecordingRevoker
) -> None:
    await api.create_organization("acme")
    await create_user(api, "acme/alice")

    await api.users.UpdateUser(
        user_pb.UpdateUserRequest(
            user=user_pb.User(name="acme/alice", suspended=True), update_mask=mask("suspended")
        )
    )
    await api.organizations.UpdateOrganization(
        pb.UpdateOrganizationRequest(
            organization=pb.Organization(name="acme", paused=True), update_mask=mask("paused")
        )
    )

    assert revoker.calls == []
    async with store.reading() as session:
        assert (await session.exec(select(RevocationRow))).all() == []
