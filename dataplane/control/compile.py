"""From the resources of a transfer to the snapshot that requests see, or the reasons why not.

Structural resources (service, organizations, tiers, providers, credentials, routers, limits) that
cannot be read, or that refer to nothing, refuse the whole transfer: half a routing table is worse than
yesterday's. Users, keys, devices and prices are leaves: a bad one is set aside, so that it denies, and the
answer names it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, RawSecret, UnusableResourceError
from dataplane.control.read_limits import read_limits
from dataplane.control.read_prices import read_price, unusable_price
from dataplane.control.read_principals import (
    read_device,
    read_key,
    read_organization,
    read_service,
    read_tier,
    read_user,
)
from dataplane.control.read_providers import read_credential, read_provider, read_router
from dataplane.domain.entitlements import Entitlements
from dataplane.domain.layer_bounds import LayerBounds
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import Principal, Service
from dataplane.domain.snapshot import Position, Snapshot

MAX_PROBLEMS: Final = 20
# The event loop is given back after this: a request in flight must not feel a new configuration.
_SLICE_SECONDS: Final = 0.003
M = TypeVar("M", bound=Message)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A leaf that was set aside."""

    kind: int
    resource_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A snapshot, and the leaves that are not in it."""

    snapshot: Snapshot
    quarantined: tuple[Quarantined, ...]


class InvalidConfigurationError(Exception):
    """The content cannot be served. `problems` says why, one line each, at most 20."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)[:MAX_PROBLEMS]
        super().__init__("; ".join(self.problems))


async def compile_snapshot(
    position: Position,
    resources: Iterable[RawResource],
    secrets: Mapping[str, RawSecret],
    applied_at_ms: int,
) -> Compiled:
    """Return the snapshot that `resources` describe.

    It is built beside the running one, in slices of a few milliseconds.

    Raises:
        InvalidConfigurationError: A structural resource is bad, or refers to nothing.
    """
    by_kind: dict[int, list[RawResource]] = {}
    for resource in resources:
        by_kind.setdefault(resource.kind, []).append(resource)
    return await _Compiler(position, by_kind, secrets, applied_at_ms).compile()


_MET_BY_CALLS: Final = (SubjectKind.IP, SubjectKind.ENDPOINT, SubjectKind.MODEL)


def _noun_of(kind: int) -> str:
    return pb.ResourceKind.Name(kind).removeprefix("RESOURCE_KIND_").lower()  # type: ignore[arg-type] # a known kind


