"""From the resources of a transfer to the snapshot that requests see, or the reasons why not.

Structural resources (service, organizations, providers, credentials, routers, limits) that cannot
be read, or that refer to nothing, refuse the whole transfer: half a routing table is worse than
yesterday's. Users, keys and prices are leaves: a bad one is set aside, so that it denies, and the
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
    read_key,
    read_organization,
    read_service,
    read_user,
)
from dataplane.control.read_providers import read_credential, read_provider, read_router
from dataplane.domain.entitlements import layers_for
from dataplane.domain.limiting import MAX_LAYERS
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import ApiKey, LimitEntry, Service
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
            pb.RESOURCE_KIND_SUBJECT_LIMITS, pb.SubjectLimits, read_limits
        )
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
        service = services.get("service", Service())
        keys_by_sha256 = await self._unique(keys)
        await self._check_layers(service, limits, keys_by_sha256)
        if self.problems:
            raise InvalidConfigurationError(self.problems)
        snapshot = Snapshot(
            position=self.position,
            service=service,
            keys_by_sha256=keys_by_sha256,
            routers=routers,
            prices=PriceBook(prices.values()),
            limits=limits,
            applied_at_ms=self.applied_at_ms,
        )
        return Compiled(snapshot, tuple(self.quarantined))

    async def _unique(self, keys: Mapping[str, tuple[bytes, ApiKey]]) -> dict[bytes, ApiKey]:
        """Return the keys by hash; keys that share one say nothing about who calls, and deny."""
        found: dict[bytes, ApiKey] = {}
        twins: dict[bytes, ApiKey] = {}
        async for key_sha256, key in self._in_slices(keys.values()):
            first = found.setdefault(key_sha256, key)
            if first is not key:
                twins.setdefault(key_sha256, first)
                self._set_aside_key(key)
        for key_sha256, first in twins.items():
            del found[key_sha256]
            self._set_aside_key(first)
        return found

    def _set_aside_key(self, key: ApiKey) -> None:
        detail = "another key has the same hash"
        self.quarantined.append(Quarantined(pb.RESOURCE_KIND_API_KEY, key.key_id, detail))

    async def _check_layers(
        self,
        service: Service,
        limits: Mapping[str, tuple[LimitEntry, ...]],
        keys: Mapping[bytes, ApiKey],
    ) -> None:
        """Refuse more layers than one call can be counted by: no call of such a key could be."""
        shared: dict[str, int] = {}
        async for key in self._in_slices(keys.values()):
            entries = limits.get(f"key:{key.key_id}", ())
            own = sum(not entry.is_unlimited for entry in entries)
            user_id = key.user.user_id
            if user_id not in shared:
                shared[user_id] = len(layers_for(service, limits, key)) - own
            count = shared[user_id] + own
            if count > MAX_LAYERS:
                self.problems.append(
                    f"api_key {key.key_id}: {count} limits apply to it; at most {MAX_LAYERS} may"
                )

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
        name = pb.ResourceKind.Name(resource.kind).removeprefix("RESOURCE_KIND_").lower()  # type: ignore[arg-type] # a known kind
        self.problems.append(f"{name} {resource.resource_id}: {detail}")

    def _set_aside(self, resource: RawResource, detail: str) -> None:
        self.quarantined.append(Quarantined(resource.kind, resource.resource_id, detail))

    async def _in_slices(self, values: Iterable[V]) -> AsyncIterator[V]:
        for each in values:
            yield each
            if time.monotonic() >= self._slice_ends:
                await asyncio.sleep(0)
                self._slice_ends = time.monotonic() + _SLICE_SECONDS
