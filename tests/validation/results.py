"""Results of every kind, drawn at random from a seed: headers as they come, reports of all classes, all settings."""

from __future__ import annotations

from random import Random
from typing import Any

from pydicom.dataset import Dataset

from dicom_node.report import read_plain_report
from dicom_node.results.values import Equipment, Reference, ResultInput, ResultOptions
from grounding.knowledge import load_bank
from grounding.types import Concept, Finding, Grounding, Laterality, Site
from tests.builders import (
    BASIC_TEXT_SR,
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    CR_STORAGE,
    CREATED_AT,
    DX_PRESENTATION_STORAGE,
    ENHANCED_SR,
    MODEL,
    MULTI_FRAME_SC,
    make_cda_dataset,
    make_cxr_dataset,
    make_finding,
    make_report_dataset,
    make_result_input,
)

NAMES: tuple[dict[str, Any], ...] = (
    {},
    {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"},
    {"PatientName": "Иванов^Пётр", "SpecificCharacterSet": "ISO_IR 144"},
    {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
    {"PatientName": "Wang^XiaoDong=王^小东", "SpecificCharacterSet": "ISO_IR 192"},
)
HEADERS: tuple[dict[str, Any], ...] = (
    {},
    {"PatientBirthDate": None, "StudyTime": None, "StudyID": None},
    {"PatientSex": "U", "AccessionNumber": ""},
    {"PatientBirthDate": "1960", "StudyDate": "yesterday"},
    {"PatientOrientation": None, "BodyPartExamined": None},
    {"PatientOrientation": ["R", "F"]},
    {"PatientOrientation": ["F", "L"]},
    {"ImagerPixelSpacing": None, "PixelSpacing": [0, 0]},
    {"ImagerPixelSpacing": None, "PixelAspectRatio": [3, 2]},
    {"ImagerPixelSpacing": [0.1, 0.2]},
    {"WindowCenter": None, "WindowWidth": None},
    {"WindowCenter": [2048, 1000], "WindowWidth": [4096, 500]},
    {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None},
    {"TimezoneOffsetFromUTC": "-0330"},
    {"Laterality": "L", "BodyPartExamined": "SHOULDER"},
    {"ReferringPhysicianName": None, "PatientName": None},
)
PHRASES = (
    "Small left pleural effusion", "right apical pneumothorax", "Opacity in the left lower zone, 3.5 x 2 cm",
    "左胸水貯留を認める", "Пневмоторакс справа", "épanchement pleural gauche", "one\\two", "a line\r\nand another",
    "endotracheal tube, tip 4 cm above the carina", "word " * 600 + "end", "<b>bold</b> & \"quoted\"", "x",
)  # fmt: skip
SIDES: tuple[Laterality | None, ...] = (None, "left", "right", "bilateral")
CDA = (
    "<ClinicalDocument><component><structuredBody><component><section><title>Findings</title>"
    "<text>Small left pleural effusion.</text></section></component></structuredBody></component></ClinicalDocument>"
)


def draw_result(seed: int) -> ResultInput:
    """Return a result; its SOP class alternates with the seed."""
    dice = Random(seed)
    study = str(seed)
    images = tuple(_draw_image(dice, study, n + 1) for n in range(dice.choice((1, 1, 1, 2))))
    findings = tuple(_draw_finding(dice, images) for _ in range(dice.choice((0, 1, 2, 3, 5, 8))))
    values: dict[str, Any] = {
        "revision": dice.choice((1, 1, 2)),
        "equipment": dice.choice((Equipment(), Equipment("Hospital", "STATION 1", "9.9"))),
        "sr_class": ("comprehensive_3d", "comprehensive")[seed % 2],
        "options": ResultOptions(
            min_confidence=dice.choice((0.0, 0.0, 0.5)),
            when_nothing_localized=dice.choice(("text", "tid1500", "none")),
            tracking=dice.choice(("cornerstone", "plain")),
            gsps=dice.random() < 0.9,
            window=dice.choice(("image", "reader")),
        ),
    }
    if values["revision"] == 2:
        values["predecessors"] = (Reference(COMPREHENSIVE_3D_SR, "2.25.7", "2.25.8", images[0].StudyInstanceUID),)
    report = _draw_report(dice, study, images[0])
    if report is None:
        plain = read_plain_report("Findings: small left pleural effusion.")
        return ResultInput(images, None, plain, Grounding(MODEL, findings), CREATED_AT, **values)
    return make_result_input(*images, report=report, findings=findings, **values)


def _draw_image(dice: Random, study: str, instance: int) -> Dataset:
    sop_class_uid = dice.choice((CR_STORAGE, DX_PRESENTATION_STORAGE, DX_PRESENTATION_STORAGE, MULTI_FRAME_SC))
    frames = {"NumberOfFrames": 2} if sop_class_uid == MULTI_FRAME_SC else {}
    # the patient is the same in all images of a study
    name = NAMES[int(study) % len(NAMES)]
    header = {**dice.choice(HEADERS), **dice.choice(HEADERS), **name, **frames}
    photometric = dice.choice(("MONOCHROME1", "MONOCHROME2"))
    return make_cxr_dataset(
        study=study, instance=instance, sop_class_uid=sop_class_uid, photometric=photometric, **header
    )


def _draw_report(dice: Random, study: str, image: Dataset) -> Dataset | None:
    kind = dice.randrange(7)
    if kind == 0:
        return None
    if kind == 1:
        return make_cda_dataset(CDA, study=study, image=image)
    if kind == 2:
        return make_report_dataset(study=f"{study}0000")  # of another study
    sop_class_uid = (BASIC_TEXT_SR, ENHANCED_SR, COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR)[kind - 3]
    return make_report_dataset(study=study, image=image, sop_class_uid=sop_class_uid)


def _draw_finding(dice: Random, images: tuple[Dataset, ...]) -> Finding:
    number = dice.randrange(len(images))
    phrase = dice.choice(PHRASES)
    entity = dice.choice(load_bank().entities)
    site = Site(entity.site, dice.choice(SIDES)) if entity.site is not None and dice.random() < 0.7 else None
    concept = Concept("1" * 18, "SCT", "A long code") if dice.random() < 0.05 else entity.concept
    if dice.random() < 0.25:
        return make_finding(phrase, image=number, negated=True, finding=concept, site=site)
    boxes = [_draw_box(dice, images[number]) for _ in range(dice.choice((0, 1, 1, 2, 3)))]
    score = dice.uniform(0.2, 1.0)
    return make_finding(phrase, *boxes, image=number, score=score, finding=concept, site=site)


def _draw_box(dice: Random, image: Dataset) -> tuple[float, float, float, float]:
    """Return a box somewhere in the image; now and then one that reaches out of it, or is too thin."""
    columns, rows = float(image.Columns), float(image.Rows)
    x1, x2 = sorted(dice.uniform(-0.1, 1.1) * columns for _ in range(2))
    y1, y2 = sorted(dice.uniform(-0.1, 1.1) * rows for _ in range(2))
    return (x1, y1, x1 + 0.4, y2) if dice.random() < 0.03 else (x1, y1, x2, y2)
