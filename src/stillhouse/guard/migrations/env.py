"""Runs migrations on the connection that the registry gives."""

from alembic import context

from stillhouse.guard.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA,
    render_as_batch=True,
)  # fmt: skip
with context.begin_transaction():
    context.run_migrations()
