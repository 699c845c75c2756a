"""Mutations of bytes. Deterministic: everything that is decided is drawn from the `Random` that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

Mutator = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers at the ends of what a field can say."""

MAX_BYTES = 4 * 1024**2
"""No mutation makes more: what is large is tried on purpose, not by chance."""


def flip_bits(content: bytes, random: Random) -> bytes:
    """Flip up to 16 bits."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 16) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_bits_near_the_start(content: bytes, random: Random) -> bytes:
    """Flip bits in the first bytes, where formats say what follows."""
    head = min(len(content), 256)
    return flip_bits(content[:head], random) + content[head:]


def overwrite_run(content: bytes, random: Random) -> bytes:
    """Overwrite a run with one byte, or with random ones."""
    start, end = _slice(content, random, 64)
    run = random.randbytes(end - start) if random.random() < 0.5 else bytes([random.choice((0, 255, 0x20))])
    return content[:start] + (run * (end - start))[: end - start] + content[end:]


def truncate(content: bytes, random: Random) -> bytes:
    """Cut off the end."""
    return content[: random.randint(0, len(content))]


def remove_run(content: bytes, random: Random) -> bytes:
    """Cut out a run."""
    start, end = _slice(content, random, 256)
    return content[:start] + content[end:]


def duplicate_run(content: bytes, random: Random) -> bytes:
    """Repeat a run up to 40 times."""
    start, end = _slice(content, random, 1024)
    return content[:end] + content[start:end] * random.choice((1, 1, 2, 40)) + content[end:]


def insert_integer(content: bytes, random: Random) -> bytes:
    """Insert one of `INTEGERS`."""
    at = random.randint(0, len(content))
    return content[:at] + draw_integer(random) + content[at:]


def overwrite_integer(content: bytes, random: Random) -> bytes:
    """Overwrite bytes with one of `INTEGERS`."""
    at = random.randint(0, len(content))
    number = draw_integer(random)
    return content[:at] + number + content[at + len(number) :]


def draw_integer(random: Random) -> bytes:
    """Return one of `INTEGERS` in 1, 2 or 4 bytes of either order."""
    size = random.choice((1, 2, 4))
    return (random.choice(INTEGERS) & (256**size - 1)).to_bytes(size, random.choice(("little", "big")))


def splice(content: bytes, other: bytes, random: Random) -> bytes:
    """Return the beginning of one and the end of another."""
    return content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]


BYTES: tuple[Mutator, ...] = (
    flip_bits, flip_bits, flip_bits_near_the_start, overwrite_run, truncate, remove_run, duplicate_run, insert_integer,
    overwrite_integer,
)  # fmt: skip


def apply(mutators: Sequence[Mutator], content: bytes, random: Random, at_most: int = 4) -> bytes:
    """Apply one to `at_most` of `mutators`."""
    for _ in range(random.randint(1, at_most)):
        changed = random.choice(mutators)(content, random)
        content = changed if len(changed) <= MAX_BYTES else content
    return content


def _slice(content: bytes, random: Random, longest: int) -> tuple[int, int]:
    start = random.randint(0, len(content))
    return start, min(len(content), start + random.randint(0, longest))
