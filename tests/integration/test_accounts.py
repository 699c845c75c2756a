"""Accounts, tries to sign in, and what operators change, on each engine."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.accounts import Origin, SignIn, highest, is_over, wait_after
from dicom_node.config import ConsoleSettings
from dicom_node.errors import NodeError
from dicom_node.queries import (
    ApiToken,
    add_token,
    add_user,
    begin_try,
    change_disabled,
    end_sign_in,
    find_sign_in,
    find_token,
    find_user,
    has_users,
    list_tokens,
    list_users,
    note_seen,
    open_sign_in,
    reground_job,
    remove_user,
    resend_job,
    revoke_token,
    succeed_try,
)
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs, FrozenClock
from tests.rig import Rig

NOW = FrozenClock()()
LONGEST = timedelta(hours=12)


def test_users_are_kept_by_name(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        assert not has_users(session)
        add_user(session, "carl", "viewer", "hash", NOW)
        add_user(session, "anna", "admin", "hash", NOW)
        with pytest.raises(NodeError, match="already"):
            add_user(session, "anna", "viewer", "other", NOW)
    with sessions() as session:
        assert [(user.name, user.role) for user in list_users(session)] == [("anna", "admin"), ("carl", "viewer")]
        assert has_users(session)
        assert find_user(session, "nobody") is None


def test_sign_ins_end_with_their_user_and_old_ones_are_forgotten(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_user(session, "anna", "admin", "hash", NOW)
        signed_in: list[tuple[str, str, Origin, int]] = [
            ("a", "anna", "table", 0), ("b", "anna", "oidc", 0), ("c", "carl", "table", 0), ("d", "carl", "table", 13),
        ]  # fmt: skip
        for token, name, origin, ago in signed_in:
            at = NOW - timedelta(hours=ago)
            open_sign_in(session, token, SignIn(name, "admin", origin, at, at), LONGEST)
        open_sign_in(session, "e", SignIn("carl", "viewer", "table", NOW, NOW), LONGEST)
        note_seen(session, "e", NOW + timedelta(minutes=5))
    with sessions.begin() as session:
        change_disabled(session, "anna", NOW, disabled=True)
        assert [find_sign_in(session, token) is None for token in "abcde"] == [True, False, False, True, False]
        found = find_sign_in(session, "e")
        assert found is not None
        assert found.seen_at == NOW + timedelta(minutes=5)
        assert (end_sign_in(session, "c"), end_sign_in(session, "c")) == ("carl", None)
        remove_user(session, "anna")
        assert find_user(session, "anna") is None


def test_tokens_are_found_by_what_is_kept_of_them(sessions: sessionmaker[Session]) -> None:
    token = ApiToken("reporting", "viewer", NOW, NOW + timedelta(days=1))
    with sessions.begin() as session:
        add_token(session, token, "digest")
        assert (find_token(session, "digest"), find_token(session, "other")) == (token, None)
        assert list_tokens(session) == (token,)
        revoke_token(session, "reporting")
        with pytest.raises(NodeError, match="no token"):
            revoke_token(session, "reporting")


def test_of_many_tries_at_once_each_is_counted(sessions: sessionmaker[Session]) -> None:
    let_in: list[bool] = []
    start = threading.Barrier(16)

    def attempt() -> None:
        start.wait()
        with sessions.begin() as session:
            let_in.append(not begin_try(session, {"anna": 5, "address": 50}, NOW))

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(let_in), let_in.count(True)) == (16, 5)


def test_who_is_let_in_is_no_failure_of_the_address(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        for number in range(20):
            assert not begin_try(session, {f"name{number}": 5, "address": 3}, NOW)
            succeed_try(session, f"name{number}", "address")
        for number in range(3):
            assert not begin_try(session, {f"other{number}": 5, "address": 3}, NOW)
        for number in range(5):
            assert begin_try(session, {f"more{number}": 5, "address": 3}, NOW)
        kept = session.connection().exec_driver_sql("SELECT subject FROM sign_in_failures").scalars()
        assert sorted(kept) == ["address", "other0", "other1", "other2"]


def test_failures_are_forgotten_when_somebody_is_let_in_and_after_an_hour(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        for _ in range(5):
            assert not begin_try(session, {"anna": 5}, NOW)
        assert begin_try(session, {"anna": 5}, NOW) == timedelta(seconds=2)
        succeed_try(session, "anna")
        assert not begin_try(session, {"anna": 5}, NOW)
        for _ in range(5):
            begin_try(session, {"anna": 5}, NOW)
        assert begin_try(session, {"anna": 5}, NOW)
        assert not begin_try(session, {"carl": 5}, NOW + timedelta(hours=2))
        assert not begin_try(session, {"anna": 1}, NOW + timedelta(hours=2))


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0), (4, 0), (5, 2), (6, 4), (13, 512), (14, 900), (10_000, 900)])
def test_waits_grow_up_to_a_quarter_of_an_hour(failures: int, seconds: int) -> None:
    assert wait_after(failures, 5) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("created", "seen", "over"), [(0, 0, False), (60, 29, False), (60, 30, True), (719, 0, False), (720, 0, True)]
)
def test_a_sign_in_is_over_when_idle_or_old(created: int, seen: int, over: bool) -> None:
    sign_in = SignIn("anna", "viewer", "table", NOW - timedelta(minutes=created), NOW - timedelta(minutes=seen))
    assert is_over(sign_in, ConsoleSettings(), NOW) == over


def test_the_highest_of_several_roles_counts() -> None:
    assert (highest(["viewer", "admin", "operator"]), highest([])) == ("admin", None)


def test_results_go_again_and_studies_are_grounded_anew(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    with FakePacs() as pacs:
        rig = Rig(tmp_path, sessions, [pacs])
        image = make_cxr_dataset(study="1")
        rig.store(image)
        job_id = rig.store(make_report_dataset(study="1", image=image)).job_id
        assert job_id is not None
        rig.settle(seconds=6)
        sent = sum(pacs.stores.values())
        with sessions.begin() as session:
            resend_job(session, job_id, rig.clock(), "archive0")
        rig.settle(seconds=1)
        assert (sum(pacs.stores.values()), len(pacs.datasets)) == (2 * sent, sent)
        with sessions.begin() as session:
            uid = reground_job(session, job_id, rig.clock())
        with sessions.begin() as session, pytest.raises(NodeError, match="revision 2 by now"):
            reground_job(session, job_id, rig.clock())
        rig.settle(seconds=1)
        revisions = rig.job(job_id)["revisions"]
        assert [(one["revision"], one["state"]) for one in revisions] == [(1, "DELIVERED"), (2, "DELIVERED")]
        assert rig.job(job_id)["study_instance_uid"] == uid
        assert len(pacs.datasets) == 2 * sent
