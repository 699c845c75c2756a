"""The steps as Celery sees them, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import text

from tests.builders import make_cxr_dataset, make_report_dataset
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.app import make_app
from workers.resources import RING_SOON
from workers.scheduler import SOON_S, SWEEP_S, pause_s, sweep
from workers.steps import STEPS
from workers.tasks import add_tasks


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, make_sqlite_sessions(tmp_path), [])


@pytest.fixture
def app(rig: Rig) -> Celery:
    app = make_app(rig.settings)
    add_tasks(app, rig.resources)
    return app


def store_study(rig: Rig, study: str = "1") -> int:
    image = make_cxr_dataset(study=study)
    rig.store(image)
    job_id = rig.store(make_report_dataset(study=study, image=image)).job_id
    assert job_id is not None
    return job_id


def test_there_is_a_task_for_every_step(app: Celery) -> None:
    assert {step.name for step in STEPS} <= set(app.tasks)


def test_task_runs_its_step(rig: Rig, app: Celery) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    app.tasks["ground"](job_id)
    assert rig.job(job_id)["state"] == "GROUNDED"


def test_database_that_is_away_is_logged_in_one_line(rig: Rig, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    with rig.sessions.begin() as session:
        session.execute(text("ALTER TABLE jobs RENAME TO gone"))
    app.tasks["ground"](1)
    assert caplog.messages == ["database unavailable"]


def test_bug_fails_the_task(rig: Rig, app: Celery) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.grounder.error = ZeroDivisionError("a bug")
    task: Callable[[int], None] = app.tasks["ground"]
    with pytest.raises(ZeroDivisionError):
        task(job_id)
    assert rig.job(job_id)["attempts"] == 1


def test_sweep_rings_once_in_vain_and_again_soon_where_the_broker_takes_nothing(rig: Rig) -> None:
    """Each ring waits for seconds: one in vain tells that the others would be."""
    jobs = {store_study(rig, f"study {number}") for number in range(3)}
    tried: list[int] = []

    def ring(task: str, number: int) -> bool:
        tried.append(number)
        return False

    rig.clock.move(seconds=QUIET_S)
    sweep(replace(rig.resources, ring=ring))
    assert len(tried) == 1
    rig.sweep(seconds=RING_SOON.total_seconds())
    assert {number for task, number in rig.rings if task == "ground"} == jobs


def test_the_next_sweep_comes_when_a_quiet_period_ends(rig: Rig) -> None:
    """A study does not wait for the second to be over."""
    assert pause_s(rig.resources) == SWEEP_S
    rig.store(make_cxr_dataset())
    rig.clock.move(seconds=QUIET_S - 0.4)
    assert pause_s(rig.resources) == pytest.approx(0.4)
    rig.clock.move(seconds=0.39)
    assert pause_s(rig.resources) == SOON_S
    rig.clock.move(seconds=10)
    assert pause_s(rig.resources) == SWEEP_S
