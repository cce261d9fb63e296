"""The payload of each row that travels by itself, and of the rules that travel inside their router."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import devices_pb2, limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.domain.kinds import Kind
from controlplane.store import tables

_SINCE_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


def plain_message(kind: Kind, row: tables.ConfigurationRow) -> Message:
    """Return what travels of a row that is a resource of its own and is not composed of others.

    Raises:
        KeyError: A row of this kind does not travel by itself.
    """
    return _MESSAGES[kind](row)


def rule_message(row: tables.Rule) -> pb.Rule:
    """Return a line of a router."""
    return pb.Rule(
        id=row.id,
        priority=row.priority,
        provider_id=row.provider_id,
        models=row.models,
        condition=row.condition,
        weight=row.weight,
        aliases=row.aliases,
    )


def _service(row: tables.ServiceSettings) -> pb.Service:
    return pb.Service(
        max_replicas=row.max_replicas,
        default_user_limits=_limits(row.default_user_limits),
        upgrade_url=row.upgrade_url,
        support_url=row.support_url,
        paused=row.paused,
        default_global_limits=_limits(row.default_global_limits),
    )


def _organization(row: tables.Organization) -> pb.Organization:
    return pb.Organization(
        name=row.name,
        time_zone=row.time_zone,
        paused=row.paused,
        on_limits_unavailable=pb.LimitsUnavailablePolicy.ValueType(row.on_limits_unavailable),
        default_output_cap_tokens=row.default_output_cap_tokens,
    )


def _user(row: tables.User) -> pb.User:
    return pb.User(
        name=row.name,
        organization_id=row.organization_id,
        tier=row.tier,
        suspended=row.suspended,
    )


def _credential(row: tables.Credential) -> pb.Credential:
    return pb.Credential(
        name=row.name,
        provider_id=row.provider_id,
        version=row.version,
        fingerprint=row.fingerprint,
    )


def _subject_limits(row: tables.SubjectLimits) -> pb.SubjectLimits:
    return pb.SubjectLimits(
        subject_kind=limits_pb2.SubjectKind.ValueType(row.subject_kind),
        subject_id=row.subject_id,
        limits=_limits(row.limits),
        temporary_limits=_temporary_limits(row.temporary_limits),
        resets=[limits_pb2.CounterReset(**item) for item in row.resets],
    )


def _api_key(row: tables.ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        name=row.name,
        user_id=row.user_id,
        key_sha256=row.sha256,
        router_id=row.router_id,
        allowed_models=row.allowed_models,
        expires_at=_timestamp(row.expires_at) if row.expires_at else None,
        revoked=row.revoked,
        tier=row.tier,
    )


def _device(row: tables.Device) -> pb.Device:
    return pb.Device(
        name=row.name,
        token_sha256=row.token_sha256,
        status=devices_pb2.DeviceStatus.ValueType(row.status),
        user_id=row.user_id or "",
        router_id=row.router_id or "",
        allowed_models=row.allowed_models,
        tier=row.tier,
        suspended_until=_timestamp(row.suspended_until) if row.suspended_until else None,
        suspension_reason=row.suspension_reason,
    )


def _tier(row: tables.Tier) -> pb.Tier:
    return pb.Tier(
        name=row.name,
        device_limits=_limits(row.device_limits),
        ip_limits=_limits(row.ip_limits),
        user_limits=_limits(row.user_limits),
        credential_limits=_limits(row.credential_limits),
    )


def _price(row: tables.Price) -> pb.Price:
    return pb.Price(
        provider=row.provider,
        model=row.model,
        effective_from=(
            _timestamp(row.effective_from) if row.effective_from > _SINCE_ALWAYS else None
        ),
        rates=rates_pb2.Rates(
            input_nanousd_per_million=row.input_nanousd_per_million,
            output_nanousd_per_million=row.output_nanousd_per_million,
            cache_read_nanousd_per_million=row.cache_read_nanousd_per_million,
            cache_write_5m_nanousd_per_million=row.cache_write_5m_nanousd_per_million,
            cache_write_1h_nanousd_per_million=row.cache_write_1h_nanousd_per_million,
            request_nanousd=row.request_nanousd,
        ),
        free=row.free,
    )


def _limits(items: Iterable[dict[str, Any]]) -> list[limits_pb2.Limit]:  # Any: JSON
    return [limits_pb2.Limit(**item) for item in items]


def _temporary_limits(
    items: Iterable[dict[str, Any]],  # Any: JSON
) -> list[limits_pb2.TemporaryLimit]:
    """Return all of them, what has expired included: the same row gives the same bytes at any time."""
    return [
        limits_pb2.TemporaryLimit(
            limit=limits_pb2.Limit(**item["limit"]),
            until=_timestamp(datetime.fromisoformat(item["until"])),
        )
        for item in items
    ]


def _timestamp(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


_MESSAGES: Final[dict[Kind, Callable[[Any], Message]]] = {  # Any: each takes rows of its kind
    Kind.SERVICE: _service,
    Kind.ORGANIZATION: _organization,
    Kind.USER: _user,
    Kind.API_KEY: _api_key,
    Kind.CREDENTIAL: _credential,
    Kind.SUBJECT_LIMITS: _subject_limits,
    Kind.PRICE: _price,
    Kind.DEVICE: _device,
    Kind.TIER: _tier,
}
