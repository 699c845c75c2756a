"""The commands that keep running: the whole node (`up`), and its parts as separate processes."""

from __future__ import annotations

import gc
import signal
import threading
from typing import Annotated

import typer

from dicom_node.cli.options import ConfigOption, begin, open_sessions
from dicom_node.clock import utc_now
from dicom_node.decoders import keep_decoders_out
from dicom_node.errors import NodeError

QUEUES = ("gpu", "io")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (up, receiver, worker, scheduler, console):
        app.command()(command)


def up(config: ConfigOption = None) -> None:
    """Run the whole node; Ctrl-C stops it.

    Receiver, scheduler, workers and console start as processes of this one; the schema is upgraded before.
    """
    settings = begin("node", config)
    from workers.main import run_node

    run_node(settings, config)


def receiver(config: ConfigOption = None) -> None:
    """Run the receiver: Storage SCP and C-ECHO."""
    keep_decoders_out()
    settings = begin("receiver", config)
    from dicom_node.objects import open_storage
    from dicom_node.queries import note_process
    from dicom_node.recorder import Recorder
    from dicom_node.reporting import Reporter, reporting
    from dicom_node.scp import start_receiver
    from workers.supervisor import mark_ready

    sessions = open_sessions(settings)
    stop = stop_event()
    recorder = Recorder.of(settings)
    try:
        server = start_receiver(settings, sessions, open_storage(settings), utc_now, recorder)
    except OSError as error:
        raise NodeError(_cannot_listen("receiver", settings.receiver.host, settings.receiver.port, error)) from error
    gc.collect()
    gc.freeze()  # pynetdicom collects every few seconds: without this for as long as fifty instances take
    mark_ready(settings)
    note_process(sessions, utc_now, "receiver", "application start")
    with reporting(Reporter(recorder, sessions, utc_now, "receiver")):
        stop.wait()
        server.stop()
    note_process(sessions, utc_now, "receiver", "application stop")


def worker(
    config: ConfigOption = None,
    queues: Annotated[str, typer.Option(metavar="gpu,io", help="The queues to serve.")] = ",".join(QUEUES),
) -> None:
    """Run a worker.

    The queue `gpu` grounds studies, `io` writes and delivers results.
    """
    served = parse_queues(queues)
    settings = begin(f"worker-{'-'.join(served)}", config)
    from workers.main import run_worker

    run_worker(settings, served)


def scheduler(config: ConfigOption = None) -> None:
    """Run the scheduler.

    It closes studies that are complete, and rings for jobs that are due.
    """
    settings = begin("scheduler", config)
    from workers.main import run_scheduler

    run_scheduler(settings)


def console(config: ConfigOption = None) -> None:
    """Run the console: HTTP on this host.

    It shows jobs as pages and as JSON, health and metrics.
    """
    settings = begin("console", config)
    from dicom_node.console.server import STOP_S, make_server
    from dicom_node.queries import note_process
    from dicom_node.recorder import Recorder
    from dicom_node.reporting import Reporter, reporting
    from workers.supervisor import mark_ready

    sessions = open_sessions(settings)
    stop = stop_event()
    try:
        server = make_server(settings, sessions, utc_now)
    except OSError as error:
        raise NodeError(_cannot_listen("console", settings.console.host, settings.console.port, error)) from error
    serving = threading.Thread(target=server.serve, name="http", daemon=True)
    serving.start()
    mark_ready(settings)
    note_process(sessions, utc_now, "console", "application start")
    with reporting(Reporter(Recorder(), sessions, utc_now, "console")):
        stop.wait()
    server.stop()
    serving.join(STOP_S + 1)
    server.close()
    note_process(sessions, utc_now, "console", "application stop")


def stop_event() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set; from here on neither ends the process by itself."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def parse_queues(text: str) -> tuple[str, ...]:
    """Return the queues named in `text`; refuses those that nobody rings."""
    queues = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in queues if name not in QUEUES]
    if unknown or not queues:
        raise typer.BadParameter(f"the queues are {' and '.join(QUEUES)}, not {text!r}", param_hint="--queues")
    return queues


def _cannot_listen(what: str, host: str, port: int, error: OSError) -> str:
    reason = error.strerror or error
    return f"the {what} cannot listen on {host}:{port}: {reason}; stop what listens there, or change {what}.port"
