"""Random changes of a small configuration, and what a compiled one amounts to."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from tollkeeper.common.v1 import limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compile import Compiled
from dataplane.control.compiling.references import References
from dataplane.control.compiling.state import State
from dataplane.control.holdings import Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.domain.layer_bounds import LimitShapes
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import Principal
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Snapshot
from tests.control.configurations import limit, temporary

_BROKEN = b"\xff\xff\xff"
_WINDOWS = (1, 2, 3, 4)
_FEW = (limit(),)
_SAME_NUMBER = (limit(capacity=11),)
_MANY = tuple(limit(unit, window) for unit in (1, 2) for window in _WINDOWS)
_LIFTED = (limit(capacity=0, unlimited=True),)
_NEWER = (limit(unit=99),)
_LISTS = st.sampled_from(((), _FEW, _SAME_NUMBER, _MANY, _MANY, _LIFTED, _NEWER))
_IDS = {
    "organization": ("o1", "o2"),
    "user": ("u1", "u2", "u3"),
    "tier": ("", "t1", "t2"),
    "router": ("r1", "r2"),
    "provider": ("p1", "p2"),
    "credential": ("c1", "c2"),
    "model": ("m", "gpt-4o"),
}
_HASHES = tuple(bytes([number]) * 32 for number in range(3))

Change = tuple[Key, bytes | None]


def _one_of(noun: str) -> st.SearchStrategy[str]:
    return st.sampled_from(_IDS[noun])


def _payloads(message: Any, **fields: Any) -> st.SearchStrategy[bytes]:  # Any: of any message
    return st.builds(lambda **given: message(**given).SerializeToString(), **fields)


_rates = st.sampled_from(
    (
        rates_pb2.Rates(input_nanousd_per_million=5),
        rates_pb2.Rates(input_nanousd_per_million=7, cache_read_nanousd_per_million=0),
        rates_pb2.Rates(input_nanousd_per_million=-1),
        rates_pb2.Rates(),
    )
)
_services = _payloads(
    pb.Service,
    max_replicas=st.integers(0, 2),
    default_user_limits=_LISTS,
    default_global_limits=_LISTS,
)
_organizations = _payloads(
    pb.Organization,
    name=st.sampled_from("ab"),
    time_zone=st.sampled_from(("", "Europe/Paris", "Europe/Paris", "Europe/Atlantis")),
    on_limits_unavailable=st.integers(0, 2),
)
_users = _payloads(
    pb.User,
    name=st.sampled_from("ab"),
    organization_id=_one_of("organization"),
    tier=_one_of("tier"),
    suspended=st.booleans(),
)
_keys = _payloads(
    pb.ApiKey,
    name=st.sampled_from("ab"),
    user_id=_one_of("user"),
    key_sha256=st.sampled_from((*_HASHES, *_HASHES, b"short")),
    router_id=st.sampled_from(("", *_IDS["router"])),
    tier=_one_of("tier"),
    expires_at=st.sampled_from((None, Timestamp(seconds=9), Timestamp(seconds=2**60))),
)
_devices = _payloads(
    pb.Device,
    user_id=st.sampled_from(("", *_IDS["user"])),
    token_sha256=st.sampled_from(_HASHES),
    router_id=st.sampled_from(("", *_IDS["router"])),
    tier=_one_of("tier"),
    status=st.integers(0, 5),
)
_providers = _payloads(
    pb.Provider,
    name=_one_of("provider"),
    kind=st.sampled_from(("openai", "mock")),
    credential_ids=st.lists(_one_of("credential"), max_size=1),
)
_credentials = _payloads(pb.Credential, provider_id=_one_of("provider"), version=st.integers(1, 2))
_routers = _payloads(
    pb.Router,
    rules=st.lists(
        st.builds(
            lambda provider_id, rule_id: pb.Rule(id=rule_id, provider_id=provider_id, models=["*"]),
            _one_of("provider"),
            st.sampled_from("xyz"),
        ),
        max_size=2,
    ),
)
_prices = _payloads(
    pb.Price,
    provider=st.sampled_from(("p1", "openai")),
    model=st.sampled_from(("m", "gpt-4o", "gpt-*", "*")),
    rates=_rates,
    free=st.booleans(),
    effective_from=st.sampled_from((None, Timestamp(seconds=4))),
)


def _tier(name: str) -> st.SearchStrategy[Change]:
    lists = ("device_limits", "ip_limits", "user_limits", "credential_limits")
    payloads = _payloads(pb.Tier, name=st.just(name), **dict.fromkeys(lists, _LISTS))
    return st.tuples(st.just((pb.RESOURCE_KIND_TIER, name)), payloads)


def _limits(subject: str) -> st.SearchStrategy[Change]:
    kind, _, subject_id = subject.partition(":")
    number = limits_pb2.SubjectKind.Value(f"SUBJECT_KIND_{kind.upper()}") if kind != "team" else 99
    for_a_while = st.sampled_from((1_003, 1_006, 9_000))
    payloads = _payloads(
        pb.SubjectLimits,
        subject_kind=st.just(number),
        subject_id=st.just(subject_id),
        limits=_LISTS,
        temporary_limits=st.lists(
            st.builds(temporary, st.sampled_from((*_FEW, *_LIFTED)), for_a_while), max_size=1
        ),
    )
    return st.tuples(st.just((pb.RESOURCE_KIND_SUBJECT_LIMITS, subject)), payloads)


def _some(
    kind: int, ids: Iterable[str], payloads: st.SearchStrategy[bytes]
) -> st.SearchStrategy[Change]:
    return st.tuples(st.tuples(st.just(kind), st.sampled_from(tuple(ids))), payloads)


_SUBJECTS = (
    *("global", "global", "organization:o1", "organization:o2", "user:u1", "user:u2"),
    *("key:k1", "key:k2", "device:d1", "ip:203.0.113.7", "ip:203.0.113.8"),
    *("endpoint:chat", "endpoint:x", "model:m", "team:blue"),
)
_puts = st.one_of(
    _some(pb.RESOURCE_KIND_SERVICE, ("service",), _services),
    _some(pb.RESOURCE_KIND_ORGANIZATION, _IDS["organization"], _organizations),
    _some(pb.RESOURCE_KIND_USER, _IDS["user"], _users | st.just(_BROKEN)),
    _some(pb.RESOURCE_KIND_API_KEY, ("k1", "k2", "k3", "k4"), _keys | st.just(_BROKEN)),
    _some(pb.RESOURCE_KIND_DEVICE, ("d1", "d2"), _devices | st.just(_BROKEN)),
    _some(pb.RESOURCE_KIND_PROVIDER, _IDS["provider"], _providers),
    _some(pb.RESOURCE_KIND_CREDENTIAL, _IDS["credential"], _credentials),
    _some(pb.RESOURCE_KIND_ROUTER, _IDS["router"], _routers),
    _some(pb.RESOURCE_KIND_PRICE, ("x", "y", "z"), _prices | st.just(_BROKEN)),
    _some(99, ("anything",), st.sampled_from((b"a", b"b"))),
    st.sampled_from(_SUBJECTS).flatmap(_limits),
    st.sampled_from(("t1", "t2")).flatmap(_tier),
    _some(pb.RESOURCE_KIND_ROUTER, _IDS["router"], st.just(_BROKEN)),
)
_KEYS = (
    *((pb.RESOURCE_KIND_ORGANIZATION, each) for each in _IDS["organization"]),
    *((pb.RESOURCE_KIND_USER, each) for each in _IDS["user"]),
    *((pb.RESOURCE_KIND_API_KEY, each) for each in ("k1", "k2", "k3", "k4")),
    *((pb.RESOURCE_KIND_DEVICE, each) for each in ("d1", "d2")),
    *((pb.RESOURCE_KIND_ROUTER, each) for each in _IDS["router"]),
    *((pb.RESOURCE_KIND_PROVIDER, each) for each in _IDS["provider"]),
    *((pb.RESOURCE_KIND_CREDENTIAL, each) for each in _IDS["credential"]),
    *((pb.RESOURCE_KIND_PRICE, each) for each in ("x", "y", "z")),
    *((pb.RESOURCE_KIND_TIER, each) for each in ("t1", "t2")),
    *((pb.RESOURCE_KIND_SUBJECT_LIMITS, each) for each in _SUBJECTS),
    (pb.RESOURCE_KIND_SERVICE, "service"),
)
_removals: st.SearchStrategy[Change] = st.tuples(st.sampled_from(_KEYS), st.none())
_secrets = st.dictionaries(
    _one_of("credential"), st.none() | st.tuples(st.integers(1, 2), st.sampled_from((b"s", b"t")))
)


@dataclasses.dataclass(frozen=True)
class Step:
    """What changes at once; None takes out. `is_full` comes as another epoch's everything."""

    resources: tuple[Change, ...]
    secrets: Mapping[str, tuple[int, bytes] | None]
    is_full: bool


