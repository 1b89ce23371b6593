"""Alembic runs this to apply the revisions, inside the transaction that it is given."""

from alembic import context

from jobserver_sql.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
