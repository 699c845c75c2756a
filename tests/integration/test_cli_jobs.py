"""`knowmvg jobs`, `db` and `check` on a real database: what they print, change and refuse."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.cli import main
from dicom_node.clock import utc_now
from dicom_node.instance import read_instance
from dicom_node.queries import (
    SCHEMA_REVISION,
    Arrival,
    claim,
    close_job,
    end_job,
    make_engine,
    make_sessions,
    record_instance,
)
from dicom_node.storage import StoredFile
from dicom_node.study import Complete
from tests.builders import encode, make_cxr_dataset, make_report_dataset

Run = Callable[..., tuple[int, str, str]]

SUMMARY_KEYS = {
    *("job_id", "study_instance_uid", "revision", "state", "outcome", "failure", "attempts"),
    *("created_at", "updated_at"),
}
DETAIL_KEYS = {"timeline", "timings", "instances", "report", "findings", "results", "deliveries"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in an empty folder; return its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the commands that stay set up logging for themselves

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowmvg", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return _run


@pytest.fixture
def sessions(run: Run, tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    """The job database with a study that is RECEIVING (job 1), and one that FAILED (job 2)."""
    assert run("db", "upgrade")[0] == 0
    engine = make_engine(f"sqlite:///{tmp_path}/var/knowmvg.db")
    sessions = make_sessions(engine)
    now = utc_now()
    for study in ("early", "broken"):
        image = make_cxr_dataset(study=study)
        for ds in (image, make_report_dataset(study=study, image=image)):
            stored = StoredFile(f"key/{ds.SOPInstanceUID}", "0" * 64, 1)
            with sessions.begin() as session:
                record_instance(session, Arrival(read_instance(encode(ds)), stored, "PACS", now), timedelta(seconds=5))
    with sessions.begin() as session:
        close_job(session, 2, Complete(now), now)
        claim(session, 2, "COMPLETE", "token", now, timedelta(minutes=5))
        assert end_job(session, 2, "token", "FAILED", "the model is missing; see model.path", now)
    yield sessions
    engine.dispose()


@pytest.fixture
def read_json(run: Run, sessions: sessionmaker[Session]) -> Callable[..., Any]:
    """Run a command with --json and return its document."""

    def _read(*arguments: str) -> Any:
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return _read


def test_jobs_are_listed_the_latest_first(read_json: Callable[..., Any]) -> None:
    jobs = read_json("jobs", "list")
    assert [(job["job_id"], job["state"], job["outcome"]) for job in jobs] == [
        (2, "FAILED", "FAILED"),
        (1, "RECEIVING", None),
    ]
    assert all(set(job) >= SUMMARY_KEYS for job in jobs)
    assert read_json("jobs") == jobs


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ("--state FAILED", [2]),
        ("--state failed", [2]),
        ("--state DELIVERED", []),
        ("--patient PID-early", [1]),
        ("--accession ACC-broken", [2]),
        ("--study 1.2.3", []),
        ("--since 1h", [2, 1]),
        ("--since 2999-01-01", []),
        ("--limit 1", [2]),
        ("--patient PID-early --state FAILED", []),
    ],
)
def test_jobs_are_filtered(read_json: Callable[..., Any], arguments: str, ids: list[int]) -> None:
    assert [job["job_id"] for job in read_json("jobs", *arguments.split())] == ids


def test_the_table_of_jobs_holds_one_whole_line_per_job(run: Run, sessions: sessionmaker[Session]) -> None:
    status, out, err = run("jobs")
    assert (status, err) == (0, "")
    head, failed, early = out.splitlines()
    assert head.split()[:6] == ["JOB", "STATE", "OUTCOME", "REV", "TRIES", "PRIORITY"]
    assert make_cxr_dataset(study="broken").StudyInstanceUID in failed
    assert "the model is missing; see model.path" in failed
    assert early.split()[:6] == ["1", "RECEIVING", "-", "1", "0", "ROUTINE"]


def test_no_jobs_is_no_error(run: Run) -> None:
    run("db", "upgrade")
    assert run("jobs") == (0, "", "No jobs.\n")
    assert run("jobs", "--json") == (0, "[]\n", "")


def test_a_job_is_shown_in_full(run: Run, read_json: Callable[..., Any]) -> None:
    shown = read_json("jobs", "show", "2")
    assert set(shown) >= SUMMARY_KEYS | DETAIL_KEYS
    assert {"at", "event", "detail"} == set(shown["timeline"][0])
    assert len(shown["instances"]) == 2
    assert shown["priority"] == "ROUTINE"
    status, out, _ = run("jobs", "show", "2")
    assert status == 0
    assert out.startswith("Job 2: FAILED (FAILED)\nWhy: the model is missing; see model.path\n")
    assert "Timeline" in out
    for event in shown["timeline"]:
        assert event["event"] in out


def test_a_failed_job_is_retried_and_a_job_under_way_cancelled(run: Run, read_json: Callable[..., Any]) -> None:
    assert run("jobs", "retry", "2")[:2] == (0, "job 2 will be tried again\n")
    assert run("jobs", "cancel", "1")[:2] == (0, "job 1 cancelled\n")
    assert [(job["job_id"], job["state"]) for job in read_json("jobs")] == [(2, "COMPLETE"), (1, "CANCELLED")]


def test_what_cannot_be_done_is_said_and_the_rest_is_done(run: Run, read_json: Callable[..., Any]) -> None:
    status, out, err = run("jobs", "retry", "999", "1", "2")
    assert status == 1
    assert out == "job 2 will be tried again\n"
    assert "there is no job 999" in err
    assert "job 1 is under way" in err
    status, out, err = run("jobs", "show", "999")
    assert (status, out) == (1, "")
    assert "there is no job 999" in err


def test_without_a_database_no_command_makes_one(run: Run, tmp_path: Path) -> None:
    for command in ("jobs", "jobs show 1", "jobs retry 1", "db current"):
        status, out, err = run(*command.split())
        assert (status, out) == (1, "")
        assert "`knowmvg db upgrade` makes it" in err
    assert not (tmp_path / "var").exists()


def test_an_old_schema_is_refused_with_the_command_to_run(run: Run, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    for command in ("jobs", "receiver", "worker", "scheduler", "console", "db current"):
        status, _, err = run(*command.split())
        assert status == 1, command
        assert "knowmvg db upgrade" in err


def test_the_schema_is_upgraded_once_and_named(run: Run) -> None:
    for _ in range(2):
        status, out, err = run("db", "upgrade")
        assert (status, out) == (0, "")
        assert "newest schema" in err
    assert run("db", "current")[:2] == (0, f"{SCHEMA_REVISION}\n")


def test_a_file_that_is_no_database_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "knowmvg.db").write_text("this is no database, but a text that is long enough to be read")
    for command in ("jobs", "db upgrade", "db current"):
        status, out, err = run(*command.split())
        assert (status, out) == (1, "")
        assert "knowmvg.db cannot be used: file is not a database; see database.url" in err
