"""The gold reports in every shape and encoding: which sentences are read, from which section, at which place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.report import Report, read_report
from tests.builders import (
    BASIC_TEXT_SR,
    COMPARISON,
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENHANCED_SR,
    FINDINGS,
    IMPRESSION,
    INDICATION,
    TECHNIQUE,
    CodeTuple,
    encode,
    make_item,
    make_report_dataset,
    make_section,
    make_text,
    write,
)

Sections = dict[str, list[str]]

GOLD: list[dict[str, object]] = yaml.safe_load((Path(__file__).parents[1] / "gold" / "reports.yaml").read_text("utf-8"))

INDIANA = Path(__file__).parents[3] / "shared" / "data" / "reports" / "indiana_reports.jsonl"
PLAIN = re.compile(r"(?!.*XXXX)[A-Z][^.:;?!#<>&*0-9]{10,}[.]( [A-Z][^.:;?!#<>&*0-9]{10,}[.])*")

NAMES: dict[str, CodeTuple] = {
    "indication": INDICATION, "technique": TECHNIQUE, "comparison": COMPARISON, "findings": FINDINGS,
    "impression": IMPRESSION, "history": ("11329-0", "LN", "History"), "addendum": ("55107-7", "LN", "Addendum"),
    "recommendation": ("18783-1", "LN", "Recommendations"),
}  # fmt: skip
READ = ("findings", "impression", "addendum")

ENCODINGS = {
    "": "",
    "ISO_IR 100": "M\u00fcller \u00b5g \u00b12",
    "ISO_IR 192": "\u03c0 \u5c71\u7530 \u00e9",
    "GB18030": "\u738b\u5c0f\u4e1c",
    "ISO_IR 144": "\u041b\u044e\u043a\u0441\u0435\u043c\u0431\u0443\u0440\u0433",
    "ISO_IR 126": "\u0394\u03b9\u03bf\u03bd\u03c5\u03c3\u03b9\u03bf\u03c2",
    "\\ISO 2022 IR 87": "\u5c71\u7530",
    "\\ISO 2022 IR 149": "\uae40\ud76c\uc911",
}
"""Specific Character Set, and what only it and its like can write: the referring physician, in the indication."""


def sections_of(gold: Mapping[str, object]) -> Sections:
    return {name: list(said) for name, said in gold.items() if isinstance(said, list)}


def item_by_item(sections: Sections) -> list[Dataset]:
    return [make_section(NAMES[name], said) for name, said in sections.items()]


def one_text_a_section(sections: Sections) -> list[Dataset]:
    return [make_section(NAMES[name], [" ".join(said)]) for name, said in sections.items()]


def named_texts(sections: Sections) -> list[Dataset]:
    return [make_text(" ".join(said), NAMES[name]) for name, said in sections.items()]


def nested(sections: Sections) -> list[Dataset]:
    inner = make_item("CONTAINER", None, ContinuityOfContent="SEPARATE", ContentSequence=item_by_item(sections))
    return [inner]


def one_block(sections: Sections) -> list[Dataset]:
    return [make_text("\r\n\r\n".join(f"{name.upper()}: {' '.join(said)}" for name, said in sections.items()))]


def headings_on_lines(sections: Sections) -> list[Dataset]:
    return [make_text("\n".join(f"{name.title()}:\n{' '.join(said)}\n" for name, said in sections.items()))]


def numbered(sections: Sections) -> list[Dataset]:
    lists = {name: "\n".join(f"{n}. {one}" for n, one in enumerate(said, 1)) for name, said in sections.items()}
    return [make_section(NAMES[name], [said]) for name, said in lists.items()]


def markup(sections: Sections) -> list[Dataset]:
    shown = {name: " ".join(said).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
             for name, said in sections.items()}  # fmt: skip
    return [make_text("<p>" + "<br/>".join(f"<b>{name.upper()}:</b> {said}" for name, said in shown.items()) + "</p>")]


def one_line_each(sections: Sections) -> list[Dataset]:
    """As some dictate: a line for each statement, and no full stops."""
    return [make_section(NAMES[name], ["\n".join(map(_bare, said))]) for name, said in sections.items()]


SHAPES: dict[str, Callable[[Sections], list[Dataset]]] = {
    shape.__name__: shape
    for shape in (item_by_item, one_text_a_section, named_texts, nested, one_block, headings_on_lines, numbered, markup,
                  one_line_each)
}  # fmt: skip


def _bare(sentence: str) -> str:
    return sentence.rstrip(".") if sentence.count(".") == 1 else sentence


def expected(sections: Sections, shape: str) -> list[tuple[str, str]]:
    said = [(name, " ".join(one.split())) for name, some in sections.items() if name in READ for one in some]
    return [(name, _bare(one)) for name, one in said] if shape == "one_line_each" else said


def read(report: Report) -> list[tuple[str, str]]:
    return [(one.section, report.text[one.start : one.end]) for one in report.sentences]


CASES = [(gold, shape) for gold in GOLD for shape in SHAPES]


def misread(gold: Mapping[str, object], shape: str) -> list[tuple[str, str]]:
    """What was read and should not have been, and the reverse."""
    sections = sections_of(gold)
    found = read(read_report(make_report_dataset(SHAPES[shape](sections))))
    wanted = expected(sections, shape)
    return [one for one in (*found, *wanted) if found.count(one) != wanted.count(one)]


def test_there_are_enough_of_them() -> None:
    assert len(CASES) + len(GOLD) * len(ENCODINGS) >= 120
    assert len({gold["name"] for gold in GOLD}) == len(GOLD)


def test_at_least_99_of_100_reports_are_read_exactly() -> None:
    wrong = {(str(gold["name"]), shape): misread(gold, shape) for gold, shape in CASES}
    wrong = {case: some for case, some in wrong.items() if some}
    assert len(wrong) <= len(CASES) / 100, wrong


def read_indiana() -> list[Sections]:
    """Return the shared reports whose sentences anybody would part alike: at each full stop before a capital letter."""
    reports = []
    for line in INDIANA.read_text("utf-8").splitlines():
        row = json.loads(line)
        said = {name: " ".join((row[name] or "").split()) for name in ("indication", "findings", "impression")}
        if all(PLAIN.fullmatch(said[name]) for name in ("findings", "impression")):
            parted = {name: re.split(r"(?<=[.]) ", said[name]) for name in ("findings", "impression")}
            reports.append({"indication": [said["indication"] or "None."], **parted})
    return reports


@pytest.mark.skipif(not INDIANA.is_file(), reason="the shared reports are not here")
def test_at_least_99_of_100_real_reports_are_read_exactly() -> None:
    reports = read_indiana()
    assert len(reports) >= 500
    cases = [(number, shape) for number in range(len(reports)) for shape in SHAPES]
    wrong = {(number, shape): some for number, shape in cases if (some := misread(reports[number], shape))}
    assert len(wrong) <= len(cases) / 100, (len(wrong), len(cases), dict(list(wrong.items())[:5]))


@pytest.mark.parametrize("name", [gold["name"] for gold in GOLD])
@pytest.mark.parametrize("charset", ENCODINGS)
def test_every_encoding_is_read_alike(name: str, charset: str, tmp_path: Path) -> None:
    sections = sections_of(next(gold for gold in GOLD if gold["name"] == name))
    plain = read(read_report(make_report_dataset(one_text_a_section(sections))))
    sender = make_section(INDICATION, [f"Referred by {ENCODINGS[charset]}."])
    made = make_report_dataset([sender, *one_text_a_section(sections)], SpecificCharacterSet=charset.split("\\"))
    report = read_report(dcmread(write(made, tmp_path / "report.dcm")))
    assert read(report) == plain
    assert any(ENCODINGS[charset] in report.text[one.start : one.end] for one in report.all_sentences)


@pytest.mark.parametrize("sop_class_uid", [BASIC_TEXT_SR, ENHANCED_SR, COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR])
def test_the_class_of_the_report_changes_nothing(sop_class_uid: str) -> None:
    for gold in GOLD:
        sections = sections_of(gold)
        one, other = (
            read_report(make_report_dataset(item_by_item(sections), sop_class_uid=uid))
            for uid in (BASIC_TEXT_SR, sop_class_uid)
        )
        assert read(one) == read(other)


def test_every_sentence_knows_the_item_that_it_stands_in() -> None:
    for gold in GOLD:
        sections = sections_of(gold)
        report = read_report(make_report_dataset(item_by_item(sections)))
        places = [
            (one, f"1.{number}.{place}")
            for number, (name, said) in enumerate(sections.items(), 1)
            for place, one in enumerate(said, 1)
            if name in READ
        ]
        assert [(report.text[one.start : one.end], one.item_path) for one in report.sentences] == places


def test_gold_reports_are_bytes_that_any_node_could_send() -> None:
    assert all(encode(make_report_dataset(item_by_item(sections_of(gold)))) for gold in GOLD)
