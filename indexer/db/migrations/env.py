"""Alembic's entry point: runs the migrations on the connection that `indexer.db.engine` hands over."""

from alembic import context

from indexer.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
