"""Alembic's way into the job database: over the open connection that `dicom_node.queries.schema` hands in."""

from __future__ import annotations

from alembic import context

from dicom_node import account_tables, watch_tables
from dicom_node.tables import Base

assert account_tables.Base is watch_tables.Base is Base  # imported for its tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=False,  # the caller's transaction: a schema is never left between two revisions
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
