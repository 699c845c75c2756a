"""The console's pages: everything that they are given is shown, and nothing of it becomes markup or is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from dicom_node.console.charts import HEIGHT, draw_chart, round_up
from dicom_node.console.findings import ShownBox, ShownFinding
from dicom_node.console.pages.job import actions_of, describe_job, say_status, time_events
from dicom_node.console.pages.jobs import ListQuery, describe_list
from dicom_node.console.pages.overview import Disk, draw_hours, state_of
from dicom_node.console.pages.reading import Reading, ShownFilm, StoredObject, TaggedBox
from dicom_node.console.visitors import Visitor
from dicom_node.console.web import STATES, render_page
from dicom_node.console.wording import PAGES, write_bytes, write_span
from dicom_node.queries import DestinationState, FoundJob, FoundPage, Hour, JobDetail, JobSummary, StudyFacts
from dicom_node.results.content import ContentItem
from dicom_node.results.film import Window
from dicom_node.results.values import NOTE
from grounding.types import Span

HOSTILE = "<script>alert('x')</script>&\""
NOW = datetime(2026, 1, 2, 10, tzinfo=UTC)
VIEWER, OPERATOR, ADMIN = (Visitor("anna", role, "c0ffee", "192.0.2.7") for role in ("viewer", "operator", "admin"))

SUMMARY = JobSummary(7, "1.2.840.99", 2, "FAILED", "FAILED", "STAT", "the archive is away", 3, NOW, NOW)
DETAIL = JobDetail(
    summary=SUMMARY,
    timeline=(
        {"at": "2026-01-02T10:00:01+00:00", "event": "instance filed", "detail": "DX"},
        {"at": "2026-01-02T10:03:06+00:00", "event": "study complete", "detail": "2 instances"},
    ),
    timings={"ground": 1.234},
    instances=({
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1", "sop_instance_uid": "1.2.9", "series_instance_uid": "1.2.8",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1", "modality": "DX", "revision": 2, "calling_ae_title": "ER_CR",
        "received_at": "2026-01-02T10:00:00+00:00", "size_bytes": 8_000_000, "storage_key": "k", "use": "used",
    },),
    conflicts=(),
    warnings=("box 1 lies on the other side",),
    report={"sop_instance_uid": "1.2.10"},
    model={"name": "KnowMVG", "version": "0.2.0", "sha256": "ab" * 32},
    findings=(),
    results=(),
    deliveries=({
        "destination": "pacs", "part": "sr", "sop_instance_uid": "2.25.1", "state": "FAILED", "status": 0xA700,
        "confirmed_by": None, "detail": "disk full there",
    },),
    dispatches=({
        "dispatch_id": 11, "destination": "pacs", "state": "DEAD", "attempts": 4, "again_at": None, "failure": "gone",
    },),
    revisions=(
        {"job_id": 6, "revision": 1, "state": "CANCELLED", "outcome": None, "delivered": []},
        {"job_id": 7, "revision": 2, "state": "FAILED", "outcome": "FAILED", "delivered": []},
    ),
)  # fmt: skip
BOX = ShownBox(1, 0, 10.0, 20.0, 30.0, 40.0, 0.83, False)
FINDINGS = (
    ShownFinding(1, "right effusion", "grounded", "Pleural effusion", "right Pleura", "", (BOX,), 0.1, Span(0, 14)),
    ShownFinding(2, "no mass", "negated", "", "", "Absent or normal in source report", (), None, Span(16, 23)),
    ShownFinding(3, "nodule", "missing", "", "", "Not localized on image", (), None, Span(25, 31)),
)
FILM = ShownFilm(
    "1.2.9", "/jobs/7/films/1.2.9", "", 140, 96, 0.5, 1, Window(2048.0, 4096.0),
    (TaggedBox(1, BOX, "1", 10.0, 5.0, 6.0),),
)  # fmt: skip
TREE = ContentItem("1", "", "CONTAINER", "Imaging Measurement Report", "126000 DCM", "", (
    ContentItem("1.1", "CONTAINS", "TEXT", "Comment", "121106 DCM", "right effusion", ()),
))  # fmt: skip
OBJECTS = (
    StoredObject("Comprehensive 3D SR", "SR", "2.25.1", "/jobs/7/results/2.25.1", content=TREE),
    StoredObject("GSPS", "GSPS", "2.25.2", "/jobs/7/results/2.25.2", picture="/jobs/7/results/2.25.2.png",
                 labels=("1 Pleural effusion",)),
)  # fmt: skip
READING = Reading(StudyFacts("PID-7", "ACC-7", 2), FINDINGS, (FILM,), "right effusion. no mass. nodule.", "", OBJECTS)
JOB = FoundJob(7, "1.2.840.99", 2, "FAILED", "FAILED", "STAT", "the archive is away", 3, NOW, NOW, "PID-7", "ACC-7")


class Reader(HTMLParser):
    """Collects the text, the tags and their attributes, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "input", "link", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """The visible text."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, name: str) -> list[str]:
        """Return the values of an attribute."""
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def job_page(detail: JobDetail = DETAIL, read: Reading = READING, visitor: Visitor = ADMIN, window=None) -> str:
    return render_page(
        "job.html", visitor=visitor, path="/jobs/7", said="", **describe_job(detail, read, visitor, window)
    )


def list_page(page: FoundPage, visitor: Visitor = ADMIN, **asked: Any) -> str:
    context = describe_list(ListQuery(**asked), {"FAILED": 1, "DELIVERED": 41})
    return render_page("jobs.html", visitor=visitor, path="/jobs", page=page, refresh_s=5, **context)


# ---- the job ---------------------------------------------------------------------------------------------------------


def test_the_page_of_a_job_shows_every_part_of_it() -> None:
    text = Reader(job_page()).text
    shown = (
        "Job 7", "FAILED", "STAT", "PID-7", "ACC-7", "1.2.840.99", "the archive is away",
        "box 1 lies on the other side", "KnowMVG 0.2.0", "1.23 s", "ER_CR", "7.6 MiB", "right effusion",
        "confidence 83 %", "columns 10–40", "Not localised", "no mass", "nodule", "0xA700", "out of resources",
        "disk full there", "gone", "study complete", "+3 min 5 s", "Revisions of the study", "96 × 140 pixels",
        "Imaging Measurement Report", "1 Pleural effusion", NOTE,
    )  # fmt: skip
    assert [word for word in shown if word not in text] == []


def test_boxes_stand_in_pixels_of_the_film_below_the_aspect_of_its_pixels() -> None:
    page = Reader(job_page())
    assert "0 0 96 70.0" in page.all("svg", "viewbox")
    assert page.all("g", "transform") == ["scale(1 0.5)"]
    rects = [value for value in zip(page.all("rect", "x"), page.all("rect", "y"), strict=True)]
    assert rects[:2] == [("10.0", "20.0")] * 2
    assert page.all("rect", "width")[:2] == ["30.0"] * 2


def test_each_finding_with_boxes_has_a_switch_that_is_labelled() -> None:
    page = Reader(job_page())
    assert "show-1" in page.all("input", "id")
    assert "show-1" in page.all("label", "for")
    assert page.all("g", "data-finding") == ["1", "1"]


def test_a_window_that_was_asked_for_is_kept() -> None:
    page = Reader(job_page(window=Window(100.0, 50.0)))
    assert page.all("image", "href") == ["/jobs/7/films/1.2.9?centre=100&width=50"]
    assert {"100", "50"} <= set(page.all("input", "value"))


def test_phrases_are_told_apart_by_words_too() -> None:
    page = Reader(job_page())
    assert {"grounded", "missing", "negated"} <= set(page.all("mark", "class"))
    for told in ("[grounded: right effusion", "[negated: no mass", "[not localised: nodule"):
        assert told in page.text


def test_what_cannot_be_shown_is_said() -> None:
    film = ShownFilm("1.2.9", "/x", "The film is not kept: it was removed.")
    broken = StoredObject("Comprehensive 3D SR", "SR", "2.25.1", "/x", "It cannot be shown: damaged.")
    read = replace(READING, films=(film,), report="", report_reason="The report is not kept.", objects=(broken,))
    text = Reader(job_page(read=read)).text
    for told in ("The film is not kept", "It cannot be shown: damaged", "The report is not kept"):
        assert told in text


def test_a_job_that_has_just_begun_has_a_page() -> None:
    begun = JobDetail(
        replace(SUMMARY, state="RECEIVING", outcome=None, failure=None), (), {}, (), (), (), None, None, (), (), (), (),
        (),
    )  # fmt: skip
    page = Reader(job_page(begun, Reading(StudyFacts("", "", 2), (), (), "", "", ())))
    assert "RECEIVING" in page.text
    assert "svg" not in page.tags


def test_no_value_of_a_job_becomes_markup() -> None:
    summary = replace(SUMMARY, failure=HOSTILE, study_instance_uid=HOSTILE)
    finding = replace(FINDINGS[0], phrase=HOSTILE, meaning=HOSTILE, site=HOSTILE)
    detail = replace(
        DETAIL, summary=summary, warnings=(HOSTILE,), timeline=({**DETAIL.timeline[0], "detail": HOSTILE},),
        dispatches=({**DETAIL.dispatches[0], "failure": HOSTILE, "destination": HOSTILE},),
    )  # fmt: skip
    tree = replace(TREE, value=HOSTILE, name=HOSTILE)
    read = replace(
        READING, study=StudyFacts(HOSTILE, HOSTILE, 2), findings=(finding,), report=HOSTILE,
        objects=(replace(OBJECTS[0], content=tree), replace(OBJECTS[1], labels=(HOSTILE,))),
    )  # fmt: skip
    page = Reader(job_page(detail, read))
    assert page.tags.count("script") == 1  # the console's own
    assert page.text.count("<script>") >= 10


@pytest.mark.parametrize(
    ("state", "revision", "visitor", "wanted"),
    [
        ("FAILED", 2, OPERATOR, ["retry", "reground"]),
        ("DELIVERED", 2, ADMIN, ["resend", "reground"]),
        ("WRITTEN", 2, OPERATOR, ["cancel"]),
        ("FAILED", 3, OPERATOR, []),
        ("FAILED", 2, VIEWER, []),
    ],
)
def test_what_may_be_done_depends_on_state_revision_and_role(
    state: str, revision: int, visitor: Visitor, wanted: list[str]
) -> None:
    job = replace(DETAIL, summary=replace(SUMMARY, state=state))
    assert [one["path"].rpartition("/")[2] for one in actions_of(job, revision, visitor)] == wanted


def test_a_viewer_is_offered_nothing_that_changes_anything() -> None:
    posts = [value for value in Reader(job_page(visitor=VIEWER)).all("form", "method") if value == "post"]
    assert len(posts) == 1  # to sign out


def test_events_say_how_long_they_took_and_statuses_what_they_mean() -> None:
    assert [one["after"] for one in time_events(DETAIL.timeline)] == ["", "+3 min 5 s"]
    assert say_status(0) == "0x0000 success"
    assert say_status(None) == "no answer yet"


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_the_list_shows_jobs_and_counts() -> None:
    page = Reader(list_page(FoundPage((JOB,), None, None)))
    for shown in ("7", "FAILED", "STAT", "PID-7", "ACC-7", "2026-01-02 10:00:00", "the archive is away (3 tries)"):
        assert shown in page.text
    assert "/jobs/7" in page.all("a", "href")
    assert set(STATES) <= set(page.all("option", "value"))


def test_an_operator_chooses_jobs_and_a_viewer_cannot() -> None:
    assert Reader(list_page(FoundPage((JOB,), None, None))).all("button", "formaction") == ["/jobs/cancel"]
    viewer = Reader(list_page(FoundPage((JOB,), None, None), VIEWER))
    assert "checkbox" not in viewer.all("input", "type")
    assert viewer.all("button", "formaction") == []


def test_pages_lead_to_those_beside_them_and_keep_what_was_asked() -> None:
    page = Reader(list_page(FoundPage((JOB,), 7, 9), state="FAILED", text="a b&c", before=9))
    links = page.all("a", "href")
    assert "/jobs?state=FAILED&text=a+b%26c&before=7" in links
    assert "/jobs?state=FAILED&text=a+b%26c&after=9" in links
    assert "/jobs?state=FAILED&text=a+b%26c&before=9" in page.all("div", "data-live")


def test_a_search_that_was_broken_off_says_so() -> None:
    page = Reader(list_page(FoundPage((), 100, None, 100), text="rare"))
    assert "Jobs from 100 on were looked through; older ones may fit." in page.text
    assert "Look further back" in page.text
    assert "No jobs yet." in Reader(list_page(FoundPage((), None, None))).text


@pytest.mark.parametrize("name", ["failure", "patient_id", "accession_number", "state", "outcome"])
def test_no_value_of_a_list_becomes_markup(name: str) -> None:
    page = Reader(list_page(FoundPage((replace(JOB, **{name: HOSTILE}),), None, None), who=HOSTILE[:60]))
    assert page.tags.count("script") == 1


def test_instants_without_a_zone_are_utc() -> None:
    wanted = ListQuery(since="2026-01-02T10:00", until="2026-01-02T12:00+02:00").wanted
    assert wanted.since == wanted.until == NOW


# ---- the overview ----------------------------------------------------------------------------------------------------


def test_bars_are_as_high_as_their_hours_and_end_on_the_axis() -> None:
    counts = [(NOW + timedelta(hours=hour), count) for hour, count in enumerate((0, 3, 6, 1))]
    chart = draw_chart("Jobs", "failed", counts)
    heights = [bar.height for bar in chart.bars]
    assert heights[2] == pytest.approx(2 * heights[1])
    assert heights[0] == 0
    assert {round(bar.y + bar.height, 2) for bar in chart.bars} == {HEIGHT - 18.0}
    assert chart.summary == "Jobs: 10 in 4 hours, most in the hour from 12:00 (6)"
    assert [hour for _, hour in chart.ticks] == ["12:00"]


def test_an_empty_day_has_charts_too() -> None:
    for chart in draw_hours([Hour(NOW, 0, 0, 0)]):
        assert (chart.total, chart.highest) == (0, 1)
        assert "most" not in chart.summary


@pytest.mark.parametrize(("count", "rounded"), [(0, 1), (1, 1), (3, 5), (10, 10), (11, 20), (501, 1000)])
def test_the_top_line_is_a_round_number(count: int, rounded: int) -> None:
    assert round_up(count) == rounded


def test_a_destination_is_what_its_last_contacts_say() -> None:
    later, before = NOW + timedelta(minutes=1), NOW - timedelta(minutes=1)
    assert state_of(DestinationState(), NOW) == "unknown"
    assert state_of(DestinationState(last_contact_at=before), NOW) == "ok"
    assert state_of(DestinationState(failures=2, hold_until=later), NOW) == "held"
    assert state_of(DestinationState(failures=2, hold_until=before), NOW) == "down"


def test_a_disk_is_low_below_its_limit() -> None:
    assert Disk("s", "/", 10, 100, 20).is_low
    assert not Disk("s", "/", 30, 100, 20).is_low
    assert Disk("s", "/", 30, 100, 20).used == pytest.approx(0.7)


# ---- all pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.00 s"), (0.414, "0.41 s"), (59.6, "60 s"), (61, "1 min 1 s"), (7800, "2 h 10 min"), (273600, "3 d 4 h")],
)
def test_spans_are_written_for_people(seconds: float, text: str) -> None:
    assert write_span(seconds) == text


def test_sizes_are_written_for_people() -> None:
    assert [write_bytes(size) for size in (12, 2048, 8_000_000, 5 * 2**40)] == ["12 B", "2.0 KiB", "7.6 MiB", "5.0 TiB"]


def test_nobody_is_led_to_a_page_that_asks_for_another_role() -> None:
    for visitor in (VIEWER, OPERATOR, ADMIN):
        links = Reader(list_page(FoundPage((), None, None), visitor)).all("a", "href")
        assert {href for href, _, role in PAGES if visitor.may(role)} <= set(links)
        assert not {href for href, _, role in PAGES if not visitor.may(role)} & set(links)


def test_no_page_has_styles_or_scripts_of_its_own() -> None:
    for page in (job_page(), list_page(FoundPage((JOB,), 7, 9)), render_page("error.html", status=404, reason=HOSTILE)):
        read = Reader(page)
        assert "style" not in read.tags
        assert read.all("script", "src") == ["/static/console.js"]
        names = {name for _, name, _ in read.attributes}
        assert not {name for name in names if name == "style" or name.startswith("on")}


def test_every_field_has_a_label_and_every_table_a_caption() -> None:
    for page in (job_page(), list_page(FoundPage((JOB,), 7, 9))):
        read = Reader(page)
        hidden = read.all("input", "type").count("hidden")
        assert len(read.all("input", "id")) + hidden == read.tags.count("input")
        assert set(read.all("input", "id")) | set(read.all("select", "id")) <= set(read.all("label", "for"))
        assert read.tags.count("table") == read.tags.count("caption")
