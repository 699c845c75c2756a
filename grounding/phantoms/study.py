"""Generated chest radiographs with generated reports: the training and test material that needs no patient.

`make_study(seed)` is a pure function of its arguments. Anatomy, findings, words and film each draw from their own
stream of the seed. `python -m grounding.phantoms.study --sheet out.png` draws a contact sheet to look at.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from grounding.phantoms.anatomy import (
    LEFT,
    RIGHT,
    Chest,
    Field,
    Frame,
    bounding_box,
    paint_density,
    ramp,
    sample_anatomy,
    sample_frame,
    smooth_noise,
    stroke,
)
from grounding.phantoms.lesions import AIRSPACE, DEVICE_LABELS, LUNG_LABELS, Canvas, Lesion, paint
from grounding.phantoms.report import PhantomPhrase, write_report
from grounding.types import Box, Image, ReportText

__all__ = ["BENCHMARK", "EMPHASIZED", "PhantomPhrase", "PhantomStudy", "Rates", "make_study"]

WEIGHTS = {
    "consolidation": 2.0,
    "opacity": 2.4,
    "ground_glass": 2.0,
    "edema": 0.8,
    "nodule": 1.2,
    "mass": 1.0,
    "atelectasis": 1.2,
    "pleural_effusion": 2.0,
    "pneumothorax": 1.7,
}
BILATERAL = {
    "consolidation": 0.2,
    "opacity": 0.3,
    "ground_glass": 0.45,
    "edema": 1.0,
    "pleural_effusion": 0.25,
    "atelectasis": 0.15,
}
NORMAL_SHARE, CARDIOMEGALY_SHARE, ABSENT_SHARE = 0.17, 0.26, 0.085


@dataclass(frozen=True, slots=True)
class Rates:
    """How often things are drawn: relative weights of the findings of the lungs, and the share of each device."""

    findings: Mapping[str, float]
    devices: Mapping[str, float]


BENCHMARK = Rates(WEIGHTS, dict.fromkeys(DEVICE_LABELS, 0.07))
"""The rates of the generated studies that models are compared on."""

EMPHASIZED = Rates(
    {**WEIGHTS, "nodule": 2.4, "mass": 1.8, "atelectasis": 2.6, "pneumothorax": 2.0, "pleural_effusion": 2.4},
    {"central_line": 0.22, "endotracheal_tube": 0.12, "nasogastric_tube": 0.08, "pacemaker": 0.07},
)
"""Rates for training: what is hard to see comes more often."""


@dataclass(frozen=True, slots=True)
class PhantomStudy:
    """A generated radiograph and report. `sections` are (title, text) in the report's order; boxes are image pixels.

    `anatomy` names the structures of the patient, whatever the report says of them.
    """

    image: Image
    report: ReportText
    phrases: tuple[PhantomPhrase, ...]
    sections: tuple[tuple[str, str], ...]
    anatomy: tuple[tuple[str, Box], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study shows, before anything is drawn: (label, sides), and whether the heart is large."""

    cardiomegaly: bool
    findings: tuple[tuple[str, tuple[int, ...]], ...]


