"""Former revisions, revocations, nodes with their certificates and tokens, and epochs that can be put in order.

The types stand here and not in the tables' module, because a step must mean the same for ever.
"""

import base64
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _text(length: int | None = None) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the new tables, and give the database an epoch of the form that can be compared.

    Former revisions are known from the present one on: what was before this step cannot be returned to.
    """
    op.add_column(
        "revision_counter",
        sa.Column(
            "history_from_revision", sa.BigInteger(), nullable=False, server_default=sa.text("0")
        ),
    )
    op.add_column(
        "revision_counter",
        sa.Column("former_epochs", _JSON, nullable=False, server_default=sa.text("'[]'")),
    )
    op.add_column(
        "revision_counter",
        sa.Column("database_identity", _text(128), nullable=False, server_default=sa.text("''")),
    )
    # Greater than any epoch of the form before, which was hexadecimal: nodes get everything once.
    epoch = f"t{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(6)}"
    op.execute(sa.text("UPDATE revision_counter SET config_epoch = :epoch").bindparams(epoch=epoch))
    op.execute(sa.text("UPDATE revision_counter SET history_from_revision = revision"))
    _history()
    _first_versions()
    _nodes()


def _history() -> None:
    op.create_table(
        "row_versions",
        sa.Column("kind", _text(32), nullable=False),
        sa.Column("id", _text(220), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("columns", _JSON, nullable=True),
        sa.PrimaryKeyConstraint("kind", "id", "revision", name="pk_row_versions"),
    )
    op.create_index("ix_row_versions_revision", "row_versions", ["revision"])
    op.create_index("ix_row_versions_at", "row_versions", ["at"])
    op.create_table(
        "revocations",
        sa.Column("revision", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("subject_id", _text(80), nullable=False),
        sa.Column("organization_id", _text(80), nullable=False),
        sa.Column("terminate_streams", sa.Boolean(), nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("revision", "kind", "subject_id", name="pk_revocations"),
    )
    op.create_index("ix_revocations_at", "revocations", ["at"])


# Secrets are left out: a rotation must leave nothing of the former one behind.
_KINDS = {
    "service_settings": "service",
    "organizations": "organization",
    "users": "user",
    "api_keys": "api_key",
    "providers": "provider",
    "credentials": "credential",
    "routers": "router",
    "rules": "rule",
    "subject_limits": "subject_limits",
    "prices": "price",
    "administrators": "administrator",
    "tiers": "tier",
    "devices": "device",
}
_LEFT_OUT = "sealed_secret"


def _first_versions() -> None:
    """Keep what every row is now as its first known version."""
    connection = op.get_bind()
    metadata = sa.MetaData()
    versions = sa.Table("row_versions", metadata, autoload_with=connection)
    versions.c.columns.type = _JSON
    for name, kind in _KINDS.items():
        table = sa.Table(name, metadata, autoload_with=connection)
        for row in connection.execute(sa.select(table)).mappings():
            columns = {key: _plain(value) for key, value in row.items() if key != _LEFT_OUT}
            connection.execute(
                versions.insert().values(
                    kind=kind,
                    id=row["id"],
                    revision=row["revision"],
                    at=_aware(row["updated_at"]),
                    columns=columns,
                )
            )


def _plain(value: Any) -> Any:  # Any: a value of any column, as JSON
    if isinstance(value, datetime):
        return _aware(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _aware(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", _text(80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("organization_ids", _JSON, nullable=False),
        sa.Column("enrolled_at", _INSTANT, nullable=True),
        sa.Column("banned_at", _INSTANT, nullable=True),
        sa.Column("ban_reason", _text(500), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
    )
    op.create_index("ix_nodes_revision", "nodes", ["revision"])
    op.create_table(
        "node_sessions",
        sa.Column("control_plane_id", _text(64), nullable=False),
        sa.Column("node_id", _text(128), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("heard_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("control_plane_id", "node_id", name="pk_node_sessions"),
    )
    op.create_index("ix_node_sessions_heard_at", "node_sessions", ["heard_at"])
    op.create_table(
        "node_certificates",
        sa.Column("node_id", _text(64), nullable=False),
        sa.Column("serial", _text(64), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("node_id", name="pk_node_certificates"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", _text(64), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("node_id", _text(64), nullable=False),
        sa.Column("organization_ids", _JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("used_at", _INSTANT, nullable=True),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_join_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_join_tokens_secret_sha256"),
    )
    op.create_index("ix_join_tokens_expires_at", "join_tokens", ["expires_at"])
    op.create_table(
        "authorities",
        sa.Column("id", _text(64), nullable=False),
        sa.Column("certificate", _text(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_authorities"),
    )
