"""The real providers of `tollkeeper dev`: those whose vendor's key stands in its environment.

A vendor's base URL may stand there too, under the name that the vendor's own SDK reads. A client of this very gateway is
often told where it is by the same names, so a key of ours, or our own address, is no provider.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from controlplane.cli.connection import is_loopback
from controlplane.cli.endpoints import DialectName, ProviderKind, base_urls

_SECRET: Final = re.compile(r"[!-~]{1,8192}", re.ASCII)
_OWN_KEYS: Final = ("tk_live_", "tk_test_")
_OPENAI: Final = DialectName.OPENAI
_ANTHROPIC: Final = DialectName.ANTHROPIC


@dataclass(frozen=True, slots=True)
class RealProvider:
    """A provider that is called with the user's own key, and whom the user's own account pays."""

    kind: ProviderKind
    # Base URL of each dialect, without a final slash.
    endpoints: Mapping[DialectName, str]
    # Patterns of the models that it serves.
    models: tuple[str, ...]
    secret: str = field(repr=False)

    @property
    def name(self) -> str:
        """Its name as a shared provider: that of its kind."""
        return self.kind.value

    @property
    def credential_name(self) -> str:
        """The name of its credential."""
        return f"{self.name}/default"

    @property
    def secret_sha256(self) -> str:
        """The digest of its key, as hexadecimal digits; the key is a long random text."""
        return hashlib.sha256(self.secret.encode("ascii")).hexdigest()


class Found(NamedTuple):
    """What an environment holds: providers, and sentences about what was left out. They hold no secret."""

    providers: tuple[RealProvider, ...]
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Vendor:
    kind: ProviderKind
    key_setting: str
    # The first that is set counts.
    base_settings: tuple[str, ...]
    base_url: str
    # What may stand at the end of a given base URL, and is added again where it belongs.
    endings: tuple[str, ...]
    # What follows the base URL in each dialect.
    paths: Mapping[DialectName, str]
    models: tuple[str, ...]


# The vendors' addresses and the names of their settings as of 2026-11.
_VENDORS: Final = (
    _Vendor(
        kind=ProviderKind.OPENAI,
        key_setting="OPENAI_API_KEY",
        base_settings=("OPENAI_BASE_URL",),
        base_url="https://api.openai.com/v1",
        endings=(),
        paths={_OPENAI: ""},
        models=("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-*"),
    ),
    _Vendor(
        kind=ProviderKind.ANTHROPIC,
        key_setting="ANTHROPIC_API_KEY",
        base_settings=("ANTHROPIC_BASE_URL",),
        base_url="https://api.anthropic.com",
        endings=("/v1",),
        # Its OpenAI-compatible endpoint takes the same key (platform.claude.com/docs, "OpenAI SDK compatibility").
        paths={_ANTHROPIC: "", _OPENAI: "/v1"},
        models=("claude-*",),
    ),
    _Vendor(
        kind=ProviderKind.GOOGLE,
        key_setting="GEMINI_API_KEY",
        base_settings=("GEMINI_BASE_URL", "GOOGLE_GEMINI_BASE_URL"),
        base_url="https://generativelanguage.googleapis.com",
        endings=("/v1beta/openai", "/v1beta"),
        # Data planes do not speak Google's own dialect; its OpenAI-compatible endpoint takes the same key
        # (ai.google.dev/gemini-api/docs/openai).
        paths={_OPENAI: "/v1beta/openai"},
        models=("gemini-*",),
    ),
)


def real_providers(environ: Mapping[str, str], own_port: int = 0) -> Found:
    """Return the providers whose key stands in `environ`, and why others were left out.

    Args:
        environ: The user's environment.
        own_port: The data plane's port on this machine; 0 when it is not known yet.
    """
    found: list[RealProvider] = []
    complaints: list[str] = []
    for vendor in _VENDORS:
        secret = environ.get(vendor.key_setting, "").strip()
        if not secret:
            continue
        try:
            found.append(_provider(vendor, secret, environ, own_port))
        except ValueError as error:
            complaints.append(f"{vendor.kind} is not registered: {error}")
    return Found(tuple(found), tuple(complaints))


def _provider(
    vendor: _Vendor, secret: str, environ: Mapping[str, str], own_port: int
) -> RealProvider:
    """Return a vendor's provider.

    Raises:
        ValueError: The key or the base URL cannot be meant; the text repeats neither.
    """
    if secret.startswith(_OWN_KEYS):
        raise ValueError(f"{vendor.key_setting} holds a key of this gateway")
    if not _SECRET.fullmatch(secret):
        raise ValueError(f"{vendor.key_setting} is no key of visible ASCII characters")
    base = _base_url(vendor, environ, own_port)
    return RealProvider(
        kind=vendor.kind,
        endpoints={dialect: base + path for dialect, path in vendor.paths.items()},
        models=vendor.models,
        secret=secret,
    )


def _base_url(vendor: _Vendor, environ: Mapping[str, str], own_port: int) -> str:
    setting = next((name for name in vendor.base_settings if environ.get(name)), None)
    if setting is None:
        return vendor.base_url
    try:
        (url,) = base_urls(vendor.kind, [f"{_OPENAI}={environ[setting].strip()}"]).values()
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    parts = urlsplit(url)
    if own_port and parts.port == own_port and is_loopback(parts.hostname or ""):
        raise ValueError(f"{setting} is this gateway itself")
    ending = next((each for each in vendor.endings if url.endswith(each)), "")
    return url.removesuffix(ending).rstrip("/")
