"""What the page of a job is made of: rows, the report's text, films with their boxes, results as they are stored.

What cannot be read is said in its place; the rest of the page is there all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from pydicom.uid import UID
from sqlalchemy.orm import Session

from dicom_node.console.films import FilmFacts, Films, read_stored
from dicom_node.console.findings import ShownBox, ShownFinding, show_findings
from dicom_node.console.site import RefusedError, Site
from dicom_node.errors import NodeError
from dicom_node.header import DECODE_ERRORS
from dicom_node.orientation import UPRIGHT, Orientation, orientation_of
from dicom_node.queries import (
    JobDetail,
    StoredInstance,
    StoredResult,
    StudyFacts,
    instances_of,
    load_grounding,
    load_results,
    show_study,
)
from dicom_node.report import read_report
from dicom_node.results.content import ContentItem
from dicom_node.results.film import Window, factors
from dicom_node.results.labels import Rect, place_labels
from dicom_node.results.reading import read_boxes
from dicom_node.results.values import GSPS_SOP_CLASS, SR_SOP_CLASSES
from dicom_node.storage import Storage
from grounding.types import Grounding

TAG = 0.034
"""Height of a box's number as a share of the film's longer side."""

REMOVED = "the retention rule removed it on {at:%Y-%m-%d}; have the PACS send it again"


@dataclass(frozen=True, slots=True)
class TaggedBox:
    """A box with the plate that its number stands on: in pixels of the film, heights as the screen shows them."""

    finding: int
    box: ShownBox
    tag: str
    tag_left: float
    tag_top: float
    tag_width: float


@dataclass(frozen=True, slots=True)
class ShownFilm:
    """A film as the page shows it; `reason` says why there is no picture. `height` is in widths of a pixel."""

    sop_instance_uid: str
    path: str
    reason: str = ""
    rows: int = 0
    columns: int = 0
    aspect: float = 1.0
    factor: int = 1
    window: Window | None = None
    boxes: tuple[TaggedBox, ...] = ()

    @property
    def height(self) -> float:
        """How high the film is on the screen where its width is `columns`."""
        return self.rows * self.aspect

    @property
    def tag_size(self) -> float:
        """How high a number's plate is."""
        return TAG * max(self.columns, self.height)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels of the film: whole blocks of `factor` pixels."""
        width, height = (-(-size // self.factor) * self.factor for size in (self.columns, self.rows))
        return width, height


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A result as it is stored: the tree of an SR, or the picture of a presentation state and its labels."""

    title: str
    short: str
    sop_instance_uid: str
    path: str
    reason: str = ""
    content: ContentItem | None = None
    picture: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rows of a job and the storage say for its page."""

    study: StudyFacts
    findings: tuple[ShownFinding, ...]
    films: tuple[ShownFilm, ...]
    report: str
    report_reason: str
    objects: tuple[StoredObject, ...]


def read_job(site: Site, films: Films, job: JobDetail) -> Reading:
    """Read all that the page of a job shows besides its rows."""
    with site.sessions() as session:
        study = show_study(session, job.summary.study_instance_uid) or StudyFacts("", "", job.summary.revision)
        grounding, images = _grounding(session, job)
        held = {one.instance.sop_instance_uid: one for one in instances_of(session, job.summary.study_instance_uid)}
        results = load_results(session, job.summary.job_id)
    findings = _find(grounding, images, held, site.settings.results.min_confidence)
    report, reason = _read_text(site.storage, held.get((job.report or {}).get("sop_instance_uid", "")))
    path = f"/jobs/{job.summary.job_id}"
    return Reading(
        study,
        findings,
        tuple(_show_film(site.storage, films, path, uid, held.get(uid), _boxes_on(findings, number))
              for number, uid in enumerate(images)),
        report,
        reason if grounding else "",
        tuple(_show_objects(site.storage, films, path, results, held)),
    )  # fmt: skip


def _grounding(session: Session, job: JobDetail) -> tuple[Grounding | None, tuple[str, ...]]:
    if job.model is None or job.report is None:
        return None, ()
    return load_grounding(session, job.summary.job_id)


def _find(
    grounding: Grounding | None, images: Sequence[str], held: Mapping[str, StoredInstance], min_confidence: float
) -> tuple[ShownFinding, ...]:
    if grounding is None:
        return ()
    sizes: dict[int, tuple[int, int]] = {}
    ways: dict[int, Orientation] = {}
    for number, uid in enumerate(images):
        instance = held[uid].instance if uid in held else None
        rows, columns = (instance.rows, instance.columns) if instance else (None, None)
        sizes[number] = (rows or 10**6, columns or 10**6)  # unknown: nothing is cut off
        ways[number] = orientation_of(instance.patient_orientation) if instance else UPRIGHT
    return show_findings(grounding.findings, sizes, ways, min_confidence)


def _boxes_on(findings: Sequence[ShownFinding], image: int) -> list[tuple[int, ShownBox]]:
    return [(one.number, box) for one in findings for box in one.boxes if box.image == image]


def _read_text(storage: Storage, report: StoredInstance | None) -> tuple[str, str]:
    """Return the report's text, or why there is none."""
    if report is None:
        return "", "The report is not known to this node any more."
    if report.removed_at is not None:
        return "", f"The report is not kept: {REMOVED.format(at=report.removed_at)}."
    try:
        return read_report(read_stored(storage, report.key)).text, ""
    except NodeError as error:
        return "", f"The report cannot be shown: {error}."


