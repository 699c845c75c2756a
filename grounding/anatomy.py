"""Normal anatomy of a generated chest radiograph, painted as optical density on a pixel grid.

Everything is drawn in the patient's frame: `u` runs from -1 (the patient's right chest wall, at the left of the picture)
to +1 (left chest wall), `v` from 0 (lung apices) to 1 (costophrenic angles). A `Frame` places that frame on the film.
No finding is drawn here; see `lesions`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw

from grounding.types import Box

Field = NDArray[np.float32]
"""float32[H, W], one value per pixel."""

RIGHT, LEFT = -1, 1
"""Sides of the patient as signs of `u`."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the patient stands on the film: an affine map between pixels and the patient's (u, v)."""

    shape: tuple[int, int]
    centre: tuple[float, float]
    half_width: float
    height: float
    angle: float

    @property
    def pixel(self) -> float:
        """Side of a pixel in units of 1/256 of the film's shorter side: the unit of line widths and blurs."""
        return min(self.shape) / 256.0

    def grid(self) -> tuple[Field, Field]:
        """(u, v) of every pixel centre."""
        rows, columns = self.shape
        x = np.arange(columns, dtype=np.float32) + np.float32(0.5 - self.centre[0])
        y = (np.arange(rows, dtype=np.float32) + np.float32(0.5 - self.centre[1]))[:, None]
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u = (cos * x + sin * y) / np.float32(self.half_width)
        v = (cos * y - sin * x) / np.float32(self.height) + np.float32(0.5)
        return u, v

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points float64[N, 2] of the patient's frame as (x, y) in pixels of the film."""
        x = points[:, 0] * self.half_width
        y = (points[:, 1] - 0.5) * self.height
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([cos * x - sin * y + self.centre[0], sin * x + cos * y + self.centre[1]], axis=1)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One patient's proportions, in the units of the patient's frame."""

    apex: float
    mediastinum: float
    dome: tuple[float, float]
    cardiothoracic_ratio: float
    heart_shift: float
    heart_top: float
    wall: float
    knob: float
    trachea: float
    rib_spacing: float
    rib_phase: float
    rib_strength: float
    vessel_strength: float
    bone: float
    bubble: float
    breast: float
    density_slope: float


def sample_frame(rng: np.random.Generator, shape: tuple[int, int]) -> Frame:
    """Place a patient on a film of `shape` (rows, columns): size, position and a few degrees of rotation vary."""
    rows, columns = shape
    height = rng.uniform(0.52, 0.74)
    top = rng.uniform(0.05, max(0.06, 0.93 - height))
    return Frame(
        shape=shape,
        centre=(columns * (0.5 + rng.normal(0, 0.03)), rows * (top + height / 2)),
        half_width=columns * rng.uniform(0.33, 0.47),
        height=rows * height,
        angle=float(np.deg2rad(rng.normal(0, 2.5))),
    )


def sample_anatomy(rng: np.random.Generator, *, cardiomegaly: bool) -> Anatomy:
    """Draw a patient's proportions; `cardiomegaly` decides which side of the normal range the heart's width is on."""
    dome = rng.uniform(0.11, 0.24)
    return Anatomy(
        apex=rng.uniform(0.40, 0.52),
        mediastinum=rng.uniform(0.11, 0.18),
        dome=(dome, max(0.06, dome - rng.uniform(-0.01, 0.06))),
        cardiothoracic_ratio=rng.uniform(0.56, 0.72) if cardiomegaly else rng.uniform(0.37, 0.49),
        heart_shift=rng.uniform(0.12, 0.20),
        heart_top=rng.uniform(0.34, 0.46) if cardiomegaly else rng.uniform(0.42, 0.52),
        wall=rng.uniform(0.10, 0.30),
        knob=rng.uniform(0.05, 0.09),
        trachea=rng.normal(0, 0.02),
        rib_spacing=rng.uniform(0.088, 0.115),
        rib_phase=rng.uniform(0, 1),
        rib_strength=rng.uniform(0.03, 0.10),
        vessel_strength=rng.uniform(0.06, 0.15),
        bone=rng.uniform(0.05, 0.13),
        bubble=rng.choice([0.0, 1.0], p=[0.35, 0.65]) * rng.uniform(0.08, 0.25),
        breast=rng.choice([0.0, 1.0]) * rng.uniform(0.03, 0.10),
        density_slope=rng.uniform(0.0, 0.16),
    )


def ramp(x: Field, width: float) -> Field:
    """Smooth step of `x` from 0 to 1 over `width`, centred on 0."""
    t = np.clip(x * np.float32(1.0 / width) + np.float32(0.5), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def bump(x: Field, width: float) -> Field:
    """Smooth bump of height 1 at 0 that ends at +-`width`."""
    t = np.clip(1 - np.square(x * np.float32(1.0 / width)), 0, None)
    return np.asarray(t * t, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Field:
    """Low-frequency noise float32[H, W], mean 0, standard deviation near 1, about `cells` waves across the film."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    rows, columns = shape
    return np.asarray(PilImage.fromarray(coarse).resize((columns, rows), PilImage.Resampling.BICUBIC), dtype=np.float32)


