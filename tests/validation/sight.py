"""The model's geometry with eyes instead of weights: what its input shows is found by measuring it.

Pixels, views, averaging and the way back to the image are the predictor's own; only the network is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from grounding.checkpoint import default_checkpoint, load_predictor
from grounding.network.decoder import DecodedBoxes
from grounding.network.views import average_views, draw_views
from grounding.predictor import Predictor
from grounding.processor import Processor
from grounding.types import Grounding, Image, ReportText
from tests.builders import MODEL, make_finding


@cache
def load_model() -> Predictor:
    """Return the shipped model."""
    return load_predictor(default_checkpoint(), "cpu")


SURE = 6.0
"""Logit of the presence of what was seen."""


class SightedGrounder:
    """A grounder that finds the white rectangle of the first image, to a fraction of a model pixel."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Return one finding, of the whole report, with one box."""
        views = self.processor.views
        seen = draw_views(self.processor.pixels(images[0]), views)[:, 0].numpy()
        boxes = torch.tensor([locate(view) for view in seen], dtype=torch.float32)[:, None]
        certain = torch.full(boxes.shape[:2], SURE)
        decoded = DecodedBoxes(boxes, boxes, certain, None, None)
        averaged = average_views(decoded, views, torch.ones(len(views), 1, dtype=torch.bool))
        (found,) = self.processor.scored_boxes(averaged, 0, self.processor.frame(images[0]))
        return Grounding(MODEL, (make_finding(report.text, found.box.xyxy, score=found.score),))


def locate(view: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return cxcywh in [0, 1] of the white rectangle in float32[S, S] on black, its edges where half the light is."""
    rows, columns = np.nonzero(view > 0.5)
    x1, x2 = _find_edges(view, int(columns.min()), int(columns.max()), rows)
    y1, y2 = _find_edges(view.T, int(rows.min()), int(rows.max()), columns)
    size = len(view)
    return (x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size


def _find_edges(view: NDArray[np.float32], first: int, last: int, across: NDArray[np.intp]) -> tuple[float, float]:
    """Return where the light begins and ends along the lines of `view`, measured over the middle of the rectangle."""
    near, far = np.quantile(across, (0.35, 0.65)).astype(int)
    profile = view[near : far + 1].mean(axis=0, dtype=np.float64)
    middle = (first + last + 1) // 2
    plateau = profile[middle]
    return middle - float(profile[:middle].sum() / plateau), middle + float(profile[middle:].sum() / plateau)
