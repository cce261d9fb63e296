"""From rows to resources: the same rows give the same bytes, on every control plane.

Rules have no resource of their own, they travel inside their router; credentials are resources,
and their provider lists them. So the builder remembers routers, rules, providers and credentials,
and makes the whole again when a part of it changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.domain.kinds import Kind
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.snapshot import SealedSecret
from controlplane.store import tables
from controlplane.store.changes import Changes

RESOURCE_KINDS: Final = {
    Kind.SERVICE: pb.RESOURCE_KIND_SERVICE,
    Kind.ORGANIZATION: pb.RESOURCE_KIND_ORGANIZATION,
    Kind.USER: pb.RESOURCE_KIND_USER,
    Kind.API_KEY: pb.RESOURCE_KIND_API_KEY,
    Kind.PROVIDER: pb.RESOURCE_KIND_PROVIDER,
    Kind.CREDENTIAL: pb.RESOURCE_KIND_CREDENTIAL,
    Kind.ROUTER: pb.RESOURCE_KIND_ROUTER,
    Kind.SUBJECT_LIMITS: pb.RESOURCE_KIND_SUBJECT_LIMITS,
    Kind.PRICE: pb.RESOURCE_KIND_PRICE,
}
"""The kinds that travel. Rules travel inside routers, administrators not at all."""

_SINCE_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Built:
    """A resource that is new or changed, with the secret that belongs to it, if it is a credential."""

    key: ResourceKey
    resource: pb.Resource
    secret: SealedSecret | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """A resource that was deleted by the change of `revision`."""

    key: ResourceKey
    revision: int


class ResourceBuilder:
    """Turns changes into resources, and remembers what resources are composed of."""

    def __init__(self) -> None:
        self._routers: dict[str, tables.Router] = {}
        self._rules: dict[str, dict[str, pb.Rule]] = {}
        self._router_of_rule: dict[str, str] = {}
        self._providers: dict[str, tables.Provider] = {}
        self._credentials: dict[str, dict[str, datetime]] = {}
        self._provider_of_credential: dict[str, str] = {}

    def build(self, changes: Changes) -> Iterator[Built | Gone]:
        """Yield what `changes` make of the resources; all of it must be taken, in this order."""
        touched = {self._forget(stone) for stone in changes.tombstones}
        for kind in RESOURCE_KINDS.keys() | {Kind.RULE}:
            touched |= {self._remember(row) for row in changes.rows[kind]}

        for stone in changes.tombstones:
            resource_kind = RESOURCE_KINDS.get(Kind(stone.kind))
            if resource_kind is not None:
                yield Gone(ResourceKey(resource_kind, stone.id), stone.revision)
        for kind in RESOURCE_KINDS:
            if kind not in (Kind.ROUTER, Kind.PROVIDER):
                yield from map(self._built, changes.rows[kind])
        for router_id in sorted(self._routers.keys() & touched):
            yield self._built(self._routers[router_id])
        for provider_id in sorted(self._providers.keys() & touched):
            yield self._built(self._providers[provider_id])

    def _remember(self, row: tables.ConfigurationRow) -> str:
        """Note a part or a whole of something composed; return the whole's id."""
        match row:
            case tables.Rule():
                self._rules.setdefault(row.router_id, {})[row.id] = _rule(row)
                self._router_of_rule[row.id] = row.router_id
                return row.router_id
            case tables.Credential():
                self._credentials.setdefault(row.provider_id, {})[row.id] = row.created_at
                self._provider_of_credential[row.id] = row.provider_id
                return row.provider_id
            case tables.Router():
                self._routers[row.id] = row
            case tables.Provider():
                self._providers[row.id] = row
        return row.id

    def _forget(self, stone: tables.Tombstone) -> str:
        """Drop a part or a whole of something composed; return the whole's id."""
        match stone.kind:
            case Kind.RULE:
                router_id = self._router_of_rule.pop(stone.id, "")
                self._rules.get(router_id, {}).pop(stone.id, None)
                return router_id
            case Kind.CREDENTIAL:
                provider_id = self._provider_of_credential.pop(stone.id, "")
                self._credentials.get(provider_id, {}).pop(stone.id, None)
                return provider_id
            case Kind.ROUTER:
                self._routers.pop(stone.id, None)
                self._rules.pop(stone.id, None)
            case Kind.PROVIDER:
                self._providers.pop(stone.id, None)
                self._credentials.pop(stone.id, None)
        return stone.id

    def _built(self, row: tables.ConfigurationRow) -> Built:
        kind = RESOURCE_KINDS[row.KIND]
        resource = pb.Resource(
            kind=kind,
            id=row.id,
            revision=row.revision,
            # Deterministic: maps have no order of their own, and the bytes are hashed.
            payload=self._message(row).SerializeToString(deterministic=True),
        )
        secret = None
        if isinstance(row, tables.Credential):
            secret = SealedSecret(row.id, row.version, row.sealed_secret)
        return Built(ResourceKey(kind, row.id), resource, secret)

    def _message(self, row: tables.ConfigurationRow) -> Message:
        match row:
            case tables.Router():
                return self._router(row)
            case tables.Provider():
                return self._provider(row)
            case _:
                return _plain_message(row)

    def _router(self, row: tables.Router) -> pb.Router:
        rules = self._rules.get(row.id, {}).values()
        return pb.Router(
            name=row.name,
            organization_id=row.organization_id or "",
            rules=sorted(rules, key=lambda rule: (rule.priority, rule.id)),
            gateway_metadata=row.gateway_metadata,
        )

    def _provider(self, row: tables.Provider) -> pb.Provider:
        created_at = self._credentials.get(row.id, {})
        return pb.Provider(
            name=row.name,
            organization_id=row.organization_id or "",
            kind=row.provider_kind,
            endpoints=[pb.Endpoint(**endpoint) for endpoint in row.endpoints],
            quirks=row.quirks,
            credential_ids=sorted(created_at, key=lambda each: (created_at[each], each)),
        )


