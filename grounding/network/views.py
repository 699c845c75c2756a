"""Several looks at one picture: windows of the canvas, encoded and decoded in one batch, whose boxes are averaged.

A network that is shown the same film a little larger, smaller or mirrored errs a little differently; the mean errs less
than each. The first view is the canvas as it is, and every box comes back to its coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from grounding.network.decoder import DecodedBoxes

UNEVEN = 1e-3
"""What a long way costs beside its length, where slots are matched."""


@dataclass(frozen=True, slots=True)
class View:
    """A window in the middle of the canvas: its side in shares of the canvas, and whether it is seen in a mirror.

    A window larger than the canvas shows black around it.
    """

    side: float = 1.0
    mirrored: bool = False

    @property
    def _across(self) -> float:
        return -self.side if self.mirrored else self.side

    def draw(self, pixels: Tensor) -> Tensor:
        """float32[B, C, S, S] of the canvas -> the same shape, of the window."""
        if self == View():
            return pixels
        # affine_grid wants the way back, in coordinates from -1 to 1.
        back = [[self._across, 0.0, 0.0], [0.0, self.side, 0.0]]
        theta = pixels.new_tensor(back).expand(len(pixels), 2, 3)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        drawn: Tensor = F.grid_sample(pixels, grid, align_corners=False)
        return drawn

    def to_canvas(self, cxcywh: Tensor) -> Tensor:
        """Boxes of the window, float32[..., 4] -> boxes of the canvas."""
        scale, origin = self._place(cxcywh)
        return cxcywh * scale + origin

    def to_window(self, cxcywh: Tensor) -> Tensor:
        """Boxes of the canvas, float32[..., 4] -> boxes of the window."""
        scale, origin = self._place(cxcywh)
        return (cxcywh - origin) / scale

    def _place(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and origin of the window on the canvas, for the four numbers of a box."""
        scale = like.new_tensor([self._across, self.side, self.side, self.side])
        return scale, like.new_tensor([0.5 - self._across / 2, 0.5 - self.side / 2, 0.0, 0.0])


VIEWS = (
    View(), View(0.92), View(1.1), View(mirrored=True), View(1.1, mirrored=True), View(0.92, mirrored=True),
)  # fmt: skip
"""The views in the order in which they are taken; the first is the canvas."""


def draw_views(pixels: Tensor, views: Sequence[View]) -> Tensor:
    """float32[1, C, S, S] -> float32[V, C, S, S]."""
    return torch.cat([view.draw(pixels) for view in views])


def average_views(boxes: DecodedBoxes, views: Sequence[View], seen: Tensor) -> DecodedBoxes:
    """Boxes of V views of N phrases, view by view, to boxes of N phrases on the canvas.

    `seen` bool[V, N]: whether a view counts for a phrase; the first always does. The slots of each view are matched
    with those of the first. What only one view can say (mask, attention, hypotheses) is the first one's.
    """
    count = seen.shape[1]
    refined = torch.stack([view.to_canvas(part) for view, part in zip(views, boxes.refined.split(count), strict=True)])
    order = match_slots(refined)
    refined = refined.gather(2, order.unsqueeze(-1).expand_as(refined))
    presence = _ordered(boxes.presence_logits, order)
    share = seen.unsqueeze(-1).float()
    weight = share * (presence.sigmoid() + 1e-3)
    quality = boxes.quality_logits
    return DecodedBoxes(
        coarse=boxes.coarse[:count],
        refined=(refined * weight.unsqueeze(-1)).sum(0) / weight.sum(0).unsqueeze(-1),
        presence_logits=(presence * share).sum(0) / share.sum(0),
        quality_logits=None if quality is None else (_ordered(quality, order) * share).sum(0) / share.sum(0),
        mask_logits=None if boxes.mask_logits is None else boxes.mask_logits[:count],
        hypotheses=None if boxes.hypotheses is None else boxes.hypotheses[:count],
        attention=None if boxes.attention is None else boxes.attention[:count],
    )


def _ordered(values: Tensor, order: Tensor) -> Tensor:
    """float32[V * N, M] -> float32[V, N, M] with the slots of each view in the order of the first's."""
    return values.reshape(order.shape).gather(2, order)


def match_slots(boxes: Tensor) -> Tensor:
    """float32[V, N, M, 4] -> int64[V, N, M]: the slot of each view that lies where the first view's slot does.

    The sum of distances is the same for every matching of slots that all lie to one side of the others: of these the
    one without a long way is taken, or rounding would choose.
    """
    exact = boxes.cpu().double()  # not every device computes so
    apart = (exact[:1].unsqueeze(3) - exact.unsqueeze(2)).abs()
    distance = (apart + UNEVEN * apart.square()).sum(-1).numpy()
    order = torch.arange(boxes.shape[2]).expand(boxes.shape[:3]).clone()
    for view in range(1, len(boxes)):
        for phrase in range(boxes.shape[1]):
            order[view, phrase] = torch.from_numpy(linear_sum_assignment(distance[view, phrase])[1])
    return order.to(boxes.device)
