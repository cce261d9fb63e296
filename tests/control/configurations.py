"""Small configurations, as a control plane would send them."""

from collections.abc import Iterable

from google.protobuf.message import Message
from tollkeeper.common.v1 import devices_pb2, limits_pb2, position_pb2, rates_pb2
from tollkeeper.config.v1 import config_service_pb2 as config_pb
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.domain.digest import digest_of, resource_hash

EPOCH = "epoch-1"


def resource(
    kind: pb.ResourceKind.ValueType | int, resource_id: str, message: Message, revision: int = 1
) -> pb.Resource:
    """Return `message` as it travels."""
    return pb.Resource(
        kind=kind,  # type: ignore[arg-type] # tests send kinds of newer control planes too
        id=resource_id,
        revision=revision,
        payload=message.SerializeToString(),
    )


def sha256_of(number: int) -> bytes:
    """Return the hash that key `number` is found by."""
    return number.to_bytes(32, "big")


def key(number: int, user_id: str = "alice", **fields: object) -> pb.Resource:
    """Return an API key of `user_id`."""
    message = pb.ApiKey(
        name=f"acme/alice/{number}",
        user_id=user_id,
        key_sha256=sha256_of(number),
        router_id="r1",
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_API_KEY, f"key{number:09d}", message)


def device(
    number: int, user_id: str = "alice", suspended_until_s: int = 0, **fields: object
) -> pb.Resource:
    """Return an approved device of `user_id`."""
    message = pb.Device(
        name=f"phone {number}",
        user_id=user_id,
        token_sha256=sha256_of(1_000 + number),
        router_id="r1",
        status=devices_pb2.DEVICE_STATUS_APPROVED,
    )
    for name, value in fields.items():
        setattr(message, name, value)
    if suspended_until_s:
        message.suspended_until.FromSeconds(suspended_until_s)
    return resource(pb.RESOURCE_KIND_DEVICE, f"device{number}", message)


def tier(**limits: Iterable[limits_pb2.Limit]) -> pb.Resource:
    """Return the tier `pro` with these lists of limits."""
    message = pb.Tier(name="pro")
    for name, given in limits.items():
        getattr(message, name).extend(given)
    return resource(pb.RESOURCE_KIND_TIER, "pro", message)


def limit(
    unit: limits_pb2.LimitUnit.ValueType | int = limits_pb2.LIMIT_UNIT_REQUESTS,
    window: limits_pb2.LimitWindow.ValueType | int = limits_pb2.LIMIT_WINDOW_DAY,
    capacity: int = 10,
    **fields: bool | int,
) -> limits_pb2.Limit:
    """Return one layer."""
    return limits_pb2.Limit(unit=unit, window=window, capacity=capacity, **fields)  # type: ignore[arg-type] # newer enum values too


def temporary(of: limits_pb2.Limit, until_ms: int = 5_000) -> limits_pb2.TemporaryLimit:
    """Return a limit that holds until then."""
    message = limits_pb2.TemporaryLimit(limit=of)
    message.until.FromMilliseconds(until_ms)
    return message


def subject_limits(
    resource_id: str,
    limits: Iterable[limits_pb2.Limit] = (),
    temporary_limits: Iterable[limits_pb2.TemporaryLimit] = (),
    resets: Iterable[limits_pb2.CounterReset] = (),
) -> pb.Resource:
    """Return the limits of `kind:id`, or of `global`."""
    kind, _, subject_id = resource_id.partition(":")
    message = pb.SubjectLimits(
        subject_kind=limits_pb2.SubjectKind.Value(f"SUBJECT_KIND_{kind.upper()}"),
        subject_id=subject_id,
        limits=limits,
        temporary_limits=temporary_limits,
        resets=resets,
    )
    return resource(pb.RESOURCE_KIND_SUBJECT_LIMITS, resource_id, message)


def provider(**fields: object) -> pb.Resource:
    """Return the provider `p1` with one credential."""
    message = pb.Provider(
        name="openai",
        kind="openai",
        endpoints=[
            pb.Endpoint(dialect=pb.DIALECT_OPENAI, base_url="https://api.openai.example/v1")
        ],
        credential_ids=["c1"],
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_PROVIDER, "p1", message)


def price(price_id: str = "price1", **fields: object) -> pb.Resource:
    """Return a price of gpt-4o without cached rates."""
    message = pb.Price(
        provider="openai",
        model="gpt-4o",
        rates=rates_pb2.Rates(
            input_nanousd_per_million=2_500_000_001, output_nanousd_per_million=10_000_000_000
        ),
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_PRICE, price_id, message, revision=7)


def configuration(keys: int = 1) -> list[pb.Resource]:
    """Return a whole, valid configuration with `keys` API keys."""
    return [
        resource(pb.RESOURCE_KIND_SERVICE, "service", pb.Service(max_replicas=0)),
        resource(
            pb.RESOURCE_KIND_ORGANIZATION,
            "acme",
            pb.Organization(name="acme", time_zone="Europe/Paris"),
        ),
        resource(
            pb.RESOURCE_KIND_USER, "alice", pb.User(name="acme/alice", organization_id="acme")
        ),
        resource(
            pb.RESOURCE_KIND_CREDENTIAL,
            "c1",
            pb.Credential(name="openai/main", provider_id="p1", version=3),
        ),
        provider(),
        resource(
            pb.RESOURCE_KIND_ROUTER,
            "r1",
            pb.Router(
                name="default",
                rules=[
                    pb.Rule(id="second", priority=2, provider_id="p1", models=["*"]),
                    pb.Rule(
                        id="first",
                        priority=1,
                        provider_id="p1",
                        models=["gpt-*"],
                        aliases={"smart": "gpt-4o"},
                    ),
                ],
            ),
        ),
        price(),
        *(key(number) for number in range(keys)),
    ]


def secret(version: int = 3) -> config_pb.SecretBundle:
    """Return the secret of the credential `c1`."""
    return config_pb.SecretBundle(credential_id="c1", version=version, secret=b"sk-upstream-secret")


def position_of(resources: Iterable[pb.Resource], revision: int = 1) -> position_pb2.Position:
    """Return the position whose content is `resources`."""
    hashes = (resource_hash(each.kind, each.id, each.revision, each.payload) for each in resources)
    return position_pb2.Position(config_epoch=EPOCH, revision=revision, digest=digest_of(hashes))
