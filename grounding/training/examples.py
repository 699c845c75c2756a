"""Training examples: a canvas picture with texts, the phrases to copy out of each and the boxes of each phrase.

Made from generated studies (sentences of a report) and from rows of real manifests (a phrase, sometimes inside a
sentence). Only rows whose licence is stated are used; a patient with one unlicensed image is left out altogether.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grounding.geometry import BoxTuple, Frame, stretch_contrast
from grounding.knowledge import load_bank, swap_sides
from grounding.phantoms.insertion import Lungs, insert_findings
from grounding.phantoms.study import PhantomStudy
from grounding.training.augment import AffineRange, draw_affine, vary_exposure, vary_film
from grounding.training.recipe import RealShares
from grounding.types import Image

Bytes = NDArray[np.uint8]

PHANTOM_MOVES = AffineRange(scale=0.16, shift=0.07, degrees=6)
REAL_MOVES = AffineRange(scale=0.22, shift=0.10, degrees=8)


@dataclass(frozen=True, slots=True)
class Answer:
    """A phrase in a text: characters [start, end), negated or not, and its boxes cxcywh of the canvas.

    `boxes` is empty where the picture does not show it, and None where that is not known: then it is only read.
    """

    start: int
    end: int
    negated: bool
    boxes: tuple[BoxTuple, ...] | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and its answers in order."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One picture float32[S, S] and its prompts."""

    image: Image
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a report, and the characters [start, end) of the one phrase in it."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RealRow:
    """A phrase of a real image in cxcywh of the whole picture; `label` as in the manifest.

    `sentence` is where its report says it, if that says nothing else.
    """

    phrase: str
    label: str
    boxes: tuple[BoxTuple, ...]
    sentence: Sentence | None = None


@dataclass(frozen=True, slots=True)
class RealImage:
    """A real radiograph with all its rows. `pixels`: float32[S', S'] in [0, 1], uint8[S', S'], or what reads those."""

    pixels: Image | Bytes | Callable[[], Bytes]
    patient: str
    rows: tuple[RealRow, ...]

    @property
    def image(self) -> Image:
        """float32[S', S'] in [0, 1], made anew at each call: thousands of pictures are kept as bytes, or on disk."""
        pixels = self.pixels() if callable(self.pixels) else self.pixels
        image = np.asarray(pixels, dtype=np.float32)
        return image / np.float32(255) if pixels.dtype == np.uint8 else image


def phantom_prompts(study: PhantomStudy) -> list[Prompt]:
    """One prompt for each sentence of a generated report, its phrases in order."""
    frame = Frame(study.image.shape[0], study.image.shape[1], canvas=256)
    prompts = []
    for span in study.report.sentences:
        inside = [p for p in study.phrases if span.start <= p.source.start and p.source.end <= span.end]
        answers = tuple(
            Answer(
                p.source.start - span.start, p.source.end - span.start, p.negated, tuple(map(frame.to_model, p.boxes))
            )
            for p in sorted(inside, key=lambda p: p.source.start)
        )
        prompts.append(Prompt(study.report.text[span.start : span.end], answers))
    return prompts


def anatomy_prompts(study: PhantomStudy) -> list[Prompt]:
    """The structures of a generated patient, each as a text of its own."""
    frame = Frame(study.image.shape[0], study.image.shape[1], canvas=256)
    return [Prompt(name, (Answer(0, len(name), False, (frame.to_model(box),)),)) for name, box in study.anatomy]


