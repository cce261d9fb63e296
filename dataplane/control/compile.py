"""From the resources of a transfer to the snapshot that requests see, or the reasons why not.

Structural resources (service, organizations, providers, credentials, routers, limits) that cannot
be read, or that refer to nothing, refuse the whole transfer: half a routing table is worse than
yesterday's. Users, keys and prices are leaves: a bad one is set aside, so that it denies, and the
answer names it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.message import DecodeError, Message
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.domain.calls import Dialect
from dataplane.domain.entitlements import layers_for
from dataplane.domain.limiting import MAX_LAYERS, Layer, SubjectKind, Unit, Window
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import ApiKey, LimitEntry, Organization, Service, User
from dataplane.domain.providers import Credential, Provider, Router, Rule
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position, Snapshot

MAX_PROBLEMS: Final = 20
# The event loop is given back after this: a request in flight must not feel a new configuration.
_SLICE_SECONDS: Final = 0.003
_KEY_HASH_BYTES: Final = 32
_DEFAULT_OUTPUT_CAP_TOKENS: Final = 4_096
M = TypeVar("M", bound=Message)
V = TypeVar("V")

_DIALECTS: Final = {
    pb.DIALECT_OPENAI: Dialect.OPENAI,
    pb.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    pb.DIALECT_GOOGLE: Dialect.GOOGLE,
}
_SUBJECTS: Final = {
    limits_pb2.SUBJECT_KIND_GLOBAL: SubjectKind.GLOBAL,
    limits_pb2.SUBJECT_KIND_ORGANIZATION: SubjectKind.ORGANIZATION,
    limits_pb2.SUBJECT_KIND_USER: SubjectKind.USER,
    limits_pb2.SUBJECT_KIND_KEY: SubjectKind.KEY,
}
_UNITS: Final = {
    limits_pb2.LIMIT_UNIT_REQUESTS: Unit.REQUESTS,
    limits_pb2.LIMIT_UNIT_TOKENS: Unit.TOKENS,
    limits_pb2.LIMIT_UNIT_SPEND: Unit.SPEND,
    limits_pb2.LIMIT_UNIT_PARALLEL: Unit.PARALLEL,
}
_WINDOWS: Final = {
    limits_pb2.LIMIT_WINDOW_UNSPECIFIED: Window.NONE,
    limits_pb2.LIMIT_WINDOW_MINUTE: Window.MINUTE,
    limits_pb2.LIMIT_WINDOW_DAY: Window.DAY,
    limits_pb2.LIMIT_WINDOW_MONTH: Window.MONTH,
    limits_pb2.LIMIT_WINDOW_TOTAL: Window.TOTAL,
}


@dataclass(frozen=True, slots=True)
class RawResource:
    """A resource as it was received."""

    kind: int
    resource_id: str
    revision: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class RawSecret:
    """A provider's secret as it was received."""

    credential_id: str
    version: int
    secret: Secret


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


class _Problem(Exception):  # noqa: N818 - raised by readers, always caught here
    """One resource cannot be used."""


