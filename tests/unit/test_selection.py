"""Which report and which images are used, whatever the order they came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import NotApplicableError
from dicom_node.instance import Instance
from dicom_node.selection import add_referred, is_chest, select, select_report, view_of

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
SR = "1.2.840.10008.5.1.4.1.1.88.11"


def make_image(number: int = 1, **facts: Any) -> Instance:
    values = {"view_position": "PA", "patient_id": "P", "body_part": "CHEST", "instance_number": number}
    return Instance(DX, f"1.1.{number}", "1", "1.5", "1.2.840.10008.1.2.1", **(values | facts))


def make_report(number: int = 1, **facts: Any) -> Instance:
    values = {"patient_id": "P", "content_datetime": "20260102120000"}
    return Instance(SR, f"1.2.{number}", "1", "1.6", "1.2.840.10008.1.2.1", **(values | facts))


def images_of(*instances: Instance) -> list[int]:
    """Return the numbers of the images that are selected."""
    return [int(uid.rsplit(".", 1)[1]) for uid in select(instances).images]


# ---- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"preliminary_flag": "FINAL"}, {"preliminary_flag": "PRELIMINARY", "verification_flag": "VERIFIED"}),
        ({}, {"preliminary_flag": "PRELIMINARY", "content_datetime": "20270101"}),
        ({"verification_flag": "VERIFIED"}, {"verification_flag": "UNVERIFIED", "content_datetime": "20270101"}),
        ({"content_datetime": "20260102120001"}, {"content_datetime": "20260102120000.9"}),
        ({"content_datetime": "20260102"}, {"content_datetime": ""}),
        ({"completion_flag": "COMPLETE"}, {"completion_flag": "PARTIAL", "content_datetime": "20270101"}),
    ],
)
def test_the_better_report_is_used(better: dict[str, str], worse: dict[str, str]) -> None:
    reports = [make_report(1, **better), make_report(2, **worse)]
    assert select_report(reports) is reports[0]
    assert select_report(reports[::-1]) is reports[0]


def test_a_study_without_a_report_says_so() -> None:
    with pytest.raises(NotApplicableError, match="no report"):
        select([make_image()])
    with pytest.raises(NotApplicableError, match="PARTIAL"):
        select([make_image(), make_report(completion_flag="PARTIAL")])


@pytest.mark.parametrize("title", [("126000", "DCM"), ("113701", "DCM")])
def test_measurements_and_doses_are_no_reports(title: tuple[str, str]) -> None:
    with pytest.raises(NotApplicableError, match="no report"):
        select([make_image(), make_report(title=title)])


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "used"),
    [
        ([{}, {"view_position": "LL"}], [1]),
        ([{"view_position": "AP"}, {}], [2]),
        ([{"view_position": ""}, {"view_position": "AP"}], [2]),
        ([{"view_position": ""}, {"view_position": "LATERAL"}], [1]),
        ([{}, {}, {"view_position": "AP"}], [1, 2]),
        ([{"image_type": ("DERIVED", "PRIMARY")}, {}], [2]),
        ([{"image_type": ("DERIVED", "PRIMARY")}], [1]),
        ([{"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, {"view_position": "AP"}], [2]),
        ([{"presentation_intent": "FOR PROCESSING"}, {"view_position": ""}], [2]),
        ([{"body_part": "HAND"}, {"body_part": "", "view_position": ""}], [2]),
        ([{"patient_id": "other"}, {"view_position": "AP"}], [2]),
        ([{"series_number": 2}, {"series_number": 1}], [2, 1]),
    ],
)
def test_the_best_view_is_used(images: list[dict[str, Any]], used: list[int]) -> None:
    made = [make_image(number, **facts) for number, facts in enumerate(images, start=1)]
    assert images_of(make_report(), *made) == used
    assert images_of(*made[::-1], make_report()) == used


def test_images_that_the_report_names_come_before_better_views() -> None:
    made = [make_image(1), make_image(2, view_position="AP")]
    assert images_of(make_report(evidence=("1.1.2",)), *made) == [2]
    assert images_of(make_report(evidence=("9.9",)), *made) == [1]


def test_a_report_that_names_a_lateral_alone_is_grounded_on_the_frontal_one() -> None:
    made = [make_image(1), make_image(2, view_position="LL")]
    assert images_of(make_report(evidence=("1.1.2",)), *made) == [1]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"view_position": "LL"}, "no frontal view"),
        ({"presentation_intent": "FOR PROCESSING"}, "no image that may be grounded"),
        ({"patient_id": "other"}, "for another patient"),
        ({"patient_id": ""}, "for another patient"),
        ({"body_part": "KNEE"}, "of the chest"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localizers"),
    ],
)
def test_why_no_image_can_be_used_is_said_without_naming_the_patient(facts: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotApplicableError, match=reason) as raised:
        select([make_report(patient_id="SECRET"), make_image(**{"patient_id": "SECRET"} | facts)])
    assert "SECRET" not in str(raised.value)


def test_every_image_and_report_is_told_why() -> None:
    instances = [
        make_report(1),
        make_report(2, preliminary_flag="PRELIMINARY"),
        make_image(1),
        make_image(2, view_position="LL"),
        make_image(3, view_position="AP"),
        make_image(4, presentation_intent="FOR PROCESSING"),
    ]
    why = select(instances).why
    assert why["1.2.1"] == why["1.1.1"] == "used"
    assert "final" in why["1.2.2"]
    assert "frontal" in why["1.1.2"]
    assert "better view" in why["1.1.3"]
    assert "1.1.4" not in why


@pytest.mark.parametrize(
    ("facts", "view"),
    [
        ({"view_position": "PA"}, "PA"),
        ({"view_position": "AP SUPINE"}, "AP"),
        ({"view_position": "CHEST,LAT"}, "other"),
        ({"view_position": "PA OBLIQUE"}, "other"),
        ({"view_position": "LLD"}, "unknown"),
        ({"view_position": "", "view_code": ("399348003", "SCT")}, "AP"),
        ({"view_position": "", "view_code": ("R-10236", "SRT")}, "other"),
        ({"view_position": "", "patient_orientation": ("A", "F")}, "other"),
        ({"view_position": "", "patient_orientation": ("L", "F")}, "unknown"),
        ({"view_position": ""}, "unknown"),
        ({"view_position": "", "description": "W CHEST LAT. THORAX"}, "other"),
        ({"view_position": "", "description": "CHEST PA"}, "PA"),
        ({"view_position": "", "description": "CHEST PA AND LATERAL"}, "unknown"),
        ({"view_position": "AP", "description": "CHEST LATERAL"}, "AP"),
    ],
)
def test_view(facts: dict[str, Any], view: str) -> None:
    assert view_of(make_image(**facts)) == view


def test_of_images_whose_view_nobody_tells_the_first_alone_is_used() -> None:
    report, first, second = make_report(), make_image(1, view_position=""), make_image(2, view_position="")
    assert images_of(report, second, first) == [1]
    assert images_of(make_report(evidence=("1.1.2",)), first, second) == [2]


@pytest.mark.parametrize("orientation", [("A", "F"), ("L", "R"), ("X", "F")])
def test_an_image_that_says_frontal_and_is_oriented_otherwise_is_not_used(orientation: tuple[str, str]) -> None:
    with pytest.raises(NotApplicableError, match="Patient Orientation of another"):
        select([make_report(), make_image(patient_orientation=orientation)])
    assert images_of(make_report(), make_image(1, patient_orientation=orientation), make_image(2)) == [2]


@pytest.mark.parametrize("orientation", [("L", "F"), ("R", "F"), ("F", "R"), ("L", "H"), ("L", "FP"), (), ("", "")])
def test_a_frontal_image_is_used_however_it_is_stored(orientation: tuple[str, ...]) -> None:
    assert images_of(make_report(), make_image(patient_orientation=orientation)) == [1]


def test_a_later_report_of_another_patient_does_not_displace_the_right_one() -> None:
    right, misfiled = make_report(1), make_report(2, patient_id="Q", content_datetime="20270101")
    selection = select([make_image(), misfiled, right])
    assert selection.report == right.sop_instance_uid
    assert "another patient" in selection.why[misfiled.sop_instance_uid]


@pytest.mark.parametrize(
    ("body_part", "expected"),
    [("CHEST", True), ("", True), ("THORAX", True), ("CHESTABDPELVIS", True), ("POITRINE", True), ("CSPINE", False)],
)
def test_body_part(body_part: str, expected: bool) -> None:
    assert is_chest(make_image(body_part=body_part)) is expected


PARTS = st.fixed_dictionaries(
    {
        "view_position": st.sampled_from(["PA", "AP", "LL", ""]),
        "body_part": st.sampled_from(["CHEST", "HAND", ""]),
        "patient_id": st.sampled_from(["P", "Q"]),
        "image_type": st.sampled_from([("ORIGINAL", "PRIMARY"), ("DERIVED", "PRIMARY")]),
    }
)
FLAGS = st.fixed_dictionaries(
    {
        "preliminary_flag": st.sampled_from(["", "FINAL", "PRELIMINARY"]),
        "verification_flag": st.sampled_from(["", "VERIFIED"]),
        "content_datetime": st.sampled_from(["20260101", "20260102"]),
    }
)


@given(st.lists(PARTS, max_size=5), st.lists(FLAGS, min_size=1, max_size=3), st.randoms())
def test_the_selection_does_not_depend_on_the_order_of_arrival(
    images: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]], random: Any
) -> None:
    instances = [make_image(n, **facts) for n, facts in enumerate(images)]
    instances += [make_report(n, **facts) for n, facts in enumerate(reports)]
    shuffled = random.sample(instances, len(instances))

    def outcome(of: Sequence[Instance]) -> object:
        try:
            return select(of)
        except NotApplicableError as error:
            return str(error)

    assert outcome(instances) == outcome(shuffled)


def test_the_same_image_of_another_class_is_as_good() -> None:
    assert images_of(make_report(), replace(make_image(), sop_class_uid=CR)) == [1]


# ---- never across patients -------------------------------------------------------------------------------------------

STRANGERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"patient_id": "P"}, {"patient_id": "Q"}),
    ({"patient_id": "P"}, {"patient_id": ""}),
    ({"patient_id": ""}, {"patient_id": "Q"}),
    ({"patient_id": "0123"}, {"patient_id": "123"}),
    ({"patient_id": "ab12"}, {"patient_id": "AB12"}),
    ({"patient_id": "12345"}, {"patient_id": "12345 6"}),
    ({"patient_id": "P", "patient_id_issuer": "HOSPITAL A"}, {"patient_id": "P", "patient_id_issuer": "HOSPITAL B"}),
    ({"patient_id": "P", "patient_birth_date": "19400101"}, {"patient_id": "Q", "patient_birth_date": "19400101"}),
    ({"patient_id": "", "patient_birth_date": "19400101"}, {"patient_id": "", "patient_birth_date": "19410101"}),
    ({"patient_id": "", "patient_sex": "F"}, {"patient_id": "", "patient_sex": "M"}),
]
"""Who the image and who the report is for: two patients, however alike."""

SITUATIONS: list[dict[str, Any]] = [
    {},
    {"accession_number": "A1"},
    {"evidence": ("1.1.1",)},
    {"evidence": ("1.1.1",), "accession_number": "A1", "verification_flag": "VERIFIED", "preliminary_flag": "FINAL"},
    {"content_datetime": "20991231", "verification_flag": "VERIFIED", "completion_flag": "COMPLETE"},
]
"""What makes the stranger's report look right: accession number, references to the image, a better state, later."""


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("patient", "stranger"), STRANGERS)
def test_a_report_is_never_grounded_on_another_patient(
    patient: dict[str, Any], stranger: dict[str, Any], situation: dict[str, Any]
) -> None:
    image = make_image(accession_number="A1", **patient)
    wrong = make_report(1, **situation, **stranger)
    with pytest.raises(NotApplicableError, match="another patient than the images"):
        select([image, wrong])
    right = make_report(2, content_datetime="19991231", preliminary_flag="PRELIMINARY", **patient)
    selection = select([image, wrong, right])
    assert selection.report == right.sop_instance_uid
    assert "another patient" in selection.why[wrong.sop_instance_uid]
    own = make_image(2, accession_number="A1", **stranger)
    both = select([image, own, right])
    assert both.images == (image.sop_instance_uid,) and "another patient" in both.why[own.sop_instance_uid]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {}),
        ({"patient_id_issuer": "HOSPITAL A"}, {}),
        ({"patient_id_issuer": "HOSPITAL A"}, {"patient_id_issuer": "HOSPITAL A"}),
        ({"patient_birth_date": "19400101"}, {"patient_birth_date": "19410101"}),  # corrected: the ID decides
        ({"patient_id": "", "patient_birth_date": "19400101"}, {"patient_id": ""}),
    ],
)
def test_what_one_of_them_lacks_parts_nobody(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert images_of(make_image(**one), make_report(**other)) == [1]


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({}, True),
        ({"patient_birth_date": "19400101"}, True),
        ({"evidence": ("1.1.9",)}, False),
        ({"evidence": ()}, False),
        ({"patient_id": "Q"}, False),
        ({"patient_birth_date": "19410101"}, False),
        ({"patient_id_issuer": "HOSPITAL B"}, False),
    ],
)
def test_a_report_of_another_study_counts_only_if_it_is_certainly_about_these_images(
    facts: dict[str, Any], counts: bool
) -> None:
    image = make_image(patient_birth_date="19400101", patient_id_issuer="HOSPITAL A")
    referred = make_report(2, **({"evidence": ("1.1.1",)} | facts))
    assert (referred in add_referred([image], [referred])) is counts
    assert add_referred([image, make_report(1)], [referred]) == (image, make_report(1))
    assert add_referred([], [referred]) == ()


def test_without_a_patient_id_no_report_of_another_study_counts() -> None:
    image, referred = make_image(patient_id=""), make_report(2, patient_id="", evidence=("1.1.1",))
    assert add_referred([image], [referred]) == (image,)
