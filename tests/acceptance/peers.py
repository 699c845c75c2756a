"""Foreign peers and the node itself as processes: DCMTK, Orthanc, `knowmvg up`, and a network of their own.

Everything listens on loopback. Orthanc binds every interface, so it only ever runs in a network namespace that has
nothing but loopback; whoever talks to it runs there too (`Network.enter`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset

from tests.builders import write

READY_S, STOP_S = 90, 20
ROOT = Path(__file__).parents[2]

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
FETCH = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=20).read())"
PROPOSE = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
}
"""DCMTK's option that proposes a transfer syntax."""


def missing(reason: str) -> None:
    """Skip the test on a laptop, fail it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have this: {reason}")
    pytest.skip(f"{reason} (`make peers` installs the tests' peers)")


def require(*programs: str) -> None:
    """Go on only if all `programs` are installed."""
    absent = [name for name in programs if shutil.which(name) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)}")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return the first true value of `condition`; fail, naming `what`, if none comes within `seconds`."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.1)):
        if value := condition():
            return value
        pause.wait(0.1)
    pytest.fail(f"waited {seconds} s in vain for: {what}")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peer_environment() -> dict[str, str]:
    """Return the environment of a child: DCMTK and Orthanc answer 40 ms late without TCP_NODELAY."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "TCP_NODELAY": "1", "PYTHONUNBUFFERED": "1"}


def fetch(url: str, enter: Sequence[str] = ()) -> bytes:
    """Return what `url` answers, asked from within another network if need be."""
    command = [*enter, sys.executable, "-I", "-c", FETCH, url]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


class Process:
    """A child process in a group of its own, its output in a file; killed with everything it started.

    The kernel kills it when this process dies, however that comes about.
    """

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                [*DIE_WITH_PARENT, *command],
                stdout=out,
                stderr=out,
                cwd=folder,
                env=peer_environment(),
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.child.poll() is None

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status; whatever is left of its group is killed."""
        if self.runs:
            self.child.terminate()
        try:
            return self.child.wait(STOP_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the whole group."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.child.wait(STOP_S)

    def output(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text(errors="replace")


class Network:
    """A network namespace with loopback and nothing else, alive as long as its holder process."""

    def __init__(self) -> None:
        require("unshare", "nsenter", "ip", "setpriv")
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = "ip link set lo up && echo up && exec sleep infinity"
        command = [*DIE_WITH_PARENT, "unshare", *user, "--net", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout and self._holder.stderr
        if self._holder.stdout.readline() != "up\n":
            missing(f"no network namespace can be made here: {self._holder.stderr.read().strip()}")
        target = ["nsenter", "--target", str(self._holder.pid), "--net"]
        self.enter = [*target, *(["--user", "--preserve-credentials"] if user else []), "--"]

    def close(self) -> None:
        """Let the namespace go."""
        self._holder.kill()
        self._holder.communicate()


DICOMWEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


class Orthanc:
    """A PACS of another maker, empty at start. Its REST side answers `get`, its DICOM side `fetch`."""

    ae_title, port, http_port = "ORTHANC", 4242, 8052

    def __init__(
        self, folder: Path, network: Network, node_port: int, *, dicomweb: bool = False, routes: bool = False
    ) -> None:
        require("Orthanc", "getscu")
        if dicomweb and not Path(DICOMWEB_PLUGIN).exists():
            missing("the DICOMweb plug-in of Orthanc is not installed")
        self.folder, self._enter = folder, network.enter
        settings = {
            "Name": "acceptance",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "LuaScripts": [str(ROOT / "deploy" / "orthanc" / "knowmvg.lua")] if routes else [],
            "JobsHistorySize": 1000,
            "Plugins": [DICOMWEB_PLUGIN] if dicomweb else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"},
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": False,
            "DicomModalities": {
                "knowmvg": ["KNOWMVG", "127.0.0.1", node_port],
                "reader": {"AET": "READER", "Host": "127.0.0.1", "Port": 11199, "AllowGet": True},
            },
            "StableAge": 1,
        }
        (folder / "storage").mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.start()

    def start(self) -> None:
        """Start, and wait for an answer."""
        command = [*self._enter, "Orthanc", str(self.folder / "orthanc.json")]
        self.process = Process(command, self.folder / "orthanc.log", self.folder)
        wait_until(lambda: "Orthanc has started" in self.process.output(), "Orthanc to start")

    def get(self, path: str) -> bytes:
        """Return the body that its REST interface answers."""
        return fetch(f"http://127.0.0.1:{self.http_port}{path}", self._enter)

    def put(self, path: Path) -> None:
        """Have it store a file, as from its own pages."""
        script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], open(sys.argv[2], 'rb').read(), 20)"
        url = f"http://127.0.0.1:{self.http_port}/instances"
        run_peer([*self._enter, sys.executable, "-I", "-c", script, url, str(path)])

    def jobs(self) -> list[dict[str, Any]]:
        """Return its own jobs: what it sends, and the storage commitments that it answers."""
        return list(json.loads(self.get("/jobs?expand")))

    def count(self) -> int:
        """Return how many instances it holds."""
        return int(json.loads(self.get("/statistics"))["CountInstances"])

    def fetch(self, study_instance_uid: str, folder: Path) -> list[Path]:
        """Retrieve a study by C-GET into `folder` and return its files."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_instance_uid}"]
        command = ["getscu", "-S", "-aet", "READER", "-aec", self.ae_title, "-od", str(folder)]
        run_peer([*self._enter, *command, "127.0.0.1", str(self.port), *keys])
        return sorted(path for path in folder.iterdir() if path.is_file())

    def stop(self) -> None:
        """End it."""
        self.process.stop()


