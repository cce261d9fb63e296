"""The ledger's sums by subject and period, budget events, temporary limits and resets, longer ids.

The types stand here and not in the tables' module, because a step must mean the same for ever.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_RELEASED, _ABANDONED = 2, 3

# Subject kind → whose id it is, its day and its month. Addresses were not recorded before this step.
_SERVICE_PERIODS = ("service_day", "substr(service_day, 1, 6)")
_OWN_PERIODS = ("usage_day", "usage_month")
_SUBJECTS = (
    (1, "''", _SERVICE_PERIODS),
    (2, "organization_id", _OWN_PERIODS),
    (3, "user_id", _OWN_PERIODS),
    (4, "key_id", _OWN_PERIODS),
    (5, "device_id", _OWN_PERIODS),
    (7, "endpoint", _SERVICE_PERIODS),
    (8, "model", _SERVICE_PERIODS),
)
_GLOBAL = 1


def _text(length: int | None = None) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the new tables and columns, and fill the sums.

    The code before this step must not run on them: it would insert rows of the ledger that no sum knows. Where it did,
    `tollkeeper verify --recount` makes the sums anew.
    """
    _ledger_columns()
    _limits()
    _budget_events()
    _usage_totals()


def _ledger_columns() -> None:
    # Defaults of the database: the rows that are there get them, and none is lost that the code before still inserts.
    empty = sa.text("'[]'")
    for column in (
        sa.Column("rates", _JSON, nullable=True),
        sa.Column("address_subjects", _JSON, nullable=False, server_default=empty),
        sa.Column("layers", _JSON, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("is_degraded", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("output_cap_tokens", sa.BigInteger(), nullable=False, server_default="0"),
    ):
        op.add_column("usage_ledger", column)


def _limits() -> None:
    empty = sa.text("'[]'")
    with op.batch_alter_table("subject_limits") as batch:
        batch.alter_column("id", existing_type=_text(80), type_=_text(220), nullable=False)
        batch.alter_column("subject_id", existing_type=_text(80), type_=_text(200), nullable=False)
        batch.add_column(sa.Column("temporary_limits", _JSON, nullable=False, server_default=empty))
        batch.add_column(sa.Column("resets", _JSON, nullable=False, server_default=empty))
    with op.batch_alter_table("tombstones") as batch:
        batch.alter_column("id", existing_type=_text(80), type_=_text(220), nullable=False)


def _budget_events() -> None:
    op.create_table(
        "budget_events",
        sa.Column("id", _ROW_NUMBER, nullable=False),
        sa.Column("subject_kind", sa.SmallInteger(), nullable=False),
        sa.Column("subject_id", _text(200), nullable=False),
        sa.Column("period_id", _text(8), nullable=False),
        sa.Column("reset_generation", sa.BigInteger(), nullable=False),
        sa.Column("percent", sa.SmallInteger(), nullable=False),
        sa.Column("capacity_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("settled_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("held_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reached_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budget_events"),
    )
    op.create_index(
        "ix_budget_events_counter",
        "budget_events",
        ["subject_kind", "subject_id", "period_id", "reset_generation", "percent"],
        unique=True,
    )
    op.create_index("ix_budget_events_reached_at", "budget_events", ["reached_at", "id"])


def _usage_totals() -> None:
    op.create_table(
        "usage_totals",
        sa.Column("period_id", _text(8), nullable=False),
        sa.Column("subject_kind", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("subject_id", _text(), nullable=False),
        sa.Column("reset_generation", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("charged_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "period_id", "subject_kind", "subject_id", "reset_generation", name="pk_usage_totals"
        ),
        sqlite_with_rowid=False,
    )
    for kind, subject, (day, month) in _SUBJECTS:
        _fill(kind, subject, day, month)


def _fill(kind: int, subject: str, day: str, month: str) -> None:
    """Add up what is in the ledger already, in one look at it for each kind of subject.

    Nothing could raise a reset generation before this step: all of it was counted in the first one.
    """
    is_somebody = "1 = 1" if kind == _GLOBAL else f"{subject} <> ''"
    op.execute(
        sa.text(
            "INSERT INTO usage_totals (period_id, subject_kind, subject_id, reset_generation,"  # noqa: S608 - made of constants of this step
            " requests, tokens, charged_nanousd)"
            f" WITH used AS (SELECT {subject} AS subject_id, {day} AS of_day, {month} AS of_month,"
            " count(*) AS requests, sum(CASE WHEN state = :abandoned THEN reserved_tokens"
            " ELSE input_total_tokens + output_tokens END) AS tokens, sum(charged_nanousd) AS money"
            f" FROM usage_ledger WHERE state <> :released AND {is_somebody} GROUP BY 1, 2, 3),"
            " counted AS (SELECT of_day AS period_id, subject_id, requests, tokens, money FROM used"
            " UNION ALL SELECT of_month, subject_id, requests, tokens, money FROM used"
            " UNION ALL SELECT 'total', subject_id, requests, tokens, money FROM used)"
            f" SELECT period_id, {kind}, subject_id, 0, sum(requests), sum(tokens), sum(money)"
            " FROM counted WHERE period_id <> '' GROUP BY period_id, subject_id"
        ).bindparams(released=_RELEASED, abandoned=_ABANDONED)
    )
