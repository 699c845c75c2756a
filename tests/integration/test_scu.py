"""Sending results to an archive: what it takes, what it refuses, and what counts as delivered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.config import DestinationSettings
from dicom_node.errors import PermanentError, TransientError
from dicom_node.scu import Candidate, Part, Sent, delivery_verdict, echo, prefer, send_parts
from tests.builders import decode, make_report_dataset, write
from tests.fakes import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE, FakePacs


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Part, ...]:
    """An SR in both classes, and a presentation state."""
    return (
        Part(
            "sr",
            (
                make_candidate(tmp_path, COMPREHENSIVE_SR, 1),
                make_candidate(tmp_path, COMPREHENSIVE_3D_SR, 2),
            ),
        ),
        Part("gsps:1.2.3", (make_candidate(tmp_path, GSPS_STORAGE, 3),)),
    )


def make_candidate(folder: Path, sop_class_uid: str, instance: int) -> Candidate:
    ds = make_report_dataset(instance=instance, sop_class_uid=sop_class_uid)
    path = write(ds, folder / f"{instance}.dcm")
    return Candidate(sop_class_uid, ds.SOPInstanceUID, ds.SeriesInstanceUID, path)


def make_destination(pacs: FakePacs, **changes: object) -> DestinationSettings:
    values: dict[str, object] = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    return DestinationSettings.model_validate(values | changes)


def send(pacs: FakePacs, parts: tuple[Part, ...], **changes: object) -> tuple[Sent, ...]:
    return send_parts(make_destination(pacs, **changes), parts, make_report_dataset().StudyInstanceUID, "KNOWMVG")


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, "delivered"),
        (0xB000, "delivered"),
        (0xB007, "delivered"),
        (0xA700, "transient"),
        (0xA7FF, "transient"),
        (None, "transient"),
        (0xA900, "permanent"),
        (0xC000, "permanent"),
        (0x0124, "permanent"),
    ],
)
def test_delivery_verdict(status: int | None, verdict: str) -> None:
    assert delivery_verdict(status) == verdict


def test_archive_gets_one_sr_of_the_preferred_class_and_the_presentation_state(
    pacs: FakePacs, parts: tuple[Part, ...]
) -> None:
    sent = send(pacs, parts)
    assert [one.error for one in sent] == [None, None]
    assert [one.confirmed_by for one in sent] == ["query", "query"]
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_3D_SR]
    assert pacs.stores == {one.sop_instance_uid: 1 for one in sent}


def test_archive_gets_the_dataset_as_written(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    send(pacs, parts)
    candidate = parts[0].candidates[1]
    assert pacs.datasets[candidate.sop_instance_uid] == decode(candidate.path.read_bytes())


def test_archive_without_3d_gets_comprehensive(parts: tuple[Part, ...]) -> None:
    with FakePacs(classes=(COMPREHENSIVE_SR, GSPS_STORAGE)) as pacs:
        sent = send(pacs, parts)
    assert sent[0].sop_instance_uid == parts[0].candidates[0].sop_instance_uid
    assert sent[0].error is None


def test_archive_that_refuses_both_sr_classes_fails_for_good_and_still_gets_the_rest(parts: tuple[Part, ...]) -> None:
    with FakePacs(classes=(GSPS_STORAGE,)) as pacs:
        sr, gsps = send(pacs, parts)
    assert isinstance(sr.error, PermanentError)
    assert "sr_class" in str(sr.error)
    assert gsps.error is None


@pytest.mark.parametrize(("status", "kind"), [(0xA700, TransientError), (0xC000, PermanentError)])
def test_refused_store_is_an_error_of_the_right_kind(
    pacs: FakePacs, parts: tuple[Part, ...], status: int, kind: type[Exception]
) -> None:
    pacs.status = status
    sent = send(pacs, parts)
    assert all(isinstance(one.error, kind) and one.status == status and one.confirmed_by is None for one in sent)


def test_warning_counts_as_delivered(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.status = 0xB000
    assert all(one.error is None and one.status == 0xB000 for one in send(pacs, parts))


def test_stored_but_not_found_is_tried_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.shows = False
    assert all(isinstance(one.error, TransientError) for one in send(pacs, parts))


def test_archive_without_queries_confirms_by_its_store_status(parts: tuple[Part, ...]) -> None:
    pacs = FakePacs()
    pacs.queryable = False
    with pacs:
        assert [one.confirmed_by for one in send(pacs, parts)] == ["store", "store"]


def test_archive_that_refuses_the_query_confirms_by_its_store_status(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.find_status = 0xC001  # unable to process
    assert [one.confirmed_by for one in send(pacs, parts)] == ["store", "store"]


def test_archive_that_cannot_answer_the_query_now_is_asked_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.find_status = 0xA700  # out of resources
    assert all(isinstance(one.error, TransientError) for one in send(pacs, parts))


def test_without_commitment_no_query_is_made(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.shows = False
    assert [one.confirmed_by for one in send(pacs, parts, commitment=False)] == ["store", "store"]


def test_archive_that_is_down_is_tried_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.stop()
    with pytest.raises(TransientError, match="cannot be reached"):
        send(pacs, parts)


def test_archive_with_another_ae_title_is_named(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    with pytest.raises(TransientError, match=r"rejected the association.*KNOWMVG"):
        send(pacs, parts, ae_title="OTHER")


def test_host_that_does_not_exist_is_tried_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        send(pacs, parts, host="nowhere.invalid")


def test_archive_that_accepts_none_of_the_classes_is_said_so(parts: tuple[Part, ...]) -> None:
    pacs = FakePacs(classes=())
    pacs.queryable = False
    with pacs, pytest.raises(TransientError, match="none of the SOP classes"):
        send(pacs, parts)


@pytest.mark.parametrize(
    ("sr_class", "classes"),
    [
        ("auto", [COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR]),
        ("comprehensive", [COMPREHENSIVE_SR]),
        ("comprehensive_3d", [COMPREHENSIVE_3D_SR]),
    ],
)
def test_an_archive_may_be_given_what_its_sr_class_says(
    pacs: FakePacs, parts: tuple[Part, ...], sr_class: str, classes: list[str]
) -> None:
    destination = make_destination(pacs, sr_class=sr_class)
    assert [one.sop_class_uid for one in prefer(parts[0], destination).candidates] == classes
    assert prefer(parts[1], destination) == parts[1]
    for accepted in (COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR):
        preferred = [one.sop_class_uid for one in prefer(parts[0], destination, accepted).candidates]
        assert sorted(preferred) == sorted(classes)
        assert preferred[0] == (accepted if accepted in classes else classes[0])


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xC000, 0x0110])
def test_archive_that_accepts_3d_but_refuses_to_store_it_gets_comprehensive(
    parts: tuple[Part, ...], status: int
) -> None:
    with FakePacs() as pacs:
        pacs.refused = {COMPREHENSIVE_3D_SR: status}
        sr, gsps = send(pacs, parts)
    assert (sr.error, sr.status, sr.sop_instance_uid) == (None, 0, parts[0].candidates[0].sop_instance_uid)
    assert gsps.error is None


def test_class_that_was_taken_last_is_tried_first(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    destination, study = make_destination(pacs), make_report_dataset().StudyInstanceUID
    send_parts(destination, parts, study, "KNOWMVG", COMPREHENSIVE_SR)
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_SR]


def test_archive_that_is_full_is_not_tried_with_the_other_class(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.refused = {COMPREHENSIVE_3D_SR: 0xA700}
    sr, _ = send(pacs, parts)
    assert isinstance(sr.error, TransientError)
    assert pacs.structured_reports() == []


def test_echo(pacs: FakePacs) -> None:
    destination = make_destination(pacs)
    echo(destination, "KNOWMVG")
    pacs.stop()
    with pytest.raises(TransientError, match="cannot be reached"):
        echo(destination, "KNOWMVG")
