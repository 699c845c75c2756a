"""What a step reads: the instances of its study, from rows and storage; what fails is told apart for the job's row."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicom_node import file, queries
from dicom_node.errors import NotApplicableError, PermanentError, TransientError
from dicom_node.header import DECODE_ERRORS
from dicom_node.study import JobFacts
from workers.resources import Resources


def read_instances(job: JobFacts, resources: Resources) -> dict[str, queries.StoredInstance]:
    """Return the instances of a job's study, by SOP Instance UID."""
    with resources.sessions() as session:
        instances = queries.instances_of(session, job.study_instance_uid)
    return {one.instance.sop_instance_uid: one for one in instances}


def read_dataset(stored: queries.StoredInstance, resources: Resources, *, pixels: bool = True) -> Dataset:
    """Read an instance from storage; without `pixels`, its header."""
    if stored.removed_at is not None:
        raise PermanentError(
            f"instance {stored.instance.sop_instance_uid} was removed by the retention rule at {stored.removed_at:%F}; "
            "have the study sent again"
        )
    try:
        with resources.storage.open(stored.key) as stream:
            return file.read_dataset(stream, pixels=pixels)
    except FileNotFoundError as error:
        if fault := resources.storage.find_fault():
            raise TransientError(fault) from error
        raise PermanentError(
            f"instance {stored.instance.sop_instance_uid} is missing from the storage: restore {stored.key} or have "
            "the study sent again"
        ) from error
    except (OSError, MemoryError) as error:
        raise TransientError(f"{stored.key} cannot be read from the storage ({type(error).__name__})") from error
    except DECODE_ERRORS as error:
        raise NotApplicableError(
            f"instance {stored.instance.sop_instance_uid} is damaged ({type(error).__name__}); "
            "have it sent as a new instance"
        ) from error
