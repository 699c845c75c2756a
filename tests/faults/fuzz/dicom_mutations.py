"""Mutations of DICOM files that know what an element is: lengths, VRs, nesting, order, values that cannot be."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dicom_node.pixels import PLUGINS
from tests.faults.fuzz.mutations import BYTES, INTEGERS, Mutator, apply, splice

UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""VRs whose length has four bytes (PS3.5 7.1.2)."""

VRS = (
    *LONG, b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US", b"ZZ", b"\0\0", b"  ",
)  # fmt: skip
SYNTAXES = (*PLUGINS, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1", "1.2.3", "", "x" * 70)
MAX_ELEMENTS = 600

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA, CONTENT_SEQUENCE = 0x7FE00010, 0x0040A730
PIXEL_TAGS = {
    0x00280002: b"US",  # Samples per Pixel
    0x00280004: b"CS",  # Photometric Interpretation
    0x00280006: b"US",  # Planar Configuration
    0x00280008: b"IS",  # Number of Frames
    0x00280010: b"US",  # Rows
    0x00280011: b"US",  # Columns
    0x00280100: b"US",  # Bits Allocated
    0x00280101: b"US",  # Bits Stored
    0x00280102: b"US",  # High Bit
    0x00280103: b"US",  # Pixel Representation
    0x00280120: b"US",  # Pixel Padding Value
    0x00281050: b"DS",  # Window Center
    0x00281051: b"DS",  # Window Width
    0x00281052: b"DS",  # Rescale Intercept
    0x00281053: b"DS",  # Rescale Slope
    0x00281056: b"CS",  # VOI LUT Function
    0x00281101: b"US",  # Red Palette Color Lookup Table Descriptor
    0x00281201: b"OW",  # Red Palette Color Lookup Table Data
}
"""Attributes that say what the pixels are, and how they are shown."""

TEXTS = (
    b"", b" ", b"\0", b"\\", b"\\" * 1000, b"19999999", b"20261332", b"00000000", b"2026-01-02", b"999999.999999",
    b"-1", b"1e999", b"NaN", b"-inf", b"9" * 5000, b"0x10", b"1.5", b"1\\2\\3", b"\xff\xfe\xfd", b"\xed\xa0\x80",
    b"\x1b$B\x1b(J", b"ISO 2022 IR 87\\ISO 2022 IR 58", b"ISO_IR 999", b"../../../../etc/passwd", b"1.2/../../3",
    b"1..2", b".1", b"1." * 40, b"%s%n%x", b"\r\n\r\n", b"MONOCHROME1", b"MONOCHROME2", b"RGB", b"YBR_FULL_422",
    b"PALETTE COLOR", b"YBR_RCT", b"SIGMOID", b"LINEAR_EXACT", b"CONTINUOUS", b"CONTAINER", b"TEXT", b"NUM", b"CODE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element (or an item) is in a file: its tag, its VR if it says one, its length field, its value."""

    tag: int
    vr: bytes
    start: int
    length_at: int
    length_size: int
    value_at: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's elements, those of sequences too, and whether its dataset is implicit VR."""

    elements: list[Element]
    is_implicit: bool


def lay_out(content: bytes) -> Layout:
    """Find the elements of a Part 10 file; of big-endian, deflated and broken ones only what can be found."""
    start = 132 if content[128:132] == b"DICM" else 0
    meta = _walk(content, start, is_implicit=False, until_group=2)
    syntax = next((content[e.value_at : e.end].strip(b"\0 ") for e in meta if e.tag == 0x00020010), b"")
    is_implicit = syntax == b"1.2.840.10008.1.2"
    begin = meta[-1].end if meta else start
    return Layout(meta + _walk(content, begin, is_implicit=is_implicit), is_implicit)


def _walk(content: bytes, at: int, *, is_implicit: bool, until_group: int = 0xFFFF) -> list[Element]:
    found: list[Element] = []
    while at + 8 <= len(content) and len(found) < MAX_ELEMENTS:
        element = _read_element(content, at, is_implicit)
        if element is None or element.tag >> 16 > until_group or element.end > len(content):
            break
        found.append(element)
        at = element.end
    return found


def _read_element(content: bytes, at: int, is_implicit: bool) -> Element | None:
    group, number = struct.unpack_from("<HH", content, at)
    tag, vr, length_at, size = group << 16 | number, b"", at + 4, 4
    if group != 0xFFFE and not is_implicit:
        vr = content[at + 4 : at + 6]
        if vr not in VRS:
            return None
        length_at, size = (at + 8, 4) if vr in LONG else (at + 6, 2)
    value_at = length_at + size
    length = int.from_bytes(content[length_at:value_at], "little")
    is_sequence = vr == b"SQ" or (not vr and content.startswith(b"\xfe\xff\x00\xe0", value_at))
    if length == UNDEFINED or is_sequence or (tag == ITEM and _looks_nested(content, value_at, is_implicit)):
        length = 0  # what is inside comes next
    return Element(tag, vr, at, length_at, size, value_at, value_at + length)


def _looks_nested(content: bytes, at: int, is_implicit: bool) -> bool:
    """Tell an item of a sequence from a fragment of pixel data."""
    group = int.from_bytes(content[at : at + 2], "little")
    return 0x0008 <= group <= 0x0088 and group % 2 == 0 and (is_implicit or content[at + 4 : at + 6] in VRS)


def make_element(tag: int, vr: bytes, value: bytes, *, is_implicit: bool = False, length: int | None = None) -> bytes:
    """Return an element; `length` is what it claims, if not the truth."""
    claimed = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if is_implicit:
        return head + struct.pack("<I", claimed & UNDEFINED) + value
    if vr in LONG:
        return head + vr + b"\0\0" + struct.pack("<I", claimed & UNDEFINED) + value
    return head + vr + struct.pack("<H", claimed & 0xFFFF) + value


def make_item(value: bytes, *, defined: bool = True) -> bytes:
    """Return an item of a sequence."""
    head = struct.pack("<HH", 0xFFFE, 0xE000)
    if defined:
        return head + struct.pack("<I", len(value)) + value
    return head + struct.pack("<I", UNDEFINED) + value + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)


def nest(depth: int, tag: int, random: Random, *, is_implicit: bool) -> bytes:
    """Return `depth` sequences within each other, of either kind of length, perhaps without their ends."""
    if random.random() < 0.7:
        opening = make_element(tag, b"SQ", b"", is_implicit=is_implicit, length=UNDEFINED)
        opening += struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
        closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opening * depth + (closing * depth if random.random() < 0.7 else b"")
    value = b""
    for _ in range(min(depth, 300)):
        value = make_element(tag, b"SQ", make_item(value), is_implicit=is_implicit)
    return value


# ---- the mutators ----------------------------------------------------------------------------------------------------


def change_length(content: bytes, random: Random) -> bytes:
    """Let an element claim another length."""
    if (one := _draw(content, random)) is None:
        return content
    true = int.from_bytes(content[one.length_at : one.value_at], "little")
    near = true + random.choice((-2, -1, 1, 2, 8, 1000))
    claimed = random.choice((near, near, *INTEGERS)) & (256**one.length_size - 1)
    return content[: one.length_at] + claimed.to_bytes(one.length_size, "little") + content[one.value_at :]


def leave_length_undefined(content: bytes, random: Random) -> bytes:
    """Let an element, sequence or not, have no length."""
    found = [one for one in lay_out(content).elements if one.length_size == 4]
    if not found:
        return content
    one = random.choice(found)
    return content[: one.length_at] + b"\xff\xff\xff\xff" + content[one.value_at :]


def swap_vr(content: bytes, random: Random) -> bytes:
    """Let an element claim another VR."""
    one = _draw(content, random)
    if one is None or not one.vr:
        return content
    return content[: one.start + 4] + random.choice(VRS) + content[one.start + 6 :]


def duplicate_element(content: bytes, random: Random) -> bytes:
    """Repeat an element, here or elsewhere."""
    one, other = _draw(content, random), _draw(content, random)
    if one is None or other is None:
        return content
    at = random.choice((one.end, other.start))
    return content[:at] + content[one.start : one.end] * random.choice((1, 1, 3)) + content[at:]


def remove_element(content: bytes, random: Random) -> bytes:
    """Leave an element out."""
    one = _draw(content, random)
    return content if one is None else content[: one.start] + content[one.end :]


def change_tag(content: bytes, random: Random) -> bytes:
    """Give an element another tag: a neighbour's, a delimiter's, a command's."""
    one, other = _draw(content, random), _draw(content, random)
    if one is None or other is None:
        return content
    tag = random.choice((other.tag, ITEM, ITEM_END, SEQUENCE_END, 0x00000010, PIXEL_DATA, 0xFFFFFFFF, one.tag ^ 1))
    return content[: one.start] + struct.pack("<HH", tag >> 16, tag & 0xFFFF) + content[one.start + 4 :]


def change_value(content: bytes, random: Random) -> bytes:
    """Give an element a value that its kind cannot have."""
    one = _draw(content, random)
    if one is None or one.tag >> 16 == 0xFFFE:
        return content
    huge = random.choice((b"A", b"1", b"\xff", b"\\1", b"^=")) * random.choice((100, 3000, 70_000))
    return _with_value(content, one, random.choice((*TEXTS, huge, random.randbytes(random.randint(0, 40)))))


def change_pixel_attribute(content: bytes, random: Random) -> bytes:
    """Let the pixels be said to be otherwise: more, deeper, of another kind."""
    layout = lay_out(content)
    tag, vr = random.choice(list(PIXEL_TAGS.items()))
    if vr == b"US":
        numbers = random.sample((*INTEGERS, 3, 4, 8, 10, 12, 16, 24, 32, 64, 512), 3 if tag == 0x00281101 else 1)
        value = b"".join((number & 0xFFFF).to_bytes(2, "little") for number in numbers)
    elif vr == b"OW":
        value = random.randbytes(random.choice((0, 1, 2, 511, 512, 513)))
    else:
        numbers_said = [str(number).encode() for number in (*INTEGERS, -1, 1e308, 1e-308)]
        value = random.choice(TEXTS if random.random() < 0.5 else numbers_said)
    for one in layout.elements:
        if one.tag == tag:
            return _with_value(content, one, value)
    return _inserted(content, layout, make_element(tag, vr, value, is_implicit=layout.is_implicit), tag)


def insert_nesting(content: bytes, random: Random) -> bytes:
    """Insert sequences within sequences, now and then so many that no reader can follow."""
    layout = lay_out(content)
    tag = random.choice((CONTENT_SEQUENCE, 0x0040A375, 0x00082218, 0x00181234, 0x00091010))
    depth = random.choice((2, 10, 60, 99, 101, 150, 1000 if random.random() < 0.3 else 20))
    return _inserted(content, layout, nest(depth, tag, random, is_implicit=layout.is_implicit), tag)


def insert_many_items(content: bytes, random: Random) -> bytes:
    """Insert a sequence of many items, empty or small."""
    layout = lay_out(content)
    tag = random.choice((CONTENT_SEQUENCE, 0x0040A375, 0x00082218))
    inner = random.choice((b"", make_element(0x0040A040, b"CS", b"TEXT", is_implicit=layout.is_implicit)))
    items = make_item(inner, defined=random.random() < 0.5) * random.choice((3, 100, 2000))
    length = random.choice((None, UNDEFINED, len(items) - 1))
    return _inserted(
        content, layout, make_element(tag, b"SQ", items, is_implicit=layout.is_implicit, length=length), tag
    )


def insert_element(content: bytes, random: Random) -> bytes:
    """Insert an element of any tag, VR and length, where it belongs or anywhere."""
    layout = lay_out(content)
    tag = random.choice(
        (random.getrandbits(32), 0x00080005, 0x00090010, 0x00100010, 0x00020010, 0x00000100, 0xFFFEE00D)
    )
    value = random.choice(TEXTS)
    length = random.choice((None, None, *INTEGERS))
    made = make_element(tag, random.choice(VRS), value, is_implicit=layout.is_implicit, length=length)
    one = _draw(content, random)
    if one is None or random.random() < 0.5:
        return _inserted(content, layout, made, tag)
    return content[: one.start] + made + content[one.start :]


def change_transfer_syntax(content: bytes, random: Random) -> bytes:
    """Let the file meta information name another transfer syntax than the data is in."""
    for one in lay_out(content).elements:
        if one.tag == 0x00020010:
            uid = random.choice(SYNTAXES).encode()
            return _with_value(content, one, uid + b"\0" * (len(uid) % 2))
    return content


DICOM: tuple[Mutator, ...] = (
    change_length, change_length, leave_length_undefined, swap_vr, duplicate_element, remove_element, change_tag,
    change_value, change_value, change_pixel_attribute, insert_nesting, insert_many_items, insert_element,
    change_transfer_syntax,
)  # fmt: skip


def mutate_file(content: bytes, random: Random, others: Sequence[bytes], mutators: Sequence[Mutator] = DICOM) -> bytes:
    """Mutate a DICOM file by what knows of elements, by what does not, or by both."""
    chance = random.random()
    if chance < 0.05:
        content = splice(content, random.choice(others), random)
    if chance < 0.75:
        content = apply(mutators, content, random)
    return apply(BYTES, content, random, 2) if chance > 0.6 else content


def _draw(content: bytes, random: Random) -> Element | None:
    elements = lay_out(content).elements
    return random.choice(elements) if elements else None


def _with_value(content: bytes, one: Element, value: bytes) -> bytes:
    """Replace a value, and the length before it, cut to what the field holds."""
    value = value + b" " * (len(value) % 2)
    length = (len(value) & (256**one.length_size - 1)).to_bytes(one.length_size, "little")
    return content[: one.length_at] + length + value + content[one.end :]


def _inserted(content: bytes, layout: Layout, made: bytes, tag: int) -> bytes:
    """Insert an element before the first of a greater tag."""
    at = next((one.start for one in layout.elements if 0xFFFE0000 > one.tag > tag), len(content))
    return content[:at] + made + content[at:]
