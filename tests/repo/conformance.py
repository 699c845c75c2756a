"""The tables of docs/conformance.md, and what the code says that their rows must be.

A table of the document stands below `<!-- table: name -->`. Of each row as many columns are compared as the code knows;
the rest is prose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import highdicom
import pynetdicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import UID
from pynetdicom import AE

from dicom_node import requestor, scu
from dicom_node.audit import EVENTS
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import DestinationSettings, ReceiverSettings
from dicom_node.delivery import DELIVERY, FAILURE_REASONS
from dicom_node.door import CALLING_TITLE_REJECTED, CONGESTION, LIMIT_EXCEEDED
from dicom_node.header import PRIVATE_SCHEME
from dicom_node.instance import IMAGE_CLASSES, REPORT_CLASSES
from dicom_node.notices import ANSWER_WITHIN_S, QUIET_S, QUIET_WITHIN_S
from dicom_node.results import codes
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr
from dicom_node.results.values import GSPS_SOP_CLASS, SR_SOP_CLASSES, Reference
from dicom_node.scp import NO_SUCH_ACTION, NOT_AUTHORIZED, NOTICE_STATUS, STORAGE_CLASSES, TRANSFER_SYNTAXES
from dicom_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.storing import STORE_STATUS, SUCCESS
from dicom_node.transport import GREETING_S, PDU_S, STRANGERS, STRANGERS_OF_ADDRESS
from tests.builders import make_result_input
from workers.confirming import REPORT_WAIT_S

Row = tuple[str, ...]
Rows = list[Row]

STANDARD = Path(highdicom.__file__).parent / "_standard" / "iod_module_map.json"
"""Modules and their usage as highdicom takes them from PS3.3."""

RESULT_CLASSES = (*SR_SOP_CLASSES.values(), GSPS_SOP_CLASS)
VERDICTS = {
    "stored": "taken", "present": "taken if it is confirmed",
    "transient": "tried again", "permanent": "refused for good",
}  # fmt: skip


def read_tables(text: str) -> dict[str, Rows]:
    """Return the rows of the named tables of a Markdown document, cells without their marks of code."""
    tables = {}
    for name, table in re.findall(r"<!-- table: ([\w-]+) -->\n((?:\|.*\n)+)", text):
        lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        tables[name] = [tuple(cell.strip().replace("`", "") for cell in cells) for cells in lines[2:]]
    return tables


def compare(text: str) -> list[str]:
    """Return how the tables of a document differ from what the code does."""
    tables = read_tables(text)
    faults = [f"table {name}: not in the document" for name in EXPECTED if name not in tables]
    faults += [f"table {name}: unknown" for name in tables if name not in EXPECTED]
    for name in tables.keys() & EXPECTED.keys():
        expected = EXPECTED[name]()
        width = len(expected[0])
        found = [row[:width] for row in tables[name]]
        faults += [f"table {name}: missing {row}" for row in expected if row not in found]
        faults += [f"table {name}: extra or changed {row}" for row in found if row not in expected]
        faults += [f"table {name}: twice {row}" for row in set(found) if found.count(row) > 1]
    return faults


def name_of(uid: str) -> str:
    return UID(uid).name.removesuffix(" (Retired)").split(":")[0].strip()


def yes(value: bool) -> str:
    return "yes" if value else "no"


def network_services() -> Rows:
    provided = {*STORAGE_CLASSES, scu.VERIFICATION, PUSH_MODEL}
    used = {*RESULT_CLASSES, scu.VERIFICATION, PUSH_MODEL, scu.STUDY_ROOT_FIND}
    return [(name_of(uid), uid, yes(uid in used), yes(uid in provided)) for uid in sorted(provided | used)]


def received() -> Rows:
    def use(uid: str) -> str:
        if uid in IMAGE_CLASSES:
            return "grounded"
        return "read as a report" if uid in REPORT_CLASSES else "kept"

    return [(name_of(uid), uid, use(uid)) for uid in STORAGE_CLASSES]


def received_syntaxes() -> Rows:
    return [(name_of(uid), str(uid)) for uid in TRANSFER_SYNTAXES]


def sent() -> Rows:
    syntaxes = ", ".join(name_of(str(uid)) for uid in requestor.TRANSFER_SYNTAXES)
    order = (*RESULT_CLASSES, scu.STUDY_ROOT_FIND, PUSH_MODEL, scu.VERIFICATION)
    return [(name_of(uid), uid, syntaxes) for uid in order]


def implementation() -> Rows:
    return [
        ("receiver", IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME),
        ("sender", str(pynetdicom.PYNETDICOM_IMPLEMENTATION_UID), pynetdicom.PYNETDICOM_IMPLEMENTATION_VERSION),
    ]


def limits() -> Rows:
    receiver = ReceiverSettings()
    return [
        ("receiver: maximum PDU length", f"{receiver.max_pdu} bytes"),
        ("receiver: associations at once", str(receiver.max_associations)),
        ("receiver: connections without association", f"{STRANGERS}, {STRANGERS_OF_ADDRESS} of one address"),
        ("receiver: time for hand-shake, and for the request", f"{GREETING_S} s"),
        ("receiver: time for one PDU", f"{PDU_S} s"),
        ("receiver: time without a message", f"{receiver.idle_s:g} s"),
        ("receiver: largest instance", f"{receiver.max_instance_bytes} bytes"),
        ("receiver: quiet before a report on the association that asked", f"{QUIET_S:g} s within {QUIET_WITHIN_S:g} s"),
        ("receiver: time for the answer to that report", f"{ANSWER_WITHIN_S:g} s"),
        ("sender: maximum PDU length", f"{AE().maximum_pdu_size} bytes"),
        ("sender: time to connect", f"{requestor.CONNECT_TIMEOUT_S} s"),
        ("sender: time for an answer", f"{requestor.ANSWER_TIMEOUT_S} s"),
        ("sender: association held for a report", f"{REPORT_WAIT_S:g} s"),
        ("sender: time for a report", f"{_default('report_within_s'):g} s"),
        ("sender: patience with a destination", f"{_default('patience_s'):g} s"),
    ]  # fmt: skip


def _default(name: str) -> float:
    return float(DestinationSettings.model_fields[name].default)


def rejections() -> Rows:
    return [
        tuple(str(part) for part in answer)
        for answer in (CALLING_TITLE_REJECTED, (1, 1, 7), CONGESTION, LIMIT_EXCEEDED)
    ]


def store_statuses() -> Rows:
    return [(spell(status),) for status in (SUCCESS, *(status for _, status in STORE_STATUS))]


def notice_statuses() -> Rows:
    statuses = (SUCCESS, *(status for _, status in NOTICE_STATUS), NO_SUCH_ACTION, NOT_AUTHORIZED)
    return [(spell(status),) for status in statuses]


def delivery() -> Rows:
    rows: Rows = []
    for meaning in DELIVERY:
        first, last = meaning.statuses[0], meaning.statuses[-1]
        spelt = spell(first) if first == last else f"{spell(first)} to {spell(last)}"
        rows.append((spelt, meaning.text, VERDICTS[meaning.verdict]))
    return rows


def failure_reasons() -> Rows:
    return [(spell(code), text) for code, text in FAILURE_REASONS.items()]


def query_refusals() -> Rows:
    return [(spell(code),) for code in scu.NO_QUERY]


def spell(status: int) -> str:
    return f"0x{status:04X}"


def audit_messages() -> Rows:
    return [
        (kind, event[2], kind_type[0] if kind_type else "", action)
        for kind, (event, kind_type, action) in EVENTS.items()
    ]


def modules_of(iod: str) -> Rows:
    standard = json.loads(STANDARD.read_text())[iod]
    return [(one["key"].replace("-", " "), one["usage"]) for one in standard]


def sample_sr() -> Dataset:
    """Return an SR with everything that one may hold."""
    replaced = Reference(SR_SOP_CLASSES["comprehensive_3d"], "1.2.3", "1.2.4", "1.2.5")
    ds = build_sr(make_result_input(predecessors=(replaced,)))
    assert ds is not None
    return ds


def sample_state() -> Dataset:
    ds = build_gsps(make_result_input(), 0)
    assert ds is not None
    return ds


def attributes_of(ds: Dataset) -> Rows:
    return [(one.keyword, _tag(one.keyword)) for one in ds]


def _tag(keyword: str) -> str:
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"({tag.group:04X},{tag.element:04X})"


def codes_of(private: bool) -> Rows:
    found = [value for value in vars(codes).values() if isinstance(value, Code)]
    found += [*codes.MODALITIES.values(), *codes.SIDES.values()]
    return sorted(
        {(c.value, c.scheme_designator, c.meaning) for c in found if (c.scheme_designator == PRIVATE_SCHEME) == private}
    )


EXPECTED: dict[str, Callable[[], Rows]] = {
    "network-services": network_services,
    "implementation": implementation,
    "limits": limits,
    "rejections": rejections,
    "received": received,
    "received-syntaxes": received_syntaxes,
    "store-statuses": store_statuses,
    "notice-statuses": notice_statuses,
    "sent": sent,
    "delivery": delivery,
    "failure-reasons": failure_reasons,
    "query-refusals": query_refusals,
    "audit-messages": audit_messages,
    "sr-modules": lambda: modules_of("comprehensive-3d-sr"),
    "sr-attributes": lambda: attributes_of(sample_sr()),
    "gsps-modules": lambda: modules_of("grayscale-softcopy-presentation-state"),
    "gsps-attributes": lambda: attributes_of(sample_state()),
    "codes": lambda: codes_of(private=False),
    "private-codes": lambda: codes_of(private=True),
}