steps = st.builds(
    Step,
    st.lists(st.one_of(_puts, _puts, _puts, _removals), min_size=1, max_size=5).map(tuple),
    _secrets,
    st.sampled_from((False, False, False, True)),
)


def _crowding() -> st.SearchStrategy[Change]:
    """Put and take out what decides how many layers callers have, most of it many."""
    subjects = (*_SUBJECTS[:6], "key:k1", "device:d1", "ip:203.0.113.7", "endpoint:x", "model:m")
    lists = st.sampled_from((_MANY, _MANY, _MANY, _FEW, ()))

    def limits_of(subject: str) -> st.SearchStrategy[Change]:
        kind, _, subject_id = subject.partition(":")
        number = limits_pb2.SubjectKind.Value(f"SUBJECT_KIND_{kind.upper()}")
        payloads = _payloads(
            pb.SubjectLimits,
            subject_kind=st.just(number),
            subject_id=st.just(subject_id),
            limits=lists,
        )
        return st.tuples(st.just((pb.RESOURCE_KIND_SUBJECT_LIMITS, subject)), payloads)

    of_subjects = st.sampled_from(subjects).flatmap(limits_of)
    removals = st.sampled_from([(pb.RESOURCE_KIND_SUBJECT_LIMITS, each) for each in subjects])
    services = _payloads(pb.Service, default_user_limits=lists, default_global_limits=lists)
    return st.one_of(
        of_subjects,
        of_subjects,
        of_subjects,
        st.tuples(removals, st.none()),
        st.sampled_from(("t1", "t2")).flatmap(_tier),
        _some(pb.RESOURCE_KIND_SERVICE, ("service",), services),
        _some(pb.RESOURCE_KIND_USER, ("u1", "u2"), _users),
        _some(pb.RESOURCE_KIND_API_KEY, ("k1", "k2", "k3"), _keys),
    )


