import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from sqlalchemy import make_url
from sqlmodel import col, select
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import credential_service_pb2 as credential_pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.kinds import Kind
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.store.changes import changes_since
from controlplane.store.database import Store
from controlplane.store.tables import ApiKey, AuditEntry, Credential, IdempotentAnswer
from tests.rpc.admin_api import MASTER_KEY, AdminApi, RecordingRevoker, mask, refused

SECRET = "sk-provider-secret-9f8e7d6c5b4a"


async def create_provider(
    api: AdminApi, name: str, kind: str = "openai", **fields: object
) -> provider_pb.Provider:
    return await api.providers.CreateProvider(
        provider_pb.CreateProviderRequest(
            provider=provider_pb.Provider(name=name, kind=kind, **fields)  # type: ignore[arg-type]  # fields by name
        )
    )


async def create_router(api: AdminApi, name: str) -> router_pb.Router:
    return await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name=name))
    )


async def create_rule(
    api: AdminApi, router: str, provider: str, **fields: object
) -> router_pb.Rule:
    return await api.routers.CreateRule(
        router_pb.CreateRuleRequest(
            router=router,
            rule=router_pb.Rule(provider=provider, models=["*"], **fields),  # type: ignore[arg-type]  # fields by name
        )
    )


async def create_key(
    api: AdminApi, name: str, router: str = "default", **fields: object
) -> key_pb.CreateApiKeyResponse:
    return await api.api_keys.CreateApiKey(
        key_pb.CreateApiKeyRequest(api_key=key_pb.ApiKey(name=name, router=router, **fields))  # type: ignore[arg-type]  # fields by name
    )


@pytest.fixture
async def alice(api: AdminApi) -> user_pb.User:
    """A user `acme/alice`, and a shared router `default`."""
    await api.create_organization("acme")
    await create_router(api, "default")
    return await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"))
    )


@pytest.mark.usefixtures("alice")
async def test_a_key_is_shown_once_and_kept_as_its_digest(api: AdminApi, store: Store) -> None:
    created = await create_key(api, "acme/alice/laptop", test=True)

    assert re.fullmatch(rf"tk_test_{created.key.id}_[0-9A-Za-z]{{49}}", created.api_key)
    assert created.key.display == f"tk_test_{created.key.id[:6]}…"
    async with store.reading() as session:
        row = (await session.exec(select(ApiKey))).one()
    assert row.sha256 == hashlib.sha256(created.api_key.encode()).digest()
    shown = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/laptop"))
    assert shown == created.key


@pytest.mark.usefixtures("alice")
async def test_a_repeated_creation_answers_with_the_key_and_without_its_text(
    api: AdminApi, store: Store
) -> None:
    request = key_pb.CreateApiKeyRequest(
        api_key=key_pb.ApiKey(name="acme/alice/laptop", router="default"), request_id="once"
    )
    first = await api.api_keys.CreateApiKey(request)
    second = await api.api_keys.CreateApiKey(request)

    assert first.api_key
    assert second.key == first.key
    assert second.api_key == ""
    async with store.reading() as session:
        kept = (await session.exec(select(IdempotentAnswer))).one()
    assert first.api_key.encode() not in kept.response


@pytest.mark.usefixtures("alice")
async def test_a_dry_run_shows_no_key(api: AdminApi) -> None:
    answer = await api.api_keys.CreateApiKey(
        key_pb.CreateApiKeyRequest(
            api_key=key_pb.ApiKey(name="acme/alice/laptop", router="default"), validate_only=True
        )
    )

    assert answer.key.name == "acme/alice/laptop"
    assert answer.api_key == ""


@pytest.mark.usefixtures("alice")
async def test_a_bare_router_means_the_organizations_own_before_the_shared_one(
    api: AdminApi,
) -> None:
    before = await create_key(api, "acme/alice/a")
    await create_router(api, "acme/default")
    after = await create_key(api, "acme/alice/b")

    assert (before.key.router, after.key.router) == ("default", "acme/default")
    shown = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/a"))
    assert shown.router == "default"


