"""Bad input to the model: a clear error or an honest "nothing to ground"; never a crash, a hang or an invented box."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file, save_file

from dicom_node.cli import main
from grounding.checkpoint import CONFIG, WEIGHTS, load_predictor, save_checkpoint
from grounding.geometry import resize
from grounding.knowledge import load_bank
from grounding.predictor import Predictor
from grounding.processor import LARGEST, shrink
from grounding.text import read_plain_report
from grounding.types import Grounding, ModelError, ModelIdentity
from tests.model.networks import TEXTS, make_network, stir, tiny_image, tiny_tokens

LONG = 50_000


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    network = make_network(seed=3)
    stir(network)
    with torch.no_grad():  # a network that speaks
        network.language.lm.model.embed_tokens.weight[tiny_tokens().box] *= 3
    return Predictor(network, tiny_tokens(), load_bank(), ModelIdentity("tiny", "0", "0" * 64))


def ground(predictor: Predictor, text: str, image: Any = None) -> Grounding:
    picture = tiny_image() if image is None else image
    grounding = predictor.ground([picture], read_plain_report(text))
    check(grounding, text, picture.shape)
    return grounding


def check(grounding: Grounding, text: str, shape: tuple[int, int]) -> None:
    for finding in grounding.findings:
        source = finding.source
        assert source is not None and text[source.start : source.end] == finding.phrase
        assert not (finding.negated and finding.boxes)
        for scored in finding.boxes:
            x1, y1, x2, y2 = scored.box.xyxy
            assert 0 <= x1 < x2 <= shape[1] and 0 <= y1 < y2 <= shape[0] and 0 <= scored.score <= 1


# ---- images ----------------------------------------------------------------------------------------------------------

SPECKLED = tiny_image().copy()
SPECKLED[::7, ::5] = np.nan
SPECKLED[3::11, ::3] = np.inf
SPECKLED[5::13, ::4] = -np.inf


@pytest.mark.parametrize(
    "image",
    [
        np.full((1, 1), 0.5, np.float32),
        np.full((300, 200), 0.7, np.float32),
        1 - tiny_image(),
        SPECKLED,
        (tiny_image() * 30_000 - 15_000).astype(np.int16),
        (tiny_image() * 255).astype(np.uint8),
        tiny_image().astype(np.float64),
        np.broadcast_to(np.float32(0.5), (1, 70_000)),
        np.asfortranarray(tiny_image()),
        tiny_image()[::-1, ::-2],
    ],
    ids=["1x1", "constant", "inverted", "nan", "int16", "uint8", "float64", "a line", "columns first", "reversed"],
)
def test_an_odd_image_is_grounded_in_its_own_pixels(predictor: Predictor, image: Any) -> None:
    ground(predictor, " ".join(TEXTS), image)
    found = predictor.ground_phrases(image, ["left pleural effusion", "nodule"])
    assert len(found) == 2


@pytest.mark.parametrize("shape", [(8, 8, 3), (5,), (), (0, 4), (4, 0)])
def test_what_is_no_picture_is_refused_with_its_shape(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pass float32\[H, W\]"):
        predictor.ground([np.zeros(shape, np.float32)], read_plain_report(TEXTS[0]))


def test_speckles_of_nan_and_infinity_do_not_drown_the_picture(predictor: Predictor) -> None:
    pixels = predictor._processor.pixels(SPECKLED)
    assert bool(torch.isfinite(pixels).all()) and float(pixels.std()) > 0.1


def test_an_image_of_400_million_pixels_is_grounded(predictor: Predictor) -> None:
    image: Any = np.broadcast_to((np.arange(20_000) // 100 % 250).astype(np.uint8), (20_000, 20_000))
    check(predictor.ground([image], read_plain_report(TEXTS[0])), TEXTS[0], image.shape)


def test_a_very_large_image_is_averaged_in_whole_blocks() -> None:
    row = (np.arange(12_000) // 10 % 25).astype(np.uint8)
    small = shrink(np.broadcast_to(row, (6_000, 12_000)), 64)
    assert small.shape == (3_000, 6_000)
    assert np.allclose(small[-1], row.reshape(-1, 2).mean(1))


@pytest.mark.parametrize("shape", [(9_000, 8_001), (40, 1_500_000), (1_500_001, 37)])
def test_a_very_large_image_keeps_its_proportions(shape: tuple[int, int]) -> None:
    down, across = np.linspace(0, 1, shape[0], dtype=np.float32), np.linspace(0, 1, shape[1], dtype=np.float32)
    for image in (np.broadcast_to(down[:, None], shape), np.broadcast_to(across, shape)):
        small = shrink(image, 32)
        assert small.size <= LARGEST * 1.1 and min(small.shape) >= 32
        drawn = resize(small, 32, 32)
        steps = (np.arange(32) + 0.5) / 32
        wanted = steps[:, None] if image.strides[0] else steps[None]
        assert np.abs(drawn - wanted).max() < 0.02


def test_an_image_of_common_size_is_not_averaged_first() -> None:
    image = np.random.default_rng(0).random((700, 500), np.float32)
    assert np.array_equal(shrink(image, 64), image)


# ---- reports ---------------------------------------------------------------------------------------------------------

NOTHING = {
    "empty": "",
    "blanks": " \n\t" * 500,
    "punctuation": ".,;:!?-()[]%" * 200,
    "only a heading": "FINDINGS:",
    "no finding to be used": "INDICATION: left effusion.",
    "NUL": "\x00" * 100,
    "emoji": "\U0001fac1\U0001f600" * 300,
}


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING.keys())
def test_a_report_without_words_has_nothing_to_ground(predictor: Predictor, text: str) -> None:
    assert ground(predictor, text).findings == ()


STRANGE = {
    "japanese": "右肺に結節影を認めます。胸水は認めません。" * 20,
    "a very long word": "a" * 10_000,
    "names without a blank": "pneumothorax" * 1_000,
    "NUL and emoji between": "Left\x00 effusion \U0001fac1 and a\u200b nodule.\x00",
    "half a surrogate pair": "Left \ud83e effusion.",
    "special tokens": "<s> </s> <ground> left effusion <BOX> <NEG> <pad>",
    "no finding": "The patient was rotated. Thank you for this referral.",
    "right to left": "لا يوجد انصباب جنبي. left effusion.",
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_strange_report_is_read_without_inventing_words(predictor: Predictor, text: str) -> None:
    ground(predictor, text)


@pytest.mark.parametrize(
    "unit",
    [
        "There is a left effusion. No nodule. ",
        "left effusion and nodule, ",
        "結節を認めます。",
        "No effusion,\n- mass\n",
    ],
    ids=["sentences", "one sentence", "japanese", "lines"],
)
def test_a_report_of_50000_characters_is_read_to_its_end(predictor: Predictor, unit: str) -> None:
    text = (unit * (LONG // len(unit)))[: LONG - 30] + " Enlarged heart, and a mass."
    grounding = ground(predictor, text)
    assert any(f.source is not None and f.source.end > LONG - 40 for f in grounding.findings)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", make_network(), tiny_tokens(), load_bank())
    return tmp_path / "model"


def change_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(content))


def refuse(folder: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_predictor(folder, "cpu")
    assert str(folder) in str(caught.value) and "knowmvg train" in str(caught.value)


def test_weights_with_a_missing_tensor_are_refused_by_its_name(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = sorted(name for name in weights if name.startswith("decoder."))[0]
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS)
    change_config(folder, weights_sha256="")
    refuse(folder, name.replace(".", r"\."))


def test_weights_that_are_not_those_of_the_configuration_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if weights[name].is_floating_point() and weights[name].numel() > 4)
    weights[name] = weights[name] + 1
    save_file(weights, folder / WEIGHTS)
    refuse(folder, f"{WEIGHTS} is damaged or not the file that {CONFIG} was saved with")


def test_a_configuration_that_notes_no_digest_is_accepted(folder: Path) -> None:
    noted = json.loads((folder / CONFIG).read_text())["weights_sha256"]
    assert len(noted) == 64
    change_config(folder, weights_sha256="")
    assert load_predictor(folder, "cpu").identity.name


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused_in_plain_words(folder: Path, name: str) -> None:
    torch.save(make_network().state_dict(), folder / name)
    (folder / WEIGHTS).unlink()
    refuse(folder, rf"{WEIGHTS} is missing \({name} may be a pickle, which is never read")


def test_a_pickle_in_the_place_of_weights_is_refused(folder: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, folder / WEIGHTS)
    refuse(folder, WEIGHTS)
    change_config(folder, weights_sha256="")
    refuse(folder, f"{WEIGHTS} is damaged")


def test_a_configuration_with_unknown_keys_is_refused_by_their_names(folder: Path) -> None:
    change_config(folder, colour="blue")
    refuse(folder, "colour")


# ---- the command line ------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> Run:
    """Run `knowmvg ground` on image.png and report.txt with a tiny model; return status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNOWMVG__MODEL__PATH", str(folder))
    PilImage.fromarray(np.full((1, 1), 99, np.uint8)).save("image.png")
    Path("report.txt").write_text("FINDINGS: Left effusion.", encoding="utf-8")

    def _run(image: str = "image.png", report: str = "report.txt") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowmvg", "ground", "--image", image, "--report", report, "--out", "out"])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return _run


