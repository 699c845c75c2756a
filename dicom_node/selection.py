"""Which report and which images of a study are used: pure, and independent of the order of arrival.

Report: one for the patient of an image before one for nobody's, a whole one before an addendum alone, a final one
before a preliminary one, a verified one before an unverified one, then the latest. Images: those of the report's
patient, and of these the ones that its evidence names, if any; then those of the best view alone (PA, else AP),
originals before derived ones. Where the header does not tell the view, the first image alone is used: of a pair the
second may be the lateral. Laterals, localizers, other body parts and images whose Patient Orientation is not that of a
frontal view are never used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dicom_node.errors import NotApplicableError
from dicom_node.instance import Instance
from dicom_node.orientation import is_coronal

View = Literal["PA", "AP", "unknown", "other"]

RANKS: dict[View, int] = {"PA": 0, "AP": 1, "unknown": 2}
"""Views that may be used, the preferred one first; "other" are laterals and obliques."""

VIEW_WORDS: dict[str, View] = {
    "LL": "other",
    "RL": "other",
    "LLO": "other",
    "RLO": "other",
    "LAO": "other",
    "RAO": "other",
    "LPO": "other",
    "RPO": "other",
    "LAT": "other",
    "LATERAL": "other",
    "OBLIQUE": "other",
    "PA": "PA",
    "AP": "AP",
}
"""Words of View Position (PS3.3 C.8.7.1.1.9, and what modalities write besides); the first one that is found counts."""

DESCRIBED_VIEWS = ("PA", "AP", "LAT", "LATERAL", "OBLIQUE")
"""Of these, the ones that are clear enough in free text."""

VIEW_CODES: dict[tuple[str, str], View] = {
    ("272479007", "SCT"): "PA",
    ("R-40888", "SRT"): "PA",
    ("R-10214", "SRT"): "PA",
    ("399348003", "SCT"): "AP",
    ("R-10206", "SRT"): "AP",
}
"""View Code Sequence (PS3.16 CID 4010): frontal views, then laterals and obliques."""
VIEW_CODES |= {
    (code, scheme): "other"
    for scheme, codes in {
        "SCT": "399067008 399173006 399198007 30730003 399182000 260427002 399184004 399236003 "
        "399006002 399356000 399135007 399038007",
        "SRT": "R-102CD R-10236 R-10232 G-A145 R-102C1 R-40783 R-10238 R-10234 R-10212 R-40985 R-10220 R-10210",
    }.items()
    for code in codes.split()
}

OTHER_BODY_PARTS = (
    "SKULL", "HEAD", "FACE", "ORBIT", "SINUS", "NECK", "SPINE", "SACRUM", "COCCYX", "SHOULDER", "HUMERUS", "ARM",
    "ELBOW", "FOREARM", "WRIST", "HAND", "FINGER", "THUMB", "ABDOMEN", "PELVIS", "HIP", "FEMUR", "LEG", "KNEE",
    "PATELLA", "TIBIA", "ANKLE", "FOOT", "HEEL", "TOE", "EXTREMITY", "BREAST", "JAW", "TEETH", "MANDIBLE",
)  # fmt: skip
"""Words of Body Part Examined (PS3.16 annex L) that exclude an image; an absent or unknown one does not."""

ADDENDUM = "not used: an addendum alone; the report that it belongs to is used"

_WORD = re.compile("[A-Z]+")

CHEST_BODY_PARTS = ("CHEST", "THORAX", "LUNG", "RIB", "HEART")
"""Words that include it all the same, as in CHESTABDOMEN."""


@dataclass(frozen=True, slots=True)
class Selection:
    """SOP Instance UIDs that are used, and for every image and report of the study why, or why not."""

    report: str
    images: tuple[str, ...]
    why: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the selection as the job's row keeps it."""
        return {"report": self.report, "images": list(self.images), "why": self.why}


@dataclass(frozen=True, slots=True)
class _Requirement:
    """What an image must meet: the test, why one that fails it is not used, and what is said if all fail."""

    is_met: Callable[[Instance, Instance], bool]
    otherwise: str
    none_left: str


def select(instances: Iterable[Instance], addenda: Container[str] = ()) -> Selection:
    """Return what is used of a study's instances. Raises NotApplicableError that says what is missing.

    `addenda` are SOP Instance UIDs of reports that hold nothing but an addendum, as far as that is known.
    """
    candidates = [instance for instance in instances if instance.role != "other"]
    images = [instance for instance in candidates if instance.role == "image"]
    own = [i for i in candidates if i.role != "report" or any(is_same_patient(i, image) for image in images)]
    report = select_report(own if any(i.role == "report" for i in own) else candidates, addenda)
    selected = select_images(candidates, report)
    used = [report, *selected]
    why = {
        i.sop_instance_uid: "used" if i in used else ADDENDUM if i.sop_instance_uid in addenda else _why_not(i, report)
        for i in candidates
    }
    return Selection(report.sop_instance_uid, tuple(image.sop_instance_uid for image in selected), why)


def select_report(instances: Iterable[Instance], addenda: Container[str] = ()) -> Instance:
    """Return the report that is used. Raises NotApplicableError if there is none, or only unfinished ones."""
    reports = [instance for instance in instances if instance.role == "report"]
    finished = [report for report in reports if report.completion_flag != "PARTIAL"]
    if not finished:
        raise NotApplicableError(
            "the only report of the study is marked PARTIAL: the complete one is grounded when it comes"
            if reports
            else "the study has no report"
        )
    whole = [report for report in finished if report.sop_instance_uid not in addenda]
    return max(whole or finished, key=_report_key)


