"""In which language a report is written: the model reads English, and must not guess at anything else. Pure.

By script, else by small words of each language that English does not have, counted against those that English has.
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
        "left right both upper lower middle lung lungs lobe heart chest size seen clear enlarged increased stable "
        "unchanged evidence acute focal small large mild moderate severe effusion effusions"
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
    "Danish or Norwegian": "og er ikke ingen med uten uden højre høyre venstre lunger hjerte til av på",
    "Polish": "nie jest bez oraz prawego prawej lewego lewej płuca płuc serce serca płyn zmian",
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
"""First word of a letter's Unicode name, and what is written in it."""

_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH_CODES = ("en", "eng")


def find_foreign_language(text: str) -> str | None:
    """Return the language that `text` is written in, unless it is English or nothing tells."""
    letters = Counter(_script_of(letter) for letter in text if letter.isalpha())
    script, most = letters.most_common(1)[0] if letters else ("LATIN", 0)
    if script in _SCRIPTS and 2 * most > letters.total():
        return "Japanese" if script == "CJK" and (letters["HIRAGANA"] or letters["KATAKANA"]) else _SCRIPTS[script]
    counts = _count_small_words(text)
    language = max(counts, key=lambda name: counts[name])
    return language if counts[language] > counts["English"] else None


def check_language(report: Report) -> None:
    """Raise NotApplicableError where a report is not in English, the language that the model reads.

    What the text shows counts for more than what its header says: many systems name a language that nobody set.
    """
    said = "\n".join(report.text[sentence.start : sentence.end] for sentence in report.sentences)
    language = find_foreign_language(said)
    if language is None and _is_stated_foreign(report) and not _count_small_words(said)["English"]:
        language = report.language.meaning if report.language is not None else None
    if language is not None:
        raise NotApplicableError(f"the report is in {language}, and the model reads English only: nothing is grounded")


def _is_stated_foreign(report: Report) -> bool:
    return report.language is not None and report.language.code.lower().split("-")[0] not in _ENGLISH_CODES


def _count_small_words(text: str) -> Counter[str]:
    words = Counter(word.lower() for word in _WORD.findall(text))
    return Counter({name: sum(words[word] for word in some) for name, some in _LANGUAGES.items()})


def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "LATIN").split(" ")[0].split("-")[0]
