"""What administrators are told: over real loopback servers, seldom enough, once, and nothing about a patient."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from sqlalchemy import select
from typer.testing import CliRunner

from dicom_node import queries
from dicom_node.channels import ChannelError, make_channels, make_test
from dicom_node.cli import app
from dicom_node.cli.checks import check_channels
from dicom_node.clock import utc_now
from dicom_node.config import load_settings, masked
from dicom_node.errors import SettingsError
from dicom_node.watch_tables import MessageRow, NotificationRow
from grounding.types import OutOfMemoryError
from tests.acceptance.peers import free_port
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.certificates import Authority
from tests.fakes import FakePacs
from tests.hooks import Hook
from tests.rig import Rig, make_sqlite_sessions
from workers.notifying import LEASE, PATIENCE, Notifier
from workers.watching import Watch, forget_told, look_after_rows, look_at_disk

SECRET, PASSWORD = "a shared secret", "a password"


class Mailbox:
    """What a mail server was given."""

    def __init__(self) -> None:
        self.letters: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


def make_rig(folder: Path, pacs: FakePacs, *hooks: Hook, **notifications: Any) -> Rig:
    (folder / "secret").write_text(f"{SECRET}\n")
    webhooks = [
        {"name": f"chat{number}", "url": hook.url, "secret_file": str(folder / "secret"), "timeout_s": 5}
        for number, hook in enumerate(hooks)
    ]
    return Rig(
        folder, make_sqlite_sessions(folder), [pacs], notifications={"webhooks": webhooks} | notifications,
        receiver={"min_free_bytes": 0}, console={"public_url": "https://node.example/"},
    )  # fmt: skip


def store_study(rig: Rig, study: str = "1") -> int:
    image = make_cxr_dataset(study=study)
    rig.store(image)
    job_id = rig.store(make_report_dataset(study=study, image=image)).job_id
    assert job_id is not None
    return job_id


def tell(rig: Rig) -> int:
    """Gather and send as the scheduler does, on every channel."""
    look_after_rows(rig.resources)
    return sum(Notifier(rig.resources, channel).send_due() for channel in make_channels(rig.settings))


def fail_deliveries(rig: Rig, pacs: FakePacs, *studies: str) -> None:
    """Have studies end as dead letters."""
    pacs.status = 0xA900
    for study in studies:
        store_study(rig, study)
    rig.settle(seconds=6)
    rig.settle()


def rows(rig: Rig, table: Any) -> list[Any]:
    with rig.sessions() as session:
        return list(session.scalars(select(table).order_by(table.id)))


# ---- what is told, and how often -------------------------------------------------------------------------------------


def test_dead_letters_are_told_once_signed_and_without_a_patient(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    fail_deliveries(rig, pacs, "one")
    assert (tell(rig), tell(rig)) == (1, 0)
    (headers, body), (document,) = hook.posts[0], hook.documents
    expected = hmac.new(SECRET.encode(), f"{headers['x-knowmvg-timestamp']}.".encode() + body, hashlib.sha256)
    assert headers["x-knowmvg-signature"] == f"sha256={expected.hexdigest()}"
    assert (document["kind"], document["subject"], document["count"], document["jobs"]) == (
        "dead letter", "archive0", 1, [1],
    )  # fmt: skip
    assert document["link"] == "https://node.example/jobs/1"
    told = body.decode() + json.dumps(headers)
    ds = make_cxr_dataset(study="one")
    for secret in (ds.PatientID, str(ds.PatientName), ds.AccessionNumber, ds.StudyInstanceUID, ds.SOPInstanceUID):
        assert secret and secret not in told


def test_the_same_is_told_once_an_hour_and_what_came_meanwhile_together(
    tmp_path: Path, pacs: FakePacs, hook: Hook
) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    fail_deliveries(rig, pacs, "one")
    assert tell(rig) == 1
    fail_deliveries(rig, pacs, "two", "three")
    rig.clock.move(minutes=59)
    assert tell(rig) == 0
    rig.clock.move(minutes=1)
    assert tell(rig) == 1
    assert [(one["count"], one["jobs"]) for one in hook.documents] == [(1, [1]), (2, [2, 3])]
    assert "2 times between" in hook.documents[1]["text"]


def test_a_quarantined_job_is_told(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    rig.grounder.error = OutOfMemoryError("too large")
    store_study(rig)
    rig.settle(seconds=6)
    assert rig.job(1)["failure"].startswith("quarantined")
    tell(rig)
    assert [(one["kind"], one["jobs"]) for one in hook.documents] == [("quarantine", [1])]


def test_a_destination_that_is_down_and_answers_again_is_told_once_each(
    tmp_path: Path, pacs: FakePacs, hook: Hook
) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    store_study(rig)
    pacs.stop()
    for _ in range(8):
        rig.settle(seconds=61)
        tell(rig)
    assert [one["kind"] for one in hook.documents] == ["destination down"]
    pacs.start()
    rig.settle(minutes=20)  # the longest pause between two tries
    rig.settle()
    tell(rig)
    assert [one["kind"] for one in hook.documents] == ["destination down", "destination recovered"]


def test_a_destination_that_misses_one_call_is_not_told(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    store_study(rig)
    pacs.stop()
    rig.settle(seconds=6)
    pacs.start()
    rig.settle(seconds=61)
    tell(rig)
    assert rig.job(1)["state"] == "DELIVERED"
    assert hook.posts == []


def test_a_disk_that_is_low_is_told_once_over_restarts_and_that_it_has_space_again(
    tmp_path: Path, pacs: FakePacs, hook: Hook
) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    free = rig.storage.free_bytes()
    low = rig.settings.receiver.model_copy(update={"min_free_bytes": free})
    resources = replace(rig.resources, settings=rig.settings.model_copy(update={"receiver": low}))
    for _ in range(3):
        look_at_disk(resources)  # each as a scheduler that has just started
    look_at_disk(rig.resources)
    look_at_disk(rig.resources)
    tell(rig)
    assert [(one["kind"], one["count"]) for one in hook.documents] == [("disk low", 1), ("disk recovered", 1)]


def test_without_channels_nothing_waits_for_anybody(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    fail_deliveries(rig, pacs, "one", "two")
    look_after_rows(rig.resources)
    assert all(one.told_at for one in rows(rig, NotificationRow)) and len(rows(rig, NotificationRow)) == 2
    assert rows(rig, MessageRow) == []


def test_what_was_told_is_removed_after_a_while(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    fail_deliveries(rig, pacs, "one")
    tell(rig)
    rig.clock.move(days=89)
    forget_told(rig.resources)
    assert len(rows(rig, NotificationRow)) == 1
    rig.clock.move(days=2)
    forget_told(rig.resources)
    assert (rows(rig, NotificationRow), rows(rig, MessageRow)) == ([], [])


# ---- channels that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 403, 302])
def test_a_channel_that_refuses_is_tried_again_and_holds_no_other(
    tmp_path: Path, pacs: FakePacs, hook: Hook, status: int
) -> None:
    other = Hook()
    rig = make_rig(tmp_path, pacs, hook, other)
    hook.status = status
    fail_deliveries(rig, pacs, "one")
    assert tell(rig) == 1
    assert (len(hook.posts), len(other.posts)) == (1, 1)
    assert [one.failure for one in rows(rig, MessageRow)] == [f"answered HTTP {status}", None]
    hook.status = 200
    assert tell(rig) == 0  # not yet
    rig.clock.move(seconds=5)
    assert (tell(rig), tell(rig)) == (1, 0)
    assert len({one["id"] for one in hook.documents}) == 1
    other.close()


def test_a_channel_that_is_away_for_days_loses_its_message_at_last(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    hook.close()
    fail_deliveries(rig, pacs, "one")
    tell(rig)
    assert [one.state for one in rows(rig, MessageRow)] == ["PENDING"]
    rig.clock.move(seconds=PATIENCE.total_seconds())
    tell(rig)
    assert [(one.state, "nobody takes it" in one.failure) for one in rows(rig, MessageRow)] == [("DEAD", True)]


def test_a_sender_that_dies_loses_nothing_and_two_send_each_message_once(
    tmp_path: Path, pacs: FakePacs, hook: Hook
) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    fail_deliveries(rig, pacs, "one")
    look_after_rows(rig.resources)
    now = rig.clock()
    with rig.sessions.begin() as session:  # one that claims, and is killed
        assert len(queries.claim_messages(session, "webhook chat0", now, now + LEASE, 10)) == 1
    assert tell(rig) == 0
    rig.clock.move(seconds=LEASE.total_seconds())
    senders = [Notifier(rig.resources, make_channels(rig.settings)[0]) for _ in range(4)]
    threads = [threading.Thread(target=sender.send_due) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hook.posts) == 1
    assert [one.state for one in rows(rig, MessageRow)] == ["SENT"]


def test_a_secret_that_is_missing_is_said_and_nothing_goes_out_unsigned(
    tmp_path: Path, pacs: FakePacs, hook: Hook
) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    (tmp_path / "secret").unlink()
    fail_deliveries(rig, pacs, "one")
    assert tell(rig) == 0
    assert hook.posts == []
    assert "secret" in rows(rig, MessageRow)[0].failure


def test_the_sweep_does_not_wait_for_a_channel(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    stop, entered = threading.Event(), threading.Event()

    class Stuck:
        name = "webhook chat0"

        def send(self, letter: object) -> None:
            entered.set()
            stop.wait(30)
            raise ChannelError("it hung")

        def check(self, letter: object) -> str:
            return ""

    fail_deliveries(rig, pacs, "one")
    look_after_rows(rig.resources)
    thread = threading.Thread(target=Watch(Notifier(rig.resources, Stuck()).send_due, 60).run, args=(stop,))
    thread.start()
    assert entered.wait(10)
    pacs.status = 0x0000
    store_study(rig, "two")
    rig.settle(seconds=6)
    rig.settle()
    assert rig.job(2)["state"] == "DELIVERED"
    stop.set()
    thread.join()
    assert [one.failure for one in rows(rig, MessageRow)] == ["it hung"]


# ---- e-mail ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["starttls", "tls", "none"])
def mail(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Mailbox, dict[str, Any]]]:
    """A mail server that lets `node` in, and the settings towards it."""
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("mail")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    box, security = Mailbox(), request.param

    def admit(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"node", PASSWORD.encode()))

    options: dict[str, Any] = {"authenticator": admit, "auth_required": True} if security != "none" else {}
    if security == "tls":
        options = {"authenticator": admit, "ssl_context": context, "auth_require_tls": False}
    if security == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    controller = Controller(box, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    (tmp_path / "password").write_text(PASSWORD)
    user = {"user": "node", "password_file": str(tmp_path / "password")} if security != "none" else {}
    yield box, {
        "host": "127.0.0.1", "port": controller.port, "security": security, "ca": str(authority.ca),
        "sender": "node@hospital.example", "recipients": ["a@hospital.example", "b@hospital.example"], **user,
    }  # fmt: skip
    controller.stop()


def test_a_letter_comes_by_e_mail(tmp_path: Path, pacs: FakePacs, mail: tuple[Mailbox, dict[str, Any]]) -> None:
    box, settings = mail
    rig = make_rig(tmp_path, pacs, email=settings)
    fail_deliveries(rig, pacs, "one")
    assert (tell(rig), tell(rig)) == (1, 0)
    (letter,) = box.letters
    assert letter["Subject"] == "KnowMVG Node KNOWMVG: 1 given up: deliveries to archive0"
    assert (letter["From"], letter["To"]) == ("node@hospital.example", "a@hospital.example, b@hospital.example")
    assert letter["Message-ID"].endswith("@knowmvg>")
    assert "https://node.example/jobs/1" in letter.get_content()
    assert make_cxr_dataset(study="one").PatientID not in letter.as_string()
    assert [one.ok for one in check_channels(rig.settings)] == [True]
    assert len(box.letters) == 1  # a check sends nothing


def test_a_mail_server_that_is_not_trusted_or_does_not_trust_gets_nothing(
    tmp_path: Path, pacs: FakePacs, mail: tuple[Mailbox, dict[str, Any]]
) -> None:
    box, settings = mail
    if settings["security"] == "none":
        return
    (tmp_path / "wrong").write_text("another password")
    other = Authority(tmp_path / "other", "other")
    for change in ({"password_file": str(tmp_path / "wrong")}, {"ca": str(other.ca)}):
        rig = make_rig(tmp_path, pacs, email=settings | change)
        (channel,) = make_channels(rig.settings)
        with pytest.raises(ChannelError) as raised:
            channel.send(make_test(utc_now(), rig.settings))
        assert PASSWORD not in str(raised.value)
    assert box.letters == []


# ---- command line, configuration -------------------------------------------------------------------------------------


def test_the_channels_are_tried_from_the_command_line(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    make_rig(tmp_path, pacs, hook)
    command = ["notify", "test", "--config", str(tmp_path / "config.yaml")]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.output) == (0, "ok    webhook chat0    took a test message\n")
    assert hook.documents[0]["kind"] == "test"
    hook.status = 500
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "answered HTTP 500" in done.output) == (1, True)


def test_where_no_channel_is_configured_that_is_said(tmp_path: Path, pacs: FakePacs) -> None:
    make_rig(tmp_path, pacs)
    done = CliRunner().invoke(app, ["notify", "test", "--config", str(tmp_path / "config.yaml")])
    assert "no channel is configured" in str(done.exception)


def test_the_address_of_a_webhook_is_masked(tmp_path: Path, pacs: FakePacs, hook: Hook) -> None:
    rig = make_rig(tmp_path, pacs, hook)
    assert "hidden" not in json.dumps(masked(rig.settings))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"webhooks": [{"name": "a", "url": "ftp://x/"}]}, "https://host/path"),
        ({"webhooks": [{"name": "a", "url": "http://x/"}, {"name": "a", "url": "http://y/"}]}, "same name"),
        ({"email": {"host": "x", "sender": "a@b", "recipients": []}}, "recipients"),
        ({"email": {"host": "x", "sender": "a@b\nBcc: c@d", "recipients": ["a@b"]}}, "mail address"),
        ({"email": {"host": "x", "sender": "a@b", "recipients": ["a@b"], "user": "u", "security": "none"}}, "in clear"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"notifications": section}))
    with pytest.raises(SettingsError, match=said):
        load_settings(path, {})
