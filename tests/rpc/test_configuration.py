import grpc
import pytest
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import configuration_service_pb2 as pb
from tollkeeper.admin.v1 import credential_service_pb2 as credential_pb
from tollkeeper.admin.v1 import limit_service_pb2 as limit_pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2

from tests.rpc.admin_api import AdminApi, RecordingRevoker, mask, refused

DAILY = limits_pb2.Limit(
    unit=limits_pb2.LIMIT_UNIT_REQUESTS, window=limits_pb2.LIMIT_WINDOW_DAY, capacity=1
)
SECRET = "sk-the-secret-of-a-provider"


async def newest(api: AdminApi) -> int:
    answer = await api.configuration.ListRevisions(pb.ListRevisionsRequest(page_size=1))
    return answer.revisions[0].revision


async def diff(api: AdminApi, start: int, end: int = 0) -> dict[str, pb.RowDifference]:
    answer = await api.configuration.DiffRevisions(
        pb.DiffRevisionsRequest(from_revision=start, to_revision=end)
    )
    return {f"{each.kind} {each.name}": each for each in answer.differences}


async def roll_back(
    api: AdminApi, revision: int, *, validate_only: bool = False, request_id: str = ""
) -> pb.RollbackConfigurationResponse:
    return await api.configuration.RollbackConfiguration(
        pb.RollbackConfigurationRequest(
            revision=revision, validate_only=validate_only, request_id=request_id
        )
    )


async def furnish(api: AdminApi) -> int:
    """Make an organization with everything; return the revision after it."""
    await api.create_organization("acme")
    await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice")))
    await create_provider(api, "acme/upstream")
    await create_router(api, "acme/main", "acme/upstream")
    await create_key(api, "acme/alice/laptop")
    return await newest(api)


async def create_provider(api: AdminApi, name: str) -> None:
    await api.providers.CreateProvider(
        provider_pb.CreateProviderRequest(provider=provider_pb.Provider(name=name, kind="openai"))
    )
    await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name=f"{name}/main"), secret=SECRET
        )
    )


async def create_router(api: AdminApi, name: str, provider: str) -> None:
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name=name))
    )
    await api.routers.CreateRule(
        router_pb.CreateRuleRequest(
            router=name, rule=router_pb.Rule(provider=provider, models=["*"])
        )
    )


async def create_key(api: AdminApi, name: str) -> None:
    await api.api_keys.CreateApiKey(
        key_pb.CreateApiKeyRequest(api_key=key_pb.ApiKey(name=name, router="acme/main"))
    )


async def revoke(api: AdminApi, name: str) -> None:
    await api.api_keys.RevokeApiKey(key_pb.RevokeApiKeyRequest(name=name))


async def test_history_says_who_changed_what_newest_first(api: AdminApi) -> None:
    await furnish(api)
    answer = await api.configuration.ListRevisions(pb.ListRevisionsRequest(page_size=2))
    assert [each.rpc for each in answer.revisions] == ["CreateApiKey", "CreateRule"]
    assert answer.revisions[0].resource == "acme/alice/laptop"
    assert answer.revisions[0].actor == "bootstrap"
    following = await api.configuration.ListRevisions(
        pb.ListRevisionsRequest(page_size=2, page_token=answer.next_page_token)
    )
    assert following.revisions[0].revision == answer.revisions[1].revision - 1


async def test_a_difference_names_what_changed_and_shows_no_secret(api: AdminApi) -> None:
    before = await furnish(api)
    await api.users.UpdateUser(
        user_pb.UpdateUserRequest(
            user=user_pb.User(name="acme/alice", email="alice@example.com"),
            update_mask=mask("email"),
        )
    )
    await api.credentials.RotateCredential(
        credential_pb.RotateCredentialRequest(name="acme/upstream/main", secret=SECRET + "-2")
    )
    found = await diff(api, before)
    (email,) = found["user acme/alice"].fields
    assert (email.field, email.before, email.after) == ("email", '""', '"alice@example.com"')
    fingerprint = {each.field: each for each in found["credential acme/upstream/main"].fields}
    assert fingerprint["fingerprint"].after == '"(not shown)"'
    assert "sealed_secret" not in fingerprint