def stroke(frame: Frame, lines: list[tuple[NDArray[np.float64], float]]) -> Field:
    """Draw polylines (points in pixels, width in 1/256 of the film) as float32[H, W] in [0, 1], edges smoothed."""
    rows, columns = frame.shape
    canvas = PilImage.new("L", (columns, rows))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        full = width * frame.pixel
        pen.line(
            [(float(x), float(y)) for x, y in points],
            fill=int(255 * min(1.0, full)),
            width=max(1, round(full)),
            joint="curve" if full > 2 else None,
        )
    return soften(np.asarray(canvas, dtype=np.float32) * np.float32(1 / 255), 0.5 * frame.pixel)


def soften(field: Field, sigma: float) -> Field:
    """Blur with a 3-tap binomial kernel repeated to reach about `sigma` pixels (cheap for small sigma)."""
    for _ in range(min(8, max(1, round(2 * sigma * sigma)))):
        inner = field.copy()
        inner[1:-1] = 0.25 * (field[:-2] + field[2:]) + 0.5 * field[1:-1]
        field = inner.copy()
        field[:, 1:-1] = 0.25 * (inner[:, :-2] + inner[:, 2:]) + 0.5 * inner[:, 1:-1]
    return field


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """Tight box of the true pixels, or None where there are none."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


class Chest:
    """The fields of one normal chest on its film, shared by the painters of anatomy and of findings.

    `lung[side]` is the air of a lung before heart and findings, `outer[side]` the signed distance to the lateral wall in
    units of `u` (positive inside), `above[side]` the height above the diaphragm in units of `v`.
    """

    def __init__(self, frame: Frame, anatomy: Anatomy) -> None:
        self.frame, self.anatomy = frame, anatomy
        self.u, self.v = frame.grid()
        edge = 0.03
        self.lung: dict[int, Field] = {}
        self.outer: dict[int, Field] = {}
        self.above: dict[int, Field] = {}
        reach = np.sqrt(np.clip(1 - np.square(np.clip(1 - self.v * np.float32(1 / 0.62), 0, 1.2)), 0, None))
        inner = anatomy.mediastinum + (anatomy.apex - anatomy.mediastinum) * np.square(
            np.clip(1 - self.v * np.float32(1 / 0.24), 0, 1)
        )
        lateral = anatomy.apex + (1 - anatomy.apex) * reach
        top = ramp(self.v, edge)
        for side, dome in ((RIGHT, anatomy.dome[0]), (LEFT, anatomy.dome[1])):
            a = self.u * np.float32(side)
            self.outer[side] = lateral - a
            self.above[side] = 1 - dome * (1 - np.square((a - 0.48) / 0.52)) - self.v
            self.lung[side] = (
                top * ramp(self.outer[side], edge) * ramp(a - inner, 1.5 * edge) * ramp(self.above[side], 0.02)
            )
        below = np.where(self.u < 0, self.above[RIGHT], self.above[LEFT])
        self.abdomen = ramp(-below, 0.03)
        self.heart = self._heart()

    @property
    def heart_half_width(self) -> float:
        """Half of the heart's width, in units of `u`."""
        return self.anatomy.cardiothoracic_ratio

    def _heart(self) -> Field:
        patient = self.anatomy
        half = patient.cardiothoracic_ratio
        bottom = 1.0 - 0.25 * patient.dome[1]
        middle, semi = (patient.heart_top + bottom) / 2, (bottom - patient.heart_top) / 2 * 1.08
        x = (self.u - patient.heart_shift * (1 + half)) / np.float32(half)
        y = (self.v - middle) / np.float32(semi)
        tilt = x - 0.35 * y  # the apex of the heart points down and to the patient's left
        r = np.sqrt(np.square(tilt * np.float32(1.03)) + np.square(y) * np.float32(0.9))
        return ramp(1 - r, 0.14)

    def heart_box(self) -> Box | None:
        """Box of the cardiac silhouette above the diaphragm."""
        return bounding_box((self.heart * (1 - self.abdomen)) > 0.5)


def paint_density(chest: Chest, rng: np.random.Generator) -> tuple[Field, Field]:
    """Optical density of the soft tissue and bones without lungs, and the pattern of vessels (both float32[H, W])."""
    patient, u, v = chest.anatomy, chest.u, chest.v
    width = np.abs(u)
    torso = 1 + patient.wall + 0.55 * np.clip(0.16 - v, 0, 1.2)
    top = -0.10 + 0.13 * np.clip(width - 0.45, 0, 2) - 0.5 * np.clip(0.42 - width, 0, 0.6)
    body = ramp(torso - width, 0.06) * ramp(v - top, 0.05)
    thickness = 0.56 + 0.10 * chest.abdomen - 0.10 * np.clip(width - 0.9, 0, 1) + patient.density_slope * (v - 0.5)
    density = body * thickness
    density += 0.17 * ramp(patient.mediastinum + 0.05 - width, 0.16) * body
    density += 0.20 * chest.heart
    density += _aorta(chest)
    density += _spine(chest) + _ribs(chest) + _clavicles(chest)
    if patient.breast:
        for side in (RIGHT, LEFT):
            r = np.square((u * side - 0.58) / 0.45) + np.square((v - 0.74) / 0.25)
            density += patient.breast * ramp(1 - r, 0.35)
    if patient.bubble:
        r = np.square((u - 0.5) / 0.2) + np.square((v - 1.0 + 0.4 * patient.dome[1] - 0.06) / 0.07)
        density -= patient.bubble * ramp(1 - r, 0.5) * chest.abdomen
    density -= 0.10 * bump(u - patient.trachea, 0.075) * ramp(0.30 - v, 0.06) * ramp(v + 0.25, 0.1)
    return density, _vessels(chest, rng)


