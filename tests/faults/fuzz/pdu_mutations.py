"""Mutations of what a sender says over an association: PDUs, their items, and the messages in P-DATA (PS3.8 9.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from random import Random

from dicom_node.clock import derive_uid
from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE
from tests.builders import CR_STORAGE, DX_PRESENTATION_STORAGE, encode, make_cxr_dataset, make_pixels
from tests.faults.fuzz.dicom_mutations import TEXTS
from tests.faults.fuzz.mutations import BYTES, INTEGERS, apply

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = ((1, VERIFICATION), (3, CR_STORAGE), (5, DX_PRESENTATION_STORAGE), (7, PUSH_MODEL))

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
C_STORE_RQ, C_ECHO_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ = 0x0001, 0x0030, 0x0130, 0x0100


@dataclass(frozen=True)
class Part:
    """A PDU (length of 4 bytes), an item (of 2) or a PDV (of 4, no kind): its kind, what is in it, what it claims."""

    kind: int | None
    value: bytes = b""
    parts: tuple[Part, ...] = ()
    length_size: int = 2
    claimed: int | None = None

    def encode(self) -> bytes:
        """Return its bytes; `claimed` stands where the length should."""
        value = self.value + b"".join(part.encode() for part in self.parts)
        length = len(value) if self.claimed is None else self.claimed
        head = b"" if self.kind is None else bytes((self.kind & 0xFF, 0))
        return head + (length & (256**self.length_size - 1)).to_bytes(self.length_size, "big") + value


@dataclass(frozen=True)
class Stream:
    """What is sent: the first PDU, then, once it is answered, the rest, in pieces of so many bytes.

    `waits` False: everything at once. `resets`: the sender is gone before anything can be answered.
    """

    opening: bytes
    rest: bytes
    piece: int
    waits: bool
    resets: bool


def make_stream(random: Random, seed: int) -> Stream:
    """Return a mutated conversation; what it stores has UIDs of its own."""
    pdus = _converse(random, seed)
    opening = pdus[0]
    if random.random() < 0.35:
        opening = _mutate_part(opening, random)
    for _ in range(random.randint(0, 3)):
        pdus = _reorder(pdus, random) if random.random() < 0.3 else _mutate_one(pdus, random)
    head, rest = opening.encode(), b"".join(pdu.encode() for pdu in pdus[1:])
    if random.random() < 0.1:
        head = apply(BYTES, head, random, 1)
    if random.random() < 0.2:
        rest = apply(BYTES, rest, random, 2)
    piece = random.choice((1 << 20, 1 << 20, 1 << 20, 4096, 700))
    return Stream(head, rest, piece, random.random() < 0.9, random.random() < 0.1)


# ---- a valid conversation --------------------------------------------------------------------------------------------


def make_request(called: str = "KNOWMVG", calling: str = "PACS") -> Part:
    """Return an A-ASSOCIATE-RQ that proposes `CONTEXTS`."""
    head = struct.pack(">HH16s16s32s", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode(), b"")
    items = [Part(0x10, b"1.2.840.10008.3.1.1.1")]
    for number, abstract in CONTEXTS:
        syntaxes = [Part(0x40, uid.encode()) for uid in (EXPLICIT if abstract != PUSH_MODEL else IMPLICIT, IMPLICIT)]
        items.append(Part(0x20, bytes((number, 0, 0, 0)), (Part(0x30, abstract.encode()), *syntaxes)))
    user = (
        Part(0x51, struct.pack(">I", 16384)), Part(0x52, b"1.2.3.4"), Part(0x55, b"FUZZ"),
        Part(0x53, struct.pack(">HH", 1, 1)),
        Part(0x54, struct.pack(">H", len(PUSH_MODEL)) + PUSH_MODEL.encode() + b"\1\1"),
    )  # fmt: skip
    return Part(ASSOCIATE_RQ, head, (*items, Part(0x50, parts=user)), 4)


def _converse(random: Random, seed: int) -> list[Part]:
    """Return the PDUs of an association that does some of what the receiver offers."""
    said: list[Part] = []
    for number in range(random.randint(0, 3)):
        said += random.choice((_echo, _store, _store, _store, _ask_commitment, _report_commitment))(
            random, seed, number
        )
    end = random.choice((RELEASE_RQ, RELEASE_RQ, ABORT, None))
    ending = [] if end is None else [Part(end, b"\0\0\0\0", (), 4)]
    return [make_request(), *said, *ending]


def _echo(random: Random, seed: int, number: int) -> list[Part]:
    return _message(
        1, [(0x0002, VERIFICATION), (0x0100, C_ECHO_RQ), (0x0110, number + 1), (0x0800, 0x0101)], None, random
    )


def _store(random: Random, seed: int, number: int) -> list[Part]:
    ds = make_cxr_dataset(study=f"pdu {seed % 50}", pixels=make_pixels(32, 24))
    ds.SOPInstanceUID = derive_uid("pdu", str(seed), str(number))
    content = encode(ds)
    content = content[144 + int.from_bytes(content[140:144], "little") :]
    if random.random() < 0.3:
        content = apply(BYTES, content, random, 1)
    command = [
        (0x0002, DX_PRESENTATION_STORAGE), (0x0100, C_STORE_RQ), (0x0110, number + 1), (0x0700, 0), (0x0800, 1),
        (0x1000, str(ds.SOPInstanceUID)),
    ]  # fmt: skip
    return _message(5, command, content, random)


def _ask_commitment(random: Random, seed: int, number: int) -> list[Part]:
    command = [
        (0x0003, PUSH_MODEL), (0x0100, N_ACTION_RQ), (0x0110, number + 1), (0x0800, 1), (0x1001, PUSH_MODEL_INSTANCE),
        (0x1008, 1),
    ]  # fmt: skip
    return _message(7, command, _references(seed), random)


def _report_commitment(random: Random, seed: int, number: int) -> list[Part]:
    command = [
        (0x0002, PUSH_MODEL), (0x0100, N_EVENT_REPORT_RQ), (0x0110, number + 1), (0x0800, 1),
        (0x1000, PUSH_MODEL_INSTANCE), (0x1002, 1),
    ]  # fmt: skip
    return _message(7, command, _references(seed), random)


def _references(seed: int) -> bytes:
    """Return a dataset that names a transaction and one instance, in Implicit VR."""
    item = _element(0x0008, 0x1150, DX_PRESENTATION_STORAGE) + _element(
        0x0008, 0x1155, derive_uid("pdu", str(seed), "0")
    )
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    return _element(0x0008, 0x1195, derive_uid("transaction", str(seed))) + _element(0x0008, 0x1199, items)


def _message(context: int, command: list[tuple[int, int | str]], dataset: bytes | None, random: Random) -> list[Part]:
    """Return a message in as many PDUs as it is cut into."""
    encoded = b"".join(_element(0, tag, value) for tag, value in command)
    encoded = _element(0, 0, struct.pack("<I", len(encoded))) + encoded
    if random.random() < 0.1:
        encoded = apply(BYTES, encoded, random, 1)
    if random.random() < 0.1:
        encoded += _element(0, random.choice((0x0002, 0x0800, 0x1000, 0x0901)), random.choice(TEXTS)[:2000])
    fragments = [*_cut(encoded, 0x01, random), *(_cut(dataset, 0x00, random) if dataset is not None else ())]
    pdvs = [Part(None, bytes((context, control)) + part, (), 4) for control, part in fragments]
    if random.random() < 0.3:
        return [Part(P_DATA, b"", tuple(pdvs), 4)]
    return [Part(P_DATA, b"", (pdv,), 4) for pdv in pdvs]


def _cut(content: bytes, control: int, random: Random) -> list[tuple[int, bytes]]:
    size = random.choice((len(content), len(content), 1000, 16)) or 1
    size = max(size, len(content) // 60 + 1)
    pieces = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
    return [(control | (0x02 if at == len(pieces) - 1 else 0), piece) for at, piece in enumerate(pieces)]


def _element(group: int, number: int, value: int | str | bytes) -> bytes:
    """Return an element in Implicit VR: a text is a UID, a number takes two bytes."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(value)) + value


