"""What `knowmvg demo` does: a node in a temporary folder, a stand-in archive, one generated study from end to end.

The node is the one that `knowmvg up` runs, in processes of its own; study and results travel over DICOM on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
import yaml
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.cli.archive import GSPS, StandInArchive
from dicom_node.cli.demo_study import make_image_dataset, make_report_dataset
from dicom_node.cli.ground import SR_NAME, save_dicom
from dicom_node.clock import utc_now
from dicom_node.config import ENVIRONMENT_PREFIX, ModelSettings, Settings, load_settings
from dicom_node.errors import NodeError
from dicom_node.orientation import read_orientation
from dicom_node.queries import JobDetail, JobFilter, list_jobs, load_grounding, make_engine, make_sessions, show_job
from dicom_node.requestor import Peer, open_association
from dicom_node.results.findings import GroundedImage, findings_document
from dicom_node.results.reading import read_boxes
from dicom_node.results.rendering import draw_report
from grounding.phantoms.study import make_study
from grounding.types import Grounding

SEED, SHAPE = 900_019, (1152, 960)
"""A study with several findings and a negated one; rows and columns."""

SENDER, ARCHIVE = "DEMO_MODALITY", "DEMO_ARCHIVE"
START_S, RESULT_S, STOP_S = 60.0, 300.0, 15.0
POLL_S = 0.1
TOLERANCE = 0.01
"""Pixels; SR and GSPS hold float32."""

LOG_LINES = 20
STEPS = {
    "RECEIVING": "waiting for the rest of the study",
    "COMPLETE": "loading the model and grounding",
    "GROUNDED": "writing SR and GSPS",
    "WRITTEN": "delivering to the archive",
    "DELIVERED": "the archive has confirmed everything",
}
ENDS = ("DELIVERED", "NOT_APPLICABLE", "FAILED", "CANCELLED")

T = TypeVar("T")


def run_demo(model: ModelSettings, out: Path) -> dict[str, Any]:
    """Run the demonstration, write its results to `out`, and return the document of findings.json.

    Raises NodeError if anything did not arrive, or does not agree with the job database.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through `finally`, like Ctrl-C
    with tempfile.TemporaryDirectory(prefix="knowmvg-demo-") as folder:
        archive = StandInArchive(ARCHIVE)
        try:
            settings = write_configuration(Path(folder), archive.port, model)
            with running_node(Path(folder)) as node:
                tell(f"node ready: {settings.receiver.ae_title} on 127.0.0.1:{settings.receiver.port}")
                return _run_study(settings, node, archive, out)
        finally:
            archive.stop()


def tell(text: str) -> None:
    """Show progress on standard error."""
    typer.echo(f"- {text}", err=True)


