"""All SQL: functions with the session first, frozen values out; rows never leave this package.

`engine` and `schema` open the database, `receiving` files instances, `jobs` moves a study along its path, `outcomes`
keeps what the steps make, `views` answers people.
"""

from dicom_node.queries.engine import make_engine, make_sessions
from dicom_node.queries.jobs import (
    advance,
    claim,
    close_job,
    due_receiving,
    end_job,
    free_leases,
    jobs_to_ring,
    lease_tokens,
    retry_later,
    rung,
)
from dicom_node.queries.outcomes import (
    Delivery,
    PreviousResult,
    StoredInstance,
    StoredResult,
    instances_of,
    load_deliveries,
    load_grounding,
    load_results,
    mark_delivery,
    open_deliveries,
    pending_deliveries,
    previous_result,
    save_grounding,
    save_results,
)
from dicom_node.queries.receiving import Recorded, record_instance
from dicom_node.queries.schema import SCHEMA_REVISION, check_schema, current_revision, upgrade_schema
from dicom_node.queries.views import (
    JobDetail,
    JobFilter,
    JobSummary,
    cancel_job,
    count_instances,
    count_jobs,
    list_jobs,
    oldest_due,
    retry_job,
    show_job,
)

__all__ = [
    "SCHEMA_REVISION",
    "Delivery",
    "JobDetail",
    "JobFilter",
    "JobSummary",
    "PreviousResult",
    "Recorded",
    "StoredInstance",
    "StoredResult",
    "advance",
    "cancel_job",
    "check_schema",
    "claim",
    "close_job",
    "count_instances",
    "count_jobs",
    "current_revision",
    "due_receiving",
    "end_job",
    "free_leases",
    "instances_of",
    "jobs_to_ring",
    "lease_tokens",
    "list_jobs",
    "load_deliveries",
    "load_grounding",
    "load_results",
    "make_engine",
    "make_sessions",
    "mark_delivery",
    "oldest_due",
    "open_deliveries",
    "pending_deliveries",
    "previous_result",
    "record_instance",
    "retry_job",
    "retry_later",
    "rung",
    "save_grounding",
    "save_results",
    "show_job",
    "upgrade_schema",
]