@pytest.mark.usefixtures("alice")
async def test_nothing_of_another_organization_can_be_referred_to(api: AdminApi) -> None:
    await api.create_organization("other")
    await create_router(api, "other/r")
    await create_provider(api, "other/up")
    await create_router(api, "acme/r")

    refusal = await refused(create_key(api, "acme/alice/k", "other/r"))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no router other/r here",
    )
    for router in ("acme/r", "default"):
        refusal = await refused(create_rule(api, router, "other/up"))
        assert refusal.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.usefixtures("alice")
async def test_a_key_is_changed_and_cannot_expire_in_the_past(api: AdminApi) -> None:
    await create_router(api, "acme/r")
    await create_key(api, "acme/alice/k")
    request = key_pb.UpdateApiKeyRequest(
        api_key=key_pb.ApiKey(name="acme/alice/k", router="r", allowed_models=["gpt-*"]),
        update_mask=mask("router", "allowed_models", "expires_at"),
    )
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
    request.api_key.expires_at.FromDatetime(soon)

    changed = await api.api_keys.UpdateApiKey(request)

    assert (changed.router, list(changed.allowed_models)) == ("acme/r", ["gpt-*"])
    assert changed.expires_at.ToDatetime(tzinfo=UTC) == soon
    request.api_key.expires_at.FromDatetime(soon - timedelta(days=91))
    assert (await refused(api.api_keys.UpdateApiKey(request))).fields == ["api_key.expires_at"]


@pytest.mark.usefixtures("alice")
async def test_a_revocation_answers_with_a_receipt_and_stays(
    api: AdminApi, revoker: RecordingRevoker
) -> None:
    created = await create_key(api, "acme/alice/k")
    request = key_pb.RevokeApiKeyRequest(
        name="acme/alice/k", wait_ms=1500, terminate_streams=True, request_id="r"
    )

    receipts = [await api.api_keys.RevokeApiKey(request) for _ in range(2)]

    assert [applied.node for applied in receipts[0].applied] == ["node-1"]
    assert list(receipts[0].missing) == ["node-2"]
    assert receipts[0].revision == created.key.revision + 1
    assert receipts[0] == receipts[1]
    assert revoker.calls[0] == (
        resources_pb2.RESOURCE_KIND_API_KEY,
        created.key.id,
        receipts[0].revision,
        True,
        1500,
    )
    shown = await api.api_keys.GetApiKey(key_pb.GetApiKeyRequest(name="acme/alice/k"))
    assert shown.revoked


@pytest.mark.usefixtures("alice")
async def test_keys_are_listed_by_organization_and_by_user(api: AdminApi) -> None:
    await api.create_organization("acme-2")
    for user in ("acme/bob", "acme-2/eve"):
        await api.users.CreateUser(user_pb.CreateUserRequest(user=user_pb.User(name=user)))
    for name in ("acme/alice/k", "acme/bob/k", "acme-2/eve/k"):
        await create_key(api, name)

    async def listed(**fields: str) -> list[str]:
        answer = await api.api_keys.ListApiKeys(key_pb.ListApiKeysRequest(**fields))  # type: ignore[arg-type]  # fields by name
        return [key.name for key in answer.api_keys]

    assert await listed(organization="acme") == ["acme/alice/k", "acme/bob/k"]
    assert await listed(user="acme/bob") == ["acme/bob/k"]
    assert await listed() == ["acme-2/eve/k", "acme/alice/k", "acme/bob/k"]


async def test_a_router_in_use_is_deleted_only_by_force(
    api: AdminApi, alice: user_pb.User, revoker: RecordingRevoker
) -> None:
    key = (await create_key(api, "acme/alice/k")).key
    assert alice.name == "acme/alice"

    refusal = await refused(api.routers.DeleteRouter(router_pb.DeleteRouterRequest(name="default")))
    result = await api.routers.DeleteRouter(
        router_pb.DeleteRouterRequest(name="default", force=True)
    )

    assert refusal.referrers == ["key acme/alice/k"]
    assert list(result.also_deleted) == ["key acme/alice/k"]
    assert revoker.subjects == [key.id]