def write_configuration(folder: Path, archive_port: int, model: ModelSettings) -> Settings:
    """Write the node's config.yaml into `folder` and return its settings."""
    receiver_port, console_port = free_ports(2)
    values = {
        "node": {"data_dir": str(folder / "var")},
        "receiver": {
            "port": receiver_port,
            "peers": [{"ae_title": SENDER, "address": "127.0.0.1"}],
            "min_free_bytes": "64MiB",
        },
        "assembly": {"quiet_period_s": 1},
        "model": model.model_dump(mode="json"),
        "destinations": [{"name": "archive", "ae_title": ARCHIVE, "host": "127.0.0.1", "port": archive_port}],
        "console": {"port": console_port},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_settings(folder / "config.yaml", {})


def free_ports(count: int) -> list[int]:
    """Return so many ports of this host that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


class Node:
    """The process `knowmvg up`, and what it wrote."""

    def __init__(self, folder: Path) -> None:
        """Start the node of the configuration in `folder`, deaf to this process's environment and Ctrl-C."""
        self.log = folder / "node.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        command = [sys.executable, "-m", "dicom_node.cli", "up", "--config", str(folder / "config.yaml")]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def is_ready(self) -> bool:
        """Whether the node has said that all its parts are up."""
        return "Node is ready" in self.log.read_text(encoding="utf-8", errors="replace")

    def explain(self, what: str) -> NodeError:
        """Return the error that something failed, with the last lines that the node wrote."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return NodeError("\n    ".join([f"{what}; the node's last lines:", *lines]))

    def wait_for(self, what: str, look: Callable[[], T | None], limit_s: float) -> T:
        """Return what `look` gives as soon as it gives something; raises NodeError if the node ends or time is up."""
        deadline = time.monotonic() + limit_s
        while True:
            if found := look():
                return found
            if self.process.poll() is not None:
                raise self.explain(f"the node ended with status {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.explain(f"no sign of {what} within {limit_s:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the node, by force if it does not follow."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """Give the node of the configuration in `folder` once it is ready, and stop it afterwards."""
    tell("starting the node")
    node = Node(folder)
    try:
        node.wait_for("the node being ready", lambda: node.is_ready, START_S)
        yield node
    finally:
        node.stop()


def _run_study(settings: Settings, node: Node, archive: StandInArchive, out: Path) -> dict[str, Any]:
    phantom = make_study(SEED, shape=SHAPE)
    now = utc_now()
    study = f"{SEED} {now.isoformat()}"
    image = make_image_dataset(phantom.image, study, now)
    report = make_report_dataset(phantom, image, study, now)
    send_study(settings, [image, report])
    tell(f"sent a DX image ({SHAPE[1]} x {SHAPE[0]}) and its SR report over DICOM")
    sessions = make_sessions(make_engine(settings.database.url))
    detail = follow_job(node, sessions)
    if detail.summary.state != "DELIVERED":
        raise node.explain(f"the job ended {detail.summary.state}: {detail.summary.failure}")
    tell(f"the archive holds {len(archive.instances)} result(s)")
    grounding = _load(sessions, detail)
    document = _make_document(grounding, image)
    if faults := find_faults(image, document, archive.instances):
        raise NodeError("the results do not agree: " + "; ".join(faults))
    tell("checked: same patient and study, boxes of SR and GSPS equal to the job database")
    _write(out, document, archive.instances, image)
    return document


def send_study(settings: Settings, datasets: Sequence[Dataset]) -> None:
    """Send `datasets` to the node's receiver over one association; raises NodeError unless it takes them all."""
    receiver = settings.receiver
    node = Peer("the node", receiver.ae_title, receiver.host, receiver.port)
    with open_association(node, [str(ds.SOPClassUID) for ds in datasets], SENDER) as association:
        for ds in datasets:
            answer = association.send_c_store(ds)
            if answer.get("Status") != 0:
                raise NodeError(f"the node answered C-STORE of {ds.Modality} with status {answer.get('Status')}")


def follow_job(node: Node, sessions: sessionmaker[Session]) -> JobDetail:
    """Return the only job in the database when it has ended; each state that is seen is told."""
    told: list[str] = []

    def look() -> JobDetail | None:
        with sessions() as session:
            jobs = list_jobs(session, JobFilter())
            if not jobs:
                return None
            detail = show_job(session, jobs[0].job_id)
        state = jobs[0].state
        if state not in told:
            told.append(state)
            tell(f"job {jobs[0].job_id} {state}: {STEPS.get(state, jobs[0].failure)}")
        return detail if state in ENDS else None

    return node.wait_for("the end of the job", look, RESULT_S)


def find_faults(image: Dataset, document: Mapping[str, Any], results: Sequence[Dataset]) -> list[str]:
    """Return what is wrong with the results that the archive holds, measured by the image sent and the findings."""
    presentations = [ds for ds in results if ds.SOPClassUID == GSPS]
    reports = [ds for ds in results if ds.SOPClassUID != GSPS]
    faults = [
        f"{ds.Modality} differs from the image in {keyword}"
        for ds in results
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber")
        if ds.get(keyword) != image.get(keyword)
    ]
    if len(reports) != 1 or len(presentations) != 1:
        faults.append(f"the archive holds {len(reports)} SR and {len(presentations)} GSPS instead of one each")
    expected = [box["xyxy"] for finding in document["findings"] for box in finding["boxes"]]
    if not expected:
        faults.append("the model found nothing in a study made to be found")
    return faults + [
        f"the boxes of the {ds.Modality} are not those of the job" for ds in results if _differ(ds, expected)
    ]


def _differ(ds: Dataset, expected: Sequence[Sequence[float]]) -> bool:
    boxes = sorted(found.box.xyxy for found in read_boxes(ds))
    wanted = sorted(tuple(box) for box in expected)
    return len(boxes) != len(wanted) or any(
        abs(a - b) > TOLERANCE
        for box, other in zip(boxes, wanted, strict=True)
        for a, b in zip(box, other, strict=True)
    )


def _load(sessions: sessionmaker[Session], detail: JobDetail) -> Grounding:
    with sessions() as session:
        grounding, _ = load_grounding(session, detail.summary.job_id)
    return grounding


def _make_document(grounding: Grounding, image: Dataset) -> dict[str, Any]:
    size = int(image.Rows), int(image.Columns)
    images = [GroundedImage(str(image.SOPInstanceUID), *size, orientation=read_orientation(image))]
    return findings_document(grounding, images, str(image.StudyInstanceUID))


def _write(out: Path, document: Mapping[str, Any], results: Sequence[Dataset], image: Dataset) -> None:
    """Write what the archive holds, and the picture that its SR gives."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ds in results:
            if ds.SOPClassUID == GSPS:
                save_dicom(ds, out / "result.gsps.dcm")
            else:
                save_dicom(ds, out / SR_NAME)
                draw_report(ds, image).save(out / "overlay.png")
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (out / "findings.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise NodeError(f"the results cannot be written to {out}: {error}") from error
