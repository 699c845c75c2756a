"""What the console reads from the storage: films, which are decoded one at a time and of which few are kept, results.

A film is kept at the size it is shown at, never as it is stored; a second one waits until the first is decoded.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from pydicom.dataset import Dataset

from dicom_node import file
from dicom_node.console.site import RefusedError
from dicom_node.console.visitors import Visitor
from dicom_node.errors import NodeError, TransientError
from dicom_node.header import DECODE_ERRORS
from dicom_node.logs import log_event
from dicom_node.results.content import ContentItem, read_content
from dicom_node.results.film import Film, Window, encode_png, factors, find_aspect, read_film, suggest_window
from dicom_node.results.rendering import draw_presentation_state
from dicom_node.results.values import read_size
from dicom_node.storage import Storage

logger = logging.getLogger(__name__)

FILMS_KEPT = 3
"""Each of at most 20 MB, in colour 60."""

PICTURES_KEPT = 24
FACTS_KEPT = 512
SHOWN_KEPT = 1000
SHOWN_FOR = timedelta(minutes=10)
"""Pictures that are fetched within this time after a page are part of that look, and not audited again."""

WAIT_S = 20.0
"""For the film before: a large one takes some seconds."""

WAITING = 16
"""Requests that a picture is drawn for, or that wait for it. Each has one of the 40 threads that answer everything
else as well: whoever asks for one more is told to ask again."""

BUSY = "other films are being decoded; load this page again in a moment"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The values that were asked for last, so many of them; safe to use from many threads."""

    def __init__(self, limit: int) -> None:
        """`limit` is how many are kept."""
        self._limit, self._lock = limit, threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return what is kept under `key`, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Key, value: Value) -> Value:
        """Keep a value, in place of the one that was not asked for longest."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True)
class FilmFacts:
    """What a header says of how its film is shown: rows, columns, height by width of a pixel, and its window."""

    rows: int
    columns: int
    aspect: float
    window: Window | None


class Films:
    """The films and results of a storage, as the console shows them. Anything may raise RefusedError."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._decoding, self._places = threading.Semaphore(1), threading.Semaphore(WAITING)
        self._films: Recent[str, Film] = Recent(FILMS_KEPT)
        self._pictures: Recent[Hashable, bytes] = Recent(PICTURES_KEPT)
        self._facts: Recent[str, FilmFacts] = Recent(FACTS_KEPT)
        self._contents: Recent[str, ContentItem] = Recent(FILMS_KEPT)
        self._shown: Recent[tuple[str, str, str, int], datetime] = Recent(SHOWN_KEPT)

    def note_shown(self, visitor: Visitor, job_id: int, now: datetime) -> None:
        """Note that a visitor was shown the page of a job, and that this is in the audit trail."""
        self._shown.keep((visitor.way, visitor.name, visitor.address, job_id), now)

    def was_shown(self, visitor: Visitor, job_id: int, now: datetime) -> bool:
        """Tell whether a visitor was shown the page of a job a moment ago."""
        at = self._shown.get((visitor.way, visitor.name, visitor.address, job_id))
        return at is not None and now - at <= SHOWN_FOR

    def read_facts(self, storage: Storage, key: str) -> FilmFacts:
        """Return what the header of an image says of its film."""
        if (kept := self._facts.get(key)) is not None:
            return kept
        header = read_stored(storage, key, pixels=False)
        try:
            rows, columns = read_size(header)
            facts = FilmFacts(rows, columns, find_aspect(header), suggest_window(header))
        except DECODE_ERRORS as error:
            raise RefusedError(422, f"its header is damaged ({type(error).__name__})") from None
        return self._facts.keep(key, facts)

    def read_content(self, storage: Storage, key: str) -> ContentItem:
        """Return the content tree of a stored SR."""
        if (kept := self._contents.get(key)) is not None:
            return kept
        with _refusing():
            return self._contents.keep(key, read_content(read_stored(storage, key)))

    def draw_film(self, storage: Storage, key: str, window: Window | None, *, fine: bool) -> bytes:
        """Return the PNG of a stored image, in its own window or another; `fine` where it is looked at closely."""

        def draw() -> bytes:
            film = self._film(storage, key)
            return film.write_png(window, factors(*read_size(film.header))[0 if fine else 1])

        return self._draw((key, window, fine), draw)

    def draw_state(self, storage: Storage, key: str, image_key: str) -> bytes:
        """Return the PNG of a stored presentation state on its image."""

        def draw() -> bytes:
            film = self._film(storage, image_key)
            coarse = film.frame.reduce(factors(*read_size(film.header))[1])
            return encode_png(draw_presentation_state(read_stored(storage, key), film.header, coarse))

        return self._draw((key, image_key), draw)

    def _draw(self, name: Hashable, draw: Callable[[], bytes]) -> bytes:
        if (kept := self._pictures.get(name)) is not None:
            return kept
        with self._alone(), _refusing():
            kept = self._pictures.get(name)  # somebody else may have drawn it meanwhile
            return self._pictures.keep(name, draw()) if kept is None else kept

    def _film(self, storage: Storage, key: str) -> Film:
        kept = self._films.get(key)
        return self._films.keep(key, read_film(read_stored(storage, key))) if kept is None else kept

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise RefusedError(503, BUSY)
        try:
            if not self._decoding.acquire(timeout=WAIT_S):
                raise RefusedError(503, BUSY)
            try:
                yield
            finally:
                self._decoding.release()
        finally:
            self._places.release()


def read_stored(storage: Storage, key: str, *, pixels: bool = True) -> Dataset:
    """Return a stored instance; raises RefusedError where it is missing, damaged or out of reach."""
    try:
        with storage.open(key) as stream:
            return file.read_dataset(stream, pixels=pixels)
    except FileNotFoundError:
        raise RefusedError(404, "the file is not in the storage any more; restore it, or have it sent again") from None
    except (OSError, MemoryError) as error:
        log_event(logger, "storage not read", level=logging.ERROR, error=type(error).__name__)
        raise RefusedError(503, f"the storage cannot be read now ({type(error).__name__}); see /readyz") from None
    except DECODE_ERRORS as error:
        raise RefusedError(422, f"the instance is damaged ({type(error).__name__})") from None


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise
    except (TransientError, MemoryError) as error:
        raise RefusedError(503, str(error) or "there is no memory for this film now") from None
    except NodeError as error:
        raise RefusedError(422, str(error)) from None
