"""Where a provider speaks which dialect, as it is given on a command line: `[DIALECT=]URL`.

A URL without a dialect is read by the provider's kind. Most kinds speak one dialect, and the URL is its base as it
stands. Three speak two under one host, as DigitalOcean does: `https://host` is then `https://host/v1` for OpenAI's
dialect, whose paths begin after the version, and `https://host` for Anthropic's, whose paths begin with it.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit


class ProviderKind(StrEnum):
    """What a provider is."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    DIGITALOCEAN = "digitalocean"
    AZURE_OPENAI = "azure_openai"
    OPENAI_COMPATIBLE = "openai_compatible"
    MOCK = "mock"
    HTTP = "http"


class DialectName(StrEnum):
    """A wire format of requests and answers."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


_OWN_DIALECT: Final = {
    ProviderKind.OPENAI: DialectName.OPENAI,
    ProviderKind.AZURE_OPENAI: DialectName.OPENAI,
    ProviderKind.OPENAI_COMPATIBLE: DialectName.OPENAI,
    ProviderKind.ANTHROPIC: DialectName.ANTHROPIC,
    ProviderKind.GOOGLE: DialectName.GOOGLE,
}
_OPENAI_VERSION: Final = "/v1"


def base_urls(kind: ProviderKind, texts: Iterable[str]) -> dict[DialectName, str]:
    """Return the base URL of each dialect, without a final slash.

    Raises:
        ValueError: Not an HTTP URL, one with credentials or a query in it, or a dialect that is given twice.
    """
    found: dict[DialectName, str] = {}
    for text in texts:
        for dialect, url in _read(kind, text).items():
            if dialect in found:
                raise ValueError(f"the base URL of {dialect} is given twice")
            found[dialect] = url
    return found


def has_bare_url(texts: Iterable[str]) -> bool:
    """Return whether a URL stands without its dialect, so that the kind is needed to read it."""
    return any(_split(text)[0] is None for text in texts)


def _read(kind: ProviderKind, text: str) -> dict[DialectName, str]:
    dialect, given = _split(text)
    url = _checked(given)
    if dialect is not None:
        return {dialect: url}
    own = _OWN_DIALECT.get(kind)
    if own is not None:
        return {own: url}
    root = url.removesuffix(_OPENAI_VERSION)
    return {DialectName.OPENAI: root + _OPENAI_VERSION, DialectName.ANTHROPIC: root}


def _split(text: str) -> tuple[DialectName | None, str]:
    name, equals, url = text.partition("=")
    if equals and name in list(DialectName):
        return DialectName(name), url
    return None, text


def _checked(text: str) -> str:
    # The text is not repeated in a complaint: it may hold a password.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a base URL is visible ASCII")
    try:
        parts = urlsplit(text)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ValueError(
            "a base URL is [DIALECT=]http(s)://host[:port][/path]; dialects are openai, anthropic, google"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("a base URL holds no credentials: use `tollkeeper credential create`")
    if "?" in text or "#" in text:
        raise ValueError("a base URL has no query and no fragment")
    return text.rstrip("/")
