"""Encoded frames are decoded in a process of their own: the decoders are native code, and damaged frames end it.

GDCM lets its exceptions end the process, the RLE decoder panics, and no decoder is free of bugs. What ends there fails
as a frame that cannot be decoded, and the next frame gets a new process. It lives as long as the process that uses it
(it reads its standard input to the end), may hold so much memory, and is ended if it takes too long.

`python -m dicom_node.decoding` is that process. A message is its length in eight bytes, and JSON or a frame.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from select import select
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from dicom_node.errors import TransientError
from dicom_node.header import DECODE_ERRORS, read_number, read_text
from dicom_node.jpeg_extended import decode_extended

DECODE_S = 120
"""For one frame; the largest radiographs take a few seconds."""

MEMORY_BYTES = 4 * 1024**3
"""Address space of the process: a frame of 200 million pixels of 16 bits takes half of it in JPEG 2000."""

ITSELF = "gdcm itself"
"""The name of `jpeg_extended` among the plug-ins."""

_NUMBERS = (
    "SamplesPerPixel", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
"""What decoders need to know (PS3.3 C.7.6.3), besides the photometric interpretation."""


class DecodingError(ValueError):
    """A frame that no decoder could decode; the text is the kind of the first failure."""


def decode_apart(ds: Dataset, frame: bytes, syntax: str, plugins: Sequence[str]) -> NDArray[Any]:
    """Return an encoded frame of `ds` as stored, by the first of `plugins` that can.

    Raises DecodingError, and TransientError where the process was killed from outside: for want of memory, mostly.
    """
    numbers = {keyword: read_number(ds, keyword) for keyword in _NUMBERS}
    values: dict[str, Any] = {keyword: int(number) for keyword, number in numbers.items() if number is not None}
    values["PhotometricInterpretation"] = read_text(ds, "PhotometricInterpretation")
    return _decoder.ask(json.dumps([values, syntax, list(plugins)]).encode(), frame)


class _Decoder:
    """The process, started when it is first needed, and again when it has ended; one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *request: bytes) -> NDArray[Any]:
        """Return what the process answers to a request."""
        with self._lock:
            process = self._process = self._process or _start()
            try:
                return _exchange(process, request)
            except DecodingError:
                raise
            except (OSError, ValueError, TypeError, LookupError) as error:  # it ended, hangs, or talks nonsense
                was_killed = _ended_with(process) == -signal.SIGKILL
                self._stop()
                if was_killed:
                    raise TransientError("the decoder of pixels was killed: is there memory enough?") from error
                raise DecodingError(f"the decoder {error}") from error

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """Leave the process to the one that this one was forked from."""
        self.__init__()  # type: ignore[misc]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _ended_with(process: subprocess.Popen[bytes]) -> int | None:
    """Return what a process that hung up ends with, None if it goes on."""
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None


def _start() -> subprocess.Popen[bytes]:
    """Start the process, in a session of its own: who interrupts this one lets it end its work."""
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise TransientError(f"the decoder of pixels cannot be started ({error.strerror})") from error


def _exchange(process: subprocess.Popen[bytes], request: Sequence[bytes]) -> NDArray[Any]:
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + DECODE_S
    _write(process.stdin, *request)
    answer: dict[str, Any] = json.loads(_read_within(process.stdout, deadline))
    if "error" in answer:
        raise DecodingError(str(answer["error"]))
    content = _read_within(process.stdout, deadline)
    return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"]).copy()


def _read_within(source: IO[bytes], deadline: float) -> bytes:
    """Return the next message; raises OSError where there is none in time."""
    return _read_exactly(source, struct.unpack(">Q", _read_exactly(source, 8, deadline))[0], deadline)


def _read_exactly(source: IO[bytes], size: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while size:
        if not select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise OSError("takes too long")
        part = os.read(source.fileno(), min(size, 1024**2))
        if not part:
            raise OSError("ended over this frame")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(target: IO[bytes], *messages: bytes) -> None:
    for message in messages:
        target.write(struct.pack(">Q", len(message)) + message)
    target.flush()


_decoder = _Decoder()
atexit.register(_decoder.close)
os.register_at_fork(after_in_child=_decoder.forget)


# ---- within the process ----------------------------------------------------------------------------------------------


def serve(source: IO[bytes], target: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    while head := source.read(8):
        values, syntax, plugins = json.loads(source.read(struct.unpack(">Q", head)[0]))
        frame = source.read(struct.unpack(">Q", source.read(8))[0])
        try:
            decoded = _decode(values, frame, syntax, plugins)
        except DECODE_ERRORS as error:
            _write(target, json.dumps({"error": type(error).__name__}).encode())
        else:
            head = json.dumps({"dtype": decoded.dtype.str, "shape": decoded.shape}).encode()
            _write(target, head, decoded.tobytes())


def _decode(values: dict[str, Any], frame: bytes, syntax: str, plugins: Sequence[str]) -> NDArray[Any]:
    """Decode by the first plug-in that can; raises what the first one raised."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].is_undefined_length = True
    failure: Exception | None = None
    for plugin in plugins:
        try:
            if plugin == ITSELF:
                return decode_extended(ds, syntax)
            return np.asarray(pixel_array(ds, index=0, decoding_plugin=plugin))
        except DECODE_ERRORS as error:
            failure = failure or error
    raise failure or DecodingError("no decoder")


def main() -> None:
    """Be the process that decodes. What native code prints must not come between the answers."""
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    serve(sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
