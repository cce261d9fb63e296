"""One frozen value with everything the environment decides, read once at the start.

Names begin with `TOLLKEEPER_`; a secret may stand in a file that `<NAME>_FILE` names. A name that
no program knows is most likely a typing error, and a limit that was meant would not be there: so
it stops the start, like a bad value.
"""

import ipaddress
import os
from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from controlplane.domain.keys import is_administrator_token
from controlplane.domain.service import ServiceDefaults
from controlplane.secrets.sealing import SealingError, parse_master_keys

PREFIX: Final = "TOLLKEEPER_"
FILE_SUFFIX: Final = "_FILE"
MIN_JOIN_TOKEN_CHARACTERS: Final = 32
NANOUSD_PER_USD: Final = 10**9

# The other programs', the client's, the administrator's and the tests': known and not used here.
KNOWN_ELSEWHERE: Final = frozenset(
    {
        *("REDIS_URL", "REDIS_MODE", "PORT", "CONSOLE_PORT", "CONTROL_PLANE"),
        *("NODE_ID", "NODE_KEY", "KMS_KEY_ID", "TRUSTED_PROXIES", "PRIVATE_UPSTREAMS"),
        *("CORS_ORIGINS", "CLIENT_IP_HEADER", "SLACK_BOT_TOKEN", "SLACK_CHANNEL"),
        *("ALERT_WEBHOOK_URL", "AWS_REGION", "LOG_PREFIX"),
        *("URL", "API_KEY", "ADMIN_ADDRESS", "ADMIN_TOKEN", "CA", "FIXTURES"),
    }
)
_KNOWN_PREFIXES: Final = ("TEST_",)

# Fewer different characters than this is a pattern that somebody typed, and no random value.
_MIN_DIFFERENT_CHARACTERS: Final = 8
_SAMPLES: Final = ("changeme", "change-me", "example", "password", "secret", "your-", "insert")


class SettingsError(Exception):
    """The environment cannot be started with. One line; it shows no value of a secret."""


