"""The narrative of a CDA document (HL7 CDA R2), as it is encapsulated in DICOM (PS3.3 A.45.2): its sections and texts.

Only what a person would read is taken: title and text of each section; coded entries repeat it. External entities
are never fetched, and a document that declares any is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from grounding.types import Concept

CDA_STORAGE = "1.2.840.10008.5.1.4.1.1.104.2"

SCHEMES = {"2.16.840.1.113883.6.1": "LN", "1.2.840.10008.2.16.4": "DCM", "2.16.840.1.113883.6.96": "SCT"}
"""Code systems by their OID, as PS3.16 8 names them."""

MAX_DEPTH, MAX_ELEMENTS, MAX_BYTES = 100, 200_000, 10_000_000
"""Levels and elements of a document, and its bytes: one has some ten, hundreds, and tens of thousands."""

_BLOCKS = frozenset({"paragraph", "list", "item", "table", "tr", "caption", "br"})
_CELLS = frozenset({"td", "th"})
_HIDDEN = frozenset({"renderMultiMedia", "footnote"})


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
    root = _parse(document)
    if _name(root) != "ClinicalDocument":
        raise DamagedDocumentError("it is no ClinicalDocument")
    language = _child(root, "languageCode")
    code = language.get("code", "") if language is not None else ""
    return CdaDocument(
        _text_of(_child(root, "title")),
        Concept(code, "RFC5646", code) if code else None,
        tuple(_read_sections(_descend(root, "component", "structuredBody"), "1")),
    )


def _parse(document: bytes) -> Element:
    """Return the tree of a document; of values of odd length the last byte is padding (PS3.5 6.2)."""
    if len(document) > MAX_BYTES:
        raise DamagedDocumentError(f"it has more than {MAX_BYTES} bytes")
    try:
        return _parse_whole(document)
    except DamagedDocumentError:
        if not document.endswith(b"\0"):
            raise
    return _parse_whole(document[:-1])


def _parse_whole(document: bytes) -> Element:
    try:
        return _Parser().parse(document)
    except DamagedDocumentError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DamagedDocumentError(f"it is no well-formed XML ({type(error).__name__})") from error


class _Parser:
    """Builds a tree of bounded depth and size, from a document that declares nothing."""

    def __init__(self) -> None:
        self.builder, self.depth, self.count = TreeBuilder(), 0, 0
        self.expat = expat.ParserCreate(namespace_separator="}")
        self.expat.buffer_text = True
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self.builder.data
        self.expat.StartDoctypeDeclHandler = self._refuse
        self.expat.EntityDeclHandler = self._refuse

    def parse(self, document: bytes) -> Element:
        self.expat.Parse(document, True)
        return self.builder.close()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth, self.count = self.depth + 1, self.count + 1
        if self.depth > MAX_DEPTH or self.count > MAX_ELEMENTS:
            raise DamagedDocumentError(f"it has more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements")
        self.builder.start(name, attributes)

    def _end(self, name: str) -> None:
        self.depth -= 1
        self.builder.end(name)

    def _refuse(self, *_: object) -> None:
        raise DamagedDocumentError("it declares a document type or entities")


def _read_sections(body: Element | None, path: str) -> Iterator[CdaSection]:
    if body is None:
        return
    sections = [found for part in body if _name(part) == "component" and (found := _child(part, "section")) is not None]
    for number, section in enumerate(sections, 1):
        place = f"{path}.{number}"
        yield CdaSection(
            place, _code_of(section), _text_of(_child(section, "title")), _text_of(_child(section, "text"))
        )
        yield from _read_sections(section, place)


def _code_of(section: Element) -> Concept | None:
    code = _child(section, "code")
    if code is None or not code.get("code"):
        return None
    scheme = SCHEMES.get(code.get("codeSystem", ""), code.get("codeSystemName", ""))
    return Concept(code.get("code", ""), scheme, code.get("displayName", ""))


def _text_of(element: Element | None) -> str:
    """Return the narrative block (CDA R2 4.3.5) as text: blocks on lines of their own, without what was deleted.

    No empty lines: they would end a section that was typed into the text.
    """
    if element is None:
        return ""
    # blanks first: to look behind a run of them for a line end costs the square of its length
    return re.sub(r" ?\n[ \n]*", "\n", re.sub(r" {2,}", " ", "".join(_pieces(element))))


def _pieces(element: Element) -> Iterator[str]:
    name = _name(element)
    if name in _HIDDEN or element.get("revised") == "delete":
        return
    around = "\n" if name in _BLOCKS else " " if name in _CELLS else ""
    yield around
    yield _flat(element.text)
    for child in element:
        yield from _pieces(child)
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