def _plain_message(row: tables.ConfigurationRow) -> Message:
    match row:
        case tables.ServiceSettings():
            return _service(row)
        case tables.Organization():
            return pb.Organization(
                name=row.name,
                time_zone=row.time_zone,
                paused=row.paused,
                on_limits_unavailable=pb.LimitsUnavailablePolicy.ValueType(
                    row.on_limits_unavailable
                ),
                default_output_cap_tokens=row.default_output_cap_tokens,
            )
        case tables.User():
            return pb.User(
                name=row.name,
                organization_id=row.organization_id,
                tier=row.tier,
                suspended=row.suspended,
            )
        case tables.ApiKey():
            return _api_key(row)
        case tables.Credential():
            return pb.Credential(
                name=row.name,
                provider_id=row.provider_id,
                version=row.version,
                fingerprint=row.fingerprint,
            )
        case tables.SubjectLimits():
            return pb.SubjectLimits(
                subject_kind=limits_pb2.SubjectKind.ValueType(row.subject_kind),
                subject_id=row.subject_id,
                limits=[limits_pb2.Limit(**limit) for limit in row.limits],
            )
        case tables.Price():
            return _price(row)
        case _:
            raise TypeError(f"{row.KIND} has no resource")


def _service(row: tables.ServiceSettings) -> pb.Service:
    return pb.Service(
        max_replicas=row.max_replicas,
        default_user_limits=[limits_pb2.Limit(**limit) for limit in row.default_user_limits],
        upgrade_url=row.upgrade_url,
        support_url=row.support_url,
        paused=row.paused,
        default_global_limits=[limits_pb2.Limit(**limit) for limit in row.default_global_limits],
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


def _rule(row: tables.Rule) -> pb.Rule:
    return pb.Rule(
        id=row.id,
        priority=row.priority,
        provider_id=row.provider_id,
        models=row.models,
        condition=row.condition,
        weight=row.weight,
        aliases=row.aliases,
    )


def _timestamp(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp
