"""What the box lists of NIH pictures (ChestX-ray14) share: names of patients, size, terms, and words for findings."""

from __future__ import annotations

import re

NIH_SIZE = (1024, 1024)
"""Width and height in which the boxes of all these lists are given."""

NIH_LICENSE = "NIH no restriction"

PHRASES = {
    "Effusion": "pleural effusion", "Mass": "lung mass", "Nodule": "lung nodule", "Diffuse Nodule": "diffuse nodules",
    "Fibrosis": "pulmonary fibrosis", "Fracture": "rib fracture",
}  # fmt: skip
"""Findings whose name is not what a report says; the others are their name in lower case."""

_NAME = re.compile(r"(\d{8})_\d{3}(?:\.\w+)?$")


def finding_phrase(label: str) -> str:
    """A finding as a report would name it."""
    return PHRASES.get(label, label.lower())


def nih_patient(name: str) -> str | None:
    """The patient of a picture's name ("00000013_005.png" is of "nih-00000013"); None for other names."""
    match = _NAME.match(name)
    return f"nih-{match[1]}" if match else None
