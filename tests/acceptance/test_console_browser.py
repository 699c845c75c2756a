"""The console in a browser: an administrator's real tasks, by mouse and by keyboard alone, and what axe-core finds."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dicom_node.console.server import ConsoleServer
from tests.acceptance.ohif import CHROMIUM
from tests.acceptance.peers import require
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.console import PASSWORD
from tests.fakes import FakeGrounder, FakePacs
from tests.pages import Node

PAGES = ("/", "/jobs", "/jobs/1", "/jobs/2", "/jobs/3", "/destinations", "/audit", "/configuration")
SEVERE = ("serious", "critical")
VIEWPORTS = {"wide": (1440, 900), "narrow": (390, 844)}


class Desk:
    """A browser before the console of a node. Its studies: one delivered, one failed yesterday, one not localised."""

    def __init__(self, node: Node, pacs: FakePacs, browser: Browser, url: str) -> None:
        self.node, self.pacs, self.browser, self.url = node, pacs, browser, url

    @contextmanager
    def page(self, role: str | None = None, **options: Any) -> Iterator[Page]:
        """Give a page of somebody who has signed in, or of a stranger; any error on it fails the test."""
        context = self.browser.new_context(base_url=self.url, **options)
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda told: faults.append(told.text) if "Content Security Policy" in told.text else None)
        page.set_default_timeout(10_000)
        if role is not None:
            sign_in(page, role)
            expect(page).to_have_url(f"{self.url}/")
        yield page
        context.close()
        assert faults == []


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.goto("/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def send(node: Node, study: str) -> None:
    image = make_cxr_dataset(study=study)
    node.store(image)
    node.store(make_report_dataset(study=study, image=image))
    node.settle(seconds=6)
    node.settle(seconds=6)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    require("chromium")
    with FakePacs() as pacs:
        node = Node(tmp_path, pacs)
        send(node, "good")
        pacs.status = 0xA900
        send(node, "failed")
        pacs.status = 0x0000
        node.grounder = FakeGrounder(localizes=False)
        node.clock.move(hours=20)
        send(node, "unseen")
        server = ConsoleServer(node.console.app, node.console.settings.console, 0)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
                yield Desk(node, pacs, browser, f"http://127.0.0.1:{server.port}")
                browser.close()
        finally:
            server.stop()
            thread.join()
            server.close()
            node.console.close()


def test_a_study_that_failed_yesterday_is_found_understood_retried_and_seen_delivered(desk: Desk) -> None:
    with desk.page("operator") as page:
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.get_by_label("Patient ID, accession number, UID or job number").fill("ACC-failed")
        page.get_by_role("button", name="Find").click()
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text("0xA900")
        page.get_by_role("link", name="2", exact=True).click()
        expect(page.locator(".why")).to_contain_text("data set does not match SOP class")
        expect(page.locator("#deliveries")).to_contain_text("DEAD")
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_text("Retried: it goes on from the step that failed")).to_be_visible()
        expect(page.locator("h1 + [role=status]")).to_contain_text("WRITTEN")
        desk.node.settle(seconds=1)
        page.goto("/jobs?who=ACC-failed")
        expect(rows.first).to_contain_text("DELIVERED")
    assert len(desk.pacs.datasets) == 5


def test_a_list_keeps_itself_up_to_date_until_it_is_paused(desk: Desk) -> None:
    with desk.page("viewer") as page:
        page.clock.install()
        page.goto("/jobs")
        expect(page.locator("tbody tr")).to_have_count(3)
        page.locator("#job-2").focus()
        desk.node.store(make_cxr_dataset(study="new"))
        page.clock.run_for(6000)
        expect(page.locator("tbody tr")).to_have_count(4)
        expect(page.locator("#job-2")).to_be_focused()
        page.get_by_role("button", name="Pause updates").click()
        desk.node.store(make_cxr_dataset(study="newer"))
        page.clock.run_for(20_000)
        expect(page.locator("tbody tr")).to_have_count(4)
        page.get_by_role("button", name="Resume updates").click()
        expect(page.locator("tbody tr")).to_have_count(5)


def test_without_scripts_all_but_switching_boxes_works(desk: Desk) -> None:
    with desk.page("operator", java_script_enabled=False) as page:
        page.goto("/jobs?state=FAILED")
        page.get_by_label("Choose job 2").check()
        page.get_by_role("button", name="Retry chosen").click()
        expect(page.get_by_text("Retried: job 2")).to_be_visible()
        page.goto("/jobs/1")
        page.get_by_label("Window centre").fill("1000")
        page.get_by_role("button", name="Apply").click()
        uid = make_cxr_dataset(study="good").SOPInstanceUID
        expect(page.locator("svg.film image")).to_have_attribute("href", f"/jobs/1/films/{uid}?centre=1000&width=4096")
        expect(page.get_by_label("Window centre")).to_have_value("1000")


def test_a_wrong_password_is_refused(desk: Desk) -> None:
    with desk.page() as page:
        sign_in(page, "admin", "not the password")
        expect(page.get_by_role("alert")).to_contain_text("wrong")
        page.goto("/jobs")
        expect(page.get_by_label("Password")).to_be_visible()
        expect(page.get_by_text("ACC-failed")).to_have_count(0)


def test_a_viewer_cannot_retry(desk: Desk) -> None:
    with desk.page("viewer") as page:
        page.goto("/jobs/2")
        expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        csrf = page.locator("input[name=csrf]").first.get_attribute("value")
        answer = page.request.post("/jobs/2/retry", form={"csrf": str(csrf)}, headers={"Origin": desk.url})
        assert answer.status == 403
        page.goto("/audit")
        expect(page.get_by_role("heading", name="Error 403")).to_be_visible()
    assert desk.node.job(2)["state"] == "FAILED"


def test_boxes_are_switched_and_films_zoomed_by_keyboard_alone(desk: Desk) -> None:
    with desk.page("viewer") as page:
        page.goto("/jobs/1")
        boxes = page.locator("svg.film g.box")
        expect(boxes).to_have_count(4)
        page.locator("#show-1").focus()
        page.keyboard.press("Space")
        expect(boxes.nth(0)).to_be_hidden()
        expect(boxes.nth(1)).to_be_visible()
        page.locator("[data-frame]").focus()
        film = page.locator("svg.film")
        whole = film.get_attribute("viewBox")
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        x, y, width, height = (float(value) for value in str(film.get_attribute("viewBox")).split())
        assert (width, height) == (pytest.approx(96 / 1.25), pytest.approx(140 / 1.25))
        assert x > (96 - width) / 2
        assert y == pytest.approx((140 - height) / 2)
        page.keyboard.press("0")
        assert [float(one) for one in str(film.get_attribute("viewBox")).split()] == [
            float(one) for one in str(whole).split()
        ]
        with page.expect_response(lambda answer: "width=3850" in answer.url) as answered:
            page.keyboard.press(",")
        assert answered.value.status == 200


def test_a_box_lies_on_the_screen_where_its_pixels_are(desk: Desk) -> None:
    """The lower right quarter of the film, wherever the picture lies on the screen, at any zoom."""
    with desk.page("viewer") as page:
        page.goto("/jobs/1")
        place, box = (page.locator(one).first.bounding_box() for one in ("svg.film image", "svg.film .halo"))
        assert place is not None and box is not None
        assert box["x"] == pytest.approx(place["x"] + place["width"] / 2, abs=4)
        assert box["y"] == pytest.approx(place["y"] + place["height"] / 2, abs=4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", VIEWPORTS)
def test_axe_finds_nothing_serious_on_any_page(desk: Desk, scheme: Any, size: str) -> None:
    found: dict[str, list[str]] = {}
    width, height = VIEWPORTS[size]
    with desk.page("admin", color_scheme=scheme, viewport={"width": width, "height": height}) as page:
        for path in (*PAGES, "/nowhere", "/sign-in"):
            if path == "/sign-in":
                page.context.clear_cookies()
            page.goto(path)
            for violation in Axe().run(page).response["violations"]:
                if violation["impact"] in SEVERE:
                    nodes = [node["html"][:120] for node in violation["nodes"][:3]]
                    found.setdefault(f"{path} {violation['id']}", []).extend(nodes)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than {width}"
    assert found == {}


FOCUSABLE = """() => [...document.querySelectorAll(
  'a[href], button, input:not([type=hidden]), select, summary, [tabindex="0"]')].filter(one =>
  !one.disabled && one.checkVisibility({visibilityProperty: true}) && one.getClientRects().length
  && !(one.closest('details:not([open])') && one.closest('summary') === null)).length"""

FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  if (one === document.body) return null;
  one.dataset.reached = 'yes';
  return [one.outerHTML.slice(0, 90), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_worked_by_keyboard(desk: Desk, path: str) -> None:
    """Tab reaches whatever can be worked, in the order of the page, and it is always seen where one is."""
    with desk.page("admin") as page:
        page.goto(path)
        page.keyboard.press("Tab")
        assert "Skip to the content" in page.evaluate(FOCUSED)[0]
        unseen = []
        for _ in range(400):
            page.keyboard.press("Tab")
            focused = page.evaluate(FOCUSED)
            if focused is None or "skip" in focused[0]:
                break
            if not focused[1]:
                unseen.append(focused[0])
        assert unseen == []
        reached = page.evaluate("document.querySelectorAll('[data-reached]').length")
        assert reached >= page.evaluate(FOCUSABLE)
