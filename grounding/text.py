"""Plain report text: its sentences, and which of them may be grounded.

Findings and impression are used; indication, technique, comparison and the like are not. A text without headings is
used whole. Pure string work, shared by everything that reads a report.
"""

from __future__ import annotations

import re

from grounding.types import ReportText, Span

USED = frozenset(
    {"finding", "findings", "impression", "impressions", "conclusion", "conclusions", "opinion", "interpretation",
     "report", "diagnosis", "result", "results"}
)  # fmt: skip
"""Headings, in lower case, whose text may be grounded."""

UNUSED = frozenset(
    {"indication", "indications", "clinical indication", "reason", "reason for exam", "reason for examination",
     "reason for study", "history", "clinical history", "clinical information", "clinical details", "technique",
     "procedure", "comparison", "comparisons", "exam", "examination", "study", "recommendation", "recommendations",
     "addendum", "notification", "signed", "dictated by"}
)  # fmt: skip
"""Headings whose text is never grounded."""

GLANCE = 40
"""Characters around a full stop that say whether it ends a sentence."""

_HEADING = re.compile(
    r"(?:(?<=\n)|(?<=[.!?]\s)|^)[ \t*#]*([A-Za-z][A-Za-z ]{2,40}?(?: ?(?:/|and|&) ?[A-Za-z]+)?)[ \t*]*:", re.MULTILINE
)
_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|\n\s*\n|\n(?=\s*(?:\d{1,2}[.)]|[-*\u2022])\s)")
_LIST_MARK = re.compile(r"\s*(?:\(?\d{1,2}[.)](?!\d)|[-*\u2022\u2013])\s+|\s+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:dr|drs|mr|mrs|ms|st|vs|e\.g|i\.e|approx|ca|cf|no|fig|resp|incl|min|max|a\.[mp]|p\.[am]|m\.d|[a-z])$",
    re.IGNORECASE,
)


def read_plain_report(text: str) -> ReportText:
    """Read a report given as plain text; `sentences` are those of findings and impression, or all without headings."""
    spans: list[Span] = []
    for used, start, end in _parts(text):
        if used:
            spans.extend(split_sentences(text, start, end))
    return ReportText(text, tuple(spans))


def split_sentences(text: str, start: int = 0, end: int | None = None) -> tuple[Span, ...]:
    """Spans of the sentences of `text[start:end]`, in order: no outer space, no list number, never empty.

    A full stop in a number ("2.5 cm") or after an abbreviation ("Dr. Lee", "approx. 2 cm") ends nothing; an empty line
    and the next number of a list do.
    """
    end = len(text) if end is None else end
    spans: list[Span] = []
    begin = start
    for stop in _STOP.finditer(text, start, end):
        if stop.start() >= begin and not _is_inside(text, begin, stop):
            spans += _trimmed(text, begin, stop.end())
            begin = stop.end()
    return tuple(spans + _trimmed(text, begin, end))


def skip_list_marks(text: str, start: int, end: int) -> int:
    """Where the words of a list item begin: after the blanks and the list marks at `start`, not after `end`."""
    mark = _LIST_MARK.match(text, start, end)
    while mark:
        start = mark.end()
        mark = _LIST_MARK.match(text, start, end)
    return start


def is_used_heading(title: str) -> bool | None:
    """Whether the text under a heading may be grounded; None for a heading that is not known."""
    words = re.sub(r"[^a-z ]+", " ", title.lower())
    parts = [" ".join(part.split()) for part in re.split(r"\band\b|\s{2,}", words)]
    known = [part in USED for part in parts if part in USED or part in UNUSED]
    return any(known) if known else None


def _parts(text: str) -> list[tuple[bool, int, int]]:
    """(used, start, end) of the pieces of `text` between headings that are known."""
    headings = [(is_used_heading(found[1]), found) for found in _HEADING.finditer(text)]
    known = [(used, found) for used, found in headings if used is not None]
    if not known:
        return [(True, 0, len(text))]
    ends = [found.start() for _, found in known[1:]] + [len(text)]
    pieces = [(used, found.end(), end) for (used, found), end in zip(known, ends, strict=True)]
    if any(used for used, _ in known):
        return [(False, 0, known[0][1].start()), *pieces]
    # Only headings such as COMPARISON: what follows their paragraph has no heading, and is the report itself.
    first = (True, 0, known[0][1].start())
    return [first, *((True, _paragraph_end(text, start, end), end) for _, start, end in pieces)]


def _paragraph_end(text: str, start: int, end: int) -> int:
    blank = re.compile(r"\n[ \t]*\n").search(text, start, end)
    return blank.end() if blank else end


def _is_inside(text: str, begin: int, stop: re.Match[str]) -> bool:
    """The full stop belongs to an abbreviation or a list number, so that the sentence goes on."""
    if not stop[0].startswith(".") or len(stop[0]) > 1:
        return False
    # A glance back and ahead: a text of abbreviations alone must not cost the square of its length.
    before = text[max(begin, stop.start() - GLANCE) : stop.start()]
    if re.fullmatch(r"\s*\(?\d{1,2}", before):
        return True
    following = text[stop.end() : stop.end() + GLANCE].lstrip()[:1]
    return bool(_ABBREVIATION.search(before)) and (following.islower() or following.isdigit() or _is_title(before))


def _is_title(before: str) -> bool:
    """A title, or one with initials after it, that a name follows."""
    return bool(
        re.search(r"(?:^|[\s(])(?:dr|drs|mr|mrs|ms|st)(?:\.(?:\s*[A-Z]\.){0,3}\s*[A-Z])?$", before, re.IGNORECASE)
    )


def _trimmed(text: str, start: int, end: int) -> list[Span]:
    start = skip_list_marks(text, start, end)
    kept = text[start:end].rstrip()
    return [Span(start, start + len(kept))] if any(letter.isalnum() for letter in kept) else []
