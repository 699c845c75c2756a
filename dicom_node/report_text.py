"""The text of one content item: cleaned of what typing systems leave in it, and cut at the headings typed into it."""

from __future__ import annotations

import html
import itertools
import re
from dataclasses import dataclass

from dicom_node.report_codes import HEADING, STATED, Section, find_heading

_BREAKING = "br|p|div|li|ul|ol|h[1-6]|tr|table|pre"
_BREAKING_TAG = re.compile(rf"</?(?:{_BREAKING})\b[^<>]*>", re.I)
_MARKUP = re.compile(rf"</?(?:{_BREAKING}|span|b|i|u|em|strong|font|html|body|head|td)\b[^<>]*>", re.I)
_ESCAPE = re.compile(r"\x1b[\x20-\x2f]+[\x30-\x7e]")
"""ISO 2022 escape sequence; pydicom leaves that of ISO 2022 IR 58 in the text."""

_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_BLANKS = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]+")
_OPEN = frozenset(
    {"the", "a", "an", "of", "in", "at", "on", "to", "by", "or", "is", "no", "and", "for", "are", "its", "with",
     "without", "from", "than", "that", "evidence"}
)  # fmt: skip
"""Words that end no statement."""

_DESCRIBING = frozenset(
    {"focal", "acute", "chronic", "pulmonary", "pleural", "mild", "moderate", "severe", "small", "large", "new", "old",
     "interval", "bilateral", "lower", "upper", "basilar", "basal", "apical", "interstitial", "airspace", "vascular",
     "mediastinal", "hilar", "cardiac"}
)  # fmt: skip
"""Words that stand before what they describe."""

_LIST_MARK = re.compile(r"[-*\u2022]|\d{1,2}[.)]\s")
_WRAP_WIDTH = 50


@dataclass(frozen=True, slots=True)
class Part:
    """Characters [start, end) of a cleaned text that belong to one section; a heading is no sentence."""

    start: int
    end: int
    section: Section
    is_heading: bool = False


def clean_text(raw: str) -> str:
    """Return `raw` with plain line ends, without markup, invisible characters, runs of blanks and hard wraps.

    Blank lines stay, one at a time: they end a paragraph.
    """
    text = raw.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\v", "\n")
    if _MARKUP.search(text):
        text = _MARKUP.sub("", _BREAKING_TAG.sub("\n", text))
        text = html.unescape(text)
    text = _BLANKS.sub(" ", _INVISIBLE.sub("", _ESCAPE.sub("", text)))
    text = re.sub(r" ?\n ?", "\n", text)
    return _unwrap(re.sub(r"\n{3,}", "\n\n", text)).strip()


def _unwrap(text: str) -> str:
    """Join lines that end within a sentence. Others are statements of their own, as some dictate: joined without need,
    a denial would reach into the next finding; parted without need, one would not reach what it denies."""
    lines = text.split("\n")
    parts = lines[:1]
    for line, following in itertools.pairwise(lines):
        parts += [" " if _runs_on(line, following) else "\n", following]
    return "".join(parts)


def _runs_on(line: str, following: str) -> bool:
    """Tell whether a sentence of `line` goes on: before a small letter, or after a word that ends none."""
    if not line or not following or line[-1] in ".:;!?。" or _LIST_MARK.match(following):
        return False
    first = following[0]
    if "a" <= first <= "z":
        return True
    if not (first.isupper() or first.isdigit()):
        return False
    last = line.rsplit(" ", 1)[-1]
    is_shouted = line.isupper()
    return (
        line[-1] == ","
        or (last.lower() in _OPEN and (last.islower() or is_shouted))
        or last.lower() in _DESCRIBING
        or (last.lower() in ("left", "right") and len(line) >= _WRAP_WIDTH)
    )


def split_sections(text: str, section: Section) -> list[Part]:
    """Cut `text` of a `section` at the headings in it; parts are in order and cover all but the blanks between.

    A section that says nothing of this image ends with its paragraph, unless the whole item belongs to such a one.
    """
    if section not in STATED and section != "unsectioned":
        return [Part(0, len(text), section)]
    parts: list[Part] = []
    start, current = 0, section
    for match in HEADING.finditer(text):
        parts += _split_paragraphs(text, Part(start, match.start(), current), section)
        words = match["line"] or match["sentence"] or match["capitals"]
        parts.append(Part(match.start(), match.end(), section, is_heading=True))
        start, current = match.end(), find_heading(words) or section
    return parts + _split_paragraphs(text, Part(start, len(text), current), section)


def _split_paragraphs(text: str, part: Part, section: Section) -> list[Part]:
    body = text[part.start : part.end]
    start = part.start + len(body) - len(body.lstrip())
    end = part.start + len(body.rstrip())
    if start >= end:
        return []
    blank_line = text.find("\n\n", start, end)
    if part.section in STATED or part.section == section or blank_line < 0:
        return [Part(start, end, part.section)]
    return [Part(start, blank_line, part.section), Part(blank_line + 2, end, section)]