def _aorta(chest: Chest) -> Field:
    patient = chest.anatomy
    r = np.square((chest.u - patient.mediastinum - 0.05) / 0.10) + np.square((chest.v - 0.28) / patient.knob)
    return 0.12 * ramp(1 - r, 0.5)


def _spine(chest: Chest) -> Field:
    column = ramp(0.10 - np.abs(chest.u), 0.03)
    discs = 0.6 + 0.4 * np.cos(chest.v * np.float32(2 * np.pi / chest.anatomy.rib_spacing))
    return np.asarray(chest.anatomy.bone * column * (0.6 + 0.4 * discs), dtype=np.float32)


def _ribs(chest: Chest) -> Field:
    patient, width = chest.anatomy, np.abs(chest.u)
    spacing = np.float32(2 * np.pi / patient.rib_spacing)
    phase = np.float32(2 * np.pi * patient.rib_phase)
    arch = 0.10 * np.square(width - 0.42) * 4 - 0.02
    back = np.cos((chest.v - arch - 0.30 * np.clip(width - 0.75, 0, 1)) * spacing + phase)
    front = np.cos((chest.v + 0.42 * width) * (spacing * np.float32(0.86)) + phase)
    cage = ramp(np.maximum(chest.outer[RIGHT], chest.outer[LEFT] * 1) * 0 + 1.12 - width, 0.1) * ramp(chest.v + 0.02, 0.05)
    posterior = ramp(back - 0.25, 0.5) * ramp(width - 0.09, 0.05)
    anterior = ramp(front - 0.45, 0.6) * ramp(width - 0.42, 0.2)
    return np.asarray(patient.rib_strength * cage * (posterior + 0.6 * anterior), dtype=np.float32)


def _clavicles(chest: Chest) -> Field:
    width = np.abs(chest.u)
    line = chest.v - 0.10 + 0.16 * width - 0.03 * np.sin(width * 5)
    clavicle = bump(line, 0.035) * ramp(width - 0.10, 0.05) * ramp(1.05 - width, 0.1)
    scapula = bump(width - 1.02 + 0.25 * (chest.v - 0.2), 0.05) * ramp(0.5 - chest.v, 0.1) * ramp(chest.v - 0.05, 0.1)
    return np.asarray(chest.anatomy.bone * (1.1 * clavicle + 0.5 * scapula), dtype=np.float32)


def _vessels(chest: Chest, rng: np.random.Generator) -> Field:
    """Branching vessels from the hila, tapering towards the wall; the hila themselves."""
    lines: list[tuple[NDArray[np.float64], float]] = []
    for side in (RIGHT, LEFT):
        hilum = np.array([side * (chest.anatomy.mediastinum + 0.08), 0.46])
        for direction in rng.uniform(-1.35, 1.35, 11):
            lines += _branch(chest.frame, rng, hilum, side, float(direction))
    field = stroke(chest.frame, lines)
    for side in (RIGHT, LEFT):
        r = np.square((chest.u * side - chest.anatomy.mediastinum - 0.06) / 0.12) + np.square((chest.v - 0.46) / 0.11)
        field = field + 0.8 * ramp(1 - r, 1.2)
    return np.asarray(chest.anatomy.vessel_strength * field, dtype=np.float32)


def _branch(
    frame: Frame, rng: np.random.Generator, start: NDArray[np.float64], side: int, direction: float
) -> list[tuple[NDArray[np.float64], float]]:
    lines = []
    length = rng.uniform(0.3, 0.6)
    steps = np.linspace(0, 1, 5)[:, None]
    bend = direction + rng.normal(0, 0.3)
    heading = np.array([side * np.cos(direction), 0.7 * np.sin(direction)])
    turned = np.array([side * np.cos(bend), 0.7 * np.sin(bend)])
    points = start + length * steps * ((1 - steps) * heading + steps * turned)
    for index in range(4):
        lines.append((frame.to_pixels(points[index : index + 2]), 2.4 - 0.5 * index))
    for index in (1, 2):
        fork = bend + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
        tip = points[index] + rng.uniform(0.15, 0.3) * np.array([side * np.cos(fork), 0.7 * np.sin(fork)])
        lines.append((frame.to_pixels(np.stack([points[index], tip])), 1.0))
    return lines