def select_images(instances: Iterable[Instance], report: Instance) -> tuple[Instance, ...]:
    """Return the images that are used with `report`, in the order of series and instance number.

    Raises NotApplicableError that says why there is none.
    """
    images = sorted((instance for instance in instances if instance.role == "image"), key=_place)
    if not images:
        raise NotApplicableError("the study has no image that may be grounded (CR, or DX for presentation)")
    for requirement in _REQUIREMENTS:
        images = [image for image in images if requirement.is_met(image, report)]
        if not images:
            raise NotApplicableError(requirement.none_left)
    images = [image for image in images if image.sop_instance_uid in report.evidence] or images
    best = min(_preference(image) for image in images)
    preferred = tuple(image for image in images if _preference(image) == best)
    is_told = view_of(preferred[0]) != "unknown" or preferred[0].sop_instance_uid in report.evidence
    return preferred if is_told else preferred[:1]


def view_of(image: Instance) -> View:
    """Return the view: by View Position, else View Code, else by Patient Orientation (rows from front to back), else by
    what the series and its protocol are called."""
    words = _WORD.findall(image.view_position)
    position = next((view for word, view in VIEW_WORDS.items() if word in words), None)
    rows_run = image.patient_orientation[0][:1] if image.patient_orientation else ""
    if rows_run in ("A", "P") and position is None and image.view_code not in VIEW_CODES:
        return "other"
    return position or VIEW_CODES.get(image.view_code) or _described_view(image)


def _described_view(image: Instance) -> View:
    words = _WORD.findall(image.description)
    views = {VIEW_WORDS[word] for word in DESCRIBED_VIEWS if word in words}
    return views.pop() if len(views) == 1 else "unknown"


def add_referred(own: Sequence[Instance], referred: Iterable[Instance]) -> tuple[Instance, ...]:
    """Return a study's instances with those reports of other studies that may count for it.

    None where the study has a report of its own for the patient of its images: what else names its images compares
    with them. A stranger to these images never counts; the Patient ID must say that it is not one.
    """
    images = [one for one in own if one.role == "image"]
    if any(one.role == "report" and any(is_same_patient(one, image) for image in images) for one in own):
        return tuple(own)
    return (*own, *(one for one in referred if _is_certainly_about(one, images)))


def _is_certainly_about(report: Instance, images: Sequence[Instance]) -> bool:
    return bool(report.patient_id) and any(
        image.sop_instance_uid in report.evidence
        and is_same_patient(report, image)
        and not _differ(report.patient_birth_date, image.patient_birth_date)
        for image in images
    )


def is_same_patient(one: Instance, other: Instance) -> bool:
    """Tell whether two instances may be of one patient: the same Patient ID, of issuers that do not differ.

    Where neither has an ID, birth date and sex must not differ. An attribute that one of them lacks says nothing.
    """
    if one.patient_id != other.patient_id or _differ(one.patient_id_issuer, other.patient_id_issuer):
        return False
    return bool(one.patient_id) or not (
        _differ(one.patient_birth_date, other.patient_birth_date) or _differ(one.patient_sex, other.patient_sex)
    )


def _differ(one: str, other: str) -> bool:
    return bool(one and other) and one != other


def is_chest(image: Instance) -> bool:
    """Tell whether the body part may be the chest: named so, or not named, or named in words nobody knows."""
    part = image.body_part
    return any(word in part for word in CHEST_BODY_PARTS) or not any(word in part for word in OTHER_BODY_PARTS)


def is_localizer(image: Instance) -> bool:
    """Tell whether the third value of Image Type says LOCALIZER."""
    return "LOCALIZER" in image.image_type[2:3]


_REQUIREMENTS = (
    _Requirement(
        lambda image, report: is_same_patient(image, report),
        "not used: for another patient than the report",
        "the report is for another patient than the images (Patient ID, its issuer, or without an ID birth date or sex "
        "differ): correct what is wrong in the archive and send it as a new instance",
    ),
    _Requirement(
        lambda image, report: is_chest(image),
        "not used: not of the chest",
        "no image of the study is of the chest (Body Part Examined)",
    ),
    _Requirement(
        lambda image, report: view_of(image) in RANKS,
        "not used: no frontal view",
        "the study has no frontal view (PA or AP), only lateral or oblique ones",
    ),
    _Requirement(
        lambda image, report: is_coronal(image.patient_orientation),
        "not used: Patient Orientation is not that of a frontal view",
        "the frontal view has the Patient Orientation of another (its rows and columns do not run along left, right, "
        "head and feet): correct what is wrong in the archive and send it as a new instance",
    ),
    _Requirement(
        lambda image, report: not is_localizer(image),
        "not used: a localizer",
        "the study has no image but localizers",
    ),
)


def _why_not(instance: Instance, report: Instance) -> str:
    if instance.role == "report" and not is_same_patient(instance, report):
        return "not used: for another patient than the images"
    if instance.role == "report":
        return "not used: another report is final, verified or later"
    failed = next((requirement for requirement in _REQUIREMENTS if not requirement.is_met(instance, report)), None)
    return failed.otherwise if failed else "not used: the report names others, or there is a better view"


def _report_key(report: Instance) -> tuple[bool, bool, str, int, str]:
    return (
        report.preliminary_flag != "PRELIMINARY",
        report.verification_flag == "VERIFIED",
        report.content_datetime,
        report.instance_number or 0,
        report.sop_instance_uid,
    )


def _place(image: Instance) -> tuple[int, int, str]:
    return image.series_number or 0, image.instance_number or 0, image.sop_instance_uid


def _preference(image: Instance) -> tuple[int, bool]:
    return RANKS[view_of(image)], "DERIVED" in image.image_type[:1]
