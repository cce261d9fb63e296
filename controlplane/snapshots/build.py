"""From rows to resources: the same rows give the same bytes, on every control plane.

Rules have no resource of their own, they travel inside their router; credentials are resources,
and their provider lists them. So the builder remembers routers, rules, providers and credentials,
and makes the whole again when a part of it changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.message import Message
from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.domain.kinds import Kind
from controlplane.snapshots.opening import SealedSecret
from controlplane.snapshots.payloads import plain_message, rule_message
from controlplane.snapshots.references import ResourceKey, references_in
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
    Kind.DEVICE: pb.RESOURCE_KIND_DEVICE,
    Kind.TIER: pb.RESOURCE_KIND_TIER,
}
"""The kinds that travel. Rules travel inside routers, administrators not at all."""

# A newer control plane on the same database may delete what this one does not know.
_RESOURCE_KINDS_BY_WORD: Final = {str(kind): number for kind, number in RESOURCE_KINDS.items()}

_COMPOSED: Final = (Kind.ROUTER, Kind.RULE, Kind.PROVIDER, Kind.CREDENTIAL)


@dataclass(frozen=True, slots=True)
class Built:
    """A resource that is new or changed, with the secret that belongs to it, if it is a credential."""

    key: ResourceKey
    resource: pb.Resource
    references: tuple[ResourceKey, ...]
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
        for kind in _COMPOSED:
            touched |= {self._remember(row) for row in changes.rows[kind]}

        for stone in changes.tombstones:
            resource_kind = _RESOURCE_KINDS_BY_WORD.get(stone.kind)
            if resource_kind is not None:
                yield Gone(ResourceKey(resource_kind, stone.id), stone.revision)
        for kind in RESOURCE_KINDS:
            if kind not in (Kind.ROUTER, Kind.PROVIDER):
                for row in changes.rows[kind]:
                    yield self._built(kind, row)
        for router_id in sorted(self._routers.keys() & touched):
            yield self._built(Kind.ROUTER, self._routers[router_id])
        for provider_id in sorted(self._providers.keys() & touched):
            yield self._built(Kind.PROVIDER, self._providers[provider_id])

    def _remember(self, row: tables.ConfigurationRow) -> str:
        """Note a part or a whole of something composed; return the whole's id."""
        match row:
            case tables.Rule():
                self._rules.setdefault(row.router_id, {})[row.id] = rule_message(row)
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

    def _built(self, kind: Kind, row: tables.ConfigurationRow) -> Built:
        number, message = RESOURCE_KINDS[kind], self._message(kind, row)
        resource = pb.Resource(
            kind=number,
            id=row.id,
            revision=row.revision,
            # Deterministic: maps have no order of their own, and the bytes are hashed.
            payload=message.SerializeToString(deterministic=True),
        )
        secret = None
        if isinstance(row, tables.Credential):
            secret = SealedSecret(row.id, row.version, row.sealed_secret)
        return Built(ResourceKey(number, row.id), resource, references_in(message), secret)

    def _message(self, kind: Kind, row: tables.ConfigurationRow) -> Message:
        match row:
            case tables.Router():
                return self._router(row)
            case tables.Provider():
                return self._provider(row)
            case _:
                return plain_message(kind, row)

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