def _show_film(
    storage: Storage, films: Films, path: str, uid: str, image: StoredInstance | None,
    boxes: Sequence[tuple[int, ShownBox]],
) -> ShownFilm:  # fmt: skip
    where = f"{path}/films/{uid}"
    if image is None:
        return ShownFilm(uid, where, "The film is not known to this node any more.")
    if image.removed_at is not None:
        return ShownFilm(uid, where, f"The film is not kept: {REMOVED.format(at=image.removed_at)}.")
    try:
        facts = films.read_facts(storage, image.key)
    except RefusedError as error:
        return ShownFilm(uid, where, f"The film cannot be shown: {error}.")
    if not facts.rows or not facts.columns:
        return ShownFilm(uid, where, "The film cannot be shown: its header names no rows and columns.")
    return lay_out(uid, where, facts, boxes)


def lay_out(uid: str, path: str, facts: FilmFacts, boxes: Sequence[tuple[int, ShownBox]]) -> ShownFilm:
    """Return a film with its boxes, each with its number beside it, inside the film, and not over another number."""
    bare = ShownFilm(
        uid, path, "", facts.rows, facts.columns, facts.aspect, factors(facts.rows, facts.columns)[1], facts.window
    )
    tags = [f"{box.number} check side" if box.on_other_side else f"{box.number}" for _, box in boxes]
    sizes = [(bare.tag_size * (0.7 + 0.5 * len(tag)), bare.tag_size) for tag in tags]
    extents = [_extent(box, facts.aspect) for _, box in boxes]
    places = place_labels(extents, sizes, bare.columns, bare.height)
    tagged = [
        TaggedBox(finding, box, tag, round(place[0], 2), round(place[1], 2), round(place[2] - place[0], 2))
        for (finding, box), tag, place in zip(boxes, tags, places, strict=True)
    ]
    return replace(bare, boxes=tuple(tagged))


def _extent(box: ShownBox, aspect: float) -> Rect:
    return box.left, box.top * aspect, box.left + box.width, (box.top + box.height) * aspect


def _show_objects(
    storage: Storage, films: Films, path: str, results: Sequence[StoredResult], held: Mapping[str, StoredInstance]
) -> Iterator[StoredObject]:
    """Yield the results, the preferred SR first."""
    latest_first = sorted(results, key=lambda one: (one.part != "sr", one.part, _rank(one.sop_class_uid)))
    trees = 0
    for one in latest_first:
        where = f"{path}/results/{one.sop_instance_uid}"
        if one.sop_class_uid == GSPS_SOP_CLASS:
            yield _show_state(storage, where, one, held)
        else:
            trees += 1
            yield _show_sr(storage, films, where, one, with_tree=trees == 1)


def _rank(sop_class_uid: str) -> int:
    order = list(SR_SOP_CLASSES.values())
    return order.index(sop_class_uid) if sop_class_uid in order else len(order)


def _show_sr(storage: Storage, films: Films, path: str, result: StoredResult, *, with_tree: bool) -> StoredObject:
    title, uid = UID(result.sop_class_uid).name.removesuffix(" Storage"), result.sop_instance_uid
    try:
        content = films.read_content(storage, result.key) if with_tree else None
        return StoredObject(title, "SR", uid, path, content=content)
    except RefusedError as error:
        return StoredObject(title, "SR", uid, path, f"It cannot be shown: {error}.")


def _show_state(storage: Storage, path: str, result: StoredResult, held: Mapping[str, StoredInstance]) -> StoredObject:
    title, uid = "Grayscale Softcopy Presentation State", result.sop_instance_uid
    image = held.get(result.part.partition(":")[2])
    try:
        labels = tuple(box.text for box in read_boxes(read_stored(storage, result.key)))
        if image is None or image.removed_at is not None:
            return StoredObject(title, "GSPS", uid, path, "Its film is not kept any more.", labels=labels)
        return StoredObject(title, "GSPS", uid, path, picture=f"{path}.png", labels=labels)
    except NodeError as error:
        return StoredObject(title, "GSPS", uid, path, f"It cannot be shown: {error}.")
    except DECODE_ERRORS as error:
        return StoredObject(title, "GSPS", uid, path, f"It is damaged and cannot be shown ({type(error).__name__}).")


def write_query(window: Window | None) -> str:
    """Return the query string that asks for a film in a window."""
    return "?" + urlencode({"centre": f"{window.centre:g}", "width": f"{window.width:g}"}) if window else ""
