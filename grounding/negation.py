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
    r"(?:resolution|clearing|removal|disappearance) of|nothing to (?:suggest|indicate)|(?:is|are|was|were) not|"
    r"unlikely to (?:be|represent|reflect|indicate)|"
    r"kein(?:e[mnrs]?|erlei)?|ohne|sin|pas d(?:e\b|['\u2019])|sans|aucune?|absence d['\u2019]|ausencia de|"
    r"nessun[ao]?|senza|assenza di|sem\b|aus\u00eancia de|geen|zonder)\b|"
    r"^\s*(?:now |completely |interval )?resolved\b(?!\s*[.,;:]|\s*$)",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\b(?:(?:has|have|had|is|are|was|were)(?: now| since| completely| fully| largely)? "
    r"(?:resolved|cleared|gone|absent|disappeared)|"
    r"(?:is|are|was|were) (?:no longer|not) (?:seen|identified|visible|visuali[sz]ed|present|evident|apparent|noted|"
    r"demonstrated|detected|appreciated)|"
    r"(?:may|might|could|can) ?not be (?:seen|identified|demonstrated|detected|shown)|"
    r"(?:is|are|was|were) (?:absent|excluded|ruled out)|"
    r"(?:is|are|was|were|seems?|appears?) (?:(?:felt|thought|considered|deemed|judged) )?(?:to be )?"
    r"(?:very |highly |rather )?unlikely(?! to )|"
    r"(?:has|have) been (?:removed|excluded|ruled out)|(?:not|no longer) (?:seen|identified|visible|present|evident)|"
    r"resolved|absent|excluded|ruled out|nicht (?:nachweisbar|nachgewiesen|erkennbar|sichtbar|abgrenzbar))\b",
    re.IGNORECASE,
)
_NO_NEGATION = re.compile(
    r"\b(?:no|not|without|nor)\s+(?:evidence of\s+)?(?:(?:significant(?:ly)?|interval|substantial(?:ly)?|appreciable|"
    r"major|definite|much|large(?:ly)?|other|relevant|further|yet|complete(?:ly)?|full(?:y)?|entirely)\s+)*"
    r"(?:changed?|change[ds]?|increased?|decreased?|differen(?:ce|t)|improve(?:d|ment)|worsen(?:ed|ing)|only|"
    r"progress(?:ion|ed)|certain|rule out|exclude|resolution|clearing|resolved|cleared|disappeared|been removed)\b"
    r"(?:\s+(?:in|of|to|from))?|"
    r"\b(?:not?|cannot|can't|can not|couldn't|difficult to|hard to|(?:un|im)possible to|unable to|without)\s+"
    r"(?:(?:be|been|entirely|completely|definitively|possible to|fully)\s+)*(?:ruled? out|exclud(?:e|ed|ing))\b|"
    r"\b(?:partial(?:ly)?|near(?:ly)?|almost|incomplete(?:ly)?|slow(?:ly)?|slight(?:ly)?|some|mostly|gradual(?:ly)?)"
    r"[\s-]+(?:complete(?:ly)?\s+)?(?:interval\s+)?(?:resolved|cleared|resolution of|clearing of)\b|"
    r"\bkein(?:e[nr]?)?\s+(?:\w+\s+)?(?:ver)?\u00e4nderung|\bohne\s+(?:\w+\s+)?(?:ver)?\u00e4nderung|"
    r"\b(?:sin|no hay)\s+(?:\w+\s+)?cambios?\b|\b(?:pas de|sans|aucun)\s+(?:\w+\s+)?(?:changement|modification)",
    re.IGNORECASE,
)
_SEEN = (
    r"(?:seen|identified|noted|present|evident|visible|visuali[sz]ed|demonstrated|detected|appreciated|(?:un)?likely)"
)
_LASTS = (
    r"(?:persists?|(?:is|are|has|have|remains?|appears?)(?: (?:again|still|slightly|not significantly|largely))* "
    r"(?:unchanged|stable|increased|decreased|improved|worsened|larger|smaller|enlarged|redemonstrated|similar))\b"
)
_TURN = re.compile(
    r"[;:]|\.\s|\b(?:but|however|except|although|though|apart from|aside from|other than|whereas|nevertheless|yet|"
    r"aber|jedoch|sondern|pero|mais|to (?:explain|account for)|"
    r"there (?:is|are|has|have)|which (?:is|are|has|have|may|might|could)|"
    r"likely (?:due|related|secondary|represent\w*)|"
    r"with (?:an? |the )?(?:persist\w+|residual|stable|unchanged|improv\w+|decreas\w+|worsen\w+))\b|"
    r",\s*(?:with|and (?:a|an|the)|likely|possibl[ey]|probabl[ey]|suspected|suggest\w+|"
    r"(?:concerning|suspicious|worrisome) for|(?:consistent|compatible) with)\b|"
    rf"\b{_SEEN},(?!\s*(?:or|nor|and)\b)|"
    rf"(?:,|\band the\b)(?=[^,;:.]{{1,90}}\b{_LASTS})",
    re.IGNORECASE,
)
_NEXT_CLAUSE = re.compile(
    r"(?<!which )(?<!that )\b(?:is|are|was|were|has|have|had|persists?|remains?|appears?)\b[^,;:.]{0,80}?"
    r"(?:,\s*(?:(?:and|while)\s)?|\s(?:and|while)\s)",
    re.IGNORECASE,
)
"""A clause with a verb of its own, up to where the next one begins: what is denied there does not reach back here."""