async def test_a_provider_gets_the_public_endpoints_of_its_kind(api: AdminApi) -> None:
    shared = await create_provider(api, "do", kind="digitalocean")
    assert [(end.dialect, end.base_url) for end in shared.endpoints] == [
        (resources_pb2.DIALECT_OPENAI, "https://inference.do-ai.run/v1"),
        (resources_pb2.DIALECT_ANTHROPIC, "https://inference.do-ai.run"),
    ]

    refusal = await refused(create_provider(api, "own", kind="openai_compatible"))
    assert refusal.fields == ["provider.endpoints"]


async def test_an_update_of_one_field_asks_nothing_of_the_others(api: AdminApi) -> None:
    await create_provider(api, "up")
    changed = await api.providers.UpdateProvider(
        provider_pb.UpdateProviderRequest(
            provider=provider_pb.Provider(
                name="up",
                endpoints=[
                    resources_pb2.Endpoint(
                        dialect=resources_pb2.DIALECT_OPENAI, base_url="http://127.0.0.1:9/v1/"
                    )
                ],
            ),
            update_mask=mask("endpoints"),
        )
    )

    assert changed.kind == "openai"
    assert changed.endpoints[0].base_url == "http://127.0.0.1:9/v1"


async def test_rules_stand_in_the_order_in_which_they_are_tried(
    api: AdminApi, store: Store
) -> None:
    await api.create_organization("acme")
    await create_provider(api, "up")
    await create_provider(api, "acme/up", kind="anthropic")
    router = await create_router(api, "acme/r")
    last = await create_rule(api, "acme/r", "up", priority=5, aliases={"fast": "gpt-4o-mini"})
    first = await create_rule(api, "acme/r", "acme/up", priority=1, weight=3)

    shown = await api.routers.GetRouter(router_pb.GetRouterRequest(name="acme/r"))

    assert [(rule.id, rule.provider) for rule in shown.rules] == [
        (first.id, "acme/up"),
        (last.id, "acme/up"),
    ]
    assert dict(shown.rules[1].aliases) == {"fast": "gpt-4o-mini"}
    assert shown.revision == first.revision > router.revision
    async with store.reading() as session:
        changes = await changes_since(session, last.revision)
    assert [row.id for row in changes.rows[Kind.ROUTER]] == [router.id]
    assert [row.id for row in changes.rows[Kind.RULE]] == [first.id]


async def test_a_changed_or_removed_rule_changes_its_router(api: AdminApi) -> None:
    await create_provider(api, "up")
    await create_provider(api, "up-2")
    await create_router(api, "r")
    rule = await create_rule(api, "r", "up")

    changed = await api.routers.UpdateRule(
        router_pb.UpdateRuleRequest(
            rule=router_pb.Rule(id=rule.id, provider="up-2", priority=9),
            update_mask=mask("provider", "priority"),
        )
    )
    shown = await api.routers.GetRouter(router_pb.GetRouterRequest(name="r"))
    result = await api.routers.DeleteRule(router_pb.DeleteRuleRequest(id=rule.id))
    after = await api.routers.GetRouter(router_pb.GetRouterRequest(name="r"))

    assert (changed.provider, changed.priority, list(changed.models)) == ("up-2", 9, ["*"])
    assert shown.rules[0] == changed
    assert shown.revision == changed.revision == rule.revision + 1
    assert after.revision == result.revision == changed.revision + 1
    assert list(after.rules) == []


async def test_a_condition_is_refused_until_there_are_expressions(api: AdminApi) -> None:
    await create_provider(api, "up")
    await create_router(api, "r")

    refusal = await refused(create_rule(api, "r", "up", condition="model == 'x'"))

    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["rule.condition"],
    )


