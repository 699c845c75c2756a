"""A report dataset to text: what the radiologist wrote, and where in the content tree each sentence stands.

Reading is total: any dataset gives a `Report` or a NodeError. Who the patient is, and whether a preliminary report is
used at all, is decided elsewhere.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from dicom_node.errors import NotApplicableError, PermanentError
from dicom_node.header import DECODE_ERRORS, read_items, read_text, read_value
from dicom_node.report_cda import CDA_STORAGE, CdaDocument, DamagedDocumentError, read_cda
from dicom_node.report_codes import STATED, Section, find_heading, find_section, read_concept
from dicom_node.report_text import clean_text, split_sections
from grounding.text import split_sentences
from grounding.types import Concept, ReportText, Span

MAX_TEXT = 500_000
"""Characters; a hundred times the longest report seen."""

MAX_ITEMS = 100_000
"""Content items; a report has some hundreds."""

MAX_DEPTH = 100
"""Levels of content items; a report has five."""

_CONTEXT = frozenset({"HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD"})
"""Relationships of items that say who observed and how (PS3.3 C.17.3.2.4): they are no statement of the report."""

_MODIFIERS = frozenset({"HAS CONCEPT MOD", "HAS PROPERTIES"})
_LINE = re.compile(r"[^\n\u3002]+\u3002?")
_LANGUAGE = ("121049", "DCM")
_FINDING_NAMES = frozenset({("121071", "DCM"), ("121073", "DCM"), ("121077", "DCM"), ("121069", "DCM")})


@dataclass(frozen=True, slots=True)
class Sentence:
    """Characters [start, end) of the report's text, their section, and the content item they stand in ("1.3.2")."""

    start: int
    end: int
    section: Section
    item_path: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says. `sentences` are those that may be grounded, `all_sentences` every one, both in order.

    `title` and `language` are None where the report names none; the flags are those of PS3.3 C.17.2, empty if absent.
    """

    text: str
    sentences: tuple[Sentence, ...]
    all_sentences: tuple[Sentence, ...]
    title: Concept | None = None
    language: Concept | None = None
    completion_flag: str = ""
    verification_flag: str = ""
    preliminary_flag: str = ""

    @property
    def is_addendum(self) -> bool:
        """Whether all that it states is an addendum: what it adds to is another report."""
        return all(sentence.section == "addendum" for sentence in self.sentences)

    def to_report_text(self) -> ReportText:
        """Return the text and the spans that may be grounded, as the model reads them."""
        return ReportText(self.text, tuple(Span(sentence.start, sentence.end) for sentence in self.sentences))

    def find_item_path(self, span: Span | None) -> str | None:
        """Return the path of the content item in which `span` begins, None for no span or none that holds it."""
        if span is None:
            return None
        holders = (s.item_path for s in self.all_sentences if s.start <= span.start < s.end)
        return next(holders, None)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The cleaned text of one content item. `continues` joins it to the one before in the same sentence."""

    text: str
    section: Section
    item_path: str
    is_heading: bool = False
    continues: bool = False


@dataclass(frozen=True, slots=True)
class _Visit:
    """A content item to be read: its path, the section it stands in, whether its text runs on from its neighbour's."""

    item: Dataset
    path: str
    section: Section
    continues: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """Characters [start, end) of the text under one section; which content items begin in it, and where."""

    start: int
    end: int
    section: Section
    starts: list[int]
    paths: list[str]


def read_report(ds: Dataset) -> Report:
    """Return the report that `ds` holds.

    Raises NotApplicableError where it holds no text, or none that speaks of the image; PermanentError where its
    content cannot be read.
    """
    uid = read_text(ds, "SOPInstanceUID")
    document = _read_document(ds, uid)
    try:
        pieces = list(_read_pieces(ds)) if document is None else list(_read_cda_pieces(document))
        text, all_sentences = _assemble(pieces)
    except DECODE_ERRORS as error:
        raise PermanentError(
            f"the content of report {uid} is damaged ({type(error).__name__}); ask the sender for it again"
        ) from error
    sentences = _select(all_sentences)
    _check_text(uid, sentences, all_sentences)
    return Report(
        text,
        sentences,
        all_sentences,
        read_concept(ds, "ConceptNameCodeSequence"),
        _read_language(ds) if document is None else document.language,
        read_text(ds, "CompletionFlag"),
        read_text(ds, "VerificationFlag"),
        read_text(ds, "PreliminaryFlag"),
    )


