"""A guard of rules beside the model's own reading: which words of a sentence are negated. Pure string work.

ConText-like: a trigger opens a scope that runs on (or back) until a word that turns the sentence. Phrases that say
"no change" and the like negate nothing.
"""

from __future__ import annotations

import re

_BEFORE = re.compile(
    r"\b(?:no evidence (?:of|for)|no signs? of|no (?:radiographic|definite|obvious|convincing|focal|new|acute)\b|"
    r"no longer|not? |no\b|none\b|nor\b|neither\b|without(?: evidence of)?|denies|free of|absence of|lack of|"
    r"negative for|clear of|rule(?:d)? out|rather than|(?:has|have) cleared of|cannot see|fails? to (?:show|reveal)|"
    r"resolution of|(?:is|are|was|were) not)\b",
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
    r"certain|rule out|exclude)\b(?:\s+(?:in|of|to|from))?",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"[;:]|\.\s|\b(?:but|however|except|although|though|apart from|aside from|other than|whereas|nevertheless|yet|"
    r"there (?:is|are|has|have)|which (?:is|are|has|have))\b|,\s*(?:with|and (?:a|an|the))\b",
    re.IGNORECASE,
)

Scope = tuple[int, int]


def negated_scopes(sentence: str) -> list[Scope]:
    """Characters [start, end) of `sentence` that triggers negate, in order; scopes may touch or overlap."""
    harmless = [match.span() for match in _NO_NEGATION.finditer(sentence)]
    turns = [match.span() for match in _TURN.finditer(sentence)]
    scopes = []
    for match in _BEFORE.finditer(sentence):
        if not any(a <= match.start() < b for a, b in harmless):
            scopes.append((match.end(), min((a for a, _ in turns if a >= match.end()), default=len(sentence))))
    for match in _AFTER.finditer(sentence):
        scopes.append((max((b for _, b in turns if b <= match.start()), default=0), match.start()))
    return sorted(scope for scope in scopes if scope[0] < scope[1])


def is_negated(sentence: str, start: int, end: int) -> bool:
    """Whether the phrase at characters [start, end) begins in a negated scope of `sentence`, or is half in one."""
    middle = (start + end) // 2
    return any(a <= start < b or a <= middle < b for a, b in negated_scopes(sentence))
