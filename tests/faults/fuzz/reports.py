"""Reports: each dataset gives a text with its sentences, or says why it does not, soon and within bounds."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from random import Random

from pydicom.dataset import Dataset

from dicom_node.errors import NodeError
from dicom_node.file import read_dataset
from dicom_node.header import DECODE_ERRORS, copy_identity
from dicom_node.language import check_language
from dicom_node.report import Report, read_report
from tests.builders import (
    encode,
    make_cda_dataset,
    make_coded_item,
    make_item,
    make_number,
    make_report_dataset,
    make_section,
    make_text,
)
from tests.faults.fuzz import seeds
from tests.faults.fuzz.bounds import Violation, WriteWatch, memory_within, within
from tests.faults.fuzz.dicom_mutations import mutate_file
from tests.faults.fuzz.mutations import BYTES, Mutator, apply

CASE_S, CASE_MEGABYTES = 10, 512

VALUE_TYPES = ("TEXT", "CODE", "NUM", "CONTAINER", "DATE", "PNAME", "UIDREF", "IMAGE", "", "text", "X" * 40)
RELATIONSHIPS = (
    "CONTAINS", "HAS PROPERTIES", "HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT", "INFERRED FROM",
    "SELECTED FROM", "", None,
)  # fmt: skip
NAMES = (
    ("59776-5", "LN", "Findings"), ("19005-8", "LN", "Impressions"), ("121071", "DCM", "Finding"),
    ("18834-2", "LN", "Previous Findings"), ("", "", ""), ("X" * 16, "99X", "Findings:" * 20), None,
)  # fmt: skip
PHRASES = (
    "Small left pleural effusion. ", "No pneumothorax.", "FINDINGS: ", "\n\nIMPRESSION:\n", "COMPARISON: none\n\n",
    "Dr. A. B. C. ", "1. a\n2. b\n", "<p>", "<br/>", "&amp;&#0;&#xd800;", "\x1b$B", "\x00\x01", "\u202e", "\ufeff",
    "。", "é́", "\U0001f600", "the ", ", ", ": ", "-", "* ", " " * 50, "\n" * 50, "\t", "A" * 60, "e.g. ", "((((",
    "2.5 cm ",
)  # fmt: skip


def run_case(seed: int) -> None:
    """Mutate a report, and read it as a worker does."""
    random = Random(seed)
    chance = random.random()
    if chance < 0.4:
        content = random.choice(seeds.reports())
    elif chance < 0.8:
        content = encode(make_tree(random))
    else:
        content = encode(make_cda_dataset(_draw_document(random)))
    if chance < 0.4 or random.random() < 0.3:
        content = mutate_file(content, random, seeds.reports())
    check(content)


def check(content: bytes) -> Report | None:
    """Raise Violation unless `content` is read as a report or refused; return the report."""
    with WriteWatch(None) as watch, memory_within(CASE_MEGABYTES), within(CASE_S):
        report = _read(content)
    if watch.outside:
        raise Violation(f"outside: {watch.outside}")
    if report is not None:
        _check_sentences(report)
    return report


def _read(content: bytes) -> Report | None:
    """Read as `workers.steps` does: what damage raises before a dataset is there is foreseen there."""
    try:
        ds = read_dataset(BytesIO(content))
    except DECODE_ERRORS:
        return None
    copy_identity(ds)
    try:
        report = read_report(ds)
        check_language(report)
    except NodeError:
        return None
    return report


def _check_sentences(report: Report) -> None:
    end = 0
    for sentence in report.all_sentences:
        if not end <= sentence.start < sentence.end <= len(report.text):
            raise Violation(f"{sentence} is out of place")
        if report.find_item_path(sentence) != sentence.item_path:  # type: ignore[arg-type]  # it has start and end
            raise Violation(f"{sentence} has another path")
        end = sentence.end
        if len(report.all_sentences) > 500:
            break
    if not set(report.sentences) <= set(report.all_sentences) or report.is_addendum is None:
        raise Violation("it grounds what it does not hold")
    report.to_report_text()


# ---- structured reports ----------------------------------------------------------------------------------------------


def make_tree(random: Random) -> Dataset:
    """Return a report whose content is a random tree; now and then one that is too much of something."""
    if random.random() < 0.03:
        return make_report_dataset(random.choice(EXCESSES)(random))
    return make_report_dataset([_draw_item(random, 0) for _ in range(random.randint(0, 6))])


def _draw_item(random: Random, depth: int) -> Dataset:
    item = _draw_leaf(random)
    if random.random() < 0.15:  # by reference: to the root, to itself, to nothing
        item.ReferencedContentItemIdentifier = random.choice(([1], [1, 1], [1, 1, 1, 1], [0], [4294967295] * 5))
    if random.random() < 0.4 and depth < 12:
        item.ContentSequence = [_draw_item(random, depth + 1) for _ in range(random.randint(1, 3))]
    if random.random() < 0.1:
        for keyword in random.sample(["ValueType", "RelationshipType", "ConceptNameCodeSequence"], 1):
            item.pop(keyword, None)
    return item


def _draw_leaf(random: Random) -> Dataset:
    kind, name = random.random(), random.choice(NAMES)
    if kind < 0.4:
        item = make_text(_draw_text(random), name)
    elif kind < 0.5:
        item = make_coded_item(("1", "99X", _draw_text(random)[:60]))
    elif kind < 0.6:
        item = make_number(random.choice(("2", "1e5", "", "-0")), ("cm", "UCUM", "cm"), name or NAMES[0])
    elif kind < 0.8:
        item = make_item("CONTAINER", name, ContinuityOfContent=random.choice(("SEPARATE", "CONTINUOUS", "")))
    else:
        item = make_item(random.choice(VALUE_TYPES), name, TextValue=_draw_text(random))
    if random.random() < 0.3:
        relationship = random.choice(RELATIONSHIPS)
        item.RelationshipType = "" if relationship is None else relationship
    return item


def _draw_text(random: Random) -> str:
    text = "".join(random.choices(PHRASES, k=random.randint(0, 12)))
    return text * 2000 if random.random() < 0.005 else text


def _deep(random: Random) -> list[Dataset]:
    item = make_text("deep")
    for _ in range(random.choice((50, 98, 99, 100, 101, 120))):
        item = make_section(random.choice(NAMES), [item])
    return [item]


def _wide(random: Random) -> list[Dataset]:
    one = make_text(random.choice(("a", "Left effusion.", "")))
    return [
        make_item(
            "CONTAINER", NAMES[0], ContinuityOfContent="CONTINUOUS", ContentSequence=[one] * random.choice((100, 5000))
        )
    ]


def _named(random: Random) -> list[Dataset]:
    """Return items whose names go on and on."""
    name = ("1", "99X", random.choice(("observer ", "prior ", "Findings:", " ")) * random.choice((100, 6000)) + "\n!")
    return [make_section(name, [make_text("Left effusion.", name)] * 5)]


def _huge(random: Random) -> list[Dataset]:
    return [make_text(random.choice(PHRASES) * random.choice((20_000, 200_000)))]


EXCESSES: tuple[Callable[[Random], list[Dataset]], ...] = (_deep, _wide, _named, _huge)


# ---- CDA documents ---------------------------------------------------------------------------------------------------

HOSTILE = (
    '<!DOCTYPE a [<!ENTITY b "cccc">]>', '<!DOCTYPE a SYSTEM "file:///etc/passwd">', '<?xml-stylesheet href="x"?>',
    "<![CDATA[<p>]]>", "&lt;", "&undefined;", "&#0;", "&#xD800;", "<td/>" * 3000, "<td/>" * 60_000,
    "<item>" * 120, "<br/>" * 3000,
    "<paragraph>" * 50 + "</paragraph>" * 50, 'x="' + "y" * 70_000 + '"', "<!-- -- -->", "\0", "\ufffe", "</text>",
    "<section>", "<component><section><text>a</text></section></component>", " " * 5000, "\n" * 5000,
    '<content revised="delete">', "<title/>", 'xmlns="urn:x"', 'xmlns:a=""', "<a:b/>", '<footnote ID="1"/>',
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "shift-jis")


def _draw_document(random: Random) -> bytes:
    text = seeds.CDA
    for _ in range(random.randint(1, 5)):
        at = random.choice([place for place, letter in enumerate(text) if letter in "<> "])
        text = text[:at] + random.choice((*HOSTILE, *PHRASES)) + text[at:]
        text = text.replace("UTF-8", random.choice(("UTF-8",) * 8 + ("UTF-16", "ISO-8859-1", "x", "cp037")), 1)
    document = text.encode(random.choice(("utf-8",) * 6 + ENCODINGS), "replace")
    if random.random() < 0.3:
        document = apply(XML, document, random)
    return document


def _double(content: bytes, random: Random) -> bytes:
    """Put the document into itself."""
    return content[: random.randint(0, len(content))] + content


XML: tuple[Mutator, ...] = (*BYTES, _double)
