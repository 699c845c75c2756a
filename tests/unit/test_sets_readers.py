"""Readers of published box lists: each format as it was published, and the place that is named when it is not so."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.sets.annotations import AnnotationError, read_json, read_table
from grounding.sets.chestx_det import read_chestx_det
from grounding.sets.chestx_ray8 import position, positioned_phrase, read_chestx_ray8
from grounding.sets.ms_cxr import read_ms_cxr, stated_text
from grounding.sets.nih import finding_phrase, nih_patient
from grounding.sets.rsna import read_rsna

BOX_LISTS = Path(__file__).parents[3] / "shared" / "data" / "annotations"

RAY8 = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00013118_008.png,Atelectasis,225.0847458,547.0192168,86.77966102,79.18644068,,,
00013118_008.png,Atelectasis,230,560,80,90,,,
00013118_008.png,Cardiomegaly,277.1525424,459.15481,540.2033898,301.559322,,,
00021181_002.png,Mass,700,100,100,100,,,
"""
MS_CXR = """category_name,label_text,path,x,y,w,h,dicom_id,image_width,image_height,split
Pneumothorax,small left  apical pneumothorax,files/p10/p10000032/s50414267/02aa-804e.jpg,100,200,300,400,02aa-804e,2544,3056,train
Edema,bilateral edema,files/p10/p10000764/s57375967/096a-052b.jpg,10,20,30,40,096a-052b,2000,3000,test
Edema,bilateral edema,files/p10/p10000764/s57375967/096a-052b.jpg,500,20,30,40,096a-052b,2000,3000,test
"""  # noqa: E501 - as published
RSNA = """patientId,x,y,width,height,Target
0004cfab-14fd-4e49-80ba-63a80b6bddd6,,,,,0
00436515-870c-4b36-a041-de91049b9ab4,264.0,152.0,213.0,379.0,1
00436515-870c-4b36-a041-de91049b9ab4,562.0,152.0,256.0,453.0,1
"""
DET10 = [
    {"file_name": "00000003_003.png", "syms": [], "boxes": []},
    {
        "file_name": "00000231_006.png",
        "syms": ["Effusion", "Nodule", "Effusion"],
        "boxes": [[620, 175, 889, 778], [1, 2, 3, 5], [263, 526, 509, 743]],
    },
]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  History of fever.

 FINDINGS:

 There is a small left apical
 pneumothorax.

 IMPRESSION:

 Small pneumothorax.
