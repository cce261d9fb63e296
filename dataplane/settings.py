"""The environment of a data plane, read once; see `docs/settings.md`."""

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dataplane.control.identity import IDENTITY_FILE
from dataplane.domain.client_addresses import network_of
from dataplane.domain.join_tokens import is_join_token, read_join_token
from dataplane.domain.origins import origin_of
from dataplane.limits.redis_urls import RedisMode, read_redis_url

PREFIX: Final = "TOLLKEEPER_"
_KEY_BYTES: Final = 32
_LEAST_TOKEN_LENGTH: Final = 32
# Names of the other programs, of clients, administrators and tests: known everywhere, read there.
_OTHERS: Final = frozenset(
    [
        "DATABASE_URL",
        "ADMIN_PORT",
        "NODE_PORT",
        "TLS",
        "TLS_CLIENT_CA",
        "CONSOLE_PORT",
        "MAX_REPLICAS",
        "MASTER_KEY",
        "KMS_KEY_ID",
        "BOOTSTRAP_ADMIN_TOKEN",
        "DAILY_BUDGET_USD",
        "DAILY_REQUESTS",
        "DEFAULT_DAILY_REQUESTS",
        "DEFAULT_DAILY_TOKENS",
        "DEFAULT_MONTHLY_SPEND_CAP_USD",
        "UPGRADE_URL",
        "SUPPORT_URL",
        "SLACK_BOT_TOKEN",
        "SLACK_CHANNEL",
        "ALERT_WEBHOOK_URL",
        "AWS_REGION",
        "URL",
        "API_KEY",
        "ADMIN_ADDRESS",
        "ADMIN_TOKEN",
        "FIXTURES",
        "TEST_DATABASE_URL",
    ]
)
_SECRETS: Final = ("JOIN_TOKEN", "NODE_KEY", "REDIS_URL")


class SettingsError(Exception):
    """A setting is unknown or bad; the text names it and is fit for an operator."""


class Settings(BaseSettings):
    """What a data plane is told by its environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    data_dir: Path = Path(".tollkeeper/dataplane")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    redis_url: SecretStr
    redis_mode: RedisMode = RedisMode.SINGLE
    control_plane: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1:50051",)
    node_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    join_token: SecretStr = SecretStr("")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ca: Path | None = None
    node_key: SecretStr | None = None
    private_upstreams: Annotated[tuple[str, ...], NoDecode] = ()
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    client_ip_header: Literal["x-forwarded-for", "x-real-ip", "cf-connecting-ip"] = (
        "x-forwarded-for"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    log_prefix: str = ""

    @field_validator(
        *("control_plane", "private_upstreams", "trusted_proxies", "cors_origins"), mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("private_upstreams")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ip_network(each, strict=False)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each(value, _proxy_of)

    @field_validator("client_ip_header", mode="before")
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if value == ("*",) else _each(value, origin_of)

    @field_validator("join_token")
    @classmethod
    def _is_a_token(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if is_join_token(text):
            read_join_token(text)
        elif text and len(text) < _LEAST_TOKEN_LENGTH:
            raise ValueError(f"it must have at least {_LEAST_TOKEN_LENGTH} characters")
        return value

    @field_validator("tls_cert", "tls_key", "ca", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        return value or None

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, value: SecretStr) -> SecretStr:
        read_redis_url(value.get_secret_value())
        return value

    @field_validator("node_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _key_bytes(value)
        return value

    @property
    def node_key_bytes(self) -> bytes | None:
        """Return the 32 bytes under which this node's files are encrypted."""
        return None if self.node_key is None else _key_bytes(self.node_key)


def read_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: A name with our prefix is unknown, or a value is bad; one line for all.
    """
    _check_names(os.environ)
    files = {
        name.lower(): _content(name) for name in _SECRETS if f"{PREFIX}{name}_FILE" in os.environ
    }
    try:
        settings = Settings(**files)
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors()
        ]
        raise SettingsError("; ".join(problems)) from None
    _check_proof(settings)
    return settings


def _check_proof(settings: Settings) -> None:
    """Check that there is something with which a control plane would know this node."""
    if settings.tls_cert is not None or settings.tls_key is not None:
        if settings.tls_cert is None or settings.tls_key is None or settings.ca is None:
            raise SettingsError(
                f"{PREFIX}TLS_CERT, {PREFIX}TLS_KEY and {PREFIX}CA go together: not all are set"
            )
        return
    has_joined = (settings.data_dir / IDENTITY_FILE).exists()
    if not settings.join_token.get_secret_value() and not has_joined:
        raise SettingsError(f"{PREFIX}JOIN_TOKEN: it is not set, and this node has not joined")


def _check_names(given: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {PREFIX + name for name in _OTHERS}
    known |= {f"{PREFIX}{name}_FILE" for name in (*_SECRETS, *_OTHERS)}
    unknown = sorted(name for name in given if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting: {', '.join(unknown)}")


def _content(name: str) -> Any:  # Any: pydantic makes the field's type of it
    path = os.environ[f"{PREFIX}{name}_FILE"]
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{PREFIX}{name}_FILE: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{PREFIX}{name}_FILE: it does not name a file of text") from None


def _each(values: tuple[str, ...], read: Callable[[str], str]) -> tuple[str, ...]:
    """Return each of `values` as read; a bad one is told by its place in the list."""
    done: list[str] = []
    for place, value in enumerate(values, 1):
        try:
            done.append(read(value))
        except ValueError as error:
            raise ValueError(f"entry {place} {error}") from None
    return tuple(done)


def _proxy_of(text: str) -> str:
    try:
        return str(network_of(text))
    except ValueError:
        raise ValueError("must be an address or a network in CIDR notation") from None


def _key_bytes(value: SecretStr) -> bytes:
    try:
        key = base64.b64decode(value.get_secret_value(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError("it must be the base64 of 32 bytes")
    return key