def read_plain_report(text: str) -> Report:
    """Return the report of a plain text, whose sections are the headings typed into it; item paths are "1"."""
    cleaned = clean_text(text)
    if len(cleaned) > MAX_TEXT:
        raise PermanentError(f"the report is longer than {MAX_TEXT} characters; that is no radiology report")
    whole, all_sentences = _assemble([_Piece(cleaned, "unsectioned", "1")])
    sentences = _select(all_sentences)
    _check_text("of plain text", sentences, all_sentences)
    return Report(whole, sentences, all_sentences)


def _check_text(uid: str, sentences: tuple[Sentence, ...], all_sentences: tuple[Sentence, ...]) -> None:
    if not all_sentences:
        raise NotApplicableError(f"the report holds no text (report {uid}); nothing can be grounded")
    if not sentences:
        raise NotApplicableError(
            f"the report holds neither findings nor an impression (report {uid}), only "
            + ", ".join(sorted({sentence.section for sentence in all_sentences}))
        )


def _select(sentences: tuple[Sentence, ...]) -> tuple[Sentence, ...]:
    """Return the sentences that speak of this image: text outside any section counts where no section has findings."""
    used: set[Section] = set(STATED)
    if not any(sentence.section == "findings" for sentence in sentences):
        used.add("unsectioned")
    return tuple(sentence for sentence in sentences if sentence.section in used)


def _read_language(ds: Dataset) -> Concept | None:
    for item in read_items(ds, "ContentSequence"):
        name = read_concept(item, "ConceptNameCodeSequence")
        if name is not None and (name.code, name.scheme) == _LANGUAGE:
            return read_concept(item, "ConceptCodeSequence")
    return None


# ---- an encapsulated document -----------------------------------------------------------------------------------


def _read_document(ds: Dataset, uid: str) -> CdaDocument | None:
    """Return the CDA document that `ds` encapsulates, None for an SR."""
    if read_text(ds, "SOPClassUID") != CDA_STORAGE:
        return None
    content = read_value(ds, "EncapsulatedDocument")
    try:
        return read_cda(content if isinstance(content, bytes) else b"")
    except DamagedDocumentError as error:
        raise PermanentError(f"the CDA document of report {uid} cannot be read: {error}") from error


def _read_cda_pieces(document: CdaDocument) -> Iterator[_Piece]:
    """Yield title and text of each section; one whose code and title name none belongs to the one it stands in."""
    known: dict[str, Section] = {}
    length = 0
    for number, section in enumerate(document.sections):
        length += len(section.title) + len(section.text)
        if length > MAX_TEXT or number > MAX_ITEMS:
            raise PermanentError(f"the report is longer than {MAX_TEXT} characters; that is no radiology report")
        named = find_section(section.name) if section.name is not None else None
        named = named or find_heading(clean_text(section.title).rstrip(":"))
        known[section.path] = named or known.get(section.path.rpartition(".")[0], "unsectioned")
        title, text = clean_text(section.title), clean_text(section.text)
        if title:
            yield _Piece(f"{title.rstrip(':')}:", known[section.path], section.path, is_heading=True)
        if text:
            yield _Piece(text, known[section.path], section.path)


# ---- the content tree -------------------------------------------------------------------------------------------


def _read_pieces(ds: Dataset) -> Iterator[_Piece]:
    """Walk the tree depth first, without recursion: a hostile tree may be thousands deep."""
    stack = _visit_children(_Visit(ds, "1", "unsectioned", continues=False))
    seen = length = 0
    while stack:
        visit = stack.pop()
        seen += 1
        if seen > MAX_ITEMS or visit.path.count(".") > MAX_DEPTH:
            raise PermanentError(
                f"the report has more than {MAX_ITEMS} content items or {MAX_DEPTH} levels; that is no radiology report"
            )
        if read_text(visit.item, "RelationshipType") in _CONTEXT:
            continue
        visit = _Visit(visit.item, visit.path, _section_of(visit), visit.continues)
        for piece in _read_item(visit):
            length += len(piece.text)
            if length > MAX_TEXT:
                raise PermanentError(f"the report is longer than {MAX_TEXT} characters; that is no radiology report")
            yield piece
        stack.extend(_visit_children(visit))


def _visit_children(visit: _Visit) -> list[_Visit]:
    """Return the children of an item, last first, as a stack takes them."""
    continuous = read_text(visit.item, "ContinuityOfContent") == "CONTINUOUS"
    coded = read_text(visit.item, "ValueType") in ("CODE", "NUM")
    children = []
    for number, child in enumerate(read_items(visit.item, "ContentSequence"), 1):
        if coded and read_text(child, "RelationshipType") in _MODIFIERS:
            continue
        children.append(_Visit(child, f"{visit.path}.{number}", visit.section, continuous and number > 1))
    return children[::-1]


