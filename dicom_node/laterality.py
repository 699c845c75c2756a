"""Whether a box lies on the side of the patient that its phrase names. A conflict is said; nothing is swapped. Pure."""

from __future__ import annotations

from dicom_node.orientation import UPRIGHT, Orientation
from grounding.types import Box, Laterality

DEAD_ZONE = 0.05
"""Share of the picture's width, to each side of its middle, that is neither left nor right: nothing says where the
patient's midline is."""


def contradicts(side: Laterality | None, box: Box, rows: int, columns: int, orientation: Orientation = UPRIGHT) -> bool:
    """Tell whether the centre of a box of the stored matrix lies on the other side than `side` of the patient.

    Never where the phrase names no side, or both. As films hang, the patient's left is at the right.
    """
    if side not in ("left", "right"):
        return False
    usual = orientation.from_stored(box, rows, columns)
    width = rows if orientation.transposed else columns
    beyond = (usual.x1 + usual.x2) / 2 / width - 0.5
    return beyond < -DEAD_ZONE if side == "left" else beyond > DEAD_ZONE
