"""Run by Alembic, and by nobody else, to apply revisions on the connection that `service.store.migrate` opened."""

from alembic import context

from service.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,  # on SQLite, too: our transactions begin where we say, so that all is done or nothing
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
