"""Which reports are refused for their language: those that show it, and no English one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node.errors import NotApplicableError
from dicom_node.language import check_language, find_foreign_language
from dicom_node.report import read_plain_report, read_report
from tests.builders import make_language, make_report_dataset, make_text

REPORTS = Path(__file__).parents[3] / "shared" / "data" / "reports" / "indiana_reports.jsonl"

FOREIGN = {
    "German": [
        "Kein Pneumothorax. Kleiner Pleuraerguss links.",
        "Befund: Das Herz ist nicht vergr\u00f6\u00dfert. Verschattung im rechten Unterlappen.",
    ],
    "Romanian": ["F\u0103r\u0103 lichid pleural. Opacitate \u00een pl\u0103m\u00e2nul drept."],
    "Hungarian": ["Nem l\u00e1that\u00f3 mellkas foly\u00e9kony, a bal t\u00fcd\u0151 \u00e9s a sz\u00edv rendben."],
    "Finnish": ["Keuhkot ja syd\u00e4n ovat normaalit, ei nestett\u00e4."],
    "Indonesian": ["Jantung tidak membesar, tampak efusi pada paru kanan."],
    "French": [
        "Opacit\u00e9 focale du lobe sup\u00e9rieur droit stable.",
        "Pas d'\u00e9panchement pleural. Le c\u0153ur est de taille normale.",
        "Foyer du poumon droit.",
    ],
    "Spanish": ["No se observa derrame pleural. Silueta card\u00edaca normal.", "Derrame pleural izquierdo."],
    "Italian": ["Non versamento pleurico. Addensamento del lobo inferiore destro."],
    "Portuguese": ["N\u00e3o h\u00e1 derrame pleural. Cora\u00e7\u00e3o de dimens\u00f5es normais."],
    "Dutch": ["Geen pleuravocht. Het hart is niet vergroot."],
    "Swedish": ["Inga infiltrat och ingen pleurav\u00e4tska p\u00e5 h\u00f6ger sida."],
    "Danish or Norwegian": [
        "Lungene er klare. Hjertet forst\u00f8rret.",
        "Ingen pneumothorax og ikke tegn til stuvning. Hjerte av normal st\u00f8rrelse.",
    ],
    "Polish": ["Serce nie jest powi\u0119kszone, p\u0142uca bez zmian ogniskowych."],
    "Turkish": ["Sa\u011f akci\u011fer alt zonda opasite mevcut, pn\u00f6motoraks yok."],
    "Japanese": [
        "右肺にスリガラス影を認めます。",
        "\uff8a\uff72 \uff77\uff6e\uff73\uff7d\uff72 \uff85\uff7c",
        "右肺に結節影を認めます。胸水は認めません。",
    ],
    "Chinese or Japanese": ["右肺上叶结节。"],
    "Korean": ["우측 폐에 결절이 있습니다."],
    "a language in Cyrillic letters": ["Очаговых и инфильтративных изменений не выявлено."],
    "Greek": ["Χωρίς πλευριτική συλλογή."],
    "a language in Arabic letters": ["لا يوجد انصباب جنبي."],
}

ENGLISH = [
    "Cardiomegaly.",
    "No effusion.",
    "ETT in situ. NG tube tip in stomach.",
    "In comparison to the prior of Dr. von der Leyen and Dr. de la Cruz, no change.",
    "Bibasilar atelectasis, c/w hypoventilation, d/w Dr. El-Masri.",
    "Status post CABG; sternotomy wires. No pneumothorax, no pneumonia.",
    "de novo nodule",
    "OG tube tip in stomach. ETT in good position. No pneumothorax.",
    "Known AV malformation. No change.",
    "ED physician notified. Pneumothorax.",
    "Pneumothorax. Dr. Lee informed 10:30 EST.",
    "SE over neck. No PTX.",
    "IM rod in humerus. No pneumothorax.",
    "DES in LAD. LE DVT. Cardiomegaly.",
    "Patient's son informed.",
    "Chest sono recommended.",
    "Pneumothorax, informed Dr. da Silva, Dr. von Braun, Dr. Van der Berg, Dr. del Rio and Dr. Le.",
    "CARDIOMEGALY. NO EFFUSION.",
    "12 x 8 mm",
    "?",
]


@pytest.mark.parametrize(("language", "text"), [(name, text) for name, texts in FOREIGN.items() for text in texts])
def test_a_report_in_another_language_is_refused_by_name(language: str, text: str) -> None:
    assert find_foreign_language(text) == language
    with pytest.raises(NotApplicableError, match=f"the report is in {language}, and the model reads English only"):
        check_language(read_plain_report(text))


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_read_however_terse(text: str) -> None:
    assert find_foreign_language(text) is None


def test_no_sentence_of_real_english_reports_is_refused() -> None:
    if not REPORTS.is_file():
        pytest.skip("the reports are not at hand")
    with REPORTS.open(encoding="utf-8") as lines:
        texts = [report.get(part) or "" for report in map(json.loads, lines) for part in ("findings", "impression")]
    sentences = [sentence for text in texts for sentence in (text, *text.split(". ")) if sentence]
    assert len(sentences) > 10_000
    assert [sentence for sentence in sentences if find_foreign_language(sentence)] == []


def stated(text: str, code: str, meaning: str) -> None:
    check_language(read_report(make_report_dataset([make_language((code, "RFC5646", meaning)), make_text(text)])))


def test_a_language_that_is_stated_counts_where_the_text_says_nothing() -> None:
    with pytest.raises(NotApplicableError, match="in Romanian"):
        stated("Cardiomegalie moderata.", "ro", "Romanian")
    stated("The heart is enlarged.", "de-DE", "German")
    stated("Cardiomegaly.", "en-US", "English")
    stated("Cardiomegaly.", "en_US", "en_US")
    stated("Cardiomegaly.", "", "")
    with pytest.raises(NotApplicableError, match="in German"):
        stated("Kein Erguss, das Herz ist nicht vergr\u00f6\u00dfert.", "en", "English")
