"""One readable line per event: a constant text, then the facts as key=value.

Facts are UIDs, counts, titles and durations. Names, birth dates, patient ids, accession numbers and report text are
never logged.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from typing import Any

_PLAIN = re.compile(r'^[^\s"=]+$')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What would begin another line, or have a terminal do something."""


def log_event(logger: logging.Logger, event: str, *, level: int = logging.INFO, **facts: object) -> None:
    """Log `event` with its facts, as `event key=value …`; values with spaces are quoted.

    Of an exception its text is a fact, and no more: it would keep alive what its frames hold, such as open files.
    """
    plain = {key: str(value) if isinstance(value, BaseException) else value for key, value in facts.items()}
    logger.log(level, event, extra={"facts": plain})


class LineFormatter(logging.Formatter):
    """2026-01-31T12:00:00.123Z INFO receiver instance filed sop_instance_uid=1.2.3"""

    def __init__(self, process: str) -> None:
        """`process` is the role that the line comes from, as `receiver`."""
        super().__init__()
        self.process = process
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it if there is one."""
        instant = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        facts: dict[str, Any] = getattr(record, "facts", {})
        words = [instant, record.levelname, self.process, record.getMessage(), *_render(facts)]
        line = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], " ".join(words).replace("\n", " | "))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _render(facts: dict[str, Any]) -> list[str]:
    return [f"{key}={_quote(value)}" for key, value in facts.items() if value is not None]


def _quote(value: object) -> str:
    text = str(value)
    if _PLAIN.match(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Send this process's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # pydicom and highdicom tell of each value that is not as PS3.5 wants it, and print it: it may be a patient's
    warnings.simplefilter("ignore", UserWarning)
    logging.getLogger("pydicom").setLevel(max(level, logging.ERROR))
    for noisy in ("pynetdicom", "alembic", "kombu", "celery", "amqp", "highdicom"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
