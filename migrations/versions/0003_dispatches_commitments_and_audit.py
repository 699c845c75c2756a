"""Give each destination of a job a row of its own; keep storage commitments, audit messages, and who died at what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def leased() -> list[sa.Column[object]]:
    return [
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("failure", sa.String(), nullable=True),
        sa.Column("due_at", INSTANT, nullable=False),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_until", INSTANT, nullable=True),
    ]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deaths", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("instances", sa.Column("removed_at", INSTANT, nullable=True))
    op.add_column("deliveries", sa.Column("detail", sa.String(), nullable=True))
    op.create_index("ix_deliveries_sop_instance_uid", "deliveries", ["sop_instance_uid"])
    _create_dispatches()
    _create_commitments()
    op.create_table(
        "destinations",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("hold_until", INSTANT, nullable=True),
        sa.Column("last_contact_at", INSTANT, nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("last_error_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("due_at", INSTANT, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("association", sa.String(length=64), nullable=True),
        sa.Column("process", sa.String(length=32), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("sent_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_association", "audit", ["association"])
    op.create_index("audit_unsent", "audit", ["sent_at", "due_at"])
    _open_dispatches_of_old_deliveries()


def _create_dispatches() -> None:
    op.create_table(
        "dispatches",
        sa.Column("dispatch_id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("since", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        *leased(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"]),
        sa.PrimaryKeyConstraint("dispatch_id"),
        sa.UniqueConstraint("job_id", "destination"),
    )
    op.create_index("dispatches_due", "dispatches", ["state", "due_at"])
    op.create_index("dispatches_of_destination", "dispatches", ["destination", "state"])


def _create_commitments() -> None:
    op.create_table(
        "commitments",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("dispatch_id", sa.Integer(), nullable=False),
        sa.Column("asked_at", INSTANT, nullable=False),
        sa.Column("answered_at", INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["dispatch_id"], ["dispatches.dispatch_id"]),
        sa.PrimaryKeyConstraint("transaction_uid"),
    )
    op.create_index("ix_commitments_dispatch_id", "commitments", ["dispatch_id"])
    op.create_table(
        "commitment_requests",
        sa.Column("request_id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("references", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("asked_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        *leased(),
        sa.PrimaryKeyConstraint("request_id"),
        sa.UniqueConstraint("transaction_uid", "calling_ae_title"),
    )
    op.create_index("commitment_requests_due", "commitment_requests", ["state", "due_at"])


def _open_dispatches_of_old_deliveries() -> None:
    """Give the deliveries there are their row; those of a job that is WRITTEN go on, by the schedule of the job."""
    op.execute(
        """
        INSERT INTO dispatches (job_id, destination, state, since, updated_at, attempts, deaths, due_at)
        SELECT d.job_id, d.destination,
               CASE WHEN min(d.state) = 'DELIVERED' AND max(d.state) = 'DELIVERED' THEN 'DELIVERED'
                    WHEN j.state = 'WRITTEN' THEN 'PENDING'
                    WHEN j.state = 'CANCELLED' THEN 'CANCELLED'
                    ELSE 'DEAD' END,
               j.step_since, j.updated_at, 0, 0, j.due_at
        FROM deliveries d JOIN jobs j ON j.job_id = d.job_id
        GROUP BY d.job_id, d.destination, j.state, j.step_since, j.updated_at, j.due_at
        """
    )


def downgrade() -> None:
    for table in ("audit", "destinations", "commitment_requests", "commitments", "dispatches"):
        op.drop_table(table)
    op.drop_index("ix_deliveries_sop_instance_uid", "deliveries")
    op.drop_column("deliveries", "detail")  # in place: a table made anew would break what refers to it
    op.drop_column("instances", "removed_at")
    op.drop_column("jobs", "deaths")
