"""Give jobs a priority, and find those that wait by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.String(length=8), nullable=False, server_default="ROUTINE"))
    op.create_index("jobs_waiting", "jobs", ["state", "priority", "step_since"])


def downgrade() -> None:
    op.drop_index("jobs_waiting", "jobs")
    op.drop_column("jobs", "priority")