async def test_a_provider_in_use_is_deleted_only_by_force(api: AdminApi) -> None:
    await create_provider(api, "up")
    await create_router(api, "r")
    rule = await create_rule(api, "r", "up")
    await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name="up/main"), secret=SECRET
        )
    )
    label = f"rule {rule.id} of router r"

    refusal = await refused(
        api.providers.DeleteProvider(provider_pb.DeleteProviderRequest(name="up"))
    )
    result = await api.providers.DeleteProvider(
        provider_pb.DeleteProviderRequest(name="up", force=True)
    )

    assert refusal.referrers == ["credential up/main", label]
    assert list(result.also_deleted) == ["credential up/main", label]
    router = await api.routers.GetRouter(router_pb.GetRouterRequest(name="r"))
    assert list(router.rules) == []
    assert router.revision == result.revision


async def test_a_secret_goes_in_and_rests_sealed(
    api: AdminApi, store: Store, database_url: str
) -> None:
    provider = await create_provider(api, "up")
    created = await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name="up/main"), secret=SECRET, request_id="r"
        )
    )

    async with store.reading() as session:
        row = (await session.exec(select(Credential))).one()
        entries = (await session.exec(select(AuditEntry).order_by(col(AuditEntry.id)))).all()
    assert created.fingerprint == hashlib.sha256(SECRET.encode()).hexdigest()[:16]
    assert SECRET.encode() not in row.sealed_secret
    opened = Sealer([MasterKey(MASTER_KEY)]).open(row.id, 1, row.sealed_secret)
    assert opened.reveal() == SECRET.encode()
    assert SECRET not in str([entry.request for entry in entries])
    assert entries[-1].request["secret"] == "[redacted]"
    shown = await api.providers.GetProvider(provider_pb.GetProviderRequest(name="up"))
    assert shown.revision == created.revision > provider.revision
    if store.engine.dialect.name == "sqlite":
        path = Path(make_url(database_url).database or "")
        for file in path.parent.glob(f"{path.name}*"):
            assert SECRET.encode() not in file.read_bytes()


async def test_a_rotated_secret_has_a_new_version(api: AdminApi, store: Store) -> None:
    await create_provider(api, "up")
    created = await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name="up/main"), secret=SECRET
        )
    )

    rotated = await api.credentials.RotateCredential(
        credential_pb.RotateCredentialRequest(name="up/main", secret="another-secret")
    )

    assert (created.version, rotated.version) == (1, 2)
    async with store.reading() as session:
        row = (await session.exec(select(Credential))).one()
    opened = Sealer([MasterKey(MASTER_KEY)]).open(row.id, 2, row.sealed_secret)
    assert opened.reveal() == b"another-secret"


async def test_a_secret_that_breaks_a_rule_is_not_repeated_in_the_refusal(api: AdminApi) -> None:
    await create_provider(api, "up")
    refusal = await refused(
        api.credentials.CreateCredential(
            credential_pb.CreateCredentialRequest(
                credential=credential_pb.Credential(name="up/main"), secret="two words"
            )
        )
    )

    assert refusal.fields == ["secret"]
    assert "two words" not in refusal.message


async def test_an_organization_is_deleted_by_force_with_all_that_it_owns(
    api: AdminApi, alice: user_pb.User, store: Store
) -> None:
    await create_provider(api, "acme/up")
    await api.credentials.CreateCredential(
        credential_pb.CreateCredentialRequest(
            credential=credential_pb.Credential(name="acme/up/main"), secret=SECRET
        )
    )
    await create_router(api, "acme/r")
    await create_rule(api, "acme/r", "up")
    key = (await create_key(api, "acme/alice/k", "acme/r")).key

    result = await api.organizations.DeleteOrganization(
        organization_pb.DeleteOrganizationRequest(name="acme", force=True)
    )

    async with store.reading() as session:
        changes = await changes_since(session, result.revision - 1)
    gone = {(stone.kind, stone.id) for stone in changes.tombstones}
    assert {("user", alice.id), ("api_key", key.id)} <= gone
    assert {stone.revision for stone in changes.tombstones} == {result.revision}
    assert len(result.also_deleted) == len(gone) - 1 == 6
