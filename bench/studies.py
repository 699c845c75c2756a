"""Studies of a generated film and its report, senders of them in processes of their own, and an archive with a clock.

    python -m bench.studies PORT    (a sender: a JSON list of studies on standard input, then a line to begin)

Times are those of the machine's monotonic clock, which all of its processes share.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.events import Event

from bench.load import ANSWER_S, encode_request, receive, rest, without_meta
from dicom_node.cli.demo_study import (
    BASIC_TEXT_SR_STORAGE,
    DX_PRESENTATION_STORAGE,
    make_image_dataset,
    make_report_dataset,
)
from grounding.phantoms.study import PhantomStudy, make_study
from tests.builders import encode
from tests.fakes import FakePacs
from tests.senders import Sender

FIRST_SEED = 4_100_000_000
"""Far from the seeds of training."""

KINDS = 12
"""Different films; further studies are the same ones of other patients."""

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Written:
    """A study on disk: its UID, and SOP Class UID, SOP Instance UID and file of the film and the report."""

    uid: str
    instances: list[tuple[str, str, str]]


def phantoms(size: int) -> list[PhantomStudy]:
    """Return the studies that all others repeat, those of which something is to be found."""
    made = (make_study(FIRST_SEED + number, size) for number in range(1000))
    return list(islice((study for study in made if study.phrases), KINDS))


def write_studies(folder: Path, name: str, count: int, kinds: Sequence[PhantomStudy]) -> list[Written]:
    """Write so many studies, each with UIDs of its own."""
    written = []
    for number in range(count):
        phantom, study = kinds[number % len(kinds)], f"{name} {number}"
        film = make_image_dataset(phantom.image, study, NOW)
        instances = []
        for ds in (film, make_report_dataset(phantom, film, study, NOW)):
            path = folder / f"{ds.SOPInstanceUID}.dcm"
            path.write_bytes(encode(ds))
            instances.append((str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(path)))
        written.append(Written(str(film.StudyInstanceUID), instances))
    return written


class Line:
    """An association that sends studies, one instance after the other."""

    def __init__(self, port: int) -> None:
        ae = Sender("PACS")
        for uid in (DX_PRESENTATION_STORAGE, BASIC_TEXT_SR_STORAGE):
            ae.add_requested_context(uid, ExplicitVRLittleEndian)
        association: Any = ae.associate("127.0.0.1", port, ae_title="KNOWMVG")
        if not association.is_established:
            raise SystemExit("the node takes no association")
        association._reactor_checkpoint.clear()
        association.dul._is_transport_event = rest
        self._association, self._connection = association, association.dul.socket.socket
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.settimeout(ANSWER_S)
        self._contexts = {str(one.abstract_syntax): one.context_id for one in association.accepted_contexts}

    def send(self, study: Written) -> float:
        """Send a study, and return when its last instance was acknowledged."""
        for sop_class_uid, sop_instance_uid, path in study.instances:
            dataset = without_meta(Path(path).read_bytes())
            most = self._association.acceptor.maximum_length
            first, remainder = encode_request(
                self._contexts[sop_class_uid], sop_class_uid, sop_instance_uid, dataset, most
            )
            self._connection.sendall(first)
            self._connection.sendall(remainder)
            if status := receive(self._connection):
                raise SystemExit(f"answered with 0x{status:04X}")
        return time.monotonic()

    def close(self) -> None:
        """Hang up."""
        self._association.dul.socket.close()
        self._association.kill()


class Archive(FakePacs):
    """An archive that notes when each result came: `came[study][SOP Instance UID]`."""

    def __init__(self) -> None:
        super().__init__("ARCHIVE")
        self.came: dict[str, dict[str, float]] = defaultdict(dict)

    def _handle_store(self, event: Event) -> int:
        status = super()._handle_store(event)
        request: Any = event.request
        came = self.came[str(event.dataset.StudyInstanceUID)]
        came.setdefault(str(request.AffectedSOPInstanceUID), time.monotonic())
        return status


def send_all(port: int, studies: Sequence[Written], associations: int) -> tuple[float, dict[str, float]]:
    """Send studies over several associations, each of a process; return when they began, and when each was taken."""
    command = [sys.executable, "-m", "bench.studies", str(port)]
    shares = [studies[one::associations] for one in range(associations)]
    with _senders(command, associations) as senders:
        for sender, share in zip(senders, shares, strict=True):
            _tell(sender, json.dumps([asdict(study) for study in share]))
            _hear(sender)
        began = time.monotonic()
        for sender in senders:
            _tell(sender, "begin")
        taken: dict[str, float] = {}
        for sender in senders:
            taken |= json.loads(_hear(sender))
    return began, taken


@contextmanager
def _senders(command: Sequence[str], count: int) -> Iterator[list[subprocess.Popen[str]]]:
    senders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        yield senders
    finally:
        for sender in senders:
            sender.kill()
            sender.communicate()


def _tell(sender: subprocess.Popen[str], line: str) -> None:
    assert sender.stdin is not None
    sender.stdin.write(f"{line}\n")
    sender.stdin.flush()


def _hear(sender: subprocess.Popen[str]) -> str:
    assert sender.stdout is not None
    if not (line := sender.stdout.readline()):
        raise SystemExit("a sender has failed")
    return line


def main() -> None:
    """Be a sender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    studies = [Written(**study) for study in json.loads(sys.stdin.readline())]
    line = Line(arguments.port)
    print("ready", flush=True)
    sys.stdin.readline()
    taken = {study.uid: line.send(study) for study in studies}
    print(json.dumps(taken), flush=True)
    line.close()
    os._exit(0)


if __name__ == "__main__":
    main()
