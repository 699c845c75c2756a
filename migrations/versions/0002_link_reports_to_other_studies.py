"""Link reports to the studies whose images they name, where these are other studies than their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "report_references",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sop_instance_uid"],
            ["instances.sop_instance_uid"],
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", "study_instance_uid"),
    )
    op.create_index("ix_report_references_study_instance_uid", "report_references", ["study_instance_uid"])


def downgrade() -> None:
    op.drop_table("report_references")
