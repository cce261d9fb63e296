"""Every table: integers for money, aware datetimes, ids that are never reused.

A row of the configuration carries the revision that last changed it. Names are paths (`acme/alice/laptop`) and cannot
change, so each row keeps its whole path and refers to others by id. Enum columns hold the numbers of the contract; JSON
columns hold what the contract's messages of the same name take as keyword arguments (`Limit(**item)`).
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Boolean, Index, Integer, LargeBinary, SmallInteger, false
from sqlalchemy import text as literal_text
from sqlmodel import Field, SQLModel

from controlplane.domain.kinds import Kind
from controlplane.store.columns import Json, RowNumber, UtcDateTime, text


class ConfigurationRow(SQLModel):
    """What every row of the configuration has. `revision` and `updated_at` are stamped by the transaction."""

    KIND: ClassVar[Kind]

    id: str = Field(primary_key=True, sa_type=text(80))
    revision: int = Field(default=0, index=True, sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


class Organization(ConfigurationRow, table=True):
    """Owns users, keys, providers and routers. `time_zone` is an IANA name; empty reads as UTC."""

    __tablename__ = "organizations"
    KIND: ClassVar[Kind] = Kind.ORGANIZATION

    name: str = Field(unique=True, sa_type=text(63))
    time_zone: str = Field(default="", sa_type=text(64))
    on_limits_unavailable: int = Field(default=0, sa_type=SmallInteger)
    paused: bool = False
    default_output_cap_tokens: int = Field(default=0, sa_type=Integer)


class User(ConfigurationRow, table=True):
    """A person or program of an organization."""

    __tablename__ = "users"
    KIND: ClassVar[Kind] = Kind.USER

    name: str = Field(unique=True, sa_type=text(127))
    organization_id: str = Field(foreign_key="organizations.id", index=True, sa_type=text(80))
    email: str = Field(default="", sa_type=text(254))
    tier: str = Field(default="", sa_type=text(16))
    suspended: bool = False


class Provider(ConfigurationRow, table=True):
    """An upstream; shared by all organizations when `organization_id` is None.

    `endpoints` holds `{"dialect": int, "base_url": str}`. Its credentials are tried by (`created_at`, `id`).
    """

    __tablename__ = "providers"
    KIND: ClassVar[Kind] = Kind.PROVIDER

    name: str = Field(unique=True, sa_type=text(127))
    organization_id: str | None = Field(
        default=None, foreign_key="organizations.id", index=True, sa_type=text(80)
    )
    provider_kind: str = Field(sa_type=text(32))
    endpoints: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    quirks: list[str] = Field(default_factory=list, sa_type=Json)


class Credential(ConfigurationRow, table=True):
    """A secret at a provider, sealed. `fingerprint` is the first 8 bytes of SHA-256 of the secret."""

    __tablename__ = "credentials"
    KIND: ClassVar[Kind] = Kind.CREDENTIAL

    name: str = Field(unique=True, sa_type=text(191))
    provider_id: str = Field(foreign_key="providers.id", index=True, sa_type=text(80))
    version: int = Field(default=1, sa_type=BigInteger)
    sealed_secret: bytes = Field(sa_type=LargeBinary)
    fingerprint: bytes = Field(sa_type=LargeBinary)


class Router(ConfigurationRow, table=True):
    """An ordered set of rules; shared when `organization_id` is None. A changed rule raises its revision too."""

    __tablename__ = "routers"
    KIND: ClassVar[Kind] = Kind.ROUTER

    name: str = Field(unique=True, sa_type=text(127))
    organization_id: str | None = Field(
        default=None, foreign_key="organizations.id", index=True, sa_type=text(80)
    )
    gateway_metadata: bool = False


class Rule(ConfigurationRow, table=True):
    """One line of a router; lines are tried by (`priority`, `id`)."""

    __tablename__ = "rules"
    KIND: ClassVar[Kind] = Kind.RULE

    router_id: str = Field(foreign_key="routers.id", index=True, sa_type=text(80))
    priority: int = Field(default=0, sa_type=Integer)
    provider_id: str = Field(foreign_key="providers.id", index=True, sa_type=text(80))
    models: list[str] = Field(default_factory=list, sa_type=Json)
    condition: str = Field(default="", sa_type=text(4096))
    weight: int = Field(default=0, sa_type=Integer)
    aliases: dict[str, str] = Field(default_factory=dict, sa_type=Json)


class ApiKey(ConfigurationRow, table=True):
    """A credential of a user; its text is kept nowhere. `sha256` is the digest of the whole text form."""

    __tablename__ = "api_keys"
    KIND: ClassVar[Kind] = Kind.API_KEY

    name: str = Field(unique=True, sa_type=text(191))
    user_id: str = Field(foreign_key="users.id", index=True, sa_type=text(80))
    router_id: str = Field(foreign_key="routers.id", index=True, sa_type=text(80))
    sha256: bytes = Field(unique=True, sa_type=LargeBinary)
    display: str = Field(sa_type=text(32))
    test: bool = False
    allowed_models: list[str] = Field(default_factory=list, sa_type=Json)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked: bool = False
    tier: str = Field(
        default="", sa_type=text(16), sa_column_kwargs={"server_default": literal_text("''")}
    )


class Device(ConfigurationRow, table=True):
    """An installation of a client program; the id is what it sends as `X-Device-ID`, its token is kept as a digest.

    `status` is a number of `common.v1.DeviceStatus` as it was last set: a suspension lifts by itself at
    `suspended_until`. What it was last seen with stands in `DeviceSighting`; here is what it registered with.
    `address_prefix` is its address (IPv4) or the /64 of it (IPv6).
    """

    __tablename__ = "devices"
    __table_args__ = (
        Index("ix_devices_status", "status", "created_at"),
        Index("ix_devices_address_prefix", "address_prefix", "status"),
    )
    KIND: ClassVar[Kind] = Kind.DEVICE

    name: str = Field(sa_type=text(100))
    token_sha256: bytes = Field(unique=True, sa_type=LargeBinary)
    status: int = Field(sa_type=SmallInteger)
    user_id: str | None = Field(default=None, foreign_key="users.id", index=True, sa_type=text(80))
    router_id: str | None = Field(
        default=None, foreign_key="routers.id", index=True, sa_type=text(80)
    )
    allowed_models: list[str] = Field(default_factory=list, sa_type=Json)
    tier: str = Field(default="", sa_type=text(16))
    suspended_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    suspension_reason: str = Field(default="", sa_type=text(500))
    approved_by: str = Field(default="", sa_type=text(80))
    approved_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    platform: str = Field(default="", sa_type=text(64))
    version: str = Field(default="", sa_type=text(64))
    address: str = Field(default="", sa_type=text(64))
    address_prefix: str = Field(default="", sa_type=text(64))
    user_agent: str = Field(default="", sa_type=text(256))


class Tier(ConfigurationRow, table=True):
    """A set of layers that users, devices and keys have by its name, which is also its id. Limits are as in `SubjectLimits`."""

    __tablename__ = "tiers"
    KIND: ClassVar[Kind] = Kind.TIER

    name: str = Field(unique=True, sa_type=text(16))
    device_limits: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    ip_limits: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    user_limits: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    credential_limits: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON


class SubjectLimits(ConfigurationRow, table=True):
    """All limits of one subject; the id is that of the contract: `user:<user id>`, `model:<name>`, `global`.

    `name` is what people call it: `user:acme/alice`. `limits` holds keyword arguments of `common.v1.Limit`, `resets` those
    of `CounterReset`, `temporary_limits` `{"limit", "until"}`: such arguments, and an instant of ISO 8601 in UTC.
    """

    __tablename__ = "subject_limits"
    KIND: ClassVar[Kind] = Kind.SUBJECT_LIMITS

    # Longer than other ids: a model's is the name that its provider gave it.
    id: str = Field(primary_key=True, sa_type=text(220))
    name: str = Field(unique=True, sa_type=text(220))
    subject_kind: int = Field(sa_type=SmallInteger)
    subject_id: str = Field(default="", sa_type=text(200))
    limits: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    temporary_limits: list[dict[str, Any]] = Field(  # Any: JSON
        default_factory=list,
        sa_type=Json,
        sa_column_kwargs={"server_default": literal_text("'[]'")},
    )
    resets: list[dict[str, Any]] = Field(  # Any: JSON
        default_factory=list,
        sa_type=Json,
        sa_column_kwargs={"server_default": literal_text("'[]'")},
    )


class Price(ConfigurationRow, table=True):
    """What a model costs at a provider, in nano-USD per million units.

    `effective_from` is the Unix epoch for "since always"; None would escape the unique index.
    """

    __tablename__ = "prices"
    __table_args__ = (
        Index("ix_prices_identity", "provider", "model", "effective_from", unique=True),
    )
    KIND: ClassVar[Kind] = Kind.PRICE

    provider: str = Field(sa_type=text(127))
    model: str = Field(sa_type=text(200))
    effective_from: datetime = Field(sa_type=UtcDateTime)
    input_nanousd_per_million: int = Field(default=0, sa_type=BigInteger)
    output_nanousd_per_million: int = Field(default=0, sa_type=BigInteger)
    cache_read_nanousd_per_million: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_5m_nanousd_per_million: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_1h_nanousd_per_million: int | None = Field(default=None, sa_type=BigInteger)
    request_nanousd: int = Field(default=0, sa_type=BigInteger)
    free: bool = False


class ServiceSettings(ConfigurationRow, table=True):
    """What is decided for the whole service: one row, id `service`. Limits are as in `SubjectLimits`."""

    __tablename__ = "service_settings"
    KIND: ClassVar[Kind] = Kind.SERVICE

    max_replicas: int = Field(default=1, sa_type=Integer)
    default_user_limits: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=Json
    )  # Any: JSON
    default_global_limits: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=Json
    )  # Any: JSON
    upgrade_url: str = Field(default="", sa_type=text(2048))
    support_url: str = Field(default="", sa_type=text(2048))
    paused: bool = False


class Administrator(ConfigurationRow, table=True):
    """May call the admin services. Its token is kept as a digest; `role` is a number of `admin.v1.Role`."""

    __tablename__ = "administrators"
    KIND: ClassVar[Kind] = Kind.ADMINISTRATOR

    name: str = Field(unique=True, sa_type=text(63))
    role: int = Field(sa_type=SmallInteger)
    token_sha256: bytes = Field(unique=True, sa_type=LargeBinary)


class RevisionCounter(SQLModel, table=True):
    """One row, id 1: which database this is, and the number of its last change.

    Tombstones up to `compacted_revision` are gone: what changed since an older revision cannot be told any more.
    `history_from_revision` is the oldest revision whose content `row_versions` still tell, and those of all revisions after it.
    `former_epochs` are those that this database had before it was restored, the newest last: nodes that come from one of
    them are led over without suspicion.
    `database_identity` is what the server said of itself when the epoch began (PostgreSQL: the cluster's system identifier
    and the database's own number); another one means that this is a copy. Empty: not asked yet.
    """

    __tablename__ = "revision_counter"

    id: int = Field(
        default=1,
        primary_key=True,
        sa_type=SmallInteger,
        sa_column_kwargs={"autoincrement": False},
    )
    config_epoch: str = Field(sa_type=text(32))
    revision: int = Field(default=0, sa_type=BigInteger)
    compacted_revision: int = Field(default=0, sa_type=BigInteger)
    history_from_revision: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": literal_text("0")}
    )
    former_epochs: list[str] = Field(
        default_factory=list,
        sa_type=Json,
        sa_column_kwargs={"server_default": literal_text("'[]'")},
    )
    database_identity: str = Field(
        default="", sa_type=text(128), sa_column_kwargs={"server_default": literal_text("''")}
    )


class Tombstone(SQLModel, table=True):
    """Says that a row was deleted. An id that was made again later has a row with a higher revision."""

    __tablename__ = "tombstones"

    kind: str = Field(primary_key=True, sa_type=text(32))
    id: str = Field(primary_key=True, sa_type=text(220))
    revision: int = Field(primary_key=True, index=True, sa_type=BigInteger)
    deleted_at: datetime = Field(sa_type=UtcDateTime)


class AuditEntry(SQLModel, table=True):
    """Who changed what: written in the transaction of the change. `request` and `changes` hold no secret.

    `changes` holds `{"kind", "id", "before", "after"}` for each row of the configuration that was changed, `before` and
    `after` being its changed columns, or None where there was or is no such row. None: written before this was kept.
    """

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True, sa_type=RowNumber)
    at: datetime = Field(index=True, sa_type=UtcDateTime)
    actor: str = Field(sa_type=text(80))
    rpc: str = Field(sa_type=text(80))
    resource: str = Field(default="", index=True, sa_type=text(220))
    request: dict[str, Any] = Field(default_factory=dict, sa_type=Json)  # Any: JSON
    revision: int = Field(index=True, sa_type=BigInteger)
    changes: list[dict[str, Any]] | None = Field(
        default=None, sa_type=Json, nullable=True
    )  # Any: JSON


class IdempotentAnswer(SQLModel, table=True):
    """The first answer to a request id, without secrets, until it expires."""

    __tablename__ = "idempotency"

    actor: str = Field(primary_key=True, sa_type=text(80))
    rpc: str = Field(primary_key=True, sa_type=text(80))
    request_id: str = Field(primary_key=True, sa_type=text(128))
    request_sha256: bytes = Field(sa_type=LargeBinary)
    response: bytes = Field(default=b"", sa_type=LargeBinary)
    expires_at: datetime = Field(index=True, sa_type=UtcDateTime)


class UsageRow(SQLModel, table=True):
    """One admitted request, once it is over: `tollkeeper.usage.v1.UsageRecord`, field by field.

    Names stand beside ids, without foreign keys, so that the ledger outlives what it names. Its texts have no bound
    here: a client chose some of them, and no length may keep money out of the ledger.
    """

    __tablename__ = "usage_ledger"
    __table_args__ = (
        Index("ix_usage_ledger_started_at", "started_at", "request_id"),
        Index("ix_usage_ledger_organization", "organization_id", "started_at"),
        Index("ix_usage_ledger_user", "user_id", "started_at"),
        Index("ix_usage_ledger_key", "key_id", "started_at"),
    )

    request_id: str = Field(primary_key=True, sa_type=text())
    client_request_id: str = Field(default="", sa_type=text())
    node_id: str = Field(default="", sa_type=text())
    state: int = Field(sa_type=SmallInteger)
    http_status: int = Field(default=0, sa_type=Integer)
    error_code: str = Field(default="", sa_type=text())

    organization_id: str = Field(default="", sa_type=text())
    organization: str = Field(default="", sa_type=text())
    user_id: str = Field(default="", sa_type=text())
    user: str = Field(default="", sa_type=text())
    key_id: str = Field(default="", sa_type=text())
    key: str = Field(default="", sa_type=text())
    device_id: str = Field(default="", sa_type=text())
    tier: str = Field(default="", sa_type=text())
    ip: str = Field(default="", sa_type=text())

    router: str = Field(default="", sa_type=text())
    rule_id: str = Field(default="", sa_type=text())
    provider: str = Field(default="", sa_type=text())
    requested_model: str = Field(default="", sa_type=text())
    model: str = Field(default="", sa_type=text())
    endpoint: str = Field(default="", sa_type=text())
    stream: bool = False
    dialect: int = Field(default=0, sa_type=SmallInteger)

    input_total_tokens: int = Field(default=0, sa_type=BigInteger)
    input_uncached_tokens: int = Field(default=0, sa_type=BigInteger)
    cache_read_tokens: int = Field(default=0, sa_type=BigInteger)
    cache_write_5m_tokens: int = Field(default=0, sa_type=BigInteger)
    cache_write_1h_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    reasoning_tokens: int = Field(default=0, sa_type=BigInteger)
    source: int = Field(default=0, sa_type=SmallInteger)

    cost_nanousd: int = Field(default=0, sa_type=BigInteger)
    charged_nanousd: int = Field(default=0, sa_type=BigInteger)
    reserved_nanousd: int = Field(default=0, sa_type=BigInteger)
    reserved_tokens: int = Field(default=0, sa_type=BigInteger)
    price_id: str = Field(default="", sa_type=text())
    price_revision: int = Field(default=0, sa_type=BigInteger)
    rates: dict[str, int] | None = Field(default=None, sa_type=Json, nullable=True)

    usage_day: str = Field(default="", sa_type=text())
    usage_month: str = Field(default="", sa_type=text())
    service_day: str = Field(default="", sa_type=text())
    generations: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # Any: JSON
    config_revision: int = Field(default=0, sa_type=BigInteger)
    address_subjects: list[str] = Field(
        default_factory=list,
        sa_type=Json,
        sa_column_kwargs={"server_default": literal_text("'[]'")},
    )
    layers: dict[str, list[Any]] = Field(  # Any: JSON
        default_factory=dict,
        sa_type=Json,
        sa_column_kwargs={"server_default": literal_text("'{}'")},
    )
    is_degraded: bool = Field(
        default=False, sa_type=Boolean, sa_column_kwargs={"server_default": false()}
    )
    output_cap_tokens: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": literal_text("0")}
    )

    attempts: int = Field(default=0, sa_type=Integer)
    is_cached: bool = False
    is_failover: bool = False
    started_at: datetime = Field(sa_type=UtcDateTime)
    duration_ms: int = Field(default=0, sa_type=BigInteger)
    first_content_ms: int = Field(default=0, sa_type=BigInteger)


class UsageDay(SQLModel, table=True):
    """What a user used on a calendar day of its organization: the ledger's sums, kept in the transaction of each insert.

    Requests that were released count nowhere. `usage_day` is `20261121`.
    """

    __tablename__ = "usage_days"

    user_id: str = Field(primary_key=True, sa_type=text())
    usage_day: str = Field(primary_key=True, sa_type=text())
    requests: int = Field(default=0, sa_type=BigInteger)
    input_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    charged_nanousd: int = Field(default=0, sa_type=BigInteger)


class UsageTotal(SQLModel, table=True):
    """What a subject used in a period, in a reset generation: the ledger's sums, kept in the transaction of each insert.

    `period_id` is `20261121`, `202611` or `total`. It comes first in the key, because whoever fills an emptied Redis asks
    for all subjects of a few periods. Requests that were released count nowhere.
    """

    __tablename__ = "usage_totals"
    # A look-up by the key then finds the row itself, not where it is.
    __table_args__: ClassVar[dict[str, Any]] = {"sqlite_with_rowid": False}

    period_id: str = Field(primary_key=True, sa_type=text(8))
    subject_kind: int = Field(
        primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"autoincrement": False}
    )
    subject_id: str = Field(primary_key=True, sa_type=text())
    reset_generation: int = Field(
        primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False}
    )
    requests: int = Field(default=0, sa_type=BigInteger)
    tokens: int = Field(default=0, sa_type=BigInteger)
    charged_nanousd: int = Field(default=0, sa_type=BigInteger)


class BudgetEventRow(SQLModel, table=True):
    """Says that a budget was used to 80 or 100 percent: one of each per counter, the first that was told.

    Amounts are those of that moment, in nano-USD. `period_id` is as in `UsageTotal`, and says over which time.
    """

    __tablename__ = "budget_events"
    __table_args__ = (
        Index(
            "ix_budget_events_counter",
            "subject_kind",
            "subject_id",
            "period_id",
            "reset_generation",
            "percent",
            unique=True,
        ),
        Index("ix_budget_events_reached_at", "reached_at", "id"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=RowNumber)
    subject_kind: int = Field(sa_type=SmallInteger)
    subject_id: str = Field(sa_type=text(200))
    period_id: str = Field(sa_type=text(8))
    reset_generation: int = Field(sa_type=BigInteger)
    percent: int = Field(sa_type=SmallInteger)
    capacity_nanousd: int = Field(sa_type=BigInteger)
    settled_nanousd: int = Field(sa_type=BigInteger)
    held_nanousd: int = Field(sa_type=BigInteger)
    reached_at: datetime = Field(sa_type=UtcDateTime)


class DeviceSighting(SQLModel, table=True):
    """With what a device was last seen. Not configuration: it takes no revision and travels nowhere."""

    __tablename__ = "device_sightings"

    device_id: str = Field(primary_key=True, sa_type=text(80))
    seen_at: datetime = Field(sa_type=UtcDateTime)
    address: str = Field(default="", sa_type=text(64))
    user_agent: str = Field(default="", sa_type=text(256))
    platform: str = Field(default="", sa_type=text(64))
    version: str = Field(default="", sa_type=text(64))


class NodeIdentity(ConfigurationRow, table=True):
    """A data plane that joined with a token, or that is banned. It travels nowhere; `id` is the node's id.

    `organization_ids` is its scope; none means all. `enrolled_at` is None for one that was banned before it ever joined.
    """

    __tablename__ = "nodes"
    KIND: ClassVar[Kind] = Kind.NODE

    organization_ids: list[str] = Field(default_factory=list, sa_type=Json)
    enrolled_at: datetime | None = Field(default=None, sa_type=UtcDateTime, nullable=True)
    banned_at: datetime | None = Field(default=None, sa_type=UtcDateTime, nullable=True)
    ban_reason: str = Field(default="", sa_type=text(500))


CONFIGURATION: tuple[type[ConfigurationRow], ...] = (
    ServiceSettings,
    Organization,
    User,
    ApiKey,
    Provider,
    Credential,
    Router,
    Rule,
    SubjectLimits,
    Price,
    Administrator,
    Tier,
    Device,
    NodeIdentity,
)
"""Every table of the configuration."""