crowding_steps = st.builds(
    Step,
    st.lists(_crowding(), min_size=1, max_size=2).map(tuple),
    st.just({}),
    st.just(value=False),
)


def start() -> dict[Key, bytes]:
    """Return payloads of a valid configuration in which everything is referred to."""
    messages: dict[Key, Message] = {
        (pb.RESOURCE_KIND_ORGANIZATION, "o1"): pb.Organization(),
        (pb.RESOURCE_KIND_ORGANIZATION, "o2"): pb.Organization(time_zone="Europe/Paris"),
        (pb.RESOURCE_KIND_USER, "u1"): pb.User(organization_id="o1"),
        (pb.RESOURCE_KIND_USER, "u2"): pb.User(organization_id="o2", tier="t1"),
        (pb.RESOURCE_KIND_TIER, "t1"): pb.Tier(name="t1", user_limits=_MANY),
        (pb.RESOURCE_KIND_PROVIDER, "p1"): pb.Provider(name="p1", credential_ids=["c1"]),
        (pb.RESOURCE_KIND_CREDENTIAL, "c1"): pb.Credential(provider_id="p1", version=1),
        (pb.RESOURCE_KIND_ROUTER, "r1"): pb.Router(rules=[pb.Rule(id="x", provider_id="p1")]),
        (pb.RESOURCE_KIND_API_KEY, "k1"): pb.ApiKey(
            user_id="u1", key_sha256=_HASHES[0], router_id="r1"
        ),
        (pb.RESOURCE_KIND_API_KEY, "k2"): pb.ApiKey(
            user_id="u2", key_sha256=_HASHES[1], router_id="r2"
        ),
        (pb.RESOURCE_KIND_DEVICE, "d1"): pb.Device(
            user_id="u1", token_sha256=_HASHES[0], router_id="r1"
        ),
    }
    return {key: message.SerializeToString() for key, message in messages.items()}


