"""An Orthanc that routes by `deploy/orthanc`: films and reports go to the node, results come back and stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.phantoms.study import make_study
from tests.acceptance.peers import Node, Orthanc, network, require, wait_until
from tests.builders import FINDINGS, make_cxr_dataset, make_report_dataset, make_section, write

pytestmark = [pytest.mark.timeout(300)]

SENT = "DicomModalityStore"


def write_study(folder: Path, name: str) -> tuple[str, list[Path]]:
    """Write a film and its report, and return the study and the files."""
    study = make_study(7, 512)
    film = make_cxr_dataset(study=name, pixels=np.asarray(study.image * 4095, np.uint16))
    texts = {title.lower(): text for title, text in study.sections}
    report = make_report_dataset([make_section(FINDINGS, [texts["findings"]])], study=name, image=film)
    return film.StudyInstanceUID, [write(film, folder / f"{name}.dx.dcm"), write(report, folder / f"{name}.sr.dcm")]


def test_what_orthanc_receives_is_routed_and_what_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    require("Orthanc", "getscu")
    with network() as net:
        archive = {"name": "orthanc", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": Orthanc.port}
        peers = [{"ae_title": "ORTHANC", "address": "127.0.0.1"}]
        node = Node(tmp_path / "node", net.enter, destinations=[archive], receiver={"peers": peers})
        orthanc = Orthanc(tmp_path / "orthanc", net, node.port, routes=True)
        try:
            missed, files = write_study(tmp_path, "missed")
            for path in files:
                orthanc.put(path)
            wait_until(lambda: len(sent(orthanc, "Failure")) == len(files), "Orthanc to send in vain")

            node.start()
            routed, more = write_study(tmp_path, "routed")
            for path in more:
                orthanc.put(path)
            for study in (missed, routed):
                job = node.wait_for(study, "DELIVERED")
                assert {delivery["confirmed_by"] for delivery in job["deliveries"]} == {"commitment"}
            assert len(sent(orthanc, "Success")) == len(files + more), "results were sent to the node, or files twice"
            assert sent(orthanc, "Failure") == []
            results = len(job["deliveries"])
            assert results > 0
            assert orthanc.count() == len(files + more) + 2 * results
        finally:
            node.stop()
            orthanc.stop()


def sent(orthanc: Orthanc, state: str) -> list[str]:
    """Return Orthanc's jobs in `state` that send to the node."""
    return [job["ID"] for job in orthanc.jobs() if (job["Type"], job["State"]) == (SENT, state)]
