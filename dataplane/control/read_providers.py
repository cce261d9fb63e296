"""Where calls go: credentials, providers and routers as a snapshot has them."""

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import (
    RawResource,
    RawSecret,
    UnusableResourceError,
    referred,
)
from dataplane.domain.calls import Dialect
from dataplane.domain.providers import Credential, Provider, Router, Rule

_DIALECTS: Final = {
    pb.DIALECT_OPENAI: Dialect.OPENAI,
    pb.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    pb.DIALECT_GOOGLE: Dialect.GOOGLE,
}


class OwnedCredential(NamedTuple):
    """A credential and the only provider that its secret may be sent to."""

    credential: Credential
    provider_id: str


def read_credential(
    each: RawResource,
    message: pb.Credential,
    sent: RawSecret | None,
    *,
    is_provider_there: bool,
) -> OwnedCredential:
    """Return a credential, without a secret when the one of its version was not sent.

    Raises:
        UnusableResourceError: Its provider is not there.
    """
    if not is_provider_there:
        raise UnusableResourceError(f"its provider {message.provider_id!r} is not there")
    secret = sent.secret if sent is not None and sent.version == message.version else None
    credential = Credential(each.resource_id, message.name, message.version, secret)
    return OwnedCredential(credential, message.provider_id)


def read_provider(
    each: RawResource, message: pb.Provider, credentials: Mapping[str, OwnedCredential]
) -> Provider:
    """Return a provider.

    Raises:
        UnusableResourceError: An endpoint or a credential of it is bad.
        ValueError: A base URL cannot be taken apart.
    """
    endpoints: dict[Dialect, str] = {}
    for endpoint in message.endpoints:
        dialect = _DIALECTS.get(endpoint.dialect)
        if dialect in endpoints:
            raise UnusableResourceError(f"it has two endpoints of the dialect {dialect}")
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


def read_router(each: RawResource, message: pb.Router, providers: Mapping[str, Provider]) -> Router:
    """Return a router, its rules in the order in which they are tried.

    Raises:
        UnusableResourceError: A provider is not there.
    """
    rules = [
        Rule(
            rule_id=rule.id,
            priority=rule.priority,
            provider=referred(providers, rule.provider_id, "provider"),
            models=tuple(rule.models),
            condition=rule.condition,
            weight=max(1, rule.weight),
            aliases=dict(rule.aliases),
        )
        for rule in message.rules
    ]
    rules.sort(key=lambda rule: (rule.priority, rule.rule_id))
    return Router(each.resource_id, message.name, tuple(rules))


def _own_credential(
    provider: RawResource, credentials: Mapping[str, OwnedCredential], credential_id: str
) -> Credential:
    owned = referred(credentials, credential_id, "credential")
    if owned.provider_id != provider.resource_id:
        raise UnusableResourceError(f"its credential {credential_id!r} belongs to another provider")
    return owned.credential


def _base_url(text: str) -> str:
    # `urlsplit` drops tabs and line ends in silence, so they are looked for first.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UnusableResourceError("a base URL holds a character that no URL has")
    parts = urlsplit(text)
    _ = parts.port  # raises on a port that is none
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise UnusableResourceError("a base URL is not http(s)://host[:port][/path]")
    if "?" in text or "#" in text:
        raise UnusableResourceError("a base URL has a query or a fragment")
    return text.rstrip("/")
