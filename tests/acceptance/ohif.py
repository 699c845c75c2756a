"""OHIF, the viewer of another maker, in headless Chromium against an archive that speaks DICOMweb.

OHIF comes ready built in its npm package; `tests/install-peers.sh` fetches the versions that are tested.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from scipy import ndimage

from grounding.types import Box
from tests.acceptance.peers import ROOT, Network, missing, require, wait_until

PACKAGES = ROOT / ".peers" / "ohif"
VERSIONS = ("3.13.2", "3.11.1")
"""The newest stable one when this was written, and the oldest that the node supports."""

CONFIGURATION = """window.config = {
  routerBasename: null, extensions: [], modes: [], customizationService: {}, showStudyList: true,
  investigationalUseDialog: { option: 'never' }, defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'archive', name: 'archive', wadoUriRoot: '/wado', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      qidoSupportsIncludeField: false, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: true },
    },
  }],
};"""

CHROMIUM = (
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)  # fmt: skip

SHAPES = "svg.svg-layer rect, svg.svg-layer polyline"
OUTLINES = f"""() => [...document.querySelectorAll('{SHAPES}')].map(shape => {{
  const box = shape.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
}})"""

WAIT_MS = 40_000
SETTLE_MS = 2_500
TRIES = 8
CRASHED = "Something went wrong"


class Viewer:
    """One version of OHIF in one browser tab. Positions are pixels of the screen."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        self._is_new = True
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, study_instance_uid: str) -> None:
        """Open a study and wait until its first image is drawn."""
        self.errors.clear()
        self.page.goto(f"{self.url}/viewer?StudyInstanceUIDs={study_instance_uid}", wait_until="domcontentloaded")
        self._wait_for_image()

    def open_report(self, series_description: str) -> None:
        """Open the SR series of this description, and wait until something of it is shown."""
        for tried in range(TRIES):
            if tried:
                self.page.reload(wait_until="domcontentloaded")
                self._wait_for_image()
            # OHIF 3.11 draws nothing of a report that is opened while it is still reading the study, now or later
            self.page.wait_for_load_state("networkidle")
            self.page.wait_for_timeout(SETTLE_MS)
            self.page.get_by_text(series_description, exact=True).first.dblclick(timeout=WAIT_MS)
            shown = self.page.locator(SHAPES).or_(self.page.get_by_text(re.compile(f"{CRASHED}|Device Observer UID")))
            if _appears(shown.first):
                return
        raise AssertionError(f"the report is not shown: {self.text()}")

    def outlines(self, expected: int) -> list[Box]:
        """Return the rectangles that are drawn over the image, from the left, once as many as expected are there."""
        wait_until(lambda: len(self._outlines()) >= expected, f"{expected} boxes", 30)
        self._settle()
        return sorted(self._outlines(), key=lambda box: box.x1)

    def hydrate(self, expected: int) -> str:
        """Answer that the report's boxes are to become measurements; return the panel's text once as many are there."""
        self._prompt().click(timeout=WAIT_MS)
        self.page.locator("svg.svg-layer rect").first.wait_for(state="attached", timeout=WAIT_MS)
        panel = self.page.locator('[data-cy="trackedMeasurements-btn"]')
        if panel.count():
            panel.first.click(timeout=5000)
        listed = self.page.locator('[data-cy="data-row"], [data-cy="measurement-item"]')
        wait_until(lambda: listed.count() >= expected, f"{expected} measurements in the panel", 30)
        return self.text()

    def text(self) -> str:
        """Return all that the page says."""
        return str(self.page.evaluate("document.body.innerText"))

    def markers(self, size: int = 40) -> list[Box]:
        """Return the bright rectangles of at least `size` pixels a side in the image's pane, from the left."""
        self._settle()
        left, top, pane = self._pane()
        areas, _ = ndimage.label(pane > 200)
        boxes = [
            Box(left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            for rows, columns in ndimage.find_objects(areas)
        ]
        return sorted((b for b in boxes if min(b.x2 - b.x1, b.y2 - b.y1) >= size), key=lambda box: box.x1)

    def _settle(self) -> None:
        """Wait until nothing moves any more: two pictures and outlines, half a second apart, are the same."""

        def is_still() -> bool:
            before, outlines = self.page.screenshot(), self._outlines()
            self.page.wait_for_timeout(500)
            return bool(before == self.page.screenshot() and outlines == self._outlines())

        wait_until(is_still, "the picture to stand still", 30)

    def _pane(self) -> tuple[int, int, NDArray[np.uint8]]:
        """Return where the image's pane begins, and its blue, uint8[H, W]: the viewer draws in yellow and green."""
        place = self.page.locator("canvas").first.bounding_box(timeout=WAIT_MS)
        assert place is not None
        left, top = round(place["x"]), round(place["y"])
        screen = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))[..., 2]
        return left, top, screen[top : top + round(place["height"]), left : left + round(place["width"])]

    @property
    def has_crashed(self) -> bool:
        """Whether the viewer shows its error page."""
        return CRASHED in self.text()

    def _outlines(self) -> list[Box]:
        corners: list[list[float]] = self.page.evaluate(OUTLINES)
        return [Box(*corner) for corner in corners if corner[2] > corner[0]]

    def _wait_for_image(self) -> None:
        self.page.locator("canvas").first.wait_for(timeout=WAIT_MS)
        self._skip_tour()
        wait_until(lambda: self._pane()[2].std() > 5.0, "an image in the viewer", WAIT_MS / 1000)

    def _prompt(self) -> Locator:
        yes, load = (self.page.get_by_role("button", name=name, exact=True) for name in ("Yes", "LOAD"))
        return yes.or_(load).first

    def _skip_tour(self) -> None:
        """Close the tour that is shown once."""
        skip = self.page.get_by_text("Skip all")
        if self._is_new and _appears(skip):
            skip.click()
            self._is_new = False


def _appears(locator: Locator) -> bool:
    try:
        locator.wait_for(state="attached", timeout=6000)
    except PlaywrightTimeout:
        return False
    return True


@contextmanager
def run_viewer(version: str, network: Network, archive: str, folder: Path) -> Iterator[Viewer]:
    """Give a viewer of this version of the archive at the URL `archive`; skip without it on a laptop, fail in CI."""
    require("chromium")
    pages = _unpack(version, folder)
    server = _serve(pages, network, archive)
    launcher = folder / "chromium"
    launcher.write_text(f'#!/bin/sh\nexec {" ".join(network.enter)} chromium "$@"\n')
    launcher.chmod(0o755)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=launcher, args=CHROMIUM)
            yield Viewer(browser.new_page(viewport={"width": 1500, "height": 900}), url)
            browser.close()
    finally:
        server.kill()
        server.communicate()


def _unpack(version: str, folder: Path) -> Path:
    package = PACKAGES / f"ohif-app-{version}.tgz"
    if not package.exists():
        missing(f"OHIF {version} is not in {PACKAGES.relative_to(ROOT)}")
    shutil.unpack_archive(package, folder / "ohif", filter="data")
    pages = folder / "ohif" / "package" / "dist"
    (pages / "app-config.js").write_text(CONFIGURATION)
    return pages


def _serve(pages: Path, network: Network, archive: str) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("viewer_server.py")
    command = [*network.enter, sys.executable, str(script), str(pages), archive]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
