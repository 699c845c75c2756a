"""The text of one content item: cleaned of what typing systems leave in it, and cut at the headings typed into it."""

from __future__ import annotations

import html
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
_WRAPPED = re.compile(
    r"(?<![.:;!?。\n])\n(?=[a-z])"
    r"|(?:(?<=,)|\b(?i:(the|an?|of|in|at|on|to|by|or|is|no|and|for|are|its|with|from|than)))\n(?=[A-Z])"
)
"""Line ends within a sentence: before a small letter, or after a word that ends none ("tip of the", "PICC line"). Other
lines are statements of their own, as some dictate: joined, a denial would reach into the next finding."""


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
    text = _WRAPPED.sub(r"\1 ", re.sub(r"\n{3,}", "\n\n", text))
    return text.strip()


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
