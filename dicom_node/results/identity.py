"""The UIDs of results: the same study, report, model and findings give the same, anything else gives others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from dicom_node.clock import derive_uid
from dicom_node.header import read_text
from dicom_node.results.values import ResultInput
from grounding.types import Concept, Finding, ModelIdentity


@dataclass(frozen=True, slots=True)
class ResultUids:
    """SOP Instance and Series Instance UIDs of one result; `gsps_instances` by index of the image."""

    sr_instance: str
    sr_series: str
    gsps_instances: tuple[str, ...]
    gsps_series: str


def result_uids(result: ResultInput) -> ResultUids:
    """Return the UIDs of the results of `result`.

    A series belongs to the image study, so that viewers that show the newest instance of a series show the newest
    revision, also where an amended report is another instance. The fallback SOP class of the SR is another instance.
    """
    study = read_text(result.images[0], "StudyInstanceUID")
    content = _content_key(result)
    replaced = {reference.series_instance_uid for reference in result.predecessors}
    return ResultUids(
        sr_instance=derive_uid("sr", result.sr_class, *content),
        sr_series=min(replaced) if replaced else derive_uid("sr series", study),
        gsps_instances=tuple(derive_uid("gsps", str(index), *content) for index in range(len(result.images))),
        gsps_series=derive_uid("gsps series", study),
    )


def device_uid(model: ModelIdentity) -> str:
    """Return the Device UID of a model version."""
    return derive_uid("device", model.name, model.version, model.sha256)


def tracking_uid(result: ResultInput, number: int) -> str:
    """Return the Tracking UID of the box `number`, the same in SR and GSPS whatever the class of the SR."""
    return derive_uid("tracking", str(number), *_content_key(result))


def remark_uid(result: ResultInput, number: int) -> str:
    """Return the Tracking UID of the phrase without a box `number`."""
    return derive_uid("remark", str(number), *_content_key(result))


def _content_key(result: ResultInput) -> tuple[str, ...]:
    """Return everything that results say, but the time of writing."""
    model = result.grounding.model
    return (
        read_text(result.images[0], "StudyInstanceUID"),
        *(read_text(image, "SOPInstanceUID") for image in result.images),
        read_text(result.report_header, "SOPInstanceUID") if result.report_header is not None else "",
        str(result.revision),
        *(predecessor.sop_instance_uid for predecessor in result.predecessors),
        model.version,
        model.sha256,
        model.name,
        repr(result.equipment),
        repr(result.options),
        hashlib.sha256(result.report.text.encode(errors="replace")).hexdigest(),
        _digest(result.grounding.findings),
    )


def _digest(findings: tuple[Finding, ...]) -> str:
    """Return the digest of all that is said of the findings; numbers as floats, whatever type they came in."""
    said = [
        (
            finding.phrase,
            (finding.source.start, finding.source.end) if finding.source is not None else None,
            finding.image,
            [[float(value) for value in (*scored.box.xyxy, scored.score)] for scored in finding.boxes],
            finding.localized,
            finding.negated,
            _tell(finding.finding) if finding.finding is not None else None,
            (_tell(finding.site.concept), finding.site.laterality) if finding.site is not None else None,
        )
        for finding in findings
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _tell(concept: Concept) -> tuple[str, str, str]:
    return concept.code, concept.scheme, concept.meaning