@dataclass(slots=True)
class _Compiler:
    position: Position
    by_kind: Mapping[int, list[RawResource]]
    secrets: Mapping[str, RawSecret]
    applied_at_ms: int
    problems: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    _slice_ends: float = 0.0

    async def compile(self) -> Compiled:
        services = await self._structural(pb.RESOURCE_KIND_SERVICE, pb.Service, read_service)
        organizations = await self._structural(
            pb.RESOURCE_KIND_ORGANIZATION, pb.Organization, read_organization
        )
        provider_ids = {
            each.resource_id for each in self.by_kind.get(pb.RESOURCE_KIND_PROVIDER, ())
        }
        credentials = await self._structural(
            pb.RESOURCE_KIND_CREDENTIAL,
            pb.Credential,
            lambda each, message: read_credential(each, message, self.secrets, provider_ids),
        )
        providers = await self._structural(
            pb.RESOURCE_KIND_PROVIDER,
            pb.Provider,
            lambda each, message: read_provider(each, message, credentials),
        )
        routers = await self._structural(
            pb.RESOURCE_KIND_ROUTER,
            pb.Router,
            lambda each, message: read_router(each, message, providers),
        )
        limits = await self._structural(
            pb.RESOURCE_KIND_SUBJECT_LIMITS,
            pb.SubjectLimits,
            lambda each, message: read_limits(each, message, self.applied_at_ms),
        )
        tiers = await self._structural(pb.RESOURCE_KIND_TIER, pb.Tier, read_tier)
        users = await self._leaves(
            pb.RESOURCE_KIND_USER,
            pb.User,
            lambda each, message: read_user(each, message, organizations),
        )
        prices = await self._leaves(pb.RESOURCE_KIND_PRICE, pb.Price, self._price)
        keys = await self._leaves(
            pb.RESOURCE_KIND_API_KEY,
            pb.ApiKey,
            lambda each, message: read_key(each, message, users, routers),
        )
        devices = await self._leaves(
            pb.RESOURCE_KIND_DEVICE,
            pb.Device,
            lambda each, message: read_device(each, message, users, routers),
        )
        service = services.get("service", Service())
        keys_by_sha256 = await self._unique(pb.RESOURCE_KIND_API_KEY, keys)
        devices_by_sha256 = await self._unique(pb.RESOURCE_KIND_DEVICE, devices)
        if self.problems:
            raise InvalidConfigurationError(self.problems)
        bounds = await self._layer_bounds(Entitlements(service, limits, tiers))
        keys_by_sha256 = await self._within_bounds(
            pb.RESOURCE_KIND_API_KEY, keys_by_sha256, lambda key: key.principal, bounds
        )
        devices_by_sha256 = await self._within_bounds(
            pb.RESOURCE_KIND_DEVICE, devices_by_sha256, lambda device: device.principal, bounds
        )
        ids = await self._limited_ids(limits)
        snapshot = Snapshot(
            position=self.position,
            service=service,
            keys_by_sha256=keys_by_sha256,
            routers=routers,
            prices=PriceBook(prices.values()),
            limits=limits,
            has_address_limits=bool(ids[SubjectKind.IP]),
            limited_endpoints=frozenset(ids[SubjectKind.ENDPOINT]),
            limited_models=frozenset(ids[SubjectKind.MODEL]),
            has_fail_open=any(each.fails_open for each in organizations.values()),
            devices_by_sha256=devices_by_sha256,
            tiers=tiers,
            applied_at_ms=self.applied_at_ms,
        )
        return Compiled(snapshot, tuple(self.quarantined))

    async def _unique(
        self, kind: pb.ResourceKind.ValueType, found: Mapping[str, tuple[bytes, V]]
    ) -> dict[bytes, V]:
        """Return credentials by hash; those that share one say nothing about who calls, and deny."""
        ids: dict[bytes, str] = {}
        twins: set[bytes] = set()
        async for resource_id, (sha256, _) in self._in_slices(found.items()):
            if ids.setdefault(sha256, resource_id) != resource_id:
                twins.add(sha256)
                self._set_aside_twin(kind, resource_id)
        for sha256 in twins:
            self._set_aside_twin(kind, ids.pop(sha256))
        return {sha256: found[resource_id][1] for sha256, resource_id in ids.items()}

    def _set_aside_twin(self, kind: pb.ResourceKind.ValueType, resource_id: str) -> None:
        detail = f"another {_noun_of(kind)} has the same hash"
        self.quarantined.append(Quarantined(kind, resource_id, detail))

    async def _limited_ids(self, limits: Iterable[str]) -> dict[str, set[str]]:
        """Return the ids of the subjects that are met by calls, whoever calls, by their kinds."""
        ids: dict[str, set[str]] = {kind: set() for kind in _MET_BY_CALLS}
        async for subject in self._in_slices(limits):
            kind, _, subject_id = subject.partition(":")
            if kind in ids:
                ids[kind].add(subject_id)
        return ids

    async def _layer_bounds(self, entitlements: Entitlements) -> LayerBounds:
        bounds = LayerBounds(entitlements)
        async for subject, configured in self._in_slices(entitlements.limits.items()):
            bounds.note(subject, configured)
        return bounds

    async def _within_bounds(
        self,
        kind: pb.ResourceKind.ValueType,
        found: Mapping[bytes, V],
        principal_of: Callable[[V], Principal | None],
        bounds: LayerBounds,
    ) -> dict[bytes, V]:
        """Set credentials aside that more layers count than one call can be checked against."""
        kept: dict[bytes, V] = {}
        async for sha256, each in self._in_slices(found.items()):
            principal = principal_of(each)
            problem = None if principal is None else bounds.problem_of(principal)
            if principal is None or problem is None:
                kept[sha256] = each
            else:
                self.quarantined.append(Quarantined(kind, principal.principal_id, problem))
        return kept

    async def _structural(
        self, kind: int, message_type: type[M], read: Callable[[RawResource, M], V]
    ) -> dict[str, V]:
        return await self._read(kind, message_type, read, self._refuse)

    async def _leaves(
        self, kind: int, message_type: type[M], read: Callable[[RawResource, M], V]
    ) -> dict[str, V]:
        return await self._read(kind, message_type, read, self._set_aside)

    async def _read(
        self,
        kind: int,
        message_type: type[M],
        read: Callable[[RawResource, M], V],
        reject: Callable[[RawResource, str], None],
    ) -> dict[str, V]:
        found: dict[str, V] = {}
        async for each in self._in_slices(self.by_kind.get(kind, ())):
            try:
                message = message_type.FromString(each.payload)
                found[each.resource_id] = read(each, message)
            except DecodeError:
                reject(each, "it cannot be decoded")
            except (UnusableResourceError, ValueError) as error:
                reject(each, str(error))
        return found

    def _price(self, each: RawResource, message: pb.Price) -> Price:
        """Set a bad price aside; what it was to price must not cost what an older one says."""
        try:
            return read_price(each, message)
        except (UnusableResourceError, ValueError) as error:
            self._set_aside(each, str(error))
            return unusable_price(each, message)

    def _refuse(self, resource: RawResource, detail: str) -> None:
        self.problems.append(f"{_noun_of(resource.kind)} {resource.resource_id}: {detail}")

    def _set_aside(self, resource: RawResource, detail: str) -> None:
        self.quarantined.append(Quarantined(resource.kind, resource.resource_id, detail))

    async def _in_slices(self, values: Iterable[V]) -> AsyncIterator[V]:
        for each in values:
            yield each
            if time.monotonic() >= self._slice_ends:
                await asyncio.sleep(0)
                self._slice_ends = time.monotonic() + _SLICE_SECONDS
