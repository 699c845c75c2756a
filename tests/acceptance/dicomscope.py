"""DICOMscope 3.6, the reference viewer of presentation states, under Xvfb: what it draws, as a picture of the screen.

It listens to nobody and keeps everything in a temporary folder. No window manager, no key presses: mouse only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageGrab

from tests.acceptance.peers import require

TIMEOUT = 60.0
"""Seconds that DICOMscope has for each step."""

PANEL = (274, 138)
"""Pixels of the window, across and down, that are not canvas (with Debian's DejaVu fonts)."""

SCROLLBAR = (122, 138, 153)
"""The colour of a scroll bar's border, which no grey image contains."""

CONFIG = """\
[[GENERAL]]
[APPLICATION]
LogDirectory = {folder}/log
LogFile = general.log
LogLevel = INFO
MessagePort = 0
[MONITOR]
Resolution = {width}\\{height}
Screensize = {width}\\{height}
PreviewSize = 256\\256
[DATABASE]
Directory = {folder}/db
[GUI]
HighResolutionGraphics = false
AutoUpdateStudyBrowser = false
FontName = SansSerif
FontSize = 12
"""
"""No receiver, sender, printer, spooler or query server is named, so none is started; message port 0: no listener."""


def draw(image_path: Path, gsps_path: Path, out_png: Path) -> NDArray[np.uint8]:
    """Return what DICOMscope draws for an image of square pixels, uint8[Rows, Columns, 3], one pixel for each.

    The state must refer to the image. The whole screen is kept as `out_png`.
    """
    require("dicomscope", "dcmqridx", "Xvfb", "xdotool")
    image = pydicom.dcmread(image_path, stop_before_pixels=True)
    columns, rows = int(image.Columns), int(image.Rows)
    size = columns + PANEL[0], rows + PANEL[1]
    with tempfile.TemporaryDirectory(prefix="dicomscope-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        _prepare(folder, image_path, gsps_path, size)
        display = stack.enter_context(_run_xvfb(size, folder))
        viewer = stack.enter_context(_run_dicomscope(display, folder))
        screen = Screen(display, viewer, folder, out_png)
        study = screen.wait("the study in the browser", lambda: screen.find_rows(2))
        screen.double_click(study[1])
        series = screen.wait("the two series", lambda: screen.find_rows(4))
        screen.double_click(series[3])  # the presentation state was registered second
        instance = screen.wait("the presentation state in its series", lambda: screen.find_rows(5))
        screen.double_click(instance[4])
        left, top, width, height = screen.wait("the drawn image", screen.find_canvas)
        Image.fromarray(screen.pixels).save(out_png)
    assert (width, height) == (columns, rows), "DICOMscope does not draw one pixel for each"
    return screen.pixels[top : top + rows, left : left + columns]


class Screen:
    """What the X server shows, and the mouse."""

    def __init__(self, display: str, viewer: subprocess.Popen[bytes], folder: Path, out: Path) -> None:
        self.display, self.viewer, self.folder, self.out = display, viewer, folder, out
        self.pixels: NDArray[np.uint8] = self.grab()

    def grab(self) -> NDArray[np.uint8]:
        return np.array(ImageGrab.grab(xdisplay=self.display).convert("RGB"))

    def wait(self, what: str, find: Callable[[], Any], still: int = 5) -> Any:
        """Return what `find` finds on a picture that has not changed for `still` looks, a tenth of a second apart."""
        end, same = time.monotonic() + TIMEOUT, 0
        while time.monotonic() < end:
            if self.viewer.poll() is not None:
                raise RuntimeError(f"DICOMscope ended while waiting for {what}:\n{self.read_log()}")
            pixels = self.grab()
            same = same + 1 if np.array_equal(pixels, self.pixels) else 0
            self.pixels = pixels
            if same >= still and (found := find()) is not None:
                return found
            time.sleep(0.1)
        Image.fromarray(self.pixels).save(self.out)
        raise TimeoutError(f"DICOMscope did not show {what} in {TIMEOUT:.0f} seconds:\n{self.read_log()}")

    def read_log(self) -> str:
        return (self.folder / "viewer.log").read_text(errors="replace")[-4000:]

    def find_rows(self, count: int) -> list[tuple[int, int]] | None:
        """Return the places of the rows of text of the browser's tree if there are `count` of them."""
        tree = self.pixels[54 : self.pixels.shape[0] - 60, 60:600]
        if (tree == 255).all(axis=2).mean() < 0.8:
            return None
        marked: NDArray[np.bool_] = (tree < 110).all(axis=2)  # black text, not the blue behind a chosen row
        edges = np.flatnonzero(np.diff(np.pad(marked.any(axis=1).astype(np.int8), 1)))
        bands = [(int(top), int(end)) for top, end in zip(edges[::2], edges[1::2], strict=True) if top > 0]
        if len(bands) != count:
            return None
        return [
            (60 + 12 + int(np.flatnonzero(marked[top:end].any(axis=0))[0]), 54 + (top + end) // 2)
            for top, end in bands
        ]  # fmt: skip

    def find_canvas(self) -> tuple[int, int, int, int] | None:
        """Return left, top, width and height of the viewer's canvas: the scroll bars lie right of it and below."""
        border = (self.pixels == np.array(SCROLLBAR, np.uint8)).all(axis=2)
        (y, left), (x, top) = _find_first_run(border), _find_first_run(border.T)
        width, height = x - left, y - top
        if not (left and top and width > 0 and height > 0):
            return None
        if border[y, left:x].mean() < 0.9 or border[top:y, x].mean() < 0.9:  # the knobs interrupt them
            return None
        canvas = self.pixels[top:y, left:x]
        if (canvas != canvas[..., :1]).any() or not canvas.any():  # not grey yet, or still black
            return None
        return left, top, width, height

    def double_click(self, at: tuple[int, int]) -> None:
        """Double-click at `at`, then put the mouse where it does nothing."""
        park = str(self.pixels.shape[1] // 2), str(self.pixels.shape[0] - 3)
        subprocess.run(
            ["xdotool", "mousemove", "--sync", str(at[0]), str(at[1]), "click", "--repeat", "2", "--delay", "60", "1",
             "mousemove", "--sync", *park],
            check=True, timeout=20, env={**os.environ, "DISPLAY": self.display},
        )  # fmt: skip


def _find_first_run(marked: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the first row with a run of at least 200 marked pixels and the run's first column, else 0, 0."""
    for index in np.flatnonzero(marked.sum(axis=1) >= 200):
        edges = np.flatnonzero(np.diff(np.pad(marked[index].astype(np.int8), 1)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= 200:
                return int(index), int(start)
    return 0, 0


def _prepare(folder: Path, image: Path, state: Path, size: tuple[int, int]) -> None:
    for name in ("db", "log", "home"):
        (folder / name).mkdir()
    (folder / "DICOMscope.cfg").write_text(CONFIG.format(folder=folder, width=size[0], height=size[1]))
    files = [shutil.copyfile(path, folder / "db" / name) for path, name in ((image, "i.dcm"), (state, "s.dcm"))]
    ds = pydicom.dcmread(image)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.decompress(generate_instance_uid=False)  # DICOMscope draws no compressed image
        ds.save_as(files[0])
    subprocess.run(["dcmqridx", f"{folder}/db", *map(str, files)], check=True, timeout=30, capture_output=True)


@contextlib.contextmanager
def _run_xvfb(size: tuple[int, int], folder: Path) -> Iterator[str]:
    """Run an X server on a free display and give the display's name."""
    reader, writer = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(writer),
        "-screen",
        "0",
        f"{size[0]}x{size[1]}x24",
        "-nolisten",
        "tcp",
        "-noreset",
    ]
    with (folder / "xvfb.log").open("wb") as log:
        server = subprocess.Popen(command, pass_fds=(writer,), stdout=log, stderr=log, start_new_session=True)
    os.close(writer)
    try:
        with os.fdopen(reader) as stream:
            number = stream.readline().strip()
        if not number:
            raise RuntimeError(f"Xvfb did not start:\n{(folder / 'xvfb.log').read_text(errors='replace')}")
        yield f":{number}"
    finally:
        _end(server)


@contextlib.contextmanager
def _run_dicomscope(display: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = (
        f"-Duser.home={folder}/home -Djava.util.prefs.userRoot={folder}/home -Djava.io.tmpdir={folder} "
        "-Dsun.java2d.uiScale=1 -XX:-UsePerfData -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
    )
    env = {
        **os.environ,
        "DISPLAY": display,
        "HOME": f"{folder}/home",
        "JAVA_TOOL_OPTIONS": options,
        "LC_ALL": "C.UTF-8",
    }
    with (folder / "viewer.log").open("wb") as log:
        viewer = subprocess.Popen(
            ["dicomscope"],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield viewer
    finally:
        _end(viewer)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and the group it leads."""
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return
