"""The API of the console: the command line's JSON, its changes by the same functions, and nothing beyond a role."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dicom_node.cli import app
from dicom_node.console import documents
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.console import Console
from tests.fakes import FakePacs
from tests.rig import Rig, make_sqlite_sessions


class Node:
    """A node with two archives, a console over its rows, and a program for each role."""

    def __init__(self, folder: Path, archives: list[FakePacs]) -> None:
        url = f"sqlite:///{folder}/knowmvg.db"
        peers = [
            {"ae_title": "PACS", "address": "127.0.0.1", "port": archives[0].port},
            {"ae_title": "MUTE", "address": "192.0.2.9"},
        ]
        self.rig = Rig(
            folder, make_sqlite_sessions(folder), archives, database={"url": url}, receiver={"peers": peers},
        )  # fmt: skip
        sections = {name: self.rig.settings.model_dump(mode="json")[name] for name in ("destinations", "receiver")}
        self.console = Console(folder, sections, self.rig.clock)
        self.config = str(folder / "config.yaml")
        roles: tuple[Any, ...] = ("viewer", "operator", "admin")
        self.heads = {role: {"Authorization": f"Bearer {self.console.add_token(role, role)}"} for role in roles}
        self.browser = self.console.browser()

    def store_study(self, study: str) -> int:
        image = make_cxr_dataset(study=study)
        self.rig.store(image)
        job_id = self.rig.store(make_report_dataset(study=study, image=image)).job_id
        assert job_id is not None
        return job_id

    def deliver_study(self, study: str = "1") -> int:
        job_id = self.store_study(study)
        self.rig.settle(seconds=6)
        assert self.rig.job(job_id)["state"] == "DELIVERED"
        return job_id

    def get(self, path: str, role: str = "viewer") -> Any:
        answer = self.browser.get(f"/api/v1/{path}", headers=self.heads[role])
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, role: str = "operator") -> tuple[int, Any]:
        answer = self.browser.post(f"/api/v1/{path}", json=body, headers=self.heads[role])
        return answer.status_code, answer.json()

    def run(self, *arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json", "--config", self.config])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@pytest.fixture
def archives() -> Iterator[list[FakePacs]]:
    with FakePacs("ONE") as one, FakePacs("TWO") as two:
        yield [one, two]


@pytest.fixture
def node(tmp_path: Path, archives: list[FakePacs]) -> Iterator[Node]:
    node = Node(tmp_path, archives)
    yield node
    node.console.close()


def test_it_answers_what_the_command_line_prints(node: Node, archives: list[FakePacs]) -> None:
    delivered = node.deliver_study("1")
    archives[1].status = 0xC000
    failed = node.store_study("2")
    node.rig.settle(seconds=6)
    waiting = node.rig.store(make_cxr_dataset(study="3")).job_id
    assert len(node.get("jobs")) == 3
    for query, options in (
        ("", []), ("?state=FAILED", ["--state", "FAILED"]), ("?patient=PID-1", ["--patient", "PID-1"]),
        ("?limit=1", ["--limit", "1"]), ("?accession=ACC-2", ["--accession", "ACC-2"]),
        ("?since=2026-01-02T12:00:07%2B00:00", ["--since", "2026-01-02T12:00:07+00:00"]),
    ):  # fmt: skip
        assert node.get(f"jobs{query}") == node.run("jobs", "list", *options), query
    for job_id in (delivered, failed, waiting):
        shown = node.get(f"jobs/{job_id}")
        assert shown == node.run("jobs", "show", str(job_id))
        documents.JobInFull.model_validate(shown)
    assert node.get(f"jobs/{delivered}")["findings"]
    assert node.get("deliveries") == node.run("deliveries", "list")
    for state in ("DEAD", "DELIVERED"):
        assert node.get(f"deliveries?state={state}&destination=archive1") == node.run(
            "deliveries", "list", "--state", state, "--destination", "archive1"
        )
    audited = node.run("audit", "--limit", "1000")
    assert node.get("audit?limit=1000", "admin")[1:] == audited


def test_results_are_sent_again_to_one_archive_or_to_all(node: Node, archives: list[FakePacs]) -> None:
    job_id = node.deliver_study()
    before = [sum(archive.stores.values()) for archive in archives]
    status, job = node.post(f"jobs/{job_id}/resend", {"destination": "archive1"})
    assert (status, job["state"]) == (200, "WRITTEN")
    node.rig.settle(seconds=1)
    assert [sum(archive.stores.values()) for archive in archives] == [before[0], 2 * before[1]]
    assert node.rig.job(job_id)["state"] == "DELIVERED"
    assert node.post(f"jobs/{job_id}/resend")[0] == 200
    node.rig.settle(seconds=1)
    assert [sum(archive.stores.values()) for archive in archives] == [2 * before[0], 3 * before[1]]
    job = node.rig.job(job_id)
    assert (job["state"], job["outcome"], len(archives[0].datasets)) == ("DELIVERED", "RESULT", before[0])
    events = [event["event"] for event in job["timeline"]]
    assert events.count("results sent again") == 2


def test_what_cannot_be_sent_again_is_said(node: Node, archives: list[FakePacs]) -> None:
    waiting = node.rig.store(make_cxr_dataset(study="2")).job_id
    assert node.post(f"jobs/{waiting}/resend")[0] == 409
    job_id = node.deliver_study()
    status, said = node.post(f"jobs/{job_id}/resend", {"destination": "nowhere"})
    assert (status, "archive0, archive1" in said["error"]) == (409, True)
    assert node.post("jobs/99/resend")[0] == 404
    node.post(f"jobs/{waiting}/cancel")
    status, said = node.post(f"jobs/{waiting}/resend")
    assert (status, "no results" in said["error"]) == (409, True)


def test_a_dead_letter_elsewhere_stays_dead_when_one_archive_is_sent_to_again(
    node: Node, archives: list[FakePacs]
) -> None:
    archives[1].status = 0xC000
    job_id = node.store_study("1")
    node.rig.settle(seconds=6)
    assert node.rig.job(job_id)["state"] == "FAILED"
    assert node.post(f"jobs/{job_id}/resend", {"destination": "archive0"})[0] == 200
    node.rig.settle(seconds=1)
    job = node.rig.job(job_id)
    assert {one["destination"]: one["state"] for one in job["dispatches"]} == {
        "archive0": "DELIVERED",
        "archive1": "DEAD",
    }
    assert (job["state"], "archive1" in job["failure"] or bool(job["failure"])) == ("FAILED", True)


def test_a_study_is_grounded_anew_and_replaces_its_results(node: Node, archives: list[FakePacs]) -> None:
    job_id = node.deliver_study()
    old = node.rig.job(job_id)
    node.rig.grounder.corner = 0.25
    status, job = node.post(f"jobs/{job_id}/reground")
    assert (status, job["revision"], job["state"], job["study_instance_uid"]) == (
        200, 2, "RECEIVING", old["study_instance_uid"],
    )  # fmt: skip
    assert node.post(f"jobs/{job_id}/retry")[0] == 409
    assert node.post(f"jobs/{job['job_id']}/reground")[0] == 409
    node.rig.settle(seconds=0)
    new = node.rig.job(job["job_id"])
    assert (new["state"], new["outcome"]) == ("DELIVERED", "RESULT")
    assert new["findings"][0]["boxes"] != old["findings"][0]["boxes"]
    for key in ("instances", "report"):
        assert _uids(new[key]) == _uids(old[key])
    sent = [archives[0].datasets.get(uid) for uid in _uids([one for one in new["results"] if one["part"] == "sr"])]
    srs = _uids([one for one in old["results"] if one["part"] == "sr"])
    sent = [ds for ds in sent if ds is not None]
    assert sent[0]
    (replaced,) = sent[0].PredecessorDocumentsSequence
    named = replaced.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named in srs
    assert node.rig.job(job_id)["state"] == "DELIVERED"


def _uids(documents: Any) -> set[str]:
    documents = documents if isinstance(documents, list) else [documents]
    return {one["sop_instance_uid"] for one in documents}


def test_with_the_same_model_the_results_are_new_objects_all_the_same(node: Node, archives: list[FakePacs]) -> None:
    job_id = node.deliver_study()
    assert node.post(f"jobs/{job_id}/reground")[0] == 200
    node.rig.settle(seconds=0)
    first, second = (node.rig.job(number) for number in (job_id, job_id + 1))
    assert second["state"] == "DELIVERED"
    uids = [{result["sop_instance_uid"] for result in job["results"]} for job in (first, second)]
    assert uids[0].isdisjoint(uids[1])
    assert len(uids[1]) == len(uids[0])


def test_a_study_without_bytes_is_not_grounded_anew(node: Node) -> None:
    job_id = node.deliver_study()
    with node.rig.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE instances SET removed_at = received_at")
    status, said = node.post(f"jobs/{job_id}/reground")
    assert (status, "retention.inputs_days" in said["error"]) == (409, True)


def test_jobs_are_retried_and_cancelled_one_by_one_and_many(node: Node, archives: list[FakePacs]) -> None:
    waiting = [node.store_study(str(number)) for number in range(3)]
    assert node.post(f"jobs/{waiting[0]}/cancel")[1]["state"] == "CANCELLED"
    assert node.post(f"jobs/{waiting[0]}/cancel")[0] == 409
    status, done = node.post("jobs/cancel", {"ids": [*waiting, waiting[1], 99]})
    assert (status, done["changed"]) == (200, waiting[1:])
    assert [one["id"] for one in done["refused"]] == [waiting[0], 99]
    assert node.post(f"jobs/{waiting[0]}/retry")[1]["state"] == "COMPLETE"
    assert node.post("jobs/retry", {"ids": waiting})[1]["changed"] == waiting[1:]
    node.rig.settle(seconds=1)
    assert {job["state"] for job in node.get("jobs")} == {"DELIVERED"}
    reasons = [entry.event.reason for entry in node.console.events("study changed")]
    assert reasons.count(f"cancelled job {waiting[1]}") == 1
    assert {entry.event.actor for entry in node.console.events("study changed")} == {"token operator"}
    assert {entry.process for entry in node.console.events("study changed")} == {"console"}


def test_dead_letters_are_replayed(node: Node, archives: list[FakePacs]) -> None:
    archives[1].status = 0xC000
    node.store_study("1")
    node.store_study("2")
    node.rig.settle(seconds=6)
    dead = [one["dispatch_id"] for one in node.get("deliveries?state=DEAD")]
    alive = [one["dispatch_id"] for one in node.get("deliveries?state=DELIVERED")]
    archives[1].status = 0x0000
    assert node.post(f"deliveries/{alive[0]}/replay")[0] == 409
    assert node.post("deliveries/999/replay")[0] == 404
    status, delivery = node.post(f"deliveries/{dead[0]}/replay")
    assert (status, delivery["state"], delivery["destination"]) == (200, "PENDING", "archive1")
    assert node.post("deliveries/replay", {"ids": dead})[1]["changed"] == dead[1:]
    node.rig.settle(seconds=1)
    assert node.get("deliveries?state=DEAD") == []


def test_archives_and_senders_are_listed_and_asked(node: Node, archives: list[FakePacs]) -> None:
    node.deliver_study()
    one, _ = node.get("destinations")
    assert (one["name"], one["ae_title"], one["failures"], one["dead"]) == ("archive0", "ONE", 0, 0)
    assert one["last_contact_at"]
    assert node.post("destinations/archive0/echo") == (
        200, {"ok": True, "detail": f"ONE at 127.0.0.1:{archives[0].port} answers C-ECHO"},
    )  # fmt: skip
    archives[1].stop()
    assert node.post("destinations/archive1/echo")[1]["ok"] is False
    assert node.post("destinations/nowhere/echo")[0] == 404
    assert [peer["ae_title"] for peer in node.get("peers")] == ["PACS", "MUTE"]
    assert node.post("peers/MUTE/echo")[0] == 409
    assert node.post("peers/NOBODY/echo")[0] == 404
    assert node.post("peers/PACS/echo")[1]["ok"] is False  # called by a title that is not the archive's


def test_the_configuration_is_shown_without_secrets(tmp_path: Path) -> None:
    hooks = {"webhooks": [{"name": "chat", "url": "https://chat.example/a-secret-path"}]}
    console = Console(tmp_path, {"broker": {"url": "amqp://node:a-secret@queue.example"}, "notifications": hooks})
    head = {"Authorization": f"Bearer {console.add_token('it', 'admin')}"}
    answer = console.browser().get("/api/v1/configuration", headers=head)
    assert answer.json()["broker"]["url"] == "amqp://node:********@queue.example"
    assert "a-secret" not in answer.text
    console.close()


def test_who_reads_the_audit_trail_is_in_it(node: Node) -> None:
    node.deliver_study()
    first, *_ = node.get("audit", "admin")
    assert (first["kind"], first["actor"]) == ("audit trail read", "token admin")
    kinds = {entry["kind"] for entry in node.get("audit?kind=results%20exported", "admin")}
    assert kinds == {"results exported"}


def test_a_script_of_our_pages_sends_what_it_was_told(node: Node) -> None:
    node.console.add_user("anna", "operator")
    browser = node.console.sign_in("anna")
    job_id = node.store_study("1")
    me = browser.get("/api/v1/me").json()
    assert (me["name"], me["role"]) == ("anna", "operator")
    url = f"/api/v1/jobs/{job_id}/cancel"
    assert browser.post(url).status_code == 403
    assert browser.post(url, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
    own = {"X-CSRF-Token": me["csrf"]}
    assert browser.post(url, headers=own | {"Origin": "https://evil.example"}).status_code == 403
    assert browser.post(url, headers=own).status_code == 200
    assert node.console.events("study changed")[0].event.actor == "anna"


def test_the_command_line_sends_again_and_grounds_anew(node: Node) -> None:
    job_id = str(node.deliver_study())

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["jobs", *arguments, "--config", node.config])
        return done.exit_code, done.stdout or str(done.exception)

    assert run("resend", job_id, "--destination", "archive1") == (0, f"job {job_id} will be sent again to archive1\n")
    assert run("resend", job_id)[0] == 1  # under way
    assert "there is no destination nowhere" in run("resend", job_id, "--destination", "nowhere")[1]
    assert node.rig.job(int(job_id))["state"] == "WRITTEN"
    run("cancel", job_id)
    assert run("reground", job_id) == (0, f"the study of job {job_id} will be grounded anew\n")
    assert node.rig.job(int(job_id) + 1)["revision"] == 2
    reasons = [entry.event.reason for entry in reversed(node.console.events("study changed"))]
    assert reasons == [f"resent job {job_id} to archive1", f"cancelled job {job_id}", f"regrounded job {job_id}"]


def test_no_secret_and_no_patient_is_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    job_id = node.deliver_study()
    caplog.set_level("DEBUG")
    node.get("jobs?patient=PID-1&accession=ACC-1")
    node.get(f"jobs/{job_id}")
    node.post(f"jobs/{job_id}/retry")
    node.console.sign_in("PID-1", "a password of somebody")
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    for word in ("PID-1", "ACC-1", "a password", "knowmvg_"):
        assert word not in ours


def test_a_body_that_is_missing_is_asked_for(node: Node) -> None:
    status, answer = node.post("deliveries/replay")
    assert status == 400
    assert answer["error"].startswith("the body of the request: ")
