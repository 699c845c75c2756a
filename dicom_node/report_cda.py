"""The narrative of a CDA document (HL7 CDA R2), as it is encapsulated in DICOM (PS3.3 A.45.2): its sections and texts.

Only what a person would read is taken: title and text of each section; coded entries repeat it. External entities
are never fetched, and a document that declares any is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from grounding.types import Concept

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CDA_STORAGE = "1.2.840.10008.5.1.4.1.1.104.2"

SCHEMES = {"2.16.840.1.113883.6.1": "LN", "1.2.840.10008.2.16.4": "DCM", "2.16.840.1.113883.6.96": "SCT"}
"""Code systems by their OID, as PS3.16 8 names them."""

MAX_DEPTH = 100
"""Levels of elements; a document has some ten."""

_BLOCKS = frozenset({"paragraph", "list", "item", "table", "tr", "caption", "br"})
_CELLS = frozenset({"td", "th"})
_HIDDEN = frozenset({"renderMultiMedia", "footnote"})
_DECLARATION = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


class DamagedDocumentError(ValueError):
    """The bytes are no CDA document that can be read safely; the text says why."""


@dataclass(frozen=True, slots=True)
class CdaSection:
    """A section: its place ("1.2" is the second one), code and title if it has them, and the text of its narrative."""

    path: str
    name: Concept | None
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class CdaDocument:
    """What is read of a document; sections in its order, those within others after what they stand in."""

    title: str
    language: Concept | None
    sections: tuple[CdaSection, ...]


def read_cda(document: bytes) -> CdaDocument:
    """Return the narrative of a CDA document; one whose body is no XML (a scan, a PDF) has no sections.

    Raises DamagedDocumentError.
    """
    if _DECLARATION.search(document):
        raise DamagedDocumentError("it declares a document type or entities")
    try:
        root = ElementTree.fromstring(document.rstrip(b"\0 "))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DamagedDocumentError(f"it is no well-formed XML ({type(error).__name__})") from error
    if _name(root) != "ClinicalDocument":
        raise DamagedDocumentError("it is no ClinicalDocument")
    language = _child(root, "languageCode")
    code = language.get("code", "") if language is not None else ""
    return CdaDocument(
        _text_of(_child(root, "title")),
        Concept(code, "RFC5646", code) if code else None,
        tuple(_read_sections(_descend(root, "component", "structuredBody"), "1", 0)),
    )


def _read_sections(body: Element | None, path: str, depth: int) -> Iterator[CdaSection]:
    if body is None:
        return
    if depth > MAX_DEPTH:
        raise DamagedDocumentError(f"it has more than {MAX_DEPTH} levels")
    sections = [found for part in body if _name(part) == "component" and (found := _child(part, "section")) is not None]
    for number, section in enumerate(sections, 1):
        place = f"{path}.{number}"
        yield CdaSection(
            place, _code_of(section), _text_of(_child(section, "title")), _text_of(_child(section, "text"))
        )
        yield from _read_sections(section, place, depth + 1)


def _code_of(section: Element) -> Concept | None:
    code = _child(section, "code")
    if code is None or not code.get("code"):
        return None
    scheme = SCHEMES.get(code.get("codeSystem", ""), code.get("codeSystemName", ""))
    return Concept(code.get("code", ""), scheme, code.get("displayName", ""))


def _text_of(element: Element | None) -> str:
    """Return the narrative block (CDA R2 4.3.5) as text: blocks on lines of their own, without what was deleted."""
    return "" if element is None else "".join(_pieces(element, 0))


def _pieces(element: Element, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise DamagedDocumentError(f"it has more than {MAX_DEPTH} levels")
    name = _name(element)
    if name in _HIDDEN or element.get("revised") == "delete":
        return
    around = "\n" if name in _BLOCKS else " " if name in _CELLS else ""
    yield around
    yield _flat(element.text)
    for child in element:
        yield from _pieces(child, depth + 1)
        yield _flat(child.tail)
    yield around


def _flat(text: str | None) -> str:
    """Return text as XML means it: line ends in the source are blanks."""
    return re.sub(r"\s+", " ", text or "")


def _descend(element: Element, *names: str) -> Element | None:
    found: Element | None = element
    for name in names:
        found = _child(found, name) if found is not None else None
    return found


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if _name(child) == name), None)


def _name(element: Element) -> str:
    """Return the tag without its namespace."""
    return str(element.tag).rsplit("}", 1)[-1]