# ---- mutations -------------------------------------------------------------------------------------------------------


def _reorder(pdus: list[Part], random: Random) -> list[Part]:
    """Repeat, drop, swap or invent PDUs."""
    pdus, at, other = list(pdus), random.randrange(len(pdus)), random.randrange(len(pdus))
    match random.randrange(4):
        case 0:
            pdus.insert(other, pdus[at])
        case 1 if len(pdus) > 1:
            del pdus[at]
        case 2:
            pdus[at], pdus[other] = pdus[other], pdus[at]
        case _:
            kind = random.choice((*range(9), 0x80, 0xFF))
            pdus.insert(at, Part(kind, random.randbytes(random.choice((0, 4, 4, 70))), (), 4))
    return pdus


def _mutate_one(pdus: list[Part], random: Random) -> list[Part]:
    at = random.randrange(len(pdus))
    return [*pdus[:at], _mutate_part(pdus[at], random), *pdus[at + 1 :]]


def _mutate_part(part: Part, random: Random) -> Part:
    """Mutate a part, or one within it."""
    if part.parts and random.random() < 0.75:
        return replace(part, parts=_mutate_parts(part.parts, random))
    match random.randrange(5):
        case 0:
            kinds = (*range(8), 0x10, 0x20, 0x21, 0x30, 0x40, *range(0x50, 0x5A), 0xFF)
            return replace(part, kind=random.choice(kinds)) if part.kind is not None else part
        case 1:
            true = len(part.encode()) - part.length_size
            return replace(part, claimed=random.choice((*INTEGERS, true - 1, true + 1, true + 100)))
        case 2:
            return replace(part, value=apply(BYTES, part.value, random, 2)[:200_000])
        case 3:
            return replace(part, value=random.choice(TEXTS))
        case _:
            return replace(part, value=part.value[:2] + random.randbytes(random.randint(0, 40)))


def _mutate_parts(parts: tuple[Part, ...], random: Random) -> tuple[Part, ...]:
    at = random.randrange(len(parts))
    match random.randrange(6):
        case 0:
            return (*parts[:at], *parts[at + 1 :])
        case 1:
            return (*parts[:at], *(parts[at],) * random.choice((2, 3, 300)), *parts[at + 1 :])
        case 2:
            return tuple(random.sample(parts, len(parts)))
        case _:
            return (*parts[:at], _mutate_part(parts[at], random), *parts[at + 1 :])
