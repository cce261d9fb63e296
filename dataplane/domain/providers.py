"""Where answers come from, and the rules that choose."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.domain.calls import Dialect
from dataplane.domain.secret import Secret


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret at a provider. Without a secret (not delivered) it is not used."""

    credential_id: str
    name: str
    version: int
    secret: Secret | None


@dataclass(frozen=True, slots=True)
class Provider:
    """An upstream. `endpoints` maps a dialect to its base URL, without a final slash."""

    provider_id: str
    name: str
    kind: str
    endpoints: Mapping[Dialect, str]
    credentials: tuple[Credential, ...] = ()
    quirks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a router."""

    rule_id: str
    priority: int
    provider: Provider
    models: tuple[str, ...]
    condition: str = ""
    weight: int = 1
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Router:
    """Rules in the order in which they are tried."""

    router_id: str
    name: str
    rules: tuple[Rule, ...] = ()
