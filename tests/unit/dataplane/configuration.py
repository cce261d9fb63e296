"""Small configurations for tests of pure rules."""

from typing import Any

from dataplane.domain.calls import Call, Dialect
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import (
    ApiKey,
    Device,
    DeviceStatus,
    Organization,
    Principal,
    Service,
    User,
)
from dataplane.domain.providers import Credential, Provider, Router, Rule
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position, Snapshot

BOTH = {Dialect.OPENAI: "http://p/v1", Dialect.ANTHROPIC: "http://p"}


def organization(**changes: Any) -> Organization:
    return Organization(**{"organization_id": "o1", "name": "acme", **changes})


def user(**changes: Any) -> User:
    of = changes.pop("organization", organization())
    return User(**{"user_id": "u1", "name": "acme/alice", "organization": of, **changes})


def principal(**changes: Any) -> Principal:
    """A caller by key; `kind` and `principal_id` make it a device."""
    of = changes.pop("user", None) or user()
    values = {
        "kind": SubjectKind.KEY, "principal_id": "k1", "name": "k", "router_id": "r1",
        "tier": of.tier,
    }  # fmt: skip
    return Principal(user=of, **{**values, **changes})


def api_key(of: Principal | None = None, **changes: Any) -> ApiKey:
    caller = of or principal()
    return ApiKey(key_id=caller.principal_id, principal=caller, **changes)


def device(of: Principal | None = None, **changes: Any) -> Device:
    caller = of or principal(kind=SubjectKind.DEVICE, principal_id="d1", name="phone")
    values = {"device_id": caller.principal_id, "name": caller.name, "principal": caller}
    return Device(**{**values, "status": DeviceStatus.APPROVED, **changes})


def price(model: str = "*", provider: str = "p", **changes: Any) -> Price:
    values = {
        "price_id": f"{provider}/{model}", "revision": 1, "effective_from_ms": 0,
        "input": 10, "output": 20, "cache_read": 1, "cache_write_5m": 12, "cache_write_1h": 20,
    }  # fmt: skip
    return Price(provider=provider, model=model, **{**values, **changes})


def provider(name: str = "p", **changes: Any) -> Provider:
    return Provider(
        **{"provider_id": name, "name": name, "kind": "mock", "endpoints": BOTH, **changes}
    )


def credential(secret: bytes | None = b"sk-1") -> Credential:
    return Credential("c1", "main", 1, None if secret is None else Secret(secret))


def rule(name: str = "rule1", **changes: Any) -> Rule:
    of = changes.pop("provider", provider())
    return Rule(**{"rule_id": name, "priority": 1, "provider": of, "models": ("*",), **changes})


def snapshot(*rules: Rule, **changes: Any) -> Snapshot:
    key = changes.pop("key", api_key())
    values = {
        "position": Position("e", 1, bytes(32)),
        "service": Service(),
        "keys_by_sha256": {b"digest": key},
        "routers": {"r1": Router("r1", "default", rules)},
        "prices": PriceBook([price()]),
        "limits": {},
    }
    return Snapshot(**{**values, **changes})


def call(model: str = "m", dialect: Dialect = Dialect.OPENAI, **changes: Any) -> Call:
    values = {
        "request_id": "0" * 36, "endpoint": "chat", "body": b"{}", "is_stream": False,
        "wants_stream_usage": False, "output_cap_tokens": None, "choices": 1,
        "input_upper_tokens": 100, "input_estimate_tokens": 10, "given_fields": frozenset(),
    }  # fmt: skip
    return Call(model=model, dialect=dialect, **{**values, **changes})
