"""Log lines: one per event, in a form that people read and programs split."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dicom_node.logs import LineFormatter, configure_logging, log_event


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a logger formatted as the receiver's writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("receiver"))
    logger = logging.getLogger("test_logs")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.handlers = []


def test_a_line_holds_instant_level_process_event_and_facts(lines: io.StringIO) -> None:
    log_event(logging.getLogger("test_logs"), "instance filed", sop_instance_uid="1.2.3", size_bytes=17)
    instant, line = lines.getvalue().split(" ", maxsplit=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", instant)
    assert line == "INFO receiver instance filed sop_instance_uid=1.2.3 size_bytes=17\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("two words", '"two words"'),
        ('say "no"', '"say \\"no\\""'),
        ("a=b", '"a=b"'),
        ("back\\slash here", '"back\\\\slash here"'),
        ("", '""'),
        (3.5, "3.5"),
    ],
)
def test_values_that_would_not_split_are_quoted(lines: io.StringIO, value: object, text: str) -> None:
    log_event(logging.getLogger("test_logs"), "event", fact=value)
    assert lines.getvalue().rstrip("\n").endswith(f" event fact={text}")


def test_facts_that_are_none_are_left_out(lines: io.StringIO) -> None:
    log_event(logging.getLogger("test_logs"), "event", absent=None, present=1)
    assert lines.getvalue().rstrip("\n").endswith(" event present=1")


def test_a_received_line_break_makes_no_second_line(lines: io.StringIO) -> None:
    log_event(logging.getLogger("test_logs"), "event", title="A\nERROR forged")
    assert lines.getvalue().count("\n") == 1


def test_what_was_received_has_a_terminal_do_nothing(lines: io.StringIO) -> None:
    log_event(logging.getLogger("test_logs"), "refused", reason="a\r\x1b[2Jb\x9bc\u2028d")
    assert len(lines.getvalue().splitlines()) == 1
    assert lines.getvalue().endswith('reason="a\\r\\x1b[2Jb\\x9bc\\u2028d"\n')


def test_the_level_is_named(lines: io.StringIO) -> None:
    log_event(logging.getLogger("test_logs"), "disk full", level=logging.ERROR)
    assert " ERROR receiver disk full" in lines.getvalue()


def test_a_traceback_follows_its_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("test_logs").exception("job failed")
    first, *rest = lines.getvalue().splitlines()
    assert first.endswith("ERROR receiver job failed")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: broken"


def test_configure_logging_writes_to_standard_error_and_hushes_the_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logging("worker")
        log_event(logging.getLogger("any.module"), "study grounded")
        logging.getLogger("pynetdicom.association").info("Accepting Association")
    finally:
        root.handlers[:], root.level = before
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith(" INFO worker study grounded\n")
    assert "Accepting" not in written.err


def test_a_value_that_a_library_does_not_like_is_not_printed() -> None:
    """In a process of its own: pytest has warnings its own way."""
    script = """
import io, logging, warnings
from dicom_node.file import read_dataset
from dicom_node.header import read_text
from dicom_node.logs import configure_logging
from tests.builders import encode, make_cxr_dataset
from pydicom import config
config.settings.writing_validation_mode = config.IGNORE
with warnings.catch_warnings(action="ignore"):
    content = encode(make_cxr_dataset(PatientBirthDate="1960-BORN", ViewPosition="of Doe^Jane"))
configure_logging("console")
ds = read_dataset(io.BytesIO(content), pixels=False)
assert read_text(ds, "ViewPosition") == "of Doe^Jane" and read_text(ds, "PatientBirthDate") == "1960-BORN"
logging.getLogger("dicom_node").warning("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("WARNING console done\n")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_of_an_exception_only_its_text_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """It would keep alive what its frames hold."""
    log_event(logging.getLogger("test_logs"), "refused", level=logging.WARNING, reason=ValueError("no UID"))
    (record,) = caplog.records
    assert vars(record)["facts"] == {"reason": "no UID"}