_DENIES_NEXT = re.compile(
    r"\b(?:no|not|non(?!-)|none|nor|neither|never|nothing|nil|without|negative|clear(?:ed|ing)?|resol\w+|normal|"
    r"absence|den(?:y|ies|ied)|free(?!-)|rather than|instead of|lack\w*|exclud\w+|rule[sd]? out|remov\w+|disappear\w*|"
    r"unlikely|cannot|\w+n['\u2019]t|fails?|failed|failure|"
    r"kein\w*|nicht|ohne|sin|ni|ausen\w+|pas|sans|aucune?|nessun\w*|senza|assen\w+|sem|nenhum\w*|geen|zonder|niet|"
    r"ingen|inga|ikke|inte|utan|uden|uten|brak|bez|nie|\u043d\u0435\u0442|\u0431\u0435\u0437|\u043d\u0435|yok)\b|"
    r"[\u3040-\u30ff\u4e00-\u9fff]",
    re.IGNORECASE,
)
"""Any word that could deny what follows it, in more languages than the rules above read."""

_DENIES_LAST = re.compile(
    r"\b(?:none|nil|never|negative|clear|clears|cleared|resolv\w+|normal\w*|unremarkable|absent\w*|excluded|ruled out|"
    r"denied|removed|gone|disappear\w*|unlikely|intact|limits?|no longer|resected|well(?!-)|good|fine|patent|"
    r"(?:not|never|nor|\w+n['\u2019]t) (?:\w+ ){0,2}(?:seen|identified|visible|visuali[sz]ed|present|evident|apparent|"
    r"noted|demonstrated|detected|appreciated|found|shown)|"
    r"nicht|kein\w*|unauff\u00e4llig\w*|frei|ausen\w+|assen\w+|niet|ikke|inte|nie|\u043d\u0435\u0442|\u043d\u0435|yok)\b|"
    r"[:=(-]\s*no\b|[\u3040-\u30ff\u4e00-\u9fff]",
    re.IGNORECASE,
)
"""Any word that could deny what it is said of. In a text of another script nothing is known, so all may be denied."""

_PAUSE = re.compile(r";|\.\s|\b(?:but|however|except|whereas|nevertheless|yet|aber|jedoch|pero|mais)\b", re.IGNORECASE)
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

LOOK_BACK = 300
"""How many characters before a denial its clause is looked for, so that the time grows with the text alone."""

Scope = tuple[int, int]


