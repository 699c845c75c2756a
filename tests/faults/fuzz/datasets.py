"""Received files: each is an instance or is refused, soon and within little memory, and names no file of its own."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path
from random import Random

from dicom_node.errors import InvalidInstanceError
from dicom_node.head import is_valid_uid
from dicom_node.instance import Instance, read_instance
from dicom_node.storage import instance_key, result_key
from tests.faults.fuzz import seeds
from tests.faults.fuzz.bounds import Violation, WriteWatch, memory_within, within
from tests.faults.fuzz.dicom_mutations import mutate_file

CASE_S, CASE_MEGABYTES = 2, 256
STORAGE = Path("/data/dicom")
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def run_case(seed: int) -> None:
    """Mutate a file, and read it as the receiver does."""
    random = Random(seed)
    content = mutate_file(random.choice(seeds.datasets()), random, seeds.datasets())
    check(content, as_file=seed % 16 == 0)


def check(content: bytes, *, as_file: bool = False) -> Instance | None:
    """Raise Violation unless `content` is an instance that can be filed or is refused; return the instance."""
    if as_file:
        path = _scratch() / "case.dcm"
        path.write_bytes(content)
    with WriteWatch(None) as watch, memory_within(CASE_MEGABYTES), within(CASE_S):
        try:
            instance = read_instance(path if as_file else content)
        except InvalidInstanceError as error:
            instance = None
            str(error)
    if watch.outside:
        raise Violation(f"outside: {watch.outside}")
    if instance is not None:
        _check_facts(instance)
    return instance


def _check_facts(instance: Instance) -> None:
    facts = json.dumps(instance.facts(), allow_nan=False)
    if Instance.from_facts(json.loads(facts)) != instance:
        raise Violation("its facts do not give it again")
    for text in _texts(instance):
        if _UNSTORABLE.search(text):
            raise Violation(f"no database can keep {text!r}")
    uids = (instance.sop_class_uid, instance.sop_instance_uid, instance.study_instance_uid)
    if not all(map(is_valid_uid, (*uids, instance.series_instance_uid, *instance.evidence))):
        raise Violation("it has a UID that is none")
    study, one = instance.study_instance_uid, instance.sop_instance_uid
    for key in (instance_key(study, one, "0" * 64), result_key(study, 1, one)):
        path = (STORAGE / key).resolve()
        if STORAGE not in path.parents or len(key) > 200:
            raise Violation(f"outside: it would be kept as {path}")


def _texts(instance: Instance) -> list[str]:
    values = instance.facts().values()
    return [
        text for value in values for text in (value if isinstance(value, list) else [value]) if text.__class__ is str
    ]


@functools.cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))