def _is_not_a_sample(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(set(text)) < _MIN_DIFFERENT_CHARACTERS or text.lower().startswith(_SAMPLES):
        raise ValueError("must be random, not a sample")
    return secret


def _is_join_token(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(text) < MIN_JOIN_TOKEN_CHARACTERS:
        raise ValueError(f"must have at least {MIN_JOIN_TOKEN_CHARACTERS} characters")
    if not all("!" <= character <= "~" for character in text):
        raise ValueError("must be visible ASCII characters")
    return _is_not_a_sample(secret)


def _is_owner_token(secret: SecretStr) -> SecretStr:
    if not is_administrator_token(secret.get_secret_value()):
        raise ValueError("must be tka_ and 43 characters of base62")
    return _is_not_a_sample(secret)


def _is_keyring(secret: SecretStr) -> SecretStr:
    try:
        parse_master_keys(secret.get_secret_value())
    except SealingError:
        raise ValueError("must be 32 bytes in base64") from None
    return _is_not_a_sample(secret)


def _is_database_url(secret: SecretStr) -> SecretStr:
    try:
        driver = make_url(secret.get_secret_value()).drivername
    except ArgumentError:
        raise ValueError("must be a URL") from None
    if driver not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise ValueError("must begin with sqlite+aiosqlite: or postgresql+asyncpg:")
    return secret


class TlsMode(StrEnum):
    """How a control plane proves itself, and what its nodes prove themselves with."""

    OFF = "off"
    OWN = "own"
    FILES = "files"


def _is_loopback_without_tls(host: str, info: ValidationInfo) -> str:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback and info.data.get("tls") is TlsMode.OFF:
        raise ValueError(
            "must be a loopback address: tokens do not travel without TLS;"
            " set TOLLKEEPER_TLS to own or files"
        )
    return host


def _is_given_with_files(path: Path | None, info: ValidationInfo) -> Path | None:
    if path is None and info.data.get("tls") is TlsMode.FILES:
        raise ValueError("is not set")
    if path is not None and info.data.get("tls") in (TlsMode.OFF, TlsMode.OWN):
        raise ValueError("is for TOLLKEEPER_TLS=files only")
    return path


def _is_given_without_tls(secret: SecretStr, info: ValidationInfo) -> SecretStr:
    if secret.get_secret_value():
        return _is_join_token(secret)
    if info.data.get("tls") is TlsMode.OFF:
        raise ValueError("is not set")
    return secret


def _is_whole_nanousd(amount: Decimal) -> Decimal:
    if amount * NANOUSD_PER_USD != int(amount * NANOUSD_PER_USD):
        raise ValueError("has more than 9 decimals")
    return amount


Count = Annotated[int, Field(ge=0, le=10**15)]
# Counters stay exact in a double.
Usd = Annotated[Decimal, Field(ge=0, le=9_000_000), AfterValidator(_is_whole_nanousd)]


_TlsFile = Annotated[Path | None, AfterValidator(_is_given_with_files)]


class Settings(BaseSettings):
    """The settings of a control plane."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    data_dir: Path
    database_url: Annotated[SecretStr, AfterValidator(_is_database_url)] | None = None
    # Before what depends on it.
    tls: TlsMode = TlsMode.OFF
    host: Annotated[str, AfterValidator(_is_loopback_without_tls)] = "127.0.0.1"
    admin_port: int = Field(default=50051, ge=0, le=65535)
    node_port: int = Field(default=50052, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    tls_cert: _TlsFile = Field(default=None, validate_default=True)
    tls_key: _TlsFile = Field(default=None, validate_default=True)
    tls_client_ca: _TlsFile = Field(default=None, validate_default=True)
    master_key: Annotated[SecretStr, AfterValidator(_is_keyring)]
    bootstrap_admin_token: Annotated[SecretStr, AfterValidator(_is_owner_token)]
    join_token: Annotated[SecretStr, AfterValidator(_is_given_without_tls)] = Field(
        default=SecretStr(""), validate_default=True
    )
    max_replicas: int = Field(default=1, ge=1, le=10_000)
    daily_budget_usd: Usd = Decimal(50)
    daily_requests: Count = 10_000
    default_daily_requests: Count = 1_000
    default_daily_tokens: Count = 100_000
    default_monthly_spend_cap_usd: Usd = Decimal(50)
    upgrade_url: HttpUrl | None = None
    support_url: HttpUrl | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, and files that it names; nothing else decides anything."""
        return (env_settings, _NamedFiles(settings_cls))

    @property
    def database(self) -> str:
        """The database's URL, with its password; an SQLite file in the data directory by default."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'controlplane.sqlite'}"

    @property
    def service_defaults(self) -> ServiceDefaults:
        """What the data planes need of these settings."""
        return ServiceDefaults(
            max_replicas=self.max_replicas,
            daily_budget_nanousd=int(self.daily_budget_usd * NANOUSD_PER_USD),
            daily_requests=self.daily_requests,
            default_daily_requests=self.default_daily_requests,
            default_daily_tokens=self.default_daily_tokens,
            default_monthly_spend_nanousd=int(self.default_monthly_spend_cap_usd * NANOUSD_PER_USD),
            upgrade_url=str(self.upgrade_url or ""),
            support_url=str(self.support_url or ""),
        )


SECRET_FIELDS: Final = ("database_url", "master_key", "bootstrap_admin_token", "join_token")


class _NamedFiles(PydanticBaseSettingsSource):
    """Secrets from the files that `<NAME>_FILE` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the content of the field's file without its final line break."""
        name = f"{PREFIX}{field_name.upper()}"
        path = os.environ.get(name + FILE_SUFFIX)
        if not path or field_name not in SECRET_FIELDS:
            return None, field_name, False
        if os.environ.get(name):
            raise SettingsError(f"{name} and {name}{FILE_SUFFIX} are both set; use one of them")
        try:
            content = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise SettingsError(f"{name}{FILE_SUFFIX} cannot be read: {reason}") from None
        return content.rstrip("\r\n"), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the secrets that stand in files."""
        values = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in values.items() if value is not None}


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: A name is unknown, or a value is missing or bad; all of them in one line.
    """
    problems = [f"{name} is not a setting" for name in unknown_names(os.environ)]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_problem(each["loc"], each["type"], each["msg"]) for each in error.errors()]
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def unknown_names(environ: Iterable[str]) -> list[str]:
    """Return the names with our prefix that no program knows, sorted."""
    known = {*KNOWN_ELSEWHERE, *(name.upper() for name in Settings.model_fields)}
    nouns = {name: name.removeprefix(PREFIX) for name in environ if name.startswith(PREFIX)}
    return sorted(
        name
        for name, noun in nouns.items()
        if noun.removesuffix(FILE_SUFFIX) not in known and not noun.startswith(_KNOWN_PREFIXES)
    )


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    name = PREFIX + str(location[0]).upper()
    if kind == "missing":
        return f"{name} is not set"
    # The library's text shows no value: `input_value` is not part of `msg`.
    return f"{name} {message.removeprefix('Value error, ')}"
