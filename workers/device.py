"""What a worker tells of its model and of the GPU that it computes on, if it does; nothing here loads either."""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Callable
from typing import Any

from dicom_node.recorder import Recorder


class DeviceLook:
    """Sets the gauges of the model and of its GPU, as soon as the model is loaded."""

    def __init__(self, load_grounder: Callable[[], Any]) -> None:
        """`load_grounder` may tell by `loaded` whether it has loaded the model."""
        self._load_grounder = load_grounder
        self._host = socket.gethostname()

    def __call__(self, recorder: Recorder) -> None:
        """Look once."""
        grounder = getattr(self._load_grounder, "loaded", None)
        if grounder is None:
            return
        identity, device = grounder.identity, str(getattr(grounder, "device", "unknown"))
        recorder.set("knowmvg_model_info", 1, identity.name, identity.version, identity.sha256[:12], device)
        if device.startswith("cuda"):
            self._look_at_gpu(recorder, int(device.partition(":")[2] or 0))

    def _look_at_gpu(self, recorder: Recorder, index: int) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            return
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:  # the device is lost: the step that finds that ends the worker
            return
        recorder.set("knowmvg_gpu_memory_used_bytes", total - free, self._host, str(index))
        recorder.set("knowmvg_gpu_memory_bytes", total, self._host, str(index))
        if (share := read_utilization(torch, index)) is not None:
            recorder.set("knowmvg_gpu_utilization_ratio", share, self._host, str(index))


def read_utilization(torch: Any, index: int) -> float | None:
    """Return the share of time that a GPU computed lately; None where NVIDIA's library for that is not installed."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        return float(torch.cuda.utilization(index)) / 100
    except (library.NVMLError, RuntimeError):
        return None
