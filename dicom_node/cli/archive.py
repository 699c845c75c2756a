"""A stand-in archive for the demonstration: it takes results over C-STORE, and finds them over C-FIND, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event
from pynetdicom.transport import ThreadedAssociationServer

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
RESULT_CLASSES = (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS)
SUCCESS, PENDING = 0x0000, 0xFF00
KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


class StandInArchive:
    """An archive on a loopback port of the system's choice; `port` says which."""

    def __init__(self, ae_title: str) -> None:
        ae = ApplicationEntity(ae_title)
        for syntax in (*RESULT_CLASSES, VERIFICATION, STUDY_ROOT_FIND):
            ae.add_supported_context(syntax)
        self._lock = Lock()
        self._instances: dict[str, Dataset] = {}
        handlers: list[Any] = [(evt.EVT_C_STORE, self._handle_store), (evt.EVT_C_FIND, self._handle_find)]
        server = cast(ThreadedAssociationServer, ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers))
        self.port: int = server.server_address[1]
        self._server: ThreadedAssociationServer | None = server

    @property
    def instances(self) -> tuple[Dataset, ...]:
        """What was stored, in order of arrival."""
        with self._lock:
            return tuple(self._instances.values())

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _handle_store(self, event: Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        with self._lock:
            self._instances[ds.SOPInstanceUID] = ds
        return SUCCESS

    def _handle_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        wanted = {key: str(query[key].value).split("\\") for key in KEYS if query.get(key)}
        for ds in self.instances:
            if all(str(ds.get(key, "")) in values for key, values in wanted.items()):
                yield PENDING, _make_match(query, ds)


def _make_match(query: Dataset, ds: Dataset) -> Dataset:
    match = Dataset()
    match.QueryRetrieveLevel = query.QueryRetrieveLevel
    for keyword in (element.keyword for element in query):
        if keyword and keyword != "QueryRetrieveLevel":
            setattr(match, keyword, ds.get(keyword, ""))
    return match
