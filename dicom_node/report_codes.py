"""Which documents are reports, and which part of a report a concept or a heading names.

Codes are those of PS3.16 CID 7001 (sections), CID 7002 (elements) and their retired DCM forms; where a sender uses
codes of its own, the words of the meaning decide, and headings typed into the text go the same way.
"""

from __future__ import annotations

import re
from typing import Literal

from pydicom.dataset import Dataset

from dicom_node.header import MODEL_NAME, OWN_TITLE, read_items, read_text
from grounding.types import Concept

Section = Literal[
    "findings",
    "impression",
    "addendum",
    "unsectioned",
    "indication",
    "history",
    "technique",
    "comparison",
    "recommendation",
    "other",
]
"""Part of a report; the first three say what this image shows, `unsectioned` may, the others never do."""

STATED: frozenset[Section] = frozenset({"findings", "impression", "addendum"})

REPORT_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
        "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    }
)

_OTHER_DOCUMENTS = frozenset(
    {
        ("126000", "DCM"),  # Imaging Measurement Report
        ("126001", "DCM"),  # Oncology Measurement Report
        ("126002", "DCM"),  # Dynamic Contrast MR Measurement Report
        ("126003", "DCM"),  # PET Measurement Report
        ("125000", "DCM"),  # OB-GYN Ultrasound Procedure Report
        ("125100", "DCM"),  # Vascular Ultrasound Procedure Report
        ("113701", "DCM"),  # X-Ray Radiation Dose Report
        ("113500", "DCM"),  # Radiopharmaceutical Radiation Dose Report
        ("128401", "DCM"),  # Patient Radiation Dose Report
        ("111036", "DCM"),  # Mammography CAD Report
        ("112000", "DCM"),  # Chest CAD Report
        ("112220", "DCM"),  # Colon CAD Report
        ("121120", "DCM"),  # Cath Lab Procedure Log
        ("122072", "DCM"),  # Pre-procedure log
        ("130182", "DCM"),  # Planned Imaging Agent Administration Procedure Report
        OWN_TITLE[:2],
    }
)
"""Root concepts of documents that are no radiologist's report, though of the same SOP classes."""

_KEY_OBJECT_TITLES = range(113000, 113040)
"""DCM codes of CID 7010, the titles of key object selections."""

_OTHER_TEMPLATES = frozenset({"1500", "2010", "3001", "4000", "4100", "10001", "10011", "10021", "10030", "11001"})
"""DCMR templates of measurement reports, key objects, procedure logs, CAD and dose."""

_SECTION_CODES: dict[tuple[str, str], Section] = {
    ("59776-5", "LN"): "findings",
    ("18782-3", "LN"): "findings",  # Radiology Study observation
    ("121070", "DCM"): "findings",
    ("121071", "DCM"): "findings",
    ("19005-8", "LN"): "impression",
    ("55110-1", "LN"): "impression",  # Conclusions
    ("55112-7", "LN"): "impression",  # Summary
    ("121072", "DCM"): "impression",
    ("121073", "DCM"): "impression",
    ("121076", "DCM"): "impression",
    ("121077", "DCM"): "impression",
    ("121110", "DCM"): "history",  # Patient Presentation
    ("121111", "DCM"): "impression",  # Summary
    ("55107-7", "LN"): "addendum",
    ("18785-6", "LN"): "indication",
    ("55752-0", "LN"): "indication",  # Clinical Information
    ("55115-0", "LN"): "indication",  # Request
    ("121062", "DCM"): "indication",  # Request
    ("121109", "DCM"): "indication",  # Indications for Procedure
    ("11329-0", "LN"): "history",
    ("55108-5", "LN"): "history",  # Patient Presentation
    ("121060", "DCM"): "history",
    ("55111-9", "LN"): "technique",  # Current Procedure Descriptions
    ("121064", "DCM"): "technique",
    ("121065", "DCM"): "technique",
    ("18834-2", "LN"): "comparison",  # Previous Findings
    ("55114-3", "LN"): "comparison",  # Prior Procedure Descriptions
    ("121066", "DCM"): "comparison",
    ("121068", "DCM"): "comparison",
    ("121069", "DCM"): "comparison",
    ("18783-1", "LN"): "recommendation",
    ("121074", "DCM"): "recommendation",
    ("121075", "DCM"): "recommendation",
    ("73568-8", "LN"): "other",  # Communication of Critical Results
    ("55109-3", "LN"): "other",  # Complications
    ("55113-5", "LN"): "other",  # Key Images
    ("29549-3", "LN"): "other",  # Medications Administered
    ("73569-6", "LN"): "other",  # Radiation Exposure and Protection Information
    ("121113", "DCM"): "other",  # Complications
    ("121180", "DCM"): "other",  # Key Images
    ("113923", "DCM"): "other",  # Radiation Exposure and Protection Information
}

