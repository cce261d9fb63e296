"""Which models a caller can name: those that its router's rules take, that it may use and that are priced."""

from collections.abc import Iterator
from typing import Final

from dataplane.domain.calls import Dialect
from dataplane.domain.principals import Principal
from dataplane.domain.providers import Rule
from dataplane.domain.routing import is_usable, may_use, takes
from dataplane.domain.snapshot import Snapshot

# What a pattern stands for cannot be listed; these are worth a caller's knowing.
_WELL_KNOWN: Final = {"mock": ("mock-echo", "mock-tokens-64")}


def models_for(snapshot: Snapshot, principal: Principal, now_ms: int) -> tuple[str, ...]:
    """Return the names, sorted; models that only a pattern covers are not among them."""
    router = snapshot.routers.get(principal.router_id)
    names = {
        name
        for rule in (router.rules if router else ())
        if not rule.condition and any(is_usable(rule, dialect) for dialect in Dialect)
        for name in _names_of(snapshot, rule)
        if takes(rule, name)
        and may_use(principal, name)
        and _is_priced(snapshot, rule, name, now_ms)
    }
    return tuple(sorted(names))


def _names_of(snapshot: Snapshot, rule: Rule) -> Iterator[str]:
    provider = rule.provider
    yield from rule.aliases
    yield from (pattern for pattern in rule.models if "*" not in pattern)
    yield from snapshot.prices.exact_models((provider.name, provider.kind))
    yield from _WELL_KNOWN.get(provider.kind, ())


def _is_priced(snapshot: Snapshot, rule: Rule, name: str, now_ms: int) -> bool:
    providers = (rule.provider.name, rule.provider.kind)
    return snapshot.prices.find(providers, rule.aliases.get(name, name), now_ms) is not None
