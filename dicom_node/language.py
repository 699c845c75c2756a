"""In which language a report is written: the model reads English, and must not guess at anything else. Pure.

By script, else by small words of each language that English does not have, counted against those that English has: at
least two different ones are needed. Abbreviations in capitals and names after a title are no words of any language.
Terse reports ("Cardiomegaly.") hold neither and pass: nothing says that they are not English.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from dicom_node.errors import NotApplicableError
from dicom_node.report import Report

_SMALL_WORDS: dict[str, str] = {
    "English": (
        "the of and are was were there has have been with without not from for this that which above below within "
        "no in to at on by left right both upper lower middle lung lungs heart chest size seen clear enlarged "
        "increased unchanged evidence mild severe effusion effusions tube tip line change new old view film"
    ),
    "German": (
        "der das und ist sind kein keine keinen nicht mit ohne ein eine einer im beim zum zur von vom des dem den "
        "auf aus bei rechts links rechte linke rechten linken beidseits beiderseits lunge lungen herz befund "
        "beurteilung erguss verschattung unauffällig regelrecht kardiomegalie"
    ),
    "French": (
        "le les des du une est sont pas dans avec sans sur aux cette droit droite gauche poumon poumons "
        "pulmonaire coeur cœur épanchement normale aucun aucune absence conclusion foyer"
    ),
    "Spanish": (
        "el los las del una es son con sin se y en por para derecho derecha izquierdo izquierda pulmón pulmones "
        "pulmonar corazón derrame hallazgos impresión silueta"
    ),
    "Italian": (
        "il lo gli della delle del dei nel una non con senza destro destra sinistro sinistra polmone polmoni "
        "polmonare cuore versamento ed sono alla"
    ),
    "Portuguese": (
        "os as da das dos um uma não com sem e em no na direito direita esquerdo esquerda pulmão pulmões coração "
        "derrame"
    ),
    "Dutch": "het een geen niet van met zonder en zijn wordt rechts links longen long hart beiderzijds pleuravocht",
    "Swedish": "och är inte ingen inga med utan höger vänster lungor hjärta för av på utgöt",
    "Danish or Norwegian": (
        "og er ikke ingen med uten uden højre høyre venstre lunger lungene hjerte hjertet klare til av på"
    ),
    "Polish": "nie jest bez oraz prawego prawej lewego lewej płuca płuc serce serca płyn zmian",
    "Czech": "je bez jsou nejsou plic plicn\u00ed srdce vpravo vlevo v\u00fdpotek",
    "Romanian": "\u0219i nu cu f\u0103r\u0103 \u00een din drept dreapta st\u00e2ng st\u00e2nga cord lichid",
    "Hungarian": "\u00e9s nem az nincs bal jobb t\u00fcd\u0151 sz\u00edv mellkas foly\u00e9kony",
    "Finnish": "ja ei ole oikea oikealla vasen vasemmalla keuhko keuhkot syd\u00e4n nestett\u00e4",
    "Indonesian": "tidak dan dengan paru kanan kiri jantung tampak efusi",
    "Vietnamese": "kh\u00f4ng v\u00e0 ph\u1ed5i ph\u1ea3i tr\u00e1i tim tr\u00e0n d\u1ecbch",
    "Turkish": "ve bir yok var sağ sol akciğer kalp izlenmedi mevcut",
}

_AMBIGUOUS = frozenset(
    {"no", "non", "el", "as", "na", "em", "e", "y", "er", "long", "hart", "med", "absence", "conclusion", "var"}
)
"""Words of the lists above that English reports have, too, as words or in names and abbreviations."""

_LANGUAGES = {
    name: frozenset(word for word in words.split() if word not in _AMBIGUOUS) for name, words in _SMALL_WORDS.items()
}

_SCRIPTS = {
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese or Japanese", "HANGUL": "Korean",
    "CYRILLIC": "a language in Cyrillic letters", "GREEK": "Greek", "ARABIC": "a language in Arabic letters",
    "HEBREW": "Hebrew", "THAI": "Thai", "DEVANAGARI": "a language in Devanagari letters",
}  # fmt: skip
"""Script of a letter, by its Unicode name, and what is written in it."""

_WORD = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"\b(?:Drs?|Mrs?|Ms|Prof)\.?(?:\s+(?:[Vv]an|[Vv]on|[Dd]e[rnl]?|[Dd][ai]|[Ll][ea]))*\s+\w+")
"""A title with the name after it, and what stands before the name."""

_LANGUAGE_SCHEMES = ("RFC5646", "RFC3066", "ISO639_1", "ISO639_2", "IETF4646")
_ENGLISH_CODES = ("en", "eng")
FEWEST = 2
"""Different small words of a language that show it."""


def find_foreign_language(text: str) -> str | None:
    """Return the language that `text` is written in, unless it is English or nothing tells."""
    letters = Counter(_script_of(letter) for letter in text if letter.isalpha())
    foreign = Counter({script: count for script, count in letters.items() if script in _SCRIPTS})
    if 2 * foreign.total() > letters.total():
        kana = foreign["HIRAGANA"] + foreign["KATAKANA"]
        return "Japanese" if kana else _SCRIPTS[foreign.most_common(1)[0][0]]
    found = _find_small_words(text)
    counts = {name: sum(words.values()) for name, words in found.items()}
    language = max((name for name in counts if name != "English"), key=lambda name: counts[name])
    return language if len(found[language]) >= FEWEST and counts[language] > counts["English"] else None


def check_language(report: Report) -> None:
    """Raise NotApplicableError where a report is not in English, the language that the model reads.

    What the text shows counts for more than what its header says: many systems name a language that nobody set.
    """
    said = "\n".join(report.text[sentence.start : sentence.end] for sentence in report.sentences)
    language = find_foreign_language(said)
    if language is None and _is_stated_foreign(report) and not _find_small_words(said)["English"]:
        language = report.language.meaning if report.language is not None else None
    if language is not None:
        raise NotApplicableError(f"the report is in {language}, and the model reads English only: nothing is grounded")


def _is_stated_foreign(report: Report) -> bool:
    stated = report.language
    if stated is None or not stated.code or stated.scheme.upper() not in _LANGUAGE_SCHEMES:
        return False
    return re.split("[-_]", stated.code.lower())[0] not in _ENGLISH_CODES


def _find_small_words(text: str) -> dict[str, Counter[str]]:
    """Return the small words of each language in a text, with how often each stands there."""
    words = _WORD.findall(_NAME.sub(" ", text))
    if any(word.islower() for word in words):
        words = [word for word in words if len(word) == 1 or not word.isupper()]
    counts = Counter(word.lower() for word in words)
    return {name: Counter({word: counts[word] for word in some if counts[word]}) for name, some in _LANGUAGES.items()}


def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "LATIN")
    return next((script for script in _SCRIPTS if script in name), "LATIN")
