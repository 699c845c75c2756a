"""The console's pages: everything that a row holds is shown, and nothing in a row becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from dicom_node.console.web import STATES, render_page

HOSTILE = "<script>alert('x')</script>&\""

SUMMARY: dict[str, Any] = {
    "job_id": 7,
    "study_instance_uid": "1.2.840.99",
    "revision": 2,
    "state": "FAILED",
    "outcome": "FAILED",
    "priority": "STAT",
    "failure": "the archive is away; start it, then run `knowmvg jobs retry 7`",
    "attempts": 3,
    "created_at": "2026-01-02T10:00:00+00:00",
    "updated_at": "2026-01-02T10:00:05.123+00:00",
}
DETAIL: dict[str, Any] = SUMMARY | {
    "timeline": [{"at": "2026-01-02T10:00:01+00:00", "event": "study complete", "detail": "2 instances"}],
    "timings": {"ground": 1.234},
    "instances": [],
    "report": None,
    "findings": [
        {
            "phrase": "right effusion",
            "boxes": [{"xyxy": [1.0, 2.25, 3.0, 4.0], "score": 0.83}],
            "localized": True,
            "negated": False,
        },
        {"phrase": "no mass", "boxes": [], "localized": False, "negated": True},
        {"phrase": "nodule", "boxes": [], "localized": False, "negated": False},
    ],
    "results": [{"sop_class": "1.2.840.10008.5.1.4.1.1.88.34", "sop_instance_uid": "2.25.1"}],
    "deliveries": [
        {"destination": "pacs", "sop_instance_uid": "2.25.1", "state": "FAILED", "status": 0xA700, "confirmed_by": None}
    ],
}


def render_jobs(jobs: list[dict[str, Any]], counts: dict[str, int], state: str | None) -> str:
    """Return the page that lists jobs."""
    return render_page("jobs.html", jobs=jobs, counts=counts, state=state)


def render_job(job: dict[str, Any]) -> str:
    """Return the page of a job."""
    return render_page("job.html", job=job)


class Reader(HTMLParser):
    """Collects the text, the tags and the links of a page, and checks that its tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in ("meta", "br", "link", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """The visible text."""
        return " ".join(self.words)


def test_the_list_shows_jobs_counts_and_links() -> None:
    page = Reader(render_jobs([SUMMARY], {"FAILED": 1, "DELIVERED": 41}, None))
    for shown in (
        "7",
        "FAILED",
        "STAT",
        "1.2.840.99",
        "2026-01-02 10:00:05",
        "the archive is away",
        "all 42",
        "DELIVERED 41",
    ):
        assert shown in page.text
    assert "/jobs/7" in page.links
    assert {f"/?state={state}" for state in STATES} <= set(page.links)


def test_an_empty_list_says_so() -> None:
    page = Reader(render_jobs([], {}, "FAILED"))
    assert "No jobs." in page.text
    assert "table" not in page.tags


def test_the_job_page_shows_every_part_of_a_job() -> None:
    text = Reader(render_job(DETAIL)).text
    shown = ("Job 7", "the archive is away", "study complete", "2 instances", "right effusion", "1.0, 2.2, 3.0, 4.0")
    for word in (*shown, "0.83", "negated", "no mass", "nodule", "2.25.1", "pacs", "0xA700", "1.23"):
        assert word in text, word


def test_the_job_page_shows_what_the_reader_should_check() -> None:
    page = render_job(DETAIL | {"warnings": ["box 1 lies on the other side", HOSTILE]})
    assert "Warning: box 1 lies on the other side" in Reader(page).text
    assert "<script" not in page


def test_a_job_that_has_just_begun_has_a_page() -> None:
    begun = SUMMARY | {"state": "RECEIVING", "outcome": None, "failure": None}
    assert "RECEIVING" in Reader(render_job(begun)).text


@pytest.mark.parametrize("key", ["state", "outcome", "failure", "study_instance_uid", "updated_at", "revision"])
def test_no_value_of_a_row_becomes_markup(key: str) -> None:
    for page in (render_jobs([SUMMARY | {key: HOSTILE}], {}, None), render_job(DETAIL | {key: HOSTILE})):
        assert "<script" not in page
        assert "script" not in Reader(page).tags


def test_no_value_in_the_details_becomes_markup() -> None:
    hostile = DETAIL | {
        "timeline": [{"at": HOSTILE, "event": HOSTILE, "detail": HOSTILE}],
        "timings": {HOSTILE: 1.0},
        "findings": [{"phrase": HOSTILE, "boxes": [], "localized": False, "negated": False}],
        "results": [{"sop_class": HOSTILE, "sop_instance_uid": HOSTILE}],
        "deliveries": [dict.fromkeys(("destination", "sop_instance_uid", "state", "status", "confirmed_by"), HOSTILE)],
    }
    page = render_job(hostile)
    assert "<script" not in page
    assert Reader(page).text.count("<script>") == 12
    assert "<script" not in render_page("error.html", status=404, reason=HOSTILE)
