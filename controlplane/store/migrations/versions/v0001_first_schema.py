"""The first schema: configuration, its revision and audit, and the ledger.

The types stand here and not in the tables' module, because a step must mean the same for ever.
"""

import secrets

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(length: int | None = None) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make every table, and the counter's one row with an epoch of its own."""
    _principals()
    _routes()
    _keys()
    _limits_and_prices()
    _service()
    _records()
    _ledger()
    counter = sa.table(
        "revision_counter",
        sa.column("id", sa.SmallInteger),
        sa.column("config_epoch", sa.String),
        sa.column("revision", sa.BigInteger),
        sa.column("compacted_revision", sa.BigInteger),
    )
    epoch = secrets.token_hex(16)
    op.execute(
        sa.insert(counter).values(id=1, config_epoch=epoch, revision=0, compacted_revision=0)
    )


def _principals() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(63), nullable=False),
        sa.Column("time_zone", _text(64), nullable=False),
        sa.Column("on_limits_unavailable", sa.SmallInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("default_output_cap_tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
        sa.UniqueConstraint("name", name="uq_organizations_name"),
    )
    op.create_index("ix_organizations_revision", "organizations", ["revision"])
    op.create_table(
        "users",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(127), nullable=False),
        sa.Column("organization_id", _text(80), nullable=False),
        sa.Column("email", _text(254), nullable=False),
        sa.Column("tier", _text(16), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_users_organization_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_index("ix_users_organization_id", "users", ["organization_id"])
    op.create_index("ix_users_revision", "users", ["revision"])


def _routes() -> None:
    op.create_table(
        "providers",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(127), nullable=False),
        sa.Column("organization_id", _text(80), nullable=True),
        sa.Column("provider_kind", _text(32), nullable=False),
        sa.Column("endpoints", _JSON, nullable=False),
        sa.Column("quirks", _JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_providers_organization_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_providers"),
        sa.UniqueConstraint("name", name="uq_providers_name"),
    )
    op.create_index("ix_providers_organization_id", "providers", ["organization_id"])
    op.create_index("ix_providers_revision", "providers", ["revision"])
    op.create_table(
        "credentials",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(191), nullable=False),
        sa.Column("provider_id", _text(80), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"], ["providers.id"], name="fk_credentials_provider_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
        sa.UniqueConstraint("name", name="uq_credentials_name"),
    )
    op.create_index("ix_credentials_provider_id", "credentials", ["provider_id"])
    op.create_index("ix_credentials_revision", "credentials", ["revision"])
    op.create_table(
        "routers",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(127), nullable=False),
        sa.Column("organization_id", _text(80), nullable=True),
        sa.Column("gateway_metadata", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_routers_organization_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_routers"),
        sa.UniqueConstraint("name", name="uq_routers_name"),
    )
    op.create_index("ix_routers_organization_id", "routers", ["organization_id"])
    op.create_index("ix_routers_revision", "routers", ["revision"])
    op.create_table(
        "rules",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("router_id", _text(80), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("provider_id", _text(80), nullable=False),
        sa.Column("models", _JSON, nullable=False),
        sa.Column("condition", _text(4096), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("aliases", _JSON, nullable=False),
        sa.ForeignKeyConstraint(["provider_id"], ["providers.id"], name="fk_rules_provider_id"),
        sa.ForeignKeyConstraint(["router_id"], ["routers.id"], name="fk_rules_router_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rules"),
    )
    op.create_index("ix_rules_provider_id", "rules", ["provider_id"])
    op.create_index("ix_rules_revision", "rules", ["revision"])
    op.create_index("ix_rules_router_id", "rules", ["router_id"])


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(191), nullable=False),
        sa.Column("user_id", _text(80), nullable=False),
        sa.Column("router_id", _text(80), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("display", _text(32), nullable=False),
        sa.Column("test", sa.Boolean(), nullable=False),
        sa.Column("allowed_models", _JSON, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["router_id"], ["routers.id"], name="fk_api_keys_router_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_api_keys_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("name", name="uq_api_keys_name"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_index("ix_api_keys_revision", "api_keys", ["revision"])
    op.create_index("ix_api_keys_router_id", "api_keys", ["router_id"])
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])


def _limits_and_prices() -> None:
    op.create_table(
        "subject_limits",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(220), nullable=False),
        sa.Column("subject_kind", sa.SmallInteger(), nullable=False),
        sa.Column("subject_id", _text(80), nullable=False),
        sa.Column("limits", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subject_limits"),
        sa.UniqueConstraint("name", name="uq_subject_limits_name"),
    )
    op.create_index("ix_subject_limits_revision", "subject_limits", ["revision"])
    op.create_table(
        "prices",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("provider", _text(127), nullable=False),
        sa.Column("model", _text(200), nullable=False),
        sa.Column("effective_from", _INSTANT, nullable=False),
        sa.Column("input_nanousd_per_million", sa.BigInteger(), nullable=False),
        sa.Column("output_nanousd_per_million", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_nanousd_per_million", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m_nanousd_per_million", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h_nanousd_per_million", sa.BigInteger(), nullable=True),
        sa.Column("request_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("free", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
    )
    op.create_index(
        "ix_prices_identity", "prices", ["provider", "model", "effective_from"], unique=True
    )
    op.create_index("ix_prices_revision", "prices", ["revision"])


def _service() -> None:
    op.create_table(
        "service_settings",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("max_replicas", sa.Integer(), nullable=False),
        sa.Column("default_user_limits", _JSON, nullable=False),
        sa.Column("default_global_limits", _JSON, nullable=False),
        sa.Column("upgrade_url", _text(2048), nullable=False),
        sa.Column("support_url", _text(2048), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_service_settings"),
    )
    op.create_index("ix_service_settings_revision", "service_settings", ["revision"])
    op.create_table(
        "administrators",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(63), nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_administrators"),
        sa.UniqueConstraint("name", name="uq_administrators_name"),
        sa.UniqueConstraint("token_sha256", name="uq_administrators_token_sha256"),
    )
    op.create_index("ix_administrators_revision", "administrators", ["revision"])


def _records() -> None:
    op.create_table(
        "revision_counter",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("config_epoch", _text(32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("compacted_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision_counter"),
    )
    op.create_table(
        "tombstones",
        sa.Column("kind", _text(32), nullable=False),
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", "revision", name="pk_tombstones"),
    )
    op.create_index("ix_tombstones_revision", "tombstones", ["revision"])
    op.create_table(
        "audit",
        sa.Column("id", _ROW_NUMBER, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("actor", _text(80), nullable=False),
        sa.Column("rpc", _text(80), nullable=False),
        sa.Column("resource", _text(220), nullable=False),
        sa.Column("request", _JSON, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_resource", "audit", ["resource"])
    op.create_index("ix_audit_revision", "audit", ["revision"])
    op.create_table(
        "idempotency",
        sa.Column("actor", _text(80), nullable=False),
        sa.Column("rpc", _text(80), nullable=False),
        sa.Column("request_id", _text(128), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("actor", "rpc", "request_id", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_expires_at", "idempotency", ["expires_at"])


def _ledger() -> None:
    op.create_table(
        "usage_ledger",
        sa.Column("request_id", _text(), nullable=False),
        sa.Column("client_request_id", _text(), nullable=False),
        sa.Column("node_id", _text(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=False),
        sa.Column("error_code", _text(), nullable=False),
        sa.Column("organization_id", _text(), nullable=False),
        sa.Column("organization", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("user", _text(), nullable=False),
        sa.Column("key_id", _text(), nullable=False),
        sa.Column("key", _text(), nullable=False),
        sa.Column("device_id", _text(), nullable=False),
        sa.Column("tier", _text(), nullable=False),
        sa.Column("ip", _text(), nullable=False),
        sa.Column("router", _text(), nullable=False),
        sa.Column("rule_id", _text(), nullable=False),
        sa.Column("provider", _text(), nullable=False),
        sa.Column("requested_model", _text(), nullable=False),
        sa.Column("model", _text(), nullable=False),
        sa.Column("endpoint", _text(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("dialect", sa.SmallInteger(), nullable=False),
        sa.Column("input_total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("input_uncached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_5m_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_1h_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.SmallInteger(), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("charged_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=False),
        sa.Column("price_id", _text(), nullable=False),
        sa.Column("price_revision", sa.BigInteger(), nullable=False),
        sa.Column("usage_day", _text(), nullable=False),
        sa.Column("usage_month", _text(), nullable=False),
        sa.Column("service_day", _text(), nullable=False),
        sa.Column("generations", _JSON, nullable=False),
        sa.Column("config_revision", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("is_cached", sa.Boolean(), nullable=False),
        sa.Column("is_failover", sa.Boolean(), nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_content_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_usage_ledger"),
    )
    op.create_index("ix_usage_ledger_key", "usage_ledger", ["key_id", "started_at"])
    op.create_index(
        "ix_usage_ledger_organization", "usage_ledger", ["organization_id", "started_at"]
    )
    op.create_index("ix_usage_ledger_started_at", "usage_ledger", ["started_at", "request_id"])
    op.create_index("ix_usage_ledger_user", "usage_ledger", ["user_id", "started_at"])