_HEADINGS: dict[Section, str] = {
    "comparison": (
        r"comparisons?( (stud(y|ies)|exams?))?|compared (to|with)|(previous|prior) (findings?|stud(y|ies)|exams?|"
        r"examinations?|images|imaging|procedure descriptions?)|vergleich|voraufnahmen?|comparaison|comparaci[oó]n"
    ),
    "indication": (
        r"(clinical |relevant )?indications?( for (procedure|exam(ination)?|study))?|reason for "
        r"(the )?(exam(ination)?|study|visit|request|procedure)|clinical (information|details|data|question|"
        r"statement|diagnosis|notes)|requests?|referral|(klinische )?(fragestellung|angaben|indikation)|"
        r"indicaci[oó]n|renseignements cliniques|検査目的|依頼内容"
    ),
    "history": (
        r"((past |relevant )?(medical |clinical |patient )?history|clinical history|patient presentation|symptoms?|"
        r"complaints?|anamnese|ant[eé]c[eé]dents?|antecedentes|病歴)"
    ),
    "technique": (
        r"techniques?|(current )?procedures?( descriptions?)?|exam(ination)?s?( type| performed)?|study|views?|"
        r"projections?|protocol|methods?|technik|untersuchung|t[eé]cnica|検査方法"
    ),
    "recommendation": (
        r"recommendations?|follow[- ]?up|plan|advice|suggestions?|empfehlung(en)?|recommandations?|"
        r"recomendaci[oó]n(es)?"
    ),
    "impression": (
        r"(final |overall )?(impressions?|conclusions?|opinion|assessment|interpretation|summary|"
        r"radiological diagnosis|diagnosis|diagnoses)|beurteilung|impresi[oó]n|conclusi[oó]n(es)?|診断|印象|结论|诊断"
    ),
    "findings": (
        r"((chest|lung|radiographic|radiological|imaging|x-?ray|current|study) )?(findings?|observations?)"
        r"( ?(/|and|&) ?impressions?)?|(narrative|report|description|results?)( text)?|befund(e|bericht)?|"
        r"r[eé]sultats?|hallazgos|所見|影像所见"
    ),
    "addendum": r"addend(um|a)|supplement|nachtrag",
    "other": (
        r"complications?|medications?( administered)?|key images?|radiation (exposure|dose)|treatments?|"
        r"communications?( of critical results)?|notifications?|(electronically )?signed( by)?|signature|"
        r"dictated( by)?|attestation|reported by|verified by|radiologist|physician"
    ),
}
_FREE_NAMES = r".*\bobserver('s)?( .*)?|.*organi[sz]ation name|radiation (exposure|dose) .*|communication .*"
_MEANINGS = {section: re.compile(rf"\s*(?:{words})\s*", re.IGNORECASE) for section, words in _HEADINGS.items()}
_MEANINGS["other"] = re.compile(rf"\s*(?:{_HEADINGS['other']}|{_FREE_NAMES})\s*", re.IGNORECASE)

MAX_HEADING = 200
"""Characters; a code meaning has 64 at most (PS3.5 6.2), but a sender may write any number."""

_WORDS = "|".join(f"(?:{words})" for words in _HEADINGS.values())
HEADING = re.compile(
    rf"^[ \t]*(?P<line>{_WORDS})(?:[ \t]*[:\uff1a]|[ \t]+[-\u2013\u2014](?=[ \t])|[ \t]*$)"
    rf"|(?<=[.;!?。])[ \t]+(?P<sentence>{_WORDS})[ \t]*[:\uff1a]"
    rf"|(?<=[ \t])(?=(?-i:[A-Z][A-Z ]{{3,60}}[:\uff1a]))(?P<capitals>{_WORDS})[ \t]*[:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading typed into the text: a line that starts with it or is nothing else, a sentence that starts with it and a
colon, or capitals and a colon anywhere."""


def is_report(ds: Dataset) -> bool:
    """Tell whether `ds` is a radiologist's report: an SR of a general class that is no measurement, dose or CAD
    document, key object selection, procedure log, and not the node's own."""
    if read_text(ds, "SOPClassUID") not in REPORT_SOP_CLASSES or read_text(ds, "ManufacturerModelName") == MODEL_NAME:
        return False
    title = read_concept(ds, "ConceptNameCodeSequence")
    if title is not None and (title.code, title.scheme) in _OTHER_DOCUMENTS:
        return False
    if title is not None and title.scheme == "DCM" and title.code.isdecimal() and int(title.code) in _KEY_OBJECT_TITLES:
        return False
    templates = (read_text(item, "TemplateIdentifier") for item in read_items(ds, "ContentTemplateSequence"))
    return not any(template in _OTHER_TEMPLATES for template in templates)


def read_concept(item: Dataset, keyword: str) -> Concept | None:
    """Return the first concept of the code sequence `keyword`, or None where there is none."""
    for code in read_items(item, keyword):
        value = read_text(code, "CodeValue") or read_text(code, "LongCodeValue") or read_text(code, "URNCodeValue")
        return Concept(value, read_text(code, "CodingSchemeDesignator"), read_text(code, "CodeMeaning"))
    return None


def find_section(concept: Concept) -> Section | None:
    """Return the section that a concept name stands for, by code, else by the words of its meaning."""
    by_code = _SECTION_CODES.get((concept.code, concept.scheme))
    return by_code or find_heading(concept.meaning)


def find_heading(words: str) -> Section | None:
    """Return the section that a heading names, None for words that are no heading."""
    if len(words) > MAX_HEADING:
        return None
    return next((section for section, pattern in _MEANINGS.items() if pattern.fullmatch(words)), None)
