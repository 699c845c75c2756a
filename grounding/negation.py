"""A guard of rules beside the model's own reading: which words of a sentence are negated. Pure string work.

ConText-like: a trigger opens a scope that runs on (or back) until a word that turns the sentence. Phrases that say
"no change" and the like negate nothing. An answer ("Pneumothorax: none") negates what it answers, and a negation that
a line leaves open reaches into the lines below it.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right

from grounding.text import skip_list_marks
from grounding.types import Span

_BEFORE = re.compile(
    r"\b(?:no evidence (?:of|for)|no signs? of|no (?:radiographic|definite|obvious|convincing|focal|new|acute)\b|"
    r"no longer|not? |no\b|none of|nor\b|neither\b|without(?: evidence of)?|denies|free of|absence of|lack of|"
    r"negative for|clear of|rule(?:d)? out|rather than|(?:has|have) cleared of|cannot see|fails? to (?:show|reveal)|"
    r"resolution of|(?:is|are|was|were) not|"
    r"kein(?:e[mnrs]?|erlei)?|ohne|sin|pas d(?:e\b|['\u2019])|sans|aucune?)\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\b(?:(?:has|have|had|is|are|was|were)(?: now| since| completely| fully| largely)? "
    r"(?:resolved|cleared|gone|absent)|"
    r"(?:is|are|was|were) (?:no longer|not) (?:seen|identified|visible|visuali[sz]ed|present|evident|apparent|noted|"
    r"demonstrated|detected|appreciated)|(?:is|are|was|were) (?:absent|excluded|ruled out|unlikely)|"
    r"(?:has|have) been (?:removed|excluded|ruled out)|(?:not|no longer) (?:seen|identified|visible|present|evident)|"
    r"resolved|absent|excluded|ruled out)\b",
    re.IGNORECASE,
)
_NO_NEGATION = re.compile(
    r"\b(?:no|not|without|nor)\s+(?:(?:significant(?:ly)?|interval|substantial(?:ly)?|appreciable|major|definite|"
    r"much|large(?:ly)?|other|relevant|further)\s+)*"
    r"(?:changed?|change[ds]?|increased?|decreased?|differen(?:ce|t)|improve(?:d|ment)|worsen(?:ed|ing)|only|progress(?:ion|ed)|"
    r"certain|rule out|exclude)\b(?:\s+(?:in|of|to|from))?|"
    r"\b(?:kein(?:e[nr]?)?|ohne)\s+(?:\w+\s+)?(?:ver)?änderung|\b(?:sin|no hay)\s+(?:\w+\s+)?cambios?\b|"
    r"\b(?:pas de|sans|aucun)\s+(?:\w+\s+)?(?:changement|modification)",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"[;:]|\.\s|\b(?:but|however|except|although|though|apart from|aside from|other than|whereas|nevertheless|yet|"
    r"aber|jedoch|sondern|pero|mais|"
    r"there (?:is|are|has|have)|which (?:is|are|has|have))\b|,\s*(?:with|and (?:a|an|the))\b",
    re.IGNORECASE,
)
_FOLLOWING = re.compile(r"(?:\s+(?:any|of|the|these|either|following|following findings))*\s*:", re.IGNORECASE)
_FOLLOWING_ARE_NOT = re.compile(rf"\bfollowing\b[^.:;]{{0,80}}{_AFTER.pattern}\s*:$", re.IGNORECASE)
_ANSWER = re.compile(
    r"(?<!change)(?<!changes)(?:\s*[:=(]|\s[-\u2013\u2014])[ \t]*"
    r"(?:no|none|nil|absent|negative|not (?:present|seen|identified|visible|evident|detected))"
    r"(?:[ \t]*(?=[.,;)\n]|$)|[ \t]+(?:on|in|at) (?:the )?(?:right|left|either|both)\b[\w ]*(?=[.;)\n]|$))",
    re.IGNORECASE,
)
"""What is denied in one word after it: an answer about one side alone, before a comma, leaves the other side open."""

_LEAD = "No evidence of "
"""Stands before a sentence that a line above it negates."""

Scope = tuple[int, int]


def negated_scopes(sentence: str) -> list[Scope]:
    """Characters [start, end) of `sentence` that triggers negate, in order; scopes may touch or overlap."""
    harmless = [match.span() for match in _NO_NEGATION.finditer(sentence)]
    answers = [match.span() for match in _ANSWER.finditer(sentence)]
    turns = [match.span() for match in _TURN.finditer(sentence)]
    starts, ends = [a for a, _ in turns] + [len(sentence)], [0] + [b for _, b in turns]
    scopes = []
    for match in _BEFORE.finditer(sentence):
        if not (_is_within(harmless, match.start()) or _is_within(answers, match.start())):
            following = _FOLLOWING.match(sentence, match.end())
            begin = following.end() if following else match.end()
            scopes.append((begin, starts[bisect_left(starts, begin)]))
    for match in _AFTER.finditer(sentence):
        scopes.append((ends[bisect_right(ends, match.start()) - 1], match.start()))
    for begin, _ in answers:
        scopes.append((max(ends[bisect_right(ends, begin) - 1], sentence.rfind("\n", 0, begin) + 1), begin))
    return sorted(scope for scope in scopes if scope[0] < scope[1])


def _is_within(spans: list[Scope], place: int) -> bool:
    """Whether one of `spans`, which are in order and do not overlap, holds the character."""
    index = bisect_right(spans, (place, sys.maxsize)) - 1
    return index >= 0 and place < spans[index][1]


def is_negated(sentence: str, start: int, end: int) -> bool:
    """Whether the phrase at characters [start, end) begins in a negated scope of `sentence`, or is half in one."""
    middle = (start + end) // 2
    return any(a <= start < b or a <= middle < b for a, b in negated_scopes(sentence))


class ReportGuard:
    """The guard over the sentences of one report: each is read with what the lines above it deny."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._below = starts_below_negation(text)

    def is_negated(self, sentence: Span, start: int, end: int) -> bool:
        """Whether the phrase at characters [start, end) of the report, in `sentence` of it, is negated."""
        line = skip_list_marks(self._text, self._text.rfind("\n", 0, start) + 1, start)
        begin = max(sentence.start, line)
        if begin in self._below:
            words, moved = _LEAD + self._text[begin : sentence.end], len(_LEAD) - begin
            if is_negated(words, start + moved, end + moved):
                return True
        words = self._text[sentence.start : sentence.end]
        return is_negated(words, start - sentence.start, end - sentence.start)


