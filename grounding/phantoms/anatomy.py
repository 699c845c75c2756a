"""Normal anatomy of a generated chest radiograph, painted as optical density on a pixel grid.

Everything is drawn in the patient's frame: `u` runs from -1 (the right chest wall, at the left of the picture) to +1
(the left one), `v` from 0 (lung apices) to 1 (costophrenic angles). A `Frame` places that frame on the film. No finding
is drawn here; see `lesions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw

from grounding.types import Box

Field = NDArray[np.floating[Any]]
"""float32[H, W], one value per pixel."""

NORMAL_HEART, LARGE_HEART = (0.37, 0.49), (0.56, 0.72)
"""Ranges of the cardiothoracic ratio."""

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
    air: float
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
        cardiothoracic_ratio=rng.uniform(*(LARGE_HEART if cardiomegaly else NORMAL_HEART)),
        heart_shift=rng.uniform(0.12, 0.20),
        heart_top=rng.uniform(0.34, 0.46) if cardiomegaly else rng.uniform(0.42, 0.52),
        wall=rng.uniform(0.08, 0.34),
        knob=rng.uniform(0.05, 0.09),
        trachea=rng.normal(0, 0.02),
        rib_spacing=rng.uniform(0.10, 0.135),
        rib_phase=rng.uniform(0, 1),
        rib_strength=rng.uniform(0.03, 0.085),
        vessel_strength=rng.uniform(0.08, 0.20),
        bone=rng.uniform(0.04, 0.12),
        bubble=float(rng.random() < 0.65) * rng.uniform(0.08, 0.22),
        breast=float(rng.random() < 0.5) * rng.uniform(0.03, 0.09),
        air=rng.uniform(0.26, 0.40),
        density_slope=rng.uniform(0.0, 0.16),
    )


def ramp(x: Field, width: float) -> Field:
    """Smooth step of `x` from 0 to 1 over `width`, centred on 0."""
    t = np.asarray(x * np.float32(1.0 / width), dtype=np.float32)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    square = t * t
    t *= -2
    t += 3
    t *= square
    return t


def bump(x: Field, width: float) -> Field:
    """Smooth bump of height 1 at 0 that ends at +-`width`."""
    t = np.clip(1 - np.square(x * np.float32(1.0 / width)), 0, None)
    return np.asarray(t * t, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], *octaves: tuple[int, float]) -> Field:
    """Low-frequency noise float32[H, W] of mean 0: `octaves` are (waves across the film, weight), coarsest first."""
    field = np.zeros((1, 1), np.float32)
    for cells, weight in octaves:
        field = _resized(field, (cells, cells)) + np.float32(weight) * rng.standard_normal((cells, cells), np.float32)
    return _resized(field, shape)


def _resized(field: Field, shape: tuple[int, int]) -> Field:
    image = PilImage.fromarray(field).resize(shape[::-1], PilImage.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


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

    `lung[side]` is the air of a lung before heart and findings, `outer[side]` the distance to the lateral wall in units
    of `u` (positive inside), `above[side]` the height above the diaphragm in units of `v`.
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
        middle, semi = ((patient.heart_top + bottom) / 2, (bottom - patient.heart_top) / 2 * 1.08)
        x = (self.u - patient.heart_shift * (1 + half)) / np.float32(half)
        y = (self.v - middle) / np.float32(semi)
        tilt = x - 0.35 * y  # the apex of the heart points down and to the patient's left
        r = np.sqrt(np.square(tilt * np.float32(1.03)) + np.square(y) * np.float32(0.9))
        return ramp(1 - r, 0.16)

    def heart_box(self) -> Box | None:
        """Box of the cardiac silhouette above the diaphragm."""
        return bounding_box((self.heart * (1 - self.abdomen)) > 0.5)


def paint_density(chest: Chest, rng: np.random.Generator) -> tuple[Field, Field]:
    """Optical density of the soft tissue and bones without lungs, and the pattern of vessels (both float32[H, W])."""
    patient, u, v = chest.anatomy, chest.u, chest.v
    width = np.abs(u)
    torso = 1 + patient.wall + 1.3 * np.clip(0.26 - v, 0, 1.2) + 0.15 * np.clip(v - 0.75, 0, 1)
    shoulder = 0.14 * width - 0.17 - 14 * np.square(np.clip(0.46 - width, 0, 1))
    body = ramp(torso - width, 0.06) * ramp(v - shoulder, 0.05)
    thickness = 0.48 - 0.10 * np.clip(width - 0.9, 0, 1) + patient.density_slope * (v - 0.5)
    centre = 0.15 * ramp(patient.mediastinum + 0.04 - width, 0.14)
    density = body * (thickness + np.maximum(np.maximum(centre, 0.20 * chest.heart), 0.21 * chest.abdomen))
    density += _aorta(chest)
    density += _spine(chest) + _ribs(chest) + _clavicles(chest)
    if patient.breast:
        for side in (RIGHT, LEFT):
            r = np.square((u * side - 0.58) / 0.45) + np.square((v - 0.74) / 0.25)
            density += patient.breast * ramp(1 - r, 0.35)
    if patient.bubble:
        r = np.square((u - 0.5) / 0.2) + np.square((v - 1.0 + 0.4 * patient.dome[1] - 0.06) / 0.07)
        density -= patient.bubble * ramp(1 - r, 0.5) * chest.abdomen
    density -= 0.07 * bump(u - patient.trachea, 0.075) * ramp(0.30 - v, 0.06) * ramp(v + 0.25, 0.1)
    return density, _vessels(chest, rng)


def _aorta(chest: Chest) -> Field:
    patient = chest.anatomy
    r = np.square((chest.u - patient.mediastinum - 0.05) / 0.10) + np.square((chest.v - 0.28) / patient.knob)
    return 0.08 * ramp(1 - r, 0.5)


def _spine(chest: Chest) -> Field:
    column = ramp(0.10 - np.abs(chest.u), 0.03)
    discs = 0.6 + 0.4 * np.cos(chest.v * np.float32(2 * np.pi / chest.anatomy.rib_spacing))
    return np.asarray(chest.anatomy.bone * column * (0.6 + 0.4 * discs), dtype=np.float32)


def _ribs(chest: Chest) -> Field:
    """Posterior ribs arch down and out, anterior ribs down and in; behind dense tissue they are faint."""
    patient, width, v = chest.anatomy, np.abs(chest.u), chest.v
    spacing = np.float32(2 * np.pi / patient.rib_spacing)
    phase = np.float32(2 * np.pi * patient.rib_phase)
    stretched = v - 0.10 * np.square(v)  # ribs lie further apart towards the base
    arch = 0.42 * np.square(width - 0.38) - 0.02 + 0.25 * np.clip(width - 0.8, 0, 1)
    back = np.cos((stretched - arch) * spacing + phase)
    front = np.cos((stretched + 0.40 * width) * (spacing * np.float32(0.86)) + phase)
    posterior = ramp(back - 0.42, 0.45) * ramp(width - 0.09, 0.05)
    anterior = ramp(front - 0.5, 0.5) * ramp(width - 0.42, 0.3)
    air = (chest.lung[RIGHT] + chest.lung[LEFT]) * (1 - chest.heart)
    cage = ramp(1.1 - width, 0.1) * ramp(v + 0.02, 0.05) * (0.25 + 0.75 * air)
    return np.asarray(patient.rib_strength * cage * (posterior + 0.55 * anterior), dtype=np.float32)


def _clavicles(chest: Chest) -> Field:
    width = np.abs(chest.u)
    line = chest.v - 0.10 + 0.16 * width - 0.03 * np.sin(width * 5)
    clavicle = bump(line, 0.035) * ramp(width - 0.10, 0.05) * ramp(1.05 - width, 0.1)
    scapula = bump(width - 1.02 + 0.25 * (chest.v - 0.2), 0.05) * ramp(0.5 - chest.v, 0.1) * ramp(chest.v - 0.05, 0.1)
    return np.asarray(chest.anatomy.bone * (1.1 * clavicle + 0.5 * scapula), dtype=np.float32)


def _vessels(chest: Chest, rng: np.random.Generator) -> Field:
    """Branching vessels from the hila, tapering towards the wall; the hila and the fine markings of the lung."""
    field = stroke(chest.frame, _branches(chest, rng, 13))
    for side in (RIGHT, LEFT):
        r = np.square((chest.u * side - chest.anatomy.mediastinum - 0.06) / 0.13) + np.square((chest.v - 0.46) / 0.12)
        field += 0.7 * ramp(1 - r, 1.2)
    shape = chest.frame.shape
    markings = smooth_noise(rng, shape, (28, 0.10), (80, 0.12))
    return np.asarray(chest.anatomy.vessel_strength * (field + markings), dtype=np.float32)


def _branches(chest: Chest, rng: np.random.Generator, count: int) -> list[tuple[NDArray[np.float64], float]]:
    """`count` vessels a side, each a bent line in four tapering pieces with two forks."""
    side = np.repeat([RIGHT, LEFT], count)
    start = np.stack([side * (chest.anatomy.mediastinum + 0.08), np.full(2 * count, 0.46)], axis=1)
    direction = rng.uniform(-1.4, 1.4, 2 * count)
    bend = direction + rng.normal(0, 0.35, 2 * count)
    reach = rng.uniform(0.3, 0.65, (2 * count, 1, 1))
    steps = np.linspace(0, 1, 5)[None, :, None]
    trunk = start[:, None] + reach * steps * (
        (1 - steps) * _heading(side, direction)[:, None] + steps * _heading(side, bend)[:, None]
    )
    fork = bend[:, None] + rng.choice([-1, 1], (2 * count, 2)) * rng.uniform(0.4, 0.9, (2 * count, 2))
    roots = trunk[:, 1:3]
    tips = roots + rng.uniform(0.15, 0.3, (2 * count, 2, 1)) * _heading(side[:, None], fork)
    points = chest.frame.to_pixels(np.concatenate([trunk, roots, tips], axis=1).reshape(-1, 2)).reshape(-1, 9, 2)
    lines: list[tuple[NDArray[np.float64], float]] = []
    for path in points:
        lines += [(path[index : index + 2], 2.6 - 0.5 * index) for index in range(4)]
        lines += [(path[[5, 7]], 1.0), (path[[6, 8]], 0.9)]
    return lines


def _heading(side: NDArray[np.int_], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([side * np.cos(direction), 0.7 * np.sin(direction)], axis=-1)