def negated_scopes(sentence: str) -> list[Scope]:
    """Characters [start, end) of `sentence` that triggers negate, in order; scopes may touch or overlap."""
    harmless = [match.span() for match in _NO_NEGATION.finditer(sentence)]
    answers = [match.span() for match in _ANSWER.finditer(sentence)]
    turns = [match.span() for match in _TURN.finditer(sentence)]
    starts, ends = [a for a, _ in turns] + [len(sentence)], [0] + [b for _, b in turns]
    scopes = []
    for match in _BEFORE.finditer(sentence):
        if not (_touches(harmless, match) or _is_within(answers, match.start())):
            following = _FOLLOWING.match(sentence, match.end())
            begin = following.end() if following else match.end()
            scopes.append((begin, starts[bisect_left(starts, begin)]))
    for match in _AFTER.finditer(sentence):
        if not _touches(harmless, match):
            begin = ends[bisect_right(ends, match.start()) - 1]
            clauses = [
                clause.end()
                for clause in _NEXT_CLAUSE.finditer(sentence, max(begin, match.start() - LOOK_BACK), match.start())
            ]
            scopes.append((clauses[-1] if clauses else begin, match.start()))
    for begin, _ in answers:
        scopes.append((max(ends[bisect_right(ends, begin) - 1], sentence.rfind("\n", 0, begin) + 1), begin))
    return sorted(scope for scope in scopes if scope[0] < scope[1])


def _is_within(spans: list[Scope], place: int) -> bool:
    """Whether one of `spans`, which are in order and do not overlap, holds the character."""
    index = bisect_right(spans, (place, sys.maxsize)) - 1
    return index >= 0 and place < spans[index][1]


def _touches(spans: list[Scope], match: re.Match[str]) -> bool:
    """Whether the match begins or ends in one of `spans`."""
    return _is_within(spans, match.start()) or _is_within(spans, match.end() - 1)


def may_be_denied(sentence: str, start: int, end: int) -> bool:
    """Whether any word of denial stands in the clause about the phrase at characters [start, end).

    Where there is none, nothing in the words allows to read the phrase as denied.
    """
    pauses = [match.span() for match in _PAUSE.finditer(sentence)]
    first = max((b for _, b in pauses if b <= start), default=0)
    last = min((a for a, _ in pauses if a >= end), default=len(sentence))
    before, after = sentence[first:end], sentence[start:last]
    return bool(_DENIES_NEXT.search(before) or _DENIES_LAST.search(after))


def is_negated(sentence: str, start: int, end: int) -> bool:
    """Whether the phrase at characters [start, end) begins in a negated scope of `sentence`, or is half in one."""
    return _lies_in(negated_scopes(sentence), start, end)


def _lies_in(scopes: list[Scope], start: int, end: int) -> bool:
    middle = (start + end) // 2
    return any(a <= start < b or a <= middle < b for a, b in scopes)


class ReportGuard:
    """The guard over the sentences of one report: each is read with what the lines above it deny."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._below = starts_below_negation(text)
        self._scopes: dict[tuple[int, int, bool], list[Scope]] = {}

    def is_negated(self, sentence: Span, start: int, end: int) -> bool:
        """Whether the phrase at characters [start, end) of the report, in `sentence` of it, is negated."""
        line = skip_list_marks(self._text, self._text.rfind("\n", 0, start) + 1, start)
        begin = max(sentence.start, line)
        if begin in self._below and self._is_within(begin, sentence.end, start, end, denied=True):
            return True
        return self._is_within(sentence.start, sentence.end, start, end, denied=False)

    def _is_within(self, first: int, last: int, start: int, end: int, *, denied: bool) -> bool:
        """Whether the phrase is in a scope of the report's characters [first, last); each is read once."""
        lead = _LEAD if denied else ""
        key = (first, last, denied)
        if key not in self._scopes:
            self._scopes[key] = negated_scopes(lead + self._text[first:last])
        moved = len(lead) - first
        return _lies_in(self._scopes[key], start + moved, end + moved)


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
    triggers = [m for m in _BEFORE.finditer(line) if not _touches(harmless, m)]
    return any(_FOLLOWING.fullmatch(line, m.end()) for m in triggers) or bool(_FOLLOWING_ARE_NOT.search(line))
