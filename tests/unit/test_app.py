"""What Celery is told for each kind of broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.config import Settings, load_settings
from workers.app import QUEUES, REDIS_OPTIONS, make_app, make_queues
from workers.resources import LEASE
from workers.steps import STEPS
from workers.tasks import TASK_QUEUES


def make_settings(folder: Path, url: str) -> Settings:
    path = folder / "config.yaml"
    path.write_text(f"broker: {{url: '{url}'}}\n")
    return load_settings(path, {})


@pytest.mark.parametrize("url", ["embedded", "redis://127.0.0.1:1/0", "amqp://guest@127.0.0.1:1//"])
def test_no_results_one_task_at_a_time_and_no_remote_control(tmp_path: Path, url: str) -> None:
    conf = make_app(make_settings(tmp_path, url)).conf
    assert conf.result_backend is None
    assert conf.task_ignore_result
    assert (conf.worker_pool, conf.worker_prefetch_multiplier) == ("solo", 1)
    assert not conf.worker_enable_remote_control
    assert conf.accept_content == ["json"]
    assert [queue.name for queue in conf.task_queues] == list(QUEUES)


def test_rabbitmq_gets_quorum_queues() -> None:
    assert all(queue.queue_arguments["x-queue-type"] == "quorum" for queue in make_queues("amqps"))
    assert all(queue.queue_arguments is None for queue in make_queues("redis"))


def test_embedded_broker_keeps_its_file_in_the_data_folder(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "embedded")
    assert make_app(settings).conf.broker_transport_options == {"path": str(settings.node.data_dir / "broker.db")}


def test_every_step_has_a_queue_that_exists() -> None:
    assert set(TASK_QUEUES.values()) == {step.queue for step in STEPS} == set(QUEUES)


def test_redis_delivers_nothing_again_while_a_step_may_still_run() -> None:
    assert REDIS_OPTIONS["visibility_timeout"] > LEASE.total_seconds()
