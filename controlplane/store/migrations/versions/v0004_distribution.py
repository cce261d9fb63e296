"""Former revisions, revocations, nodes with their certificates and tokens, and epochs that can be put in order.

The types stand here and not in the tables' module, because a step must mean the same for ever.
"""

import secrets
import time

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

    Former revisions are known from here on: what was before this step cannot be returned to.
    """
    op.add_column(
        "revision_counter",
        sa.Column("database_identity", _text(128), nullable=False, server_default=sa.text("''")),
    )
    # Greater than any epoch of the form before, which was hexadecimal: nodes get everything once.
    epoch = f"t{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(6)}"
    op.execute(sa.text("UPDATE revision_counter SET config_epoch = :epoch").bindparams(epoch=epoch))
    _history()
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