"""


def write(folder: Path, content: object, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ---- ChestX-ray8 -----------------------------------------------------------------------------------------------------


def test_chestx_ray8_phrases_carry_the_place_and_join_their_boxes(tmp_path: Path) -> None:
    first, heart, mass = read_chestx_ray8(write(tmp_path, RAY8))
    assert (first.phrase, heart.phrase, mass.phrase) == (
        "Atelectasis, position: right", "Cardiomegaly", "Mass, position: left top",
    )  # fmt: skip
    assert first.boxes == ((225.0847458, 547.0192168, 86.77966102, 79.18644068), (230, 560, 80, 90))
    assert (first.size, first.pictures, first.label) == ((1024, 1024), ("00013118_008.png",), "Atelectasis")
    assert (first.fields["patient"], first.fields["license"]) == ("nih-00013118", "NIH no restriction")
    assert len({one.id for one in (first, heart, mass)}) == 3


def test_chestx_ray8_findings_alone_do_not_tell_the_place(tmp_path: Path) -> None:
    found = read_chestx_ray8(write(tmp_path, RAY8), "finding")
    assert [one.phrase for one in found] == ["atelectasis", "cardiomegaly", "lung mass"]
    assert {one.fields["phrase_source"] for one in found} == {"label"}


def test_header_without_the_empty_columns_is_read_too(tmp_path: Path) -> None:
    plain = RAY8.replace(",,,", "")
    assert read_chestx_ray8(write(tmp_path, "\ufeff" + plain.replace("\n", "\r\n"))) == read_chestx_ray8(
        write(tmp_path, RAY8)
    )


@pytest.mark.parametrize(
    ("cx", "cy", "words"),
    [
        (0.2, 0.5, "right"), (0.8, 0.5, "left"), (0.5, 0.5, "middle"), (0.5, 0.1, "top"), (0.5, 0.9, "bottom"),
        (0.2, 0.1, "right top"), (0.8, 0.9, "left bottom"), (0.45, 0.30, "middle"), (0.55, 0.60, "middle"),
        (0.449, 0.601, "right bottom"), (0.551, 0.299, "left top"),
    ],
)  # fmt: skip
def test_position_rule(cx: float, cy: float, words: str) -> None:
    assert position(cx, cy) == words


@given(st.floats(0, 1), st.floats(0, 1))
def test_position_is_the_mirror_image_of_the_mirrored_picture(cx: float, cy: float) -> None:
    mirrored = {"left": "right", "right": "left"}
    words = position(cx, cy).split()
    if min(abs(cx - 0.45), abs(cx - 0.55)) > 1e-9:
        assert position(1 - cx, cy).split() == [mirrored.get(word, word) for word in words]
    assert ("top" in words) == (cy < 0.30) and ("bottom" in words) == (cy > 0.60)
    assert positioned_phrase("Cardiomegaly", (cx * 1024, cy * 1024, 1, 1)) == "Cardiomegaly"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("225.0847458", "much", r"line 2, column 'Bbox \[x'"),
        ("79.18644068", "nan", r"line 2, column 'h\]'"),
        ("547.0192168", "", "line 2, column 'y'"),
        ("00021181_002.png", "chest.png", "line 5, column 'Image Index'"),
        ("Image Index", "image", "line 1: column 'Image Index' is missing; this is not the box list of ChestX-ray8"),
    ],
)
def test_fault_in_chestx_ray8_is_named(tmp_path: Path, old: str, new: str, place: str) -> None:
    with pytest.raises(AnnotationError, match=rf"list\.csv, {place}"):
        read_chestx_ray8(write(tmp_path, RAY8.replace(old, new, 1)))


@pytest.mark.skipif(not BOX_LISTS.is_dir(), reason="the published box lists are not here")
def test_the_published_boxes_of_nih_keep_their_number(tmp_path: Path) -> None:
    lines = (BOX_LISTS / "nih_bbox_list_2017.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    table = [f"{r['file_name']},{r['label']},{','.join(map(str, box))},,,\n" for r in rows for box in r["boxes"]]
    path = write(tmp_path, RAY8.splitlines(keepends=True)[0] + "".join(table))
    found, plain = read_chestx_ray8(path), read_chestx_ray8(path, "finding")
    assert len(plain) == len({(r["file_name"], r["label"]) for r in rows}) <= len(found) <= len(table)
    assert sum(len(one.boxes) for one in plain) == len(table)
    assert all(("position" in one.phrase) == (one.label != "Cardiomegaly") for one in found)


# ---- MS-CXR ----------------------------------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    """The same rows as MS_CXR in the JSON form."""
    images = [
        {"id": 1, "file_name": "02aa-804e.jpg", "width": 2544, "height": 3056,
         "path": "files/p10/p10000032/s50414267/02aa-804e.jpg"},
        {"id": 2, "file_name": "096a-052b.jpg", "width": 2000, "height": 3000,
         "path": "files/p10/p10000764/s57375967/096a-052b.jpg"},
    ]  # fmt: skip
    rows = [
        (1, 7, [100, 200, 300, 400], "small left apical pneumothorax", "train"),
        (2, 3, [10, 20, 30, 40], "bilateral edema", "test"),
        (2, 3, [500, 20, 30, 40], "bilateral edema", "test"),
    ]
    names = ("image_id", "category_id", "bbox", "label_text", "split")
    document = {
        "images": images,
        "annotations": [dict(zip(names, row, strict=True)) | {"id": n} for n, row in enumerate(rows)],
        "categories": [{"id": 7, "name": "Pneumothorax"}, {"id": 3, "name": "Edema"}],
    }
    return document | changes


def test_ms_cxr_joins_the_boxes_of_a_phrase(tmp_path: Path) -> None:
    one, edema = read_ms_cxr(write(tmp_path, MS_CXR))
    assert (one.phrase, one.label, one.boxes) == (
        "small left apical pneumothorax", "Pneumothorax", ((100, 200, 300, 400),),
    )  # fmt: skip
    assert edema.boxes == ((10, 20, 30, 40), (500, 20, 30, 40))
    assert (one.fields["patient"], one.fields["split"], edema.fields["split"]) == ("mimic-p10000032", "train", "test")
    assert one.size == (2544, 3056) and "PhysioNet" in one.fields["license"] and "report" not in one.fields
    assert one.pictures[:3] == (
        "files/p10/p10000032/s50414267/02aa-804e.jpg", "p10/p10000032/s50414267/02aa-804e.jpg", "02aa-804e.jpg",
    )  # fmt: skip


def test_both_forms_of_ms_cxr_say_the_same(tmp_path: Path) -> None:
    assert read_ms_cxr(write(tmp_path, coco(), "list.json")) == read_ms_cxr(write(tmp_path, MS_CXR))


def test_version_1_0_0_has_no_split(tmp_path: Path) -> None:
    old = "\n".join(line.rsplit(",", 1)[0] for line in MS_CXR.splitlines())
    assert all("split" not in one.fields for one in read_ms_cxr(write(tmp_path, old)))


@pytest.mark.parametrize("folder", ["files/p10/p10000032", "p10/p10000032"])
def test_the_report_is_findings_and_impression(tmp_path: Path, folder: str) -> None:
    (tmp_path / "reports" / folder).mkdir(parents=True)
    write(tmp_path / "reports" / folder, REPORT, "s50414267.txt")
    one, edema = read_ms_cxr(write(tmp_path, MS_CXR), tmp_path / "reports")
    assert one.fields["report"] == "There is a small left apical pneumothorax. Small pneumothorax."
    assert "report" not in edema.fields


def test_a_report_without_headings_is_used_whole() -> None:
    assert stated_text(" FINAL REPORT\n PA and lateral chest.\n Lungs are clear.") == (
        "PA and lateral chest. Lungs are clear."
    )


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (",100,200,", ",1e999,200,", "line 2, column 'x'"),
        ("2544", "0", "line 2, column 'image_width'"),
        (",test", ",exam", "line 3, column 'split': must be train, val, test or dev"),
        ("bilateral edema", "", "line 3, column 'label_text': is empty"),
        ("label_text", "phrase", "line 1: column 'label_text' is missing"),
    ],
)
def test_fault_in_ms_cxr_is_named(tmp_path: Path, old: str, new: str, place: str) -> None:
    with pytest.raises(AnnotationError, match=rf"list\.csv, {place}"):
        read_ms_cxr(write(tmp_path, MS_CXR.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            {"annotations": [{"image_id": 9, "category_id": 7}]},
            r"annotations\[0\], key 'image_id': there is no image 9",
        ),
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, r"annotations\[0\], key 'category_id'"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\], key 'category_id': is missing"),
        ({"annotations": 3}, "the document, key 'annotations': must be a list"),
        ({"images": [{"id": "one"}]}, r"images\[0\], key 'id': must be a whole number"),
    ],
)
def test_fault_in_the_json_form_is_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    with pytest.raises(AnnotationError, match=rf"list\.json, {place}"):
        read_ms_cxr(write(tmp_path, coco(**change), "list.json"))


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("nan")], [1, 2, True, 4], None])
def test_bad_box_in_the_json_form_is_named(tmp_path: Path, box: object) -> None:
    document = coco()
    document["annotations"][1]["bbox"] = box
    with pytest.raises(AnnotationError, match=r"annotations\[1\], key 'bbox': a box must be four finite numbers"):
        read_ms_cxr(write(tmp_path, document, "list.json"))


def test_other_json_is_not_ms_cxr(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"list\.json, line 1: .*this is not the box list of MS-CXR"):
        read_ms_cxr(write(tmp_path, DET10, "list.json"))


# ---- ChestX-Det ------------------------------------------------------------------------------------------------------


def test_chestx_det10_tells_patients_and_normal_pictures(tmp_path: Path) -> None:
    normal, effusion, nodule = read_chestx_det({"train": write(tmp_path, DET10, "train.json")})
    assert (normal.phrase, normal.boxes, normal.label) == ("no finding", (), "No finding (10 ChestX-Det classes)")
    assert (effusion.phrase, effusion.label) == ("pleural effusion", "Effusion")
    assert effusion.boxes == ((620, 175, 269, 603), (263, 526, 246, 217))
    assert nodule.boxes == ((1, 2, 2, 3),)
    assert (nodule.fields["patient"], nodule.fields["split"]) == ("nih-00000231", "train")
    assert nodule.fields["license"].startswith("NIH ")


def test_chestx_det_with_numbers_has_no_patients(tmp_path: Path) -> None:
    entries = [{"file_name": "36199.png", "syms": [], "boxes": [], "polygons": []}]
    (normal,) = read_chestx_det({"test": write(tmp_path, entries, "test.json")})
    assert "patient" not in normal.fields and normal.label == "No finding (13 ChestX-Det classes)"
    assert "Apache-2.0" in normal.fields["license"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"boxes": [[1, 2, 3, 4]]}, "entry 1, key 'boxes': 1 boxes for 3 findings"),
        ({"boxes": [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4]]}, "entry 1, key 'boxes': a box must be four finite numbers"),
        ({"syms": ["Nodule", 3, "Mass"]}, "entry 1, key 'syms'"),
        ({"syms": "Nodule"}, "entry 1, key 'syms': must be a list"),
        ({"file_name": ""}, "entry 1, key 'file_name'"),
    ],
)
def test_fault_in_chestx_det_is_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    path = write(tmp_path, [DET10[0], DET10[1] | change], "train.json")
    with pytest.raises(AnnotationError, match=rf"train\.json, {place}"):
        read_chestx_det({"train": path})


@pytest.mark.parametrize("content", [{}, [], 3])
def test_other_json_is_not_chestx_det(tmp_path: Path, content: object) -> None:
    with pytest.raises(AnnotationError, match="this is not a file of ChestX-Det10"):
        read_chestx_det({"train": write(tmp_path, content, "train.json")})


# ---- RSNA ------------------------------------------------------------------------------------------------------------


def test_rsna_groups_boxes_and_leaves_empty_pictures_out(tmp_path: Path) -> None:
    (one,) = read_rsna(write(tmp_path, RSNA))
    assert one.boxes == ((264, 152, 213, 379), (562, 152, 256, 453))
    assert one.phrase == "lung opacity suspicious for pneumonia"
    assert one.pictures[1] == "00436515-870c-4b36-a041-de91049b9ab4.dcm"
    assert one.fields["patient"] == "rsna-00436515-870c-4b36-a041-de91049b9ab4"


def test_rsna_pictures_without_an_opacity_are_stated_negatives(tmp_path: Path) -> None:
    classes = write(
        tmp_path, "patientId,class\n0004cfab-14fd-4e49-80ba-63a80b6bddd6,No Lung Opacity / Not Normal\n", "classes.csv"
    )
    absent, _ = read_rsna(write(tmp_path, RSNA), classes, absent=True)
    assert (absent.boxes, absent.label) == ((), "No Lung Opacity / Not Normal")


def test_the_mapping_tells_patients_of_nih(tmp_path: Path) -> None:
    entry = {"subset_img_id": "00436515-870c-4b36-a041-de91049b9ab4", "img_id": "00000231_006.png", "orig_labels": []}
    (one,) = read_rsna(write(tmp_path, RSNA), mapping=write(tmp_path, [entry], "mapping.json"))
    assert one.fields["patient"] == "nih-00000231"
    with pytest.raises(AnnotationError, match=r"mapping\.json, entry 0, key 'img_id'"):
        read_rsna(write(tmp_path, RSNA), mapping=write(tmp_path, [entry | {"img_id": "x.png"}], "mapping.json"))


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("379.0,1", "379.0,yes", "line 3, column 'Target': must be 0 or 1"),
        ("562.0", "", "line 4, column 'x': is empty"),
        ("patientId,x,y,width", "patientId,width", "line 1: column 'x' is missing; this is not the labels of the RSNA"),
    ],
)
def test_fault_in_rsna_is_named(tmp_path: Path, old: str, new: str, place: str) -> None:
    with pytest.raises(AnnotationError, match=rf"list\.csv, {place}"):
        read_rsna(write(tmp_path, RSNA.replace(old, new, 1)))


# ---- tables and JSON -------------------------------------------------------------------------------------------------


def test_a_gzipped_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n\n3,4\n"))
    rows = read_table(path, ("a",), "a table")
    assert [(row.line, row.text("A"), row.number("b")) for row in rows] == [(2, "1", 2.0), (4, "3", 4.0)]


@pytest.mark.parametrize("name", ["list.pth", "list.csv"])
def test_pickled_lists_are_refused_unread(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(AnnotationError, match=rf"{name} is a pickled or packed file, which is not opened"):
        read_table(tmp_path / name, ("a",), "a table")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has a header and no rows"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"\x1f\x8bno gzip", "cannot be read as text"),
        (b'a,b\n"' + b"x" * 200_000 + b'",2\n', "not CSV"),
    ],
)
def test_unreadable_tables_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(AnnotationError, match=rf"list\.csv.*{reason}"):
        read_table(tmp_path / "list.csv", ("a",), "a table")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[1,\n 2 3]", "line 2, column 4: not JSON"), ("[" * 100_000, "cannot be read"), ("1" * 5000, "cannot be read")],
)
def test_unreadable_json_is_named(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(AnnotationError, match=rf"list\.json.*{reason}"):
        read_json(write(tmp_path, content, "list.json"), "a list")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"nowhere\.csv cannot be read as text"):
        read_table(tmp_path / "nowhere.csv", ("a",), "a table")


def test_names_of_findings_and_patients() -> None:
    assert [finding_phrase(label) for label in ("Effusion", "Infiltrate", "Pleural Thickening")] == [
        "pleural effusion", "infiltrate", "pleural thickening",
    ]  # fmt: skip
    assert nih_patient("00000231_006.png") == "nih-00000231"
    assert Counter(map(nih_patient, ["36199.png", "231_006.png", "x00000231_006.png"])) == {None: 3}