def starts_below_negation(text: str) -> frozenset[int]:
    """Where the words of those lines of `text` begin that a line above negates.

    "No evidence of:" negates the next line, or the items of the list that follows; a line such as "No effusion,"
    whose negation is open at a comma negates the next line, unless that is an item of a list.
    """
    starts: list[int] = []
    listing = fresh = is_open = False
    offset = 0
    for line in text.split("\n"):
        begin, end = skip_list_marks(text, offset, offset + len(line)), offset + len(line.rstrip())
        is_item = not text[offset:begin].isspace() and begin > offset
        offset += len(line) + 1
        if begin >= end:
            listing, is_open = listing and fresh, False
            continue
        below = (listing and (is_item or fresh)) or (is_open and not is_item)
        if below:
            starts.append(begin)
        words = (_LEAD if below else "") + text[begin:end]
        fresh = _introduces_denied(words)
        listing = fresh or (listing and is_item)
        is_open = words.endswith(",") and any(b == len(words) for _, b in negated_scopes(words))
    return frozenset(starts)


def _introduces_denied(line: str) -> bool:
    """Whether the line ends in a trigger and a colon: "There is no evidence of:"."""
    if not line.endswith(":"):
        return False
    harmless = [match.span() for match in _NO_NEGATION.finditer(line)]
    triggers = [m for m in _BEFORE.finditer(line) if not _is_within(harmless, m.start())]
    return any(_FOLLOWING.fullmatch(line, m.end()) for m in triggers) or bool(_FOLLOWING_ARE_NOT.search(line))
