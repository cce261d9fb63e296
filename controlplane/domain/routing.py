"""What makes a provider, a router's rule or a key's reference valid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from urllib.parse import SplitResult, urlsplit

from controlplane.domain.errors import InvalidError

MAX_MODEL_LENGTH: Final = 200
MAX_URL_LENGTH: Final = 2_048


class Dialect(IntEnum):
    """A wire format of requests and answers; the numbers of the contract."""

    OPENAI = 1
    ANTHROPIC = 2
    GOOGLE = 3


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider speaks a dialect; `base_url` ends without a slash."""

    dialect: Dialect
    base_url: str


# The providers' public addresses as of 2026-11. A kind that is not here has none that we could know.
_PUBLIC_ENDPOINTS: Final[Mapping[str, tuple[Endpoint, ...]]] = {
    "openai": (Endpoint(Dialect.OPENAI, "https://api.openai.com/v1"),),
    "anthropic": (Endpoint(Dialect.ANTHROPIC, "https://api.anthropic.com"),),
    "google": (Endpoint(Dialect.GOOGLE, "https://generativelanguage.googleapis.com"),),
    "digitalocean": (
        Endpoint(Dialect.OPENAI, "https://inference.do-ai.run/v1"),
        Endpoint(Dialect.ANTHROPIC, "https://inference.do-ai.run"),
    ),
}


PROVIDER_KINDS: Final = frozenset(
    {*_PUBLIC_ENDPOINTS, "azure_openai", "openai_compatible", "mock", "http"}
)


def endpoints_of(kind: str, given: Sequence[Endpoint], *, field: str) -> tuple[Endpoint, ...]:
    """Return the endpoints of a provider: those given, checked, or the public ones of its kind.

    A final slash of a base URL is dropped, since paths are appended that begin with one.

    Raises:
        InvalidError: A URL is not plain http or https, a dialect comes twice, or the kind has no public endpoints.
    """
    if not given:
        try:
            return _PUBLIC_ENDPOINTS[kind]
        except KeyError:
            raise InvalidError(f"a provider of kind {kind} needs a base URL", field=field) from None
    seen: set[Dialect] = set()
    for index, endpoint in enumerate(given):
        if endpoint.dialect in seen:
            raise InvalidError("a second endpoint of this dialect", field=f"{field}[{index}]")
        seen.add(endpoint.dialect)
    return tuple(
        Endpoint(
            endpoint.dialect, _checked_url(endpoint.base_url, field=f"{field}[{index}].base_url")
        )
        for index, endpoint in enumerate(given)
    )


def _checked_url(url: str, *, field: str) -> str:
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidError("a base URL is at most 2,048 visible ASCII characters", field=field)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidError("not a URL", field=field) from None
    _check_parts(parts, url, field)
    return url.rstrip("/")


def _check_parts(parts: SplitResult, url: str, field: str) -> None:
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidError("a base URL begins with http:// or https:// and a host", field=field)
    if "@" in parts.netloc:
        raise InvalidError("a base URL holds no credentials; create a credential", field=field)
    if "?" in url or "#" in url:
        raise InvalidError("a base URL has no query and no fragment", field=field)


def check_rule(condition: str, aliases: Mapping[str, str]) -> None:
    """Check what can be wrong with one line of a router.

    Raises:
        InvalidError: Names the field.
    """
    if condition:
        raise InvalidError("conditions are not supported yet", field="rule.condition")
    for alias, model in aliases.items():
        if not (0 < len(alias) <= MAX_MODEL_LENGTH and 0 < len(model) <= MAX_MODEL_LENGTH):
            raise InvalidError(
                f"an alias and its model have 1 to {MAX_MODEL_LENGTH} characters",
                field="rule.aliases",
            )


def may_use(owner_organization_id: str | None, user_organization_id: str | None) -> bool:
    """Say whether something of one organization may refer to something of another.

    What is shared (None) may be used by all; what is shared may itself use only what is shared, because it would lend
    one organization's secrets to all others.
    """
    return owner_organization_id is None or owner_organization_id == user_organization_id