@pytest.mark.parametrize("text", ["Thank you.", "Left effusion.\x00\U0001fac1", "a" * 3_000])
def test_a_picture_of_one_pixel_and_a_strange_text_are_grounded(run: Run, text: str) -> None:
    Path("report.txt").write_text(text, encoding="utf-8")
    status, _, errors = run()
    assert status == 0, errors
    document = json.loads(Path("out/findings.json").read_text())
    assert document["images"] == [{"sop_instance_uid": None, "rows": 1, "columns": 1}]
    assert document["dropped_phrases"] == 0


def check_refused(outcome: tuple[int, str, str], *words: str) -> None:
    status, _, errors = outcome
    assert status == 1
    assert errors.startswith("knowmvg: ") and len(errors.splitlines()) == 1 and "Traceback" not in errors
    assert all(word in errors for word in words)
    assert not Path("out").exists()


def test_a_text_in_another_language_is_refused_by_its_name(run: Run) -> None:
    Path("report.txt").write_text("右肺に結節影を認めます。", encoding="utf-8")
    check_refused(run(), "in Japanese", "reads English only")


def test_files_that_are_nothing_of_the_kind_are_refused_in_one_sentence(run: Run) -> None:
    Path("image.txt").write_text("no picture")
    Path("short.png").write_bytes(Path("image.png").read_bytes()[:40])
    Path("empty.png").touch()
    Path("latin.txt").write_bytes("Erguß".encode("latin-1"))
    Path("half.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\x00")
    for image in ("image.txt", "short.png", "empty.png", "half.dcm"):
        check_refused(run(image=image), image)
    check_refused(run(report="latin.txt"), "latin.txt", "UTF-8")
    check_refused(run(report="half.dcm"), "half.dcm")
    Path("empty.txt").touch()
    check_refused(run(report="empty.txt"), "the report holds no text")


def test_a_damaged_model_is_refused_in_one_sentence(run: Run, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle")
    check_refused(run(), WEIGHTS, "knowmvg train")
