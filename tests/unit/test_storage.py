"""Bytes on disk: whole or not there, under names that stay within the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from dicom_node.storage import FileStorage, StoredFile, instance_key, result_key, sync_and_digest

UID = "1." + "2" * 62


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "dicom")


def test_bytes_come_back(storage: FileStorage) -> None:
    stored = storage.put("aa/1.2/x.dcm", b"content")
    assert stored == StoredFile("aa/1.2/x.dcm", hashlib.sha256(b"content").hexdigest(), 7)
    assert storage.exists(stored.key)
    with storage.open(stored.key) as file:
        assert file.read() == b"content"
    assert list(storage.incoming.iterdir()) == []


def test_a_received_file_is_moved(storage: FileStorage) -> None:
    with storage.receive() as file:
        file.write(b"content")
    path = Path(file.name)
    assert path.parent == storage.incoming
    assert sync_and_digest(path) == (hashlib.sha256(b"content").hexdigest(), 7)
    storage.file("k", path)
    assert storage.path("k").read_bytes() == b"content"
    assert not path.exists()


def test_the_same_key_again_is_replaced_in_one_step(storage: FileStorage) -> None:
    storage.put("a/b", b"first")
    with storage.open("a/b") as reader:
        storage.put("a/b", b"second")
        assert reader.read() == b"first"
    assert storage.path("a/b").read_bytes() == b"second"


def test_content_and_folders_are_synced_before_put_returns(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    really = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    storage.put("a/b/c", b"content")
    root = storage.root
    # the entries of the new folders for what comes in, the content, the entries of the new folders, the file's entry
    before, after = synced[:2], synced[3:]
    assert before == [str(root.parent), str(root)]
    assert Path(synced[2]).parent == storage.incoming
    assert after == [str(root.parent), str(root), str(root / "a"), str(root / "a/b")]
    del synced[:]
    storage.put("a/b/d", b"content")
    assert synced[1:] == [str(root / "a/b")]


def test_the_folders_of_all_studies_are_made_at_once(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    really = os.fsync
    first, second = (instance_key(study, "1.2.3", "ab" * 32) for study in ("1.2.1", "1.2.2"))
    assert first[:2] != second[:2]
    storage.put(first, b"content")

    def note(descriptor: int) -> None:
        synced.append(descriptor)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    storage.put(second, b"content")
    assert len(synced) == 2  # the content, and the entry of the file: that of the folder was synced before
    assert storage.exists(first)
    assert storage.exists(second)


def test_what_a_crash_left_is_swept(storage: FileStorage) -> None:
    with storage.receive() as left:
        left.write(b"half")
    kept = storage.put("a/b", b"whole")
    assert storage.sweep_incoming(older_than=0) == 1
    assert list(storage.incoming.iterdir()) == []
    assert storage.exists(kept.key)
    assert storage.sweep_incoming(older_than=0) == 0


def test_a_sweep_spares_what_others_are_writing(storage: FileStorage) -> None:
    """Another host that shares the folder; a process of this host that lives; a version that told neither."""
    with storage.receive() as file:
        own = Path(file.name)
    host, _, tail = own.name.split("-", 2)
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        "elsewhere": f"0123456789ab-{os.getpid()}-{tail}", "alive": f"{host}-{os.getppid()}-{tail}",
        "gone": f"{host}-{gone.pid}-{tail}", "nameless": "tmpabc.part",
    }  # fmt: skip
    paths = {what: own.with_name(name) for what, name in names.items()}
    for path in paths.values():
        path.write_bytes(b"half")
    assert storage.sweep_incoming(older_than=2000) == 2
    assert {what for what, path in paths.items() if path.exists()} == {"elsewhere", "alive", "nameless"}
    for path in paths.values():
        if path.exists():
            os.utime(path, (1000, 1000))
    assert storage.sweep_incoming(older_than=2000) == 3
    assert list(storage.incoming.iterdir()) == []


def test_nothing_to_sweep_before_the_first_instance(storage: FileStorage) -> None:
    assert storage.sweep_incoming(older_than=0) == 0


def test_remove_is_content_with_what_is_gone(storage: FileStorage) -> None:
    storage.put("a", b"content")
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a")


def test_free_space_is_told_before_anything_is_stored(storage: FileStorage) -> None:
    assert storage.free_bytes() > 0


def test_an_unwritable_storage_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        FileStorage(tmp_path / "file" / "dicom").put("a", b"content")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_cannot_be_put_leaves_nothing(storage: FileStorage, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage.put("aa/1.2/x.dcm", b"before")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        storage.put("aa/1.2/x.dcm", b"content")
    assert list(storage.incoming.iterdir()) == []
    assert storage.path("aa/1.2/x.dcm").read_bytes() == b"before"


def test_keys_differ_by_content_and_fit_their_column() -> None:
    first, second = (instance_key(UID, UID, digest * 64) for digest in "ab")
    assert first != second
    assert instance_key(UID, UID, "a" * 64) == first
    assert len(first) <= 255
    assert len(result_key(UID, 10**6, UID)) <= 255
    assert result_key(UID, 1, UID) != result_key(UID, 2, UID)
