"""What Alembic runs: the upgrade, on the connection that `migrations.upgrade` brings."""

from __future__ import annotations

from alembic import context

from finery.core import store

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=store.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