class _Owned(NamedTuple):
    """A credential and the only provider that its secret may be sent to."""

    credential: Credential
    provider_id: str


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
        services = await self._structural(pb.RESOURCE_KIND_SERVICE, pb.Service, _service)
        organizations = await self._structural(
            pb.RESOURCE_KIND_ORGANIZATION, pb.Organization, _organization
        )
        provider_ids = {
            each.resource_id for each in self.by_kind.get(pb.RESOURCE_KIND_PROVIDER, ())
        }
        credentials = await self._structural(
            pb.RESOURCE_KIND_CREDENTIAL,
            pb.Credential,
            lambda each, message: _credential(each, message, self.secrets, provider_ids),
        )
        providers = await self._structural(
            pb.RESOURCE_KIND_PROVIDER,
            pb.Provider,
            lambda each, message: _provider(each, message, credentials),
        )
        routers = await self._structural(
            pb.RESOURCE_KIND_ROUTER,
            pb.Router,
            lambda each, message: _router(each, message, providers),
        )
        limits = await self._structural(pb.RESOURCE_KIND_SUBJECT_LIMITS, pb.SubjectLimits, _limits)
        users = await self._leaves(
            pb.RESOURCE_KIND_USER,
            pb.User,
            lambda each, message: _user(each, message, organizations),
        )
        prices = await self._leaves(pb.RESOURCE_KIND_PRICE, pb.Price, _price)
        keys = await self._leaves(
            pb.RESOURCE_KIND_API_KEY,
            pb.ApiKey,
            lambda each, message: _key(each, message, users, routers),
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
            except (_Problem, ValueError) as error:
                reject(each, str(error))
        return found

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


def _service(_: RawResource, message: pb.Service) -> Service:
    return Service(
        max_replicas=max(1, message.max_replicas),
        upgrade_url=message.upgrade_url,
        support_url=message.support_url,
        is_paused=message.paused,
        default_user_limits=_entries(message.default_user_limits, SubjectKind.USER),
        default_global_limits=_entries(message.default_global_limits, SubjectKind.GLOBAL),
    )


def _organization(each: RawResource, message: pb.Organization) -> Organization:
    time_zone = message.time_zone or "UTC"
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _Problem(f"there is no time zone {time_zone!r}") from None
    if message.default_output_cap_tokens < 0:
        raise _Problem("its default output cap is negative")
    return Organization(
        organization_id=each.resource_id,
        name=message.name,
        time_zone=time_zone,
        is_paused=message.paused,
        default_output_cap_tokens=message.default_output_cap_tokens or _DEFAULT_OUTPUT_CAP_TOKENS,
    )


def _user(each: RawResource, message: pb.User, organizations: Mapping[str, Organization]) -> User:
    return User(
        user_id=each.resource_id,
        name=message.name,
        organization=_referred(organizations, message.organization_id, "organization"),
        tier=message.tier,
        is_suspended=message.suspended,
    )


def _key(
    each: RawResource, message: pb.ApiKey, users: Mapping[str, User], routers: Mapping[str, Router]
) -> tuple[bytes, ApiKey]:
    if len(message.key_sha256) != _KEY_HASH_BYTES:
        raise _Problem("its hash is not 32 bytes")
    # A key without a router is refused at its call: `no_route` says more than a missing key.
    expires_at_ms = message.expires_at.ToMilliseconds() if message.HasField("expires_at") else None
    key = ApiKey(
        key_id=each.resource_id,
        name=message.name,
        user=_referred(users, message.user_id, "user"),
        router_id=message.router_id if message.router_id in routers else "",
        allowed_models=tuple(message.allowed_models),
        expires_at_ms=expires_at_ms,
        is_revoked=message.revoked,
    )
    return message.key_sha256, key


def _credential(
    each: RawResource,
    message: pb.Credential,
    secrets: Mapping[str, RawSecret],
    provider_ids: Collection[str],
) -> _Owned:
    if message.provider_id not in provider_ids:
        raise _Problem(f"its provider {message.provider_id!r} is not there")
    sent = secrets.get(each.resource_id)
    secret = sent.secret if sent is not None and sent.version == message.version else None
    credential = Credential(each.resource_id, message.name, message.version, secret)
    return _Owned(credential, message.provider_id)


def _provider(
    each: RawResource, message: pb.Provider, credentials: Mapping[str, _Owned]
) -> Provider:
    endpoints: dict[Dialect, str] = {}
    for endpoint in message.endpoints:
        dialect = _DIALECTS.get(endpoint.dialect)
        if dialect in endpoints:
            raise _Problem(f"it has two endpoints of the dialect {dialect}")
        if dialect is not None:
            endpoints[dialect] = _base_url(endpoint.base_url)
    return Provider(
        provider_id=each.resource_id,
        name=message.name,
        kind=message.kind,
        endpoints=endpoints,
        credentials=tuple(
            _own_credential(each, credentials, one) for one in message.credential_ids
        ),
        quirks=frozenset(message.quirks),
    )


def _own_credential(
    provider: RawResource, credentials: Mapping[str, _Owned], credential_id: str
) -> Credential:
    owned = _referred(credentials, credential_id, "credential")
    if owned.provider_id != provider.resource_id:
        raise _Problem(f"its credential {credential_id!r} belongs to another provider")
    return owned.credential


def _base_url(text: str) -> str:
    # `urlsplit` drops tabs and line ends in silence, so they are looked for first.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _Problem("a base URL holds a character that no URL has")
    parts = urlsplit(text)
    _ = parts.port  # raises on a port that is none
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise _Problem("a base URL is not http(s)://host[:port][/path]")
    if "?" in text or "#" in text:
        raise _Problem("a base URL has a query or a fragment")
    return text.rstrip("/")


def _router(each: RawResource, message: pb.Router, providers: Mapping[str, Provider]) -> Router:
    rules = [
        Rule(
            rule_id=rule.id,
            priority=rule.priority,
            provider=_referred(providers, rule.provider_id, "provider"),
            models=tuple(rule.models),
            condition=rule.condition,
            weight=max(1, rule.weight),
            aliases=dict(rule.aliases),
        )
        for rule in message.rules
    ]
    rules.sort(key=lambda rule: (rule.priority, rule.rule_id))
    return Router(each.resource_id, message.name, tuple(rules))


def _limits(each: RawResource, message: pb.SubjectLimits) -> tuple[LimitEntry, ...]:
    if message.subject_kind == limits_pb2.SUBJECT_KIND_UNSPECIFIED:
        raise _Problem("it does not say whom it counts")
    subject = _SUBJECTS.get(message.subject_kind)
    if subject is None:
        # A kind of a newer control plane matches nobody here.
        return ()
    is_global = subject is SubjectKind.GLOBAL
    # Limits are found by the id of their resource.
    if each.resource_id != (subject.value if is_global else f"{subject}:{message.subject_id}"):
        raise _Problem("its id is not that of its subject")
    return _entries(message.limits, subject)


def _entries(limits: Iterable[limits_pb2.Limit], subject: SubjectKind) -> tuple[LimitEntry, ...]:
    entries: dict[tuple[str, str], LimitEntry] = {}
    for limit in limits:
        entry = _entry(limit, subject)
        if entry is None:
            continue
        if (entry.unit, entry.window) in entries:
            raise _Problem(f"it limits {entry.unit} per {entry.window} twice")
        entries[entry.unit, entry.window] = entry
    return tuple(entries.values())


def _entry(limit: limits_pb2.Limit, subject: SubjectKind) -> LimitEntry | None:
    if limit.unit == limits_pb2.LIMIT_UNIT_UNSPECIFIED:
        raise _Problem("a limit does not say what it counts")
    unit, window = _UNITS.get(limit.unit), _WINDOWS.get(limit.window)
    if unit is None or window is None:
        # Of a newer control plane: it matches nothing here.
        return None
    # Built once to be checked: a call that it counts must not be the first to find it wrong.
    Layer(
        subject,
        "checked",
        unit,
        window,
        limit.capacity,
        reset_generation=limit.reset_generation,
    )
    return LimitEntry(
        unit=unit.value,
        window=window.value,
        capacity=limit.capacity,
        is_unlimited=limit.unlimited,
        is_hard=not limit.soft,
        is_shadow=limit.shadow,
        reset_generation=limit.reset_generation,
    )


def _price(each: RawResource, message: pb.Price) -> Price:
    rates = message.rates
    figures = [
        rates.input_nanousd_per_million,
        rates.output_nanousd_per_million,
        rates.request_nanousd,
    ]
    if min(figures) < 0:
        raise _Problem("a rate is negative")
    if not message.free and max(figures) == 0:
        raise _Problem("it has no rates and is not marked as free")
    base = rates.input_nanousd_per_million
    return Price(
        price_id=each.resource_id,
        revision=each.revision,
        provider=message.provider,
        model=message.model,
        effective_from_ms=max(0, message.effective_from.ToMilliseconds()),
        input=base,
        output=rates.output_nanousd_per_million,
        # A missing cached rate is the rate of uncached input, never free; writes cost more.
        cache_read=_rate(rates, "cache_read_nanousd_per_million", base),
        cache_write_5m=_rate(rates, "cache_write_5m_nanousd_per_million", -(-base * 5 // 4)),
        cache_write_1h=_rate(rates, "cache_write_1h_nanousd_per_million", base * 2),
        request_nanousd=rates.request_nanousd,
    )


def _rate(rates: Any, name: str, otherwise: int) -> int:  # Any: a field is named by its name
    if not rates.HasField(name):
        return otherwise
    rate: int = getattr(rates, name)
    if rate < 0:
        raise _Problem("a rate is negative")
    return rate


def _referred(found: Mapping[str, V], resource_id: str, noun: str) -> V:
    try:
        return found[resource_id]
    except KeyError:
        raise _Problem(f"its {noun} {resource_id!r} is not there") from None
