"""The page of a job, its films and its results, from rows and files that the node's own steps have made."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from httpx import Response
from PIL import Image as PillowImage
from pydicom.uid import JPEG2000Lossless

from dicom_node.console.films import WAITING, Films
from dicom_node.pixels import render
from tests.builders import decode, encode, make_cxr_dataset, make_pixels, make_report_dataset
from tests.fakes import FakeGrounder, FakePacs
from tests.pages import Node, sources


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs) -> Iterator[Node]:
    made = Node(tmp_path, pacs)
    yield made
    made.console.close()


def picture(answer: Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(PillowImage.open(BytesIO(answer.content)))


def test_a_delivered_study_is_shown_whole(node: Node) -> None:
    node.deliver()
    browser = node.browse()
    page = browser.get("/jobs/1").text
    for shown in ("DELIVERED", "PID-1", "ACC-1", "Small left pleural effusion.", "Imaging Measurement Report",
                  "0x0000 success", "Research model - unverified", "study grounded", "from PACS"):  # fmt: skip
        assert shown in page, shown
    found = sources(page)
    assert (len(found["films"]), len(found["states"]), len(found["files"])) == (1, 1, 3)
    assert np.array_equal(picture(browser.get(found["films"][0])), np.round(render(make_cxr_dataset()) * 255))
    assert picture(browser.get(found["states"][0])).shape[2] == 3
    for path in found["files"]:
        answer = browser.get(path)
        assert answer.headers["content-disposition"].startswith("attachment")
        assert str(decode(answer.content).SOPInstanceUID) in path


def test_the_boxes_of_the_page_are_those_of_the_stored_sr(node: Node) -> None:
    node.deliver()
    page = node.browse().get("/jobs/1").text
    drawn = re.findall(r'<rect class="line" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    assert set(drawn) == {("48.0", "70.0", "48.0", "70.0")}
    assert "POLYLINE (48.0, 70.0) (96.0, 70.0) (96.0, 140.0) (48.0, 140.0)" in page


def test_sr_and_gsps_are_read_from_the_objects_and_not_from_rows(node: Node) -> None:
    node.deliver()
    with node.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE findings SET phrase = 'something else', boxes = '[]'")
    page = node.browse().get("/jobs/1").text
    tree = page[page.index('class="tree"') :]
    assert "Small left pleural effusion." in tree
    assert "something else" not in tree
    assert "4 annotations" in page


def test_a_compressed_film_is_shown_in_any_window(node: Node) -> None:
    image = make_cxr_dataset()
    image.compress(JPEG2000Lossless, generate_instance_uid=False)
    node.store(image)
    node.store(make_report_dataset(image=image))
    node.settle(seconds=6)
    browser = node.browse()
    (film,) = sources(browser.get("/jobs/1").text)["films"]
    whole = picture(browser.get(film))
    bright = picture(browser.get(f"{film}?centre=4000&width=20"))
    assert bright.shape == whole.shape == (140, 96)
    assert set(np.unique(bright)) <= {0, 255}
    assert "centre=4000&amp;width=20" in browser.get("/jobs/1?centre=4000&width=20").text


def test_a_huge_film_is_shown_reduced_and_finer_where_it_is_looked_at_closely(node: Node) -> None:
    node.deliver(pixels=np.repeat(np.repeat(make_pixels(), 26, 0), 26, 1))  # 3640 x 2496
    browser = node.browse()
    page = browser.get("/jobs/1").text
    (film,) = sources(page)["films"]
    assert picture(browser.get(film)).shape == (910, 624)
    assert picture(browser.get(f"{film}?fine=1")).shape == (1820, 1248)
    assert 'viewBox="0 0 2496 3640' in page
    assert 'width="2496" height="3640" preserveAspectRatio="none"' in page


@pytest.mark.parametrize("query", ["?centre=1&width=0", "?centre=nan&width=1", "?width=many", "?sharpness=1"])
def test_what_is_no_window_is_refused(node: Node, query: str) -> None:
    node.deliver()
    browser = node.browse()
    (film,) = sources(browser.get("/jobs/1").text)["films"]
    assert browser.get(film + query).status_code == 400


def test_only_images_and_results_of_the_job_itself_are_shown(node: Node) -> None:
    node.deliver()
    other = make_cxr_dataset(study="other")
    node.store(other)
    browser, report = node.browse(), make_report_dataset(image=make_cxr_dataset())
    for path in (f"films/{other.SOPInstanceUID}", f"films/{report.SOPInstanceUID}", "films/1.2.3",
                 f"results/{report.SOPInstanceUID}.dcm", "results/1.2.3.png"):  # fmt: skip
        assert browser.get(f"/jobs/1/{path}").status_code == 404, path
    assert browser.get("/jobs/9/films/1.2.3").status_code == 404


def test_nobody_who_is_not_signed_in_sees_a_film(node: Node) -> None:
    node.deliver()
    found = sources(node.browse().get("/jobs/1").text)
    stranger = node.console.browser()
    for path in (found["films"][0], found["states"][0], found["files"][0], "/jobs/1"):
        answer = stranger.get(path)
        assert answer.status_code in (302, 303, 401), path
        assert b"PNG" not in answer.content


def test_a_look_at_a_film_is_audited_once_with_its_page(node: Node) -> None:
    node.deliver()
    browser = node.browse()
    found = sources(browser.get("/jobs/1").text)
    for path in (found["films"][0], found["states"][0]):
        browser.get(path)
    assert [one.event.reason for one in node.console.events("study accessed")] == ["job 1"]
    node.clock.move(minutes=11)
    browser.get(found["films"][0])
    browser.get(found["files"][0])
    reasons = [one.event.reason for one in node.console.events("study accessed")]
    assert len(reasons) == 3
    assert reasons[0].startswith("download of ")
    assert node.console.events("study accessed")[0].event.actor == "viewer"


def test_a_head_request_for_the_page_makes_no_look_at_its_films_unseen(node: Node) -> None:
    node.deliver()
    films = sources(node.browse("admin").get("/jobs/1").text)["films"]
    noted = len(node.console.events("study accessed"))
    browser = node.browse()
    assert browser.head("/jobs/1").status_code == 200
    assert len(node.console.events("study accessed")) == noted
    picture(browser.get(films[0]))
    assert node.console.events("study accessed")[0].event.actor == "viewer"
    assert len(node.console.events("study accessed")) == noted + 1


def test_what_was_removed_or_lost_is_said_and_the_rest_is_shown(node: Node) -> None:
    node.deliver()
    browser = node.browse()
    (film,) = sources(browser.get("/jobs/1").text)["films"]
    with node.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE instances SET removed_at = '2026-01-02 00:00:00.000000'")
    page = browser.get("/jobs/1").text
    assert "The film is not kept: the retention rule removed it on 2026-01-02" in page
    assert "The report is not kept" in page
    assert "Imaging Measurement Report" in page
    assert browser.get(film).status_code == 410
    with node.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE instances SET removed_at = NULL")
    for path in (node.settings.node.data_dir, node.storage.root):
        for file in Path(path).rglob("*.dcm"):
            file.unlink()
    node.console.app.state.films = Films()
    page = browser.get("/jobs/1").text
    assert page.count("the file is not in the storage any more") >= 3
    assert browser.get(film).status_code == 404


def test_damaged_files_are_said_to_be_damaged(node: Node) -> None:
    node.deliver()
    for file in node.storage.root.rglob("*.dcm"):
        file.write_bytes(file.read_bytes()[:600])
    node.console.app.state.films = Films()
    browser = node.browse()
    page = browser.get("/jobs/1")
    assert page.status_code == 200
    assert page.text.count("cannot be shown") >= 2
    film = f"/jobs/1/films/{make_cxr_dataset().SOPInstanceUID}"
    assert browser.get(film).status_code == 422


def test_a_header_that_says_what_cannot_be_is_said_and_the_rest_is_shown(node: Node) -> None:
    """A film of 65535 bits, and a presentation state whose rectangle has no corners."""
    node.deliver()
    for file in node.storage.root.rglob("*.dcm"):
        ds = decode(file.read_bytes())
        if "BitsStored" in ds:
            del ds.WindowCenter, ds.WindowWidth
            ds.BitsStored = 65535
        elif ds.Modality == "PR":
            ds.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicData = None
        file.write_bytes(encode(ds))
    node.console.app.state.films = Films()
    page = node.browse().get("/jobs/1")
    assert page.status_code == 200
    assert "The film cannot be shown: its header is damaged (OverflowError)." in page.text
    assert "It is damaged and cannot be shown (TypeError)." in page.text
    assert "Small left pleural effusion." in page.text


def test_films_are_decoded_one_at_a_time_and_nobody_waits_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.deliver()
    monkeypatch.setattr("dicom_node.console.films.WAIT_S", 0.1)
    browser = node.browse()
    (film,) = sources(browser.get("/jobs/1").text)["films"]
    films: Films = node.console.app.state.films
    with films._alone():
        assert browser.get(film).status_code == 503
    answers: list[int] = []
    askers = [threading.Thread(target=lambda: answers.append(browser.get(film).status_code)) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == [200] * 4


def test_films_that_wait_leave_threads_for_everything_else(node: Node) -> None:
    node.deliver()
    browser = node.browse()
    (film,) = sources(browser.get("/jobs/1").text)["films"]
    films: Films = node.console.app.state.films
    answers: list[int] = []

    def look(centre: int) -> None:
        answers.append(browser.get(f"{film}?centre={centre}&width=100").status_code)

    looks = [threading.Thread(target=look, args=(centre,)) for centre in range(30)]
    with films._alone():
        for one in looks:
            one.start()
        until = time.monotonic() + 15
        while len(answers) < len(looks) - WAITING + 1:
            assert time.monotonic() < until, answers
            time.sleep(0.02)
        assert set(answers) == {503}
    for one in looks:
        one.join()
    assert sorted(answers) == [200] * (WAITING - 1) + [503] * (len(looks) - WAITING + 1)


def test_a_phrase_that_was_not_localised_is_listed_and_marked(node: Node) -> None:
    node.grounder = FakeGrounder(localizes=False)
    node.deliver()
    page = node.browse().get("/jobs/1").text
    assert "Nothing was localised." in page
    assert "Not localized on image" in page
    assert '<mark class="missing">' in page
    assert '<rect class="line"' not in page


def test_a_failed_job_says_why_and_offers_a_retry_to_operators_alone(node: Node, pacs: FakePacs) -> None:
    pacs.status = 0xA900
    node.deliver()
    page = node.browse("operator").get("/jobs/1").text
    assert "FAILED" in page
    assert "0xA900 data set does not match SOP class" in page
    assert 'action="/jobs/1/retry"' in page
    assert 'action="/deliveries/1/replay"' in page
    assert 'action="/jobs/1/retry"' not in node.browse("viewer").get("/jobs/1").text
