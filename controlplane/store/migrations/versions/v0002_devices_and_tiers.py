"""Devices, tiers, what an audited change did, and a user's sums by day.

The types stand here and not in the tables' module, because a step must mean the same for ever.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_RELEASED = 2


def _text(length: int | None = None) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the new tables and columns, and fill the sums by day.

    The code before this step must not run on them: it would insert rows of the ledger that no sum knows.
    """
    # A default of the database: the keys that are there get it.
    op.add_column(
        "api_keys", sa.Column("tier", _text(16), nullable=False, server_default=sa.text("''"))
    )
    op.add_column("audit", sa.Column("changes", _JSON, nullable=True))
    _tiers()
    _devices()
    _usage_days()


def _tiers() -> None:
    op.create_table(
        "tiers",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(16), nullable=False),
        sa.Column("device_limits", _JSON, nullable=False),
        sa.Column("ip_limits", _JSON, nullable=False),
        sa.Column("user_limits", _JSON, nullable=False),
        sa.Column("credential_limits", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tiers"),
        sa.UniqueConstraint("name", name="uq_tiers_name"),
    )
    op.create_index("ix_tiers_revision", "tiers", ["revision"])


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("name", _text(100), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", _text(80), nullable=True),
        sa.Column("router_id", _text(80), nullable=True),
        sa.Column("allowed_models", _JSON, nullable=False),
        sa.Column("tier", _text(16), nullable=False),
        sa.Column("suspended_until", _INSTANT, nullable=True),
        sa.Column("suspension_reason", _text(500), nullable=False),
        sa.Column("approved_by", _text(80), nullable=False),
        sa.Column("approved_at", _INSTANT, nullable=True),
        sa.Column("platform", _text(64), nullable=False),
        sa.Column("version", _text(64), nullable=False),
        sa.Column("address", _text(64), nullable=False),
        sa.Column("address_prefix", _text(64), nullable=False),
        sa.Column("user_agent", _text(256), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_devices_user_id"),
        sa.ForeignKeyConstraint(["router_id"], ["routers.id"], name="fk_devices_router_id"),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("token_sha256", name="uq_devices_token_sha256"),
    )
    op.create_index("ix_devices_revision", "devices", ["revision"])
    op.create_index("ix_devices_user_id", "devices", ["user_id"])
    op.create_index("ix_devices_router_id", "devices", ["router_id"])
    op.create_index("ix_devices_status", "devices", ["status", "created_at"])
    op.create_index("ix_devices_address_prefix", "devices", ["address_prefix", "status"])
    op.create_table(
        "device_sightings",
        sa.Column("device_id", _text(80), nullable=False),
        sa.Column("seen_at", _INSTANT, nullable=False),
        sa.Column("address", _text(64), nullable=False),
        sa.Column("user_agent", _text(256), nullable=False),
        sa.Column("platform", _text(64), nullable=False),
        sa.Column("version", _text(64), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name="pk_device_sightings"),
    )


def _usage_days() -> None:
    op.create_table(
        "usage_days",
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("usage_day", _text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("charged_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "usage_day", name="pk_usage_days"),
    )
    # What is in the ledger already counts too.
    op.execute(
        sa.text(
            "INSERT INTO usage_days"
            " (user_id, usage_day, requests, input_tokens, output_tokens, charged_nanousd)"
            " SELECT user_id, usage_day, count(*), sum(input_total_tokens), sum(output_tokens),"
            " sum(charged_nanousd) FROM usage_ledger WHERE state <> :released"
            " GROUP BY user_id, usage_day"
        ).bindparams(released=_RELEASED)
    )