def _section_of(visit: _Visit) -> Section:
    """Return the section of an item: its own name's, but a "Finding" in a named section stays in that section."""
    name = read_concept(visit.item, "ConceptNameCodeSequence")
    own = find_section(name) if name is not None else None
    is_container = read_text(visit.item, "ValueType") == "CONTAINER"
    if own in STATED and not is_container and visit.section != "unsectioned":
        return visit.section
    return own or visit.section


def _read_item(visit: _Visit) -> list[_Piece]:
    value_type = read_text(visit.item, "ValueType")
    if value_type == "CONTAINER":
        name = read_concept(visit.item, "ConceptNameCodeSequence")
        meaning = clean_text(name.meaning) if name is not None else ""
        return [_Piece(f"{meaning}:", visit.section, visit.path, is_heading=True)] if meaning else []
    reader = {"TEXT": _text_of, "CODE": _code_text, "NUM": _number_text}.get(value_type)
    text = clean_text(reader(visit.item)) if reader is not None else ""
    return [_Piece(text, visit.section, visit.path, continues=visit.continues)] if text else []


def _text_of(item: Dataset) -> str:
    value = item.get("TextValue")
    return value if isinstance(value, str) else ""


def _code_text(item: Dataset) -> str:
    """Render a coded statement: "Pleural effusion, Left", with its name before it unless that is "Finding"."""
    value = read_concept(item, "ConceptCodeSequence")
    if value is None or not value.meaning:
        return ""
    return _with_name(item, ", ".join([value.meaning, *_modifier_texts(item)]))


def _number_text(item: Dataset) -> str:
    """Render a measurement: "Diameter: 2 cm"; units of dimension one are left out."""
    for measured in read_items(item, "MeasuredValueSequence"):
        number = read_text(measured, "NumericValue")
        unit = read_concept(measured, "MeasurementUnitsCodeSequence")
        if number:
            shown = "" if unit is None or unit.code == "1" or unit.code.startswith("{") else f" {unit.code}"
            return _with_name(item, ", ".join([number + shown, *_modifier_texts(item)]))
    return ""


def _with_name(item: Dataset, text: str) -> str:
    name = read_concept(item, "ConceptNameCodeSequence")
    if name is None or not name.meaning or (name.code, name.scheme) in _FINDING_NAMES:
        return text
    return f"{name.meaning}: {text}"


def _modifier_texts(item: Dataset) -> list[str]:
    values = (
        read_concept(child, "ConceptCodeSequence")
        for child in read_items(item, "ContentSequence")
        if read_text(child, "RelationshipType") in _MODIFIERS
    )
    return [value.meaning for value in values if value is not None and value.meaning]


# ---- the text ---------------------------------------------------------------------------------------------------


def _assemble(pieces: list[_Piece]) -> tuple[str, tuple[Sentence, ...]]:
    """Join the pieces to one text, one line each, and return it with its sentences."""
    text = ""
    parts: list[str] = []
    runs: list[_Run] = []
    offset = 0
    for piece in pieces:
        separator = "" if not parts else " " if piece.continues else "\n"
        offset += len(separator)
        parts += [separator, piece.text]
        if not piece.is_heading:
            _extend_runs(runs, piece, offset)
        offset += len(piece.text)
    text = "".join(parts)
    return text, tuple(sentence for run in runs for sentence in _split_run(text, run))


def _extend_runs(runs: list[_Run], piece: _Piece, offset: int) -> None:
    for number, part in enumerate(split_sections(piece.text, piece.section)):
        if part.is_heading:
            continue
        start, end = offset + part.start, offset + part.end
        if piece.continues and number == 0 and runs and runs[-1].section == part.section:
            last = runs.pop()
            last.starts.append(start)
            last.paths.append(piece.item_path)
            runs.append(replace(last, end=end))
        else:
            runs.append(_Run(start, end, part.section, [start], [piece.item_path]))


def _split_run(text: str, run: _Run) -> Iterator[Sentence]:
    """Lines that are left after unwrapping are statements of their own, whether or not a full stop ends them."""
    for line in _LINE.finditer(text, run.start, run.end):
        for span in split_sentences(text, line.start(), line.end()):
            path = run.paths[bisect_right(run.starts, span.start) - 1]
            yield Sentence(span.start, span.end, run.section, path)