def pick_prompts(rng: np.random.Generator, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, those with something to ground first; now and then the bare phrase instead."""
    order = rng.permutation(len(prompts))
    shuffled = sorted((prompts[i] for i in order), key=lambda p: not any(not a.negated for a in p.answers))
    return [bare(rng, prompt) if rng.random() < 0.5 else prompt for prompt in shuffled[:count]]


def bare(rng: np.random.Generator, prompt: Prompt) -> Prompt:
    """One asserted phrase of a prompt as a text of its own."""
    asserted = [a for a in prompt.answers if not a.negated]
    if not asserted:
        return prompt
    answer = asserted[int(rng.integers(len(asserted)))]
    text = prompt.text[answer.start : answer.end]
    return Prompt(text, (replace(answer, start=0, end=len(text)),))


def without_boxes(prompt: Prompt) -> Prompt:
    """The prompt, asked of a picture that shows nothing of it."""
    return replace(prompt, answers=tuple(a if a.boxes is None else replace(a, boxes=()) for a in prompt.answers))


def blank(rng: np.random.Generator, example: Example) -> Example:
    """The example with a picture on which nothing can be seen: one grey, or slow clouds. No phrase has a box there."""
    size = example.image.shape[0]
    picture = np.full((size, size), rng.uniform(0, 1), dtype=np.float32)
    if rng.random() < 0.5:
        picture = vary_film(rng, vary_exposure(rng, picture, 1.0))
    return Example(picture, tuple(without_boxes(prompt) for prompt in example.prompts))


def make_example(
    rng: np.random.Generator,
    image: Image,
    prompts: Sequence[Prompt],
    moves: AffineRange,
    size: int,
    mirrored: bool = False,
) -> Example:
    """Move and expose a picture at random; the boxes of the prompts follow."""
    boxes = [b for p in prompts for a in p.answers for b in a.boxes or ()]
    move = draw_affine(rng, moves, boxes, mirrored)
    moved = tuple(
        replace(
            p,
            answers=tuple(a if a.boxes is None else replace(a, boxes=tuple(map(move.box, a.boxes))) for a in p.answers),
        )
        for p in prompts
    )
    strength = 1.0 if moves is REAL_MOVES else 0.6
    picture = stretch_contrast(move.draw(image, size))
    return Example(vary_exposure(rng, vary_film(rng, picture), strength), moved)


GROUND_GLASS = ("ground-glass opacity", "ground glass opacities", "hazy opacity", "haziness", "ground-glass changes",
                "hazy airspace opacity", "airspace disease", "opacities", "opacity", "interstitial infiltrate",
                "patchy opacities", "infiltrates", "infiltrate", "lung opacity suspicious for pneumonia",
                "parenchymal thickening", "interstitial pneumonia", "pneumonia", "patchy shadows")  # fmt: skip
WORDINGS: dict[str, tuple[str, ...]] = {
    "ground-glass opacity": GROUND_GLASS,
    "consolidation": ("consolidation", "consolidations", "airspace consolidation", "dense opacity", "airspace disease",
                      "consolidative opacity", "infiltrate and consolidation", "lung opacity suspicious for pneumonia",
                      "pneumonia", "parenchymal consolidation", "infiltrate"),
    "opacity": ("opacity", "opacities", "hazy opacity", "infiltrate", "airspace opacity", "ground-glass opacity"),
    "pleural effusion": ("pleural effusion", "effusion", "pleural fluid", "blunting of the costophrenic angle"),
    "atelectasis": ("atelectasis", "volume loss", "atelectatic changes"),
    "lung nodule": ("lung nodule", "pulmonary nodule", "nodule", "nodular opacity"),
    "lung mass": ("lung mass", "mass", "pulmonary mass", "mass-like opacity"),
    "pneumothorax": ("pneumothorax", "ptx"),
    "right lung": ("right lung", "right lung field", "the right lung"),
    "left lung": ("left lung", "left lung field", "the left lung"),
    "heart and mediastinum": ("heart and mediastinum", "cardiomediastinal silhouette", "mediastinal contours"),
    "trachea and main bronchi": ("trachea and main bronchi", "trachea", "central airways"),
}  # fmt: skip
PLACES = (
    "{what} in the {place}", "{place} {what}", "{what} of the {place}", "{what} within the {place}",
    "{what} at the {place}", "{what}, {place}",
)  # fmt: skip
FRAMES = ("There is {}.", "{} is seen.", "{}.", "Again noted is {}.", "{} is present, unchanged.", "Findings of {}.")
PLACED = re.compile(r"^(.*?) in the (right|left) (lung|upper lung zone|middle lung zone|lower lung zone)$")
ZONE_WORDINGS = {
    "upper lung zone": ("upper lung zone", "upper zone", "upper lobe", "upper lung"),
    "middle lung zone": ("middle lung zone", "mid zone", "mid lung", "middle lung"),
    "lower lung zone": ("lower lung zone", "lower zone", "lower lobe", "lower lung", "lung base"),
}


def word_row(rng: np.random.Generator, row: RealRow, mirrored: bool) -> str:
    """One of many wordings of a real row's phrase; a mirrored picture swaps the sides."""
    phrase = row.phrase
    match = PLACED.match(phrase)
    core, side, place = match.groups() if match else (phrase, "", "")
    core = str(rng.choice(WORDINGS.get(core, (core,)))) if rng.random() < 0.7 else core
    place = str(rng.choice(ZONE_WORDINGS.get(place, (place, place, "hemithorax") if place else ("",))))
    form = str(rng.choice(PLACES)) if rng.random() < 0.7 else PLACES[0]
    worded = form.format(what=core, place=f"{side} {place}") if match else core
    return swap_sides(worded) if mirrored else worded


def real_prompt(rng: np.random.Generator, row: RealRow, mirrored: bool) -> Prompt:
    """A row as a prompt: the sentence of its report, its phrase alone, or its phrase inside a plain sentence."""
    if row.sentence is not None and rng.random() < 0.5:
        text, start, end = row.sentence.text, row.sentence.start, row.sentence.end
        if mirrored:
            start, end = (len(swap_sides(text[:place])) for place in (start, end))
            text = swap_sides(text)
        return Prompt(text, (Answer(start, end, False, row.boxes),))
    return spoken(rng, word_row(rng, row, mirrored), row.boxes)


def spoken(rng: np.random.Generator, phrase: str, boxes: tuple[BoxTuple, ...]) -> Prompt:
    """A phrase alone or in a plain sentence, as often with boxes as without: the form must not betray the truth."""
    if rng.random() < 0.5:
        return Prompt(phrase, (Answer(0, len(phrase), False, boxes),))
    before, after = str(rng.choice(FRAMES)).split("{}")
    text = before + phrase + after
    return Prompt(text, (Answer(len(before), len(before) + len(phrase), False, boxes),))


SHARES = RealShares()


def real_example(
    rng: np.random.Generator, real: RealImage, count: int, size: int, shares: RealShares = SHARES
) -> Example:
    """Some rows of a real radiograph; half of the time mirrored, with those rows alone that a mirror leaves true."""
    mirrored = bool(rng.random() < 0.5)
    rows = [r for r in real.rows if not mirrored or load_bank().has_mirror(r.phrase)]
    if not rows:
        mirrored, rows = False, list(real.rows)
    groups: dict[str, list[RealRow]] = defaultdict(list)
    for row in rows:
        groups["zone" if "zone" in row.phrase else "anatomy" if row.label in ANATOMY else "finding"].append(row)
    wanted = shares.model_dump()
    names = [name for name in wanted if groups[name]]
    share = np.array([wanted[name] + 1e-6 for name in names])  # a picture may have nothing but what is not wanted
    chosen = [groups[str(rng.choice(names, p=share / share.sum()))] for _ in range(count)]
    prompts = [real_prompt(rng, group[int(rng.integers(len(group)))], mirrored) for group in chosen]
    return make_example(rng, real.image, prompts, REAL_MOVES, size, mirrored)


def inserted_example(rng: np.random.Generator, real: RealImage, count: int, size: int) -> Example | None:
    """A real radiograph with findings painted into it; None where its lungs are not known or nothing would show."""
    lungs = lungs_of(real)
    if lungs is None:
        return None
    clear = not any(row.boxes for row in real.rows if row.label not in ANATOMY)
    study = insert_findings(rng, real.image, lungs, clear=clear)
    if study is None:
        return None
    prompts = [bare(rng, p) if rng.random() < 0.5 else p for p in phantom_prompts(study)]
    asserted = [p for p in prompts if any(not a.negated for a in p.answers)]
    return make_example(rng, study.image, asserted[:count] or prompts[:1], REAL_MOVES, size)


def lungs_of(real: RealImage) -> Lungs | None:
    """The boxes of both lungs in pixels, where the rows name them."""
    found = {row.phrase: row.boxes[0] for row in real.rows if row.label in ANATOMY and row.boxes}
    if not {"right lung", "left lung"} <= set(found):
        return None
    height, width = real.image.shape
    frame = Frame(height, width, canvas=height)
    right, left = frame.to_image(found["right lung"]), frame.to_image(found["left lung"])
    return Lungs(right, left) if right.x1 < left.x2 else None


ANATOMY = {"Right lung", "Left lung", "Cardiomediastinum", "Airways"}
STATED = re.compile(r"^(CC BY(-NC)?(-SA)?( \d\.\d)?$|NIH |RSNA )")


def is_stated(licence: str) -> bool:
    """Whether an image's licence is one that allows training: CC BY, CC BY-SA, CC BY-NC-SA, NIH or RSNA."""
    return bool(STATED.match(licence))


def licensed_patients(rows: Iterable[tuple[str, str]]) -> set[str]:
    """Patients of (patient, licence) all of whose images have a stated licence."""
    pairs = list(rows)
    return {patient for patient, _ in pairs} - {patient for patient, licence in pairs if not is_stated(licence)}