def raw_of(key: Key, payload: bytes, revision: int) -> RawResource:
    """Return a resource as a node holds it."""
    return RawResource(key[0], key[1], revision, payload)


def secret_of(credential_id: str, version: int, secret: bytes) -> RawSecret:
    """Return a secret as a node holds it."""
    return RawSecret(credential_id, version, Secret(secret))


def described(compiled: Compiled) -> dict[str, Any]:  # Any: whatever there is
    """Return all that requests, the answer and the next change find in what was compiled."""
    snapshot = compiled.snapshot
    fields = {
        each.name: plain(getattr(snapshot, each.name)) for each in dataclasses.fields(snapshot)
    }
    for name in ("_plans", "_call_plans", "prices"):
        del fields[name]
    state = compiled.state
    inside = {each.name: plain(getattr(state, each.name)) for each in dataclasses.fields(State)}
    for name in ("book", "quarantined", "plans", "call_plans"):
        del inside[name]
    inside["referrers"][pb.RESOURCE_KIND_ROUTER] = _without_router(compiled)
    return {
        **fields,
        "quarantined": plain(frozenset(compiled.quarantined)),
        "found prices": _prices_of(snapshot),
        "plans": {digest: _plans_of(snapshot, of) for digest, of in _callers_of(snapshot)},
        "state": inside,
    }


def plain(value: Any) -> Any:  # Any: whatever there is
    """Return a value as what it holds, so that it is compared by that."""
    if isinstance(value, LimitShapes):
        shapes = {kind: value.of(kind) for kind in SubjectKind}
        return {
            kind: {shape: alike.subjects for shape, alike in of.items()}
            for kind, of in shapes.items()
        }
    if isinstance(value, References):
        return {each: frozenset(value.of(each)) for each in value.members}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {
            each.name: _as_set(each.name, getattr(value, each.name))
            for each in dataclasses.fields(value)
        }
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def _as_set(name: str, value: Any) -> Any:  # Any: whatever there is
    # Who came first says nothing.
    if name == "withheld":
        return {digest: frozenset(ids) for digest, ids in value.items()}
    return plain(value)


def _without_router(compiled: Compiled) -> dict[str, frozenset[Key]]:
    """Return who works and names a router that is not there: others are read again before they work."""
    kinds = {
        SubjectKind.KEY: pb.RESOURCE_KIND_API_KEY,
        SubjectKind.DEVICE: pb.RESOURCE_KIND_DEVICE,
    }
    callers = (of for _, of in _callers_of(compiled.snapshot))
    working = frozenset((kinds[of.kind], of.principal_id) for of in callers)
    named = compiled.state.referrers[pb.RESOURCE_KIND_ROUTER]
    found = {router_id: working.intersection(named.of(router_id)) for router_id in named.members}
    return {router_id: keys for router_id, keys in found.items() if keys}


def _callers_of(snapshot: Snapshot) -> Iterable[tuple[tuple[str, bytes], Principal]]:
    for digest, key in snapshot.keys_by_sha256.items():
        yield ("key", digest), key.principal
    for digest, device in snapshot.devices_by_sha256.items():
        if device.principal is not None:
            yield ("device", digest), device.principal


def _plans_of(snapshot: Snapshot, principal: Principal) -> list[Any]:  # Any: layers and times
    circumstances = (("", "", ""), ("203.0.113.7", "chat", "m"), ("203.0.113.9", "x", "gpt-4o"))
    # Now with what earlier snapshots left; later without, for the time does not go back.
    later = dataclasses.replace(snapshot, _plans=PlanCache(), _call_plans=PlanCache())
    plans = [
        of.plan_for(principal, *each, now_ms)
        for each in circumstances
        for of, now_ms in ((snapshot, snapshot.applied_at_ms), (later, 2_000), (later, 10_000))
    ]
    return [(plan.layers, plan.valid_until_ms, plan.generations) for plan in plans]


def _prices_of(snapshot: Snapshot) -> list[Any]:  # Any: prices or None
    return [
        snapshot.prices.find(providers, model, now_ms)
        for providers in (("p1", "openai"), ("openai",), ("mock",))
        for model in ("m", "gpt-4o", "gpt-5", "other")
        for now_ms in (0, 5_000)
    ] + [sorted(snapshot.prices.exact_models(("p1", "openai")))]
