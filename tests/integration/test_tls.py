"""DICOM over TLS, in and out: who has the right certificate works, everybody else is refused with the reason."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.config import ClientTlsSettings, DestinationSettings, ServerTlsSettings
from dicom_node.errors import AbsentError, SettingsError
from dicom_node.instance import DX_PRESENTATION_STORAGE
from dicom_node.pdata import encode_fragment
from dicom_node.scu import connect, echo
from dicom_node.tls import client_context, fingerprint, server_context
from tests.acceptance.peers import peer_environment, require, wait_until
from tests.builders import make_cxr_dataset, write
from tests.certificates import Authority
from tests.fakes import VERIFICATION, FakePacs
from tests.integration.test_reading import answers, raw, store_fragments
from tests.integration.test_scp import Node, sqlite_sessions
from tests.senders import Sender

__all__ = ["sqlite_sessions"]

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Pair:
    return authority.issue("node")


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Pair:
    return authority.issue("pacs")


@pytest.fixture
def make_node(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], authority: Authority, ours: Pair
) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(certificate: str | None = None, **tls: Any) -> Node:
        peer = {"ae_title": "PACS", "address": "127.0.0.1", "certificate": certificate}
        files = {"certificate": ours[0], "key": ours[1], "ca": authority.ca}
        nodes.append(Node(tmp_path, sqlite_sessions, tls=files | tls, peers=[peer]).start())
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()


def context(authority: Authority, pair: Pair | None, **changes: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(authority.ca)
    if pair is not None:
        made.load_cert_chain(*pair)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def is_let_in(node: Node, made: ssl.SSLContext | None) -> bool:
    ae = Sender(ae_title="PACS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    ae.add_requested_context(VERIFICATION)
    tls: Any = (made, "localhost") if made else None
    assoc = ae.associate("127.0.0.1", node.port, ae_title="KNOWMVG", tls_args=tls)
    if not assoc.is_established:
        return False
    answered = assoc.send_c_echo().get("Status") == 0x0000
    assoc.release()
    return answered


def audited(node: Node) -> list[str]:
    with node.sessions() as session:
        return [entry.event.reason for entry in queries.list_audit(session, 10, "association refused")]


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return str([getattr(record, "facts", {}) for record in caplog.records])


def test_a_sender_with_a_certificate_of_the_authority_is_let_in(
    make_node: Callable[..., Node], authority: Authority, theirs: Pair
) -> None:
    node = make_node()
    assert is_let_in(node, context(authority, theirs))
    assert is_let_in(node, context(authority, theirs, maximum_version=ssl.TLSVersion.TLSv1_2))
    assert is_let_in(node, context(authority, theirs, minimum_version=ssl.TLSVersion.TLSv1_3))


def test_many_small_instances_in_one_association(
    make_node: Callable[..., Node], authority: Authority, theirs: Pair
) -> None:
    """Of which the multiplexer reads all but the first: one by one, and three that come without waiting."""
    node = make_node()
    ae = Sender(ae_title="PACS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    ae.add_requested_context(DX_PRESENTATION_STORAGE, ExplicitVRLittleEndian)
    made: Any = (context(authority, theirs), "localhost")
    assoc = ae.associate("127.0.0.1", node.port, ae_title="KNOWMVG", tls_args=made)
    for number in range(10):
        ds = make_cxr_dataset(instance=number, pixels=np.zeros((200, 200), np.uint16))
        assert assoc.send_c_store(ds).Status == 0x0000
        assert node.receiver is not None
        if number == 0:
            wait_until(lambda: node.receiver._multiplexer._lent, "the association to be lent", 10)  # type: ignore[union-attr]
    fragments = [
        one for number in (10, 11, 12) for one in store_fragments(assoc, make_cxr_dataset(instance=number), 2, number)
    ]
    raw(assoc, b"".join(map(encode_fragment, fragments)))
    assert answers(assoc, 3) == [(number, 0x0000) for number in (10, 11, 12)]
    assoc.release()
    assert len(node.files()) == 13


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another authority", "certificate refused: unable to get local issuer certificate"),
        ("expired", "certificate refused: certificate has expired"),
        ("none", "peer did not return a certificate"),
        ("in clear", ("wrong version number", "http request", "unknown protocol", "record layer failure")),
    ],
)
def test_a_sender_without_the_right_certificate_is_refused_with_the_reason(
    make_node: Callable[..., Node], authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    kind: str, reason: str | tuple[str, ...],
) -> None:  # fmt: skip
    pairs = {
        "another authority": lambda: Authority(tmp_path / "other", "other").issue("pacs"),
        "expired": lambda: authority.issue("expired", expired=True),
    }
    node = make_node()
    pair = pairs[kind]() if kind in pairs else None
    assert not is_let_in(node, None if kind == "in clear" else context(authority, pair))
    reasons = (reason,) if isinstance(reason, str) else reason
    wait_until(lambda: any(one in str(audited(node)) for one in reasons), f"the audit to say {reason}", 10)
    assert any(one in logged(caplog) for one in reasons)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused(make_node: Callable[..., Node], authority: Authority, theirs: Pair) -> None:
    node = make_node()
    old = context(authority, theirs, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    assert not is_let_in(node, old)
    words = ("unsupported protocol", "no protocols available", "version too low", "hung up")
    wait_until(lambda: any(word in str(audited(node)) for word in words), "the audit to say why", 10)


@pytest.mark.parametrize("kind", ["fingerprint", "name"])
def test_a_peer_is_known_by_its_certificate(
    make_node: Callable[..., Node], authority: Authority, theirs: Pair, kind: str
) -> None:
    own = fingerprint(ssl.PEM_cert_to_DER_cert(theirs[0].read_text())) if kind == "fingerprint" else "name:pacs"
    node = make_node(own)
    assert is_let_in(node, context(authority, theirs))
    assert not is_let_in(node, context(authority, authority.issue("stranger")))
    reason = "its certificate is not the one that receiver.peers has for it"
    wait_until(lambda: reason in audited(node), "the refusal to be audited", 10)


def test_who_says_nothing_blocks_nobody(make_node: Callable[..., Node], authority: Authority, theirs: Pair) -> None:
    node = make_node()
    with socket.create_connection(("127.0.0.1", node.port)), socket.create_connection(("127.0.0.1", node.port)):
        began = time.monotonic()
        assert is_let_in(node, context(authority, theirs))
        assert time.monotonic() - began < 5


def test_a_client_certificate_may_be_waived(make_node: Callable[..., Node], authority: Authority) -> None:
    assert is_let_in(make_node(require_client_certificate=False), context(authority, None))


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_dcmtk_with_the_right_certificate_sends(
    make_node: Callable[..., Node], authority: Authority, theirs: Pair, tmp_path: Path, profile: str
) -> None:
    require("storescu")
    node = make_node()
    path = write(make_cxr_dataset(), tmp_path / "film.dcm")
    command = ["storescu", "+tls", str(theirs[1]), str(theirs[0]), "+cf", str(authority.ca), profile]
    command += ["-aet", "PACS", "-aec", "KNOWMVG", "localhost", str(node.port), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=peer_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(node.rows()) == 1


def test_files_that_are_no_certificates_are_named(tmp_path: Path, authority: Authority, ours: Pair) -> None:
    (tmp_path / "nothing").write_text("nothing")
    with pytest.raises(SettingsError, match="nothing"):
        server_context(ServerTlsSettings(certificate=tmp_path / "nothing", key=ours[1], ca=authority.ca))
    with pytest.raises(SettingsError, match="nothing"):
        client_context(ClientTlsSettings(ca=tmp_path / "nothing"))


# ---- towards an archive ----------------------------------------------------------------------------------------------


@pytest.fixture
def archive(authority: Authority) -> Iterator[FakePacs]:
    pacs = FakePacs()
    pacs.tls = server_context(
        ServerTlsSettings(certificate=(pair := authority.issue("archive"))[0], key=pair[1], ca=authority.ca)
    )
    with pacs:
        yield pacs


def make_destination(archive: FakePacs, host: str = "localhost", **tls: Any) -> DestinationSettings:
    return DestinationSettings(
        name="archive", ae_title=archive.ae_title, host=host, port=archive.port, tls=ClientTlsSettings(**tls)
    )


def test_an_archive_is_called_over_tls(archive: FakePacs, authority: Authority, ours: Pair) -> None:
    echo(make_destination(archive, ca=authority.ca, certificate=ours[0], key=ours[1]), "KNOWMVG")


@pytest.mark.parametrize("fault", ["authority", "name", "none"])
def test_an_archive_with_the_wrong_certificate_gets_nothing(
    archive: FakePacs, authority: Authority, ours: Pair, tmp_path: Path, fault: str
) -> None:
    pair = {"certificate": ours[0], "key": ours[1]}
    destination = {
        "authority": lambda: make_destination(archive, ca=Authority(tmp_path, "other").ca, **pair),
        "name": lambda: make_destination(archive, ca=authority.ca, server_name="another.example", **pair),
        "none": lambda: make_destination(archive, ca=authority.ca),
    }[fault]()
    with pytest.raises(AbsentError, match="TLS"), connect(destination, [VERIFICATION], "KNOWMVG"):
        pass