def make_study(
    seed: int, size: int = 256, *, shape: tuple[int, int] | None = None, rates: Rates = BENCHMARK
) -> PhantomStudy:
    """Draw the study of `seed` on `size` x `size` pixels, or on `shape` (rows, columns)."""
    picture = draw(seed, shape or (size, size), rates=rates)
    words = np.random.default_rng([seed, 3])
    written = write_report(words, [*picture.lesions, *_absent(words, picture.lesions)])
    return PhantomStudy(
        picture.image, written.report, written.phrases, written.sections, tuple(structures(picture.chest))
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn radiograph, its findings and its anatomy."""

    image: Image
    lesions: list[Lesion]
    chest: Chest


def draw(seed: int, shape: tuple[int, int], *, with_findings: bool = True, rates: Rates = BENCHMARK) -> Picture:
    """The picture of `seed` and what is drawn in it; without findings, the same patient (the heart stays as it is)."""
    body, ill = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    plan = _plan(ill, rates)
    chest = Chest(sample_frame(body, shape), sample_anatomy(body, cardiomegaly=plan.cardiomegaly))
    density, vessels = paint_density(chest, body)
    canvas = Canvas.blank(chest)
    lesions = _draw_findings(canvas, ill, plan) if with_findings else []
    image = _film(_expose(canvas, density, vessels), chest.frame, np.random.default_rng([seed, 4]))
    return Picture(image, lesions, chest)


def structures(chest: Chest) -> list[tuple[str, Box]]:
    """Boxes of the lungs, their thirds, the heart with the mediastinum, and the trachea with its bifurcation."""
    found: list[tuple[str, Box]] = []
    for side, name in ((RIGHT, "right"), (LEFT, "left")):
        lung = bounding_box(chest.lung[side] * (1 - chest.heart) > 0.5)
        if lung is None:
            continue
        found.append((f"{name} lung", lung))
        third = (lung.y2 - lung.y1) / 3
        for index, level in enumerate(("upper", "middle", "lower")):
            box = Box(lung.x1, lung.y1 + index * third, lung.x2, lung.y1 + (index + 1) * third)
            found.append((f"{name} {level} lung zone", box))
    column = (np.abs(chest.u) < chest.anatomy.mediastinum) & (chest.v > 0) & (chest.abdomen < 0.5)
    heart = bounding_box((chest.heart * (1 - chest.abdomen) > 0.5) | column)
    airways = bounding_box((np.abs(chest.u - chest.anatomy.trachea) < 0.16) & (chest.v > -0.25) & (chest.v < 0.44))
    named = (("heart and mediastinum", heart), ("trachea and main bronchi", airways))
    return found + [(name, box) for name, box in named if box is not None]


def _plan(rng: np.random.Generator, rates: Rates) -> Plan:
    devices = [
        (name, (int(rng.choice([RIGHT, LEFT])),)) for name in DEVICE_LABELS if rng.random() < rates.devices[name]
    ]
    if rng.random() < NORMAL_SHARE:
        return Plan(False, tuple(devices[:1]))
    large = bool(rng.random() < CARDIOMEGALY_SHARE)
    weights = np.array([rates.findings[label] for label in LUNG_LABELS])
    count = int(rng.choice([0 if large else 1, 1, 2, 3, 4], p=[0.2, 0.3, 0.28, 0.15, 0.07]))
    chosen = [LUNG_LABELS[i] for i in rng.choice(len(LUNG_LABELS), count, replace=False, p=weights / weights.sum())]
    findings: list[tuple[str, tuple[int, ...]]] = []
    for label in chosen:
        sides = (RIGHT, LEFT) if rng.random() < BILATERAL.get(label, 0.0) else (int(rng.choice([RIGHT, LEFT])),)
        taken = {side for other, used in findings if other in AIRSPACE for side in used}
        if label not in AIRSPACE or not taken & set(sides):
            findings.append((label, sides))
    return Plan(large, (*findings, *devices))


def _draw_findings(canvas: Canvas, rng: np.random.Generator, plan: Plan) -> list[Lesion]:
    lesions: list[Lesion] = []
    wanted = ([("cardiomegaly", (LEFT,))] if plan.cardiomegaly else []) + list(plan.findings)
    for label, sides in wanted:
        taken = [box for lesion in lesions if lesion.label in LUNG_LABELS for box in lesion.boxes]
        for _ in range(4):
            lesion = paint(label, canvas, rng, sides, taken if label in LUNG_LABELS else [])
            if lesion is not None:
                lesions.append(lesion)
                break
    return lesions


def _absent(rng: np.random.Generator, lesions: list[Lesion]) -> list[Lesion]:
    """Now and then a finding that the report asserts although the picture does not show it."""
    if rng.random() >= ABSENT_SHARE:
        return []
    shown = {lesion.label for lesion in lesions}
    alike = {*AIRSPACE, "nodule", "mass", "atelectasis"}
    labels = [x for x in (*LUNG_LABELS, "cardiomegaly") if x not in shown and not (x in alike and shown & alike)]
    if not labels:
        return []
    label = str(rng.choice(labels))
    side = None if label == "cardiomegaly" else "bilateral" if label == "edema" else str(rng.choice(["left", "right"]))
    level = None if label in ("cardiomegaly", "edema") else str(rng.choice(["upper", "mid", "lower"]))
    return [Lesion(label, side, level, 0.3, round(float(rng.uniform(1, 5)), 1), ())]  # type: ignore[arg-type]


def _expose(canvas: Canvas, density: Field, vessels: Field) -> Field:
    """Optical density of the whole patient, findings included."""
    chest = canvas.chest
    lungs = chest.lung[RIGHT] + chest.lung[LEFT]
    aerated = lungs * (1 - 0.92 * chest.heart) * (1 - canvas.opaque)
    inside = vessels * aerated * (1 - canvas.bare)
    fluid = 0.19 * canvas.opaque * lungs
    return density - chest.anatomy.air * aerated + inside + canvas.added + fluid + canvas.lines


def _film(density: Field, frame: Frame, rng: np.random.Generator) -> Image:
    """Film response, scatter, noise, markers and collimation: float32[H, W] in [0, 1]."""
    uneven, mottled = float(rng.uniform(0.004, 0.03)), float(rng.uniform(0.004, 0.02))
    density = density + smooth_noise(rng, frame.shape, (6, uneven), (60, mottled))
    black, white = float(rng.uniform(-0.10, 0.07)), float(rng.uniform(0.76, 0.98))
    grey: Field = np.clip((density - black) / (white - black), 0, 1.25)
    grey = np.power(grey, np.float32(rng.uniform(0.7, 1.3)))
    low, high = float(rng.uniform(0.0, 0.12)), float(rng.uniform(0.78, 0.97))
    grey = low + (high - low) * np.minimum(grey, 1.0 + 0.15 * (grey - 1))
    grey += float(rng.uniform(0.004, 0.03)) * rng.standard_normal(frame.shape, dtype=np.float32)
    if rng.random() < 0.3:
        grey = np.maximum(grey, _electrodes(frame, rng, float(rng.uniform(0.7, 0.95))))
    grey = _markers(grey, rng)
    if rng.random() < 0.35:
        grey = _collimate(grey, rng)
    return np.asarray(np.clip(grey, 0, 1), dtype=np.float32)


def _electrodes(frame: Frame, rng: np.random.Generator, brightness: float) -> Field:
    """ECG electrodes with their wires: bright, and no finding."""
    lines = []
    field = np.zeros(frame.shape, np.float32)
    u, v = frame.grid()
    for _ in range(int(rng.integers(1, 4))):
        place = np.array([rng.uniform(-0.95, 0.95), rng.uniform(0.05, 0.95)])
        r = np.sqrt(np.square(u - place[0]) + np.square((v - place[1]) * frame.height / frame.half_width))
        field = np.maximum(field, brightness * ramp(1 - r / np.float32(0.035), 0.5))
        away = np.stack([place, place + rng.normal(0, 0.5, 2), place + rng.normal(0, 1.2, 2) + [0, 0.5]])
        t = np.linspace(0, 1, 12)[:, None]
        curve = (1 - t) ** 2 * away[0] + 2 * t * (1 - t) * away[1] + t**2 * away[2]
        lines.append((frame.to_pixels(curve), 1.0))
    wires = 0.85 * brightness * stroke(frame, lines)
    return np.asarray(np.maximum(field, wires), dtype=np.float32)


@lru_cache(maxsize=64)
def _letters(text: str, height: int) -> Field:
    font = ImageFont.load_default(height)
    left, top, right, bottom = (int(x) for x in font.getbbox(text))
    tile = PilImage.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(tile).text((1 - left, 1 - top), text, fill=255, font=font)
    return np.asarray(tile, dtype=np.float32) / np.float32(255)


def _markers(grey: Field, rng: np.random.Generator) -> Field:
    """Side letters and labels in the corners of the film."""
    rows, columns = grey.shape
    texts = [
        str(rng.choice(["L", "L", "R", "PORTABLE", "AP ERECT", "PA", "SUPINE"])) for _ in range(int(rng.integers(0, 3)))
    ]
    for text in texts:
        tile = _letters(text, max(7, int(min(rows, columns) * (0.05 if len(text) == 1 else 0.03))))
        on_left = text == "R" or (text != "L" and rng.random() < 0.5)
        x = (
            int(columns * rng.uniform(0.01, 0.12))
            if on_left
            else int(columns * rng.uniform(0.84, 0.95)) - tile.shape[1] // 2
        )
        y = int(rows * rng.uniform(0.01, 0.16))
        patch = grey[y : y + tile.shape[0], max(0, x) : max(0, x) + tile.shape[1]]
        np.maximum(patch, 0.97 * tile[: patch.shape[0], : patch.shape[1]], out=patch)
    return grey


def _collimate(grey: Field, rng: np.random.Generator) -> Field:
    """Dark borders where the beam was shut off."""
    rows, columns = grey.shape
    shade = float(rng.uniform(0, 0.06))
    for axis, length in ((0, rows), (1, columns)):
        for end in (
            slice(None, int(length * rng.uniform(0, 0.05))),
            slice(length - int(length * rng.uniform(0, 0.05)), None),
        ):
            grey[(end, slice(None)) if axis == 0 else (slice(None), end)] = shade
    return grey


def contact_sheet(seeds: range, size: int = 256, columns: int = 6) -> PilImage.Image:
    """Pictures of `seeds` in a grid, boxes and labels drawn."""
    tiles = -(-len(seeds) // columns)
    sheet = PilImage.new("RGB", (columns * size, tiles * size))
    for index, seed in enumerate(seeds):
        study = make_study(seed, size)
        tile = PilImage.fromarray((study.image * 255).astype(np.uint8)).convert("RGB")
        pen = ImageDraw.Draw(tile)
        for phrase in study.phrases:
            for box in phrase.boxes:
                pen.rectangle(box.xyxy, outline=(255, 220, 0))
                pen.text((box.x1 + 2, box.y1), phrase.label, fill=(80, 255, 80))
        sheet.paste(tile, (index % columns * size, index // columns * size))
    return sheet


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(description="Draw generated radiographs with their boxes.")
    parser.add_argument("--sheet", required=True, help="PNG to write")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    contact_sheet(range(options.first, options.first + options.count), options.size).save(options.sheet)


if __name__ == "__main__":
    main()