async def test_the_way_back_restores_what_was_changed_made_and_deleted(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    before = await furnish(api)
    await api.routers.DeleteRouter(router_pb.DeleteRouterRequest(name="acme/main", force=True))
    await create_router(api, "acme/main", "acme/upstream")
    await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name="acme/bob")))
    await create_key(api, "acme/bob/phone")
    await api.limits.SetLimits(
        limit_pb.SetLimitsRequest(
            limits=limit_pb.SubjectLimits(subject="user:acme/alice", limits=[DAILY])
        )
    )
    answer = await roll_back(api, before)
    assert answer.revision == await newest(api)
    router = await api.routers.GetRouter(router_pb.GetRouterRequest(name="acme/main"))
    assert router.revision == answer.revision
    found = await diff(api, before)
    # The key went with its router, and does not come back.
    assert set(found) == {"api_key acme/alice/laptop"}
    assert [text.partition(": ")[2] for text in answer.skipped] == [
        "keys that were deleted do not come back: make a new one"
    ]
    refusal = await refused(api.users.GetUser(user_pb.GetUserRequest(name="acme/bob")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert revoker.calls, "the new user's key can no longer call"


async def test_a_revoked_key_stays_revoked_and_a_rotated_secret_rotated(api: AdminApi) -> None:
    before = await furnish(api)
    await revoke(api, "acme/alice/laptop")
    await api.credentials.RotateCredential(
        credential_pb.RotateCredentialRequest(name="acme/upstream/main", secret=SECRET + "-2")
    )
    answer = await roll_back(api, before)
    key = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/laptop"))
    credential = await api.credentials.GetCredential(
        credential_pb.GetCredentialRequest(name="acme/upstream/main")
    )
    assert key.revoked
    assert credential.version == 2
    assert [text.partition(": ")[2] for text in answer.skipped] == ["a revoked key stays revoked"]
    assert not answer.changes


async def test_whoever_is_shut_out_now_stays_so(api: AdminApi) -> None:
    before = await furnish(api)
    await api.users.UpdateUser(
        user_pb.UpdateUserRequest(
            user=user_pb.User(name="acme/alice", suspended=True, email="a@example.com"),
            update_mask=mask("suspended", "email"),
        )
    )
    await api.organizations.UpdateOrganization(
        organization_pb.UpdateOrganizationRequest(
            organization=organization_pb.Organization(name="acme", paused=True),
            update_mask=mask("paused"),
        )
    )
    answer = await roll_back(api, before)
    user = await api.users.GetUser(user_pb.GetUserRequest(name="acme/alice"))
    assert user.suspended
    assert user.email == ""
    assert len(answer.skipped) == 2


async def test_an_organization_that_was_deleted_comes_back_whole_but_for_its_doors(
    api: AdminApi,
) -> None:
    before = await furnish(api)
    await api.organizations.DeleteOrganization(
        organization_pb.DeleteOrganizationRequest(name="acme", force=True)
    )
    await roll_back(api, before)
    assert set(await diff(api, before)) == {
        "api_key acme/alice/laptop",
        "credential acme/upstream/main",
    }
    await create_key(api, "acme/alice/laptop")


async def test_a_name_that_somebody_else_took_goes_back(api: AdminApi) -> None:
    before = await furnish(api)
    first = await api.users.GetUser(user_pb.GetUserRequest(name="acme/alice"))
    await api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice", force=True))
    await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice")))
    await roll_back(api, before)
    assert (await api.users.GetUser(user_pb.GetUserRequest(name="acme/alice"))).id == first.id


async def test_a_dry_run_says_what_would_change_and_changes_nothing(api: AdminApi) -> None:
    before = await furnish(api)
    await create_key(api, "acme/alice/phone")
    after = await newest(api)
    answer = await roll_back(api, before, validate_only=True)
    assert [each.name for each in answer.changes] == ["acme/alice/phone"]
    assert await newest(api) == after


async def test_the_same_request_again_rolls_back_once(api: AdminApi) -> None:
    before = await furnish(api)
    await create_key(api, "acme/alice/phone")
    first = await roll_back(api, before, request_id="once")
    await create_key(api, "acme/alice/tablet")
    assert (await roll_back(api, before, request_id="once")).revision == first.revision
    await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/tablet"))


async def test_going_back_and_forth_ends_where_it_began(api: AdminApi) -> None:
    before = await furnish(api)
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="acme/second"))
    )
    after = await newest(api)
    await roll_back(api, before)
    await roll_back(api, after)
    assert await diff(api, after) == {}
    assert await newest(api) == after + 2


@pytest.mark.parametrize("revision", [10**6])
async def test_a_revision_that_is_not_kept_is_refused(api: AdminApi, revision: int) -> None:
    refusal = await refused(roll_back(api, revision))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    refusal = await refused(diff(api, revision))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