class Node:
    """`knowmvg up` with a configuration and a data folder of its own, and DCMTK as its PACS."""

    def __init__(self, folder: Path, enter: Sequence[str] = (), **sections: Any) -> None:
        self.folder, self.enter = folder, list(enter)
        folder.mkdir(parents=True, exist_ok=True)
        private = bool(enter)
        self.port, console = (11112, 8042) if private else (free_port(), free_port())
        self.console = f"http://127.0.0.1:{console}"
        settings: dict[str, Any] = {
            "node": {"data_dir": str(folder / "var")},
            "receiver": {
                "port": self.port,
                "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}],
                "min_free_bytes": 0,
            },
            "assembly": {"quiet_period_s": 1, "max_age_s": 3600},
            "console": {"port": console, "local_role": "viewer"},
        }
        for name, keys in sections.items():
            settings[name] = {**settings.get(name, {}), **keys} if isinstance(keys, dict) else keys
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.process: Process | None = None

    def start(self) -> None:
        """Run the node and wait until it says that it is ready."""
        command = [*self.enter, sys.executable, "-m", "dicom_node.cli", "up", "--config", str(self.config)]
        log = self.folder / "node.log"
        before = log.stat().st_size if log.exists() else 0
        process = self.process = Process(command, log, ROOT)
        wait_until(lambda: not process.runs or "is ready" in process.output()[before:], "the node to be ready", READY_S)
        assert process.runs, process.output()

    def stop(self) -> int:
        """End it as an administrator would, and return its exit status."""
        return self.process.stop() if self.process else 0

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `knowmvg` command on the same configuration."""
        command = [*self.enter, sys.executable, "-m", "dicom_node.cli", *arguments, "--config", str(self.config)]
        return subprocess.run(
            command, check=check, capture_output=True, text=True, timeout=90, cwd=ROOT, env=peer_environment()
        )

    def jobs(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """Return the jobs of a study, the first revision first, as the console tells them."""
        jobs = json.loads(fetch(f"{self.console}/api/v1/jobs?study={study_instance_uid}", self.enter))
        return sorted(jobs, key=lambda job: job["revision"])

    def job(self, job_id: int) -> dict[str, Any]:
        """Return what `knowmvg jobs show` prints."""
        return dict(json.loads(self.run("jobs", "show", str(job_id), "--json").stdout))

    def wait_for(self, study_instance_uid: str, state: str, revision: int = 1, seconds: float = 90) -> dict[str, Any]:
        """Wait until the revision of a study is in `state`, and return its job in full."""

        def find() -> dict[str, Any] | None:
            jobs = self.jobs(study_instance_uid)
            return next((job for job in jobs if (job["revision"], job["state"]) == (revision, state)), None)

        job = wait_until(find, f"revision {revision} of study {study_instance_uid} to be {state}", seconds)
        return self.job(job["job_id"])

    def echo(self) -> bool:
        """Tell whether the node answers C-ECHO."""
        return self._dcmtk("echoscu", "PACS").returncode == 0

    def send(self, *paths: Path, ae_title: str = "PACS") -> subprocess.CompletedProcess[str]:
        """Send files by storescu, as they are encoded, all on one association."""
        syntaxes = (pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths)
        compressed = [PROPOSE[uid] for uid in syntaxes if uid in PROPOSE and uid.is_compressed]
        return self._dcmtk("storescu", ae_title, "-v", *compressed[:1], paths=paths)

    def send_datasets(self, *datasets: Dataset, ae_title: str = "PACS") -> subprocess.CompletedProcess[str]:
        """Write datasets to files and send them."""
        folder = self.folder / "outbox"
        folder.mkdir(exist_ok=True)
        paths = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]
        return self.send(*paths, ae_title=ae_title)

    def _dcmtk(
        self, program: str, ae_title: str, *options: str, paths: Sequence[Path] = ()
    ) -> subprocess.CompletedProcess[str]:
        require(program)
        command = [*self.enter, program, "-aet", ae_title, "-aec", "KNOWMVG", "-to", "10", *options, "127.0.0.1"]
        return subprocess.run(
            [*command, str(self.port), *map(str, paths)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            env=peer_environment(),
        )


def run_peer(command: Sequence[str]) -> str:
    """Run a foreign program to its end and return what it printed; fail with that text if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=60, env=peer_environment(), check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def validate(path: Path) -> list[str]:
    """Return the errors that dciodvfy finds in a file."""
    require("dciodvfy")
    done = subprocess.run(
        ["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@contextmanager
def network() -> Iterator[Network]:
    """A network of its own for the time of a `with` block."""
    held = Network()
    try:
        yield held
    finally:
        held.close()
