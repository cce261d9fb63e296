"""Large configurations, as a control plane would send them, and what is done with them."""

from collections.abc import Iterable, Iterator, Mapping

from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compile import Compiled, Compiler
from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.domain.digest import resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position
from tests.control.configurations import price, resource, sha256_of, subject_limits

USERS_AN_ORGANIZATION = 100
PROVIDERS = 10
ROUTERS = 10
# One user in so many has limits of its own.
USERS_A_LIMIT = 100
EPOCH = "epoch-1"


def large_configuration(keys: int) -> Iterator[pb.Resource]:
    """Yield a valid configuration of `keys` users with one key each, beginning with what is shared.

    Organizations have 100 users each, 1 % of users have limits, and 10 routers lead to 10 providers
    with a credential each.
    """
    yield resource(pb.RESOURCE_KIND_SERVICE, "service", pb.Service(max_replicas=3))
    yield price()
    for number in range(PROVIDERS):
        yield from provider_with_credential(number)
    for number in range(ROUTERS):
        yield router(number)
    for number in range(-(-keys // USERS_AN_ORGANIZATION)):
        message = pb.Organization(name=f"organization-{number}", time_zone="Europe/Paris")
        yield resource(pb.RESOURCE_KIND_ORGANIZATION, organization_id(number), message)
    for number in range(keys):
        yield user(number)
    for number in range(keys):
        yield api_key(number)
    for number in range(0, keys, USERS_A_LIMIT):
        yield limits_of_user(number)


def large_secrets() -> dict[str, RawSecret]:
    """Return the secrets of all credentials of a large configuration."""
    return {
        f"c{number}": RawSecret(f"c{number}", 1, Secret(f"sk-secret-of-{number}".encode()))
        for number in range(PROVIDERS)
    }


def organization_id(number: int) -> str:
    """Return the id of an organization."""
    return f"o{number:011d}"


def user_id(number: int) -> str:
    """Return the id of a user."""
    return f"u{number:011d}"


def provider_with_credential(number: int) -> Iterator[pb.Resource]:
    """Yield a provider and its credential."""
    credential = pb.Credential(name=f"provider-{number}/main", provider_id=f"p{number}", version=1)
    yield resource(pb.RESOURCE_KIND_CREDENTIAL, f"c{number}", credential)
    endpoint = pb.Endpoint(dialect=pb.DIALECT_OPENAI, base_url=f"https://p{number}.example/v1")
    message = pb.Provider(
        name=f"provider-{number}",
        kind="openai",
        endpoints=[endpoint],
        credential_ids=[f"c{number}"],
    )
    yield resource(pb.RESOURCE_KIND_PROVIDER, f"p{number}", message)


def router(number: int, revision: int = 1, **fields: object) -> pb.Resource:
    """Return a router to the provider of the same number, and to all for `gpt-*`."""
    rules = [
        pb.Rule(id=f"r{number}-{each}", priority=each, provider_id=f"p{each}", models=["gpt-*"])
        for each in range(PROVIDERS)
    ]
    rules.append(pb.Rule(id=f"r{number}-any", priority=99, provider_id=f"p{number}", models=["*"]))
    message = pb.Router(name=f"router-{number}", rules=rules)
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_ROUTER, f"r{number}", message, revision)


def user(number: int, revision: int = 1, **fields: object) -> pb.Resource:
    """Return a user of the organization of its hundred."""
    of = organization_id(number // USERS_AN_ORGANIZATION)
    message = pb.User(name=f"organization/user-{number}", organization_id=of)
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_USER, user_id(number), message, revision)


def api_key(number: int, revision: int = 1, **fields: object) -> pb.Resource:
    """Return the key of a user, found by `sha256_of(number)`."""
    message = pb.ApiKey(
        name=f"organization/user-{number}/laptop",
        user_id=user_id(number),
        key_sha256=sha256_of(number),
        router_id=f"r{number % ROUTERS}",
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_API_KEY, f"k{number:011d}", message, revision)


def limits_of_user(number: int, capacity: int = 1_000) -> pb.Resource:
    """Return limits of a user: so many requests, and a budget, a day."""
    limits = [
        limits_pb2.Limit(
            unit=limits_pb2.LIMIT_UNIT_REQUESTS,
            window=limits_pb2.LIMIT_WINDOW_DAY,
            capacity=capacity,
        ),
        limits_pb2.Limit(
            unit=limits_pb2.LIMIT_UNIT_SPEND,
            window=limits_pb2.LIMIT_WINDOW_DAY,
            capacity=capacity * 1_000_000,
        ),
    ]
    return subject_limits(f"user:{user_id(number)}", limits)


def raw(resources: Iterable[pb.Resource]) -> dict[Key, RawResource]:
    """Return resources as a node holds them; of those of one kind and id the last."""
    return {
        (each.kind, each.id): RawResource(each.kind, each.id, each.revision, each.payload)
        for each in resources
    }


def change_of(
    put: Mapping[Key, RawResource],
    removed: Iterable[Key] = (),
    secrets: Mapping[str, RawSecret] | None = None,
    dropped_secrets: Iterable[str] = (),
    *,
    revision: int = 1,
    is_everything: bool = False,
) -> Change:
    """Return a change that brings the content to `revision`; its digest is not worked out."""
    return Change(
        position=Position(EPOCH, revision, bytes(32)),
        put=put,
        removed=frozenset(removed),
        secrets=secrets or {},
        dropped_secrets=frozenset(dropped_secrets),
        hashes={
            key: resource_hash(each.kind, each.resource_id, each.revision, each.payload)
            for key, each in put.items()
        },
        is_everything=is_everything,
    )


async def compiled_at_once(
    resources: Mapping[Key, RawResource],
    secrets: Mapping[str, RawSecret] | None = None,
    applied_at_ms: int = 1_000,
) -> Compiled:
    """Return what a whole configuration is compiled to.

    Raises:
        InvalidConfigurationError: It cannot be served.
    """
    change = change_of(resources, secrets=secrets, is_everything=True)
    return await Compiler().compile(Holdings(), change, applied_at_ms)
