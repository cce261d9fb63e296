"""Runs the steps on the connection that `controlplane.store.schema` opened."""

from alembic import context
from sqlmodel import SQLModel

# SQLite changes a table by copying it; the same steps then run on both databases.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
