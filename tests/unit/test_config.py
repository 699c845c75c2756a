"""The configuration: every fault is found at once, named by its path, with what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from dicom_node.config import MASK, Settings, load_settings, mask_url, masked
from dicom_node.config.values import parse_bytes
from dicom_node.errors import SettingsError

REPOSITORY = Path(__file__).parents[2]
TLS = {"certificate": "a", "key": "b", "ca": "c"}
DESTINATION: dict[str, Any] = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a configuration and load it, with no environment but the one given."""

    def _load(values: object = None, environment: dict[str, str] | None = None) -> Settings:
        file = tmp_path / "config.yaml"
        file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return load_settings(file, environment or {})

    return _load


def faults_of(load: Load, values: object) -> list[str]:
    """Return the lines under the headline of the error that `values` raise."""
    with pytest.raises(SettingsError) as caught:
        load(values)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_an_empty_file_gives_the_defaults_in_the_folder_of_the_file(load: Load, tmp_path: Path) -> None:
    settings = load("")
    assert settings.receiver.ae_title == "KNOWMVG"
    assert settings.receiver.peers == ()
    assert settings.node.data_dir == tmp_path / "var"
    assert settings.database.url == f"sqlite:///{tmp_path}/var/knowmvg.db"
    assert settings.storage.root == tmp_path / "var" / "dicom"
    assert settings.model.path == "default"


def test_without_a_file_the_working_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(None, {}).node.data_dir == tmp_path / "var"
    (tmp_path / "config.yaml").write_text("receiver: {port: 4242}")
    assert load_settings(None, {}).receiver.port == 4242


def test_the_shipped_file_documents_every_key_with_its_default(tmp_path: Path) -> None:
    text = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "shipped.yaml").write_text(text)
    (tmp_path / "empty.yaml").write_text("")
    shipped, defaults = (load_settings(tmp_path / f"{name}.yaml", {}) for name in ("shipped", "empty"))
    examples = {"peers": shipped.receiver.peers}
    assert shipped.model_copy(update={"destinations": ()}) == defaults.model_copy(
        update={"receiver": defaults.receiver.model_copy(update=examples)}
    )
    written = yaml.safe_load(text)
    for name, section in Settings.model_fields.items():
        if name != "destinations":
            assert set(written[name]) == set(section.annotation.model_fields), name  # type: ignore[union-attr]
    assert set(written["destinations"][0]) == set(type(shipped.destinations[0]).model_fields)


def test_relative_paths_belong_to_the_file_and_absolute_ones_stay(load: Load, tmp_path: Path) -> None:
    settings = load(
        {
            "node": {"data_dir": "state"},
            "database": {"url": "sqlite:///rows/jobs.db"},
            "storage": {"url": "file:///srv/dicom"},
            "model": {"path": "models/mine"},
        }
    )
    assert settings.node.data_dir == tmp_path / "state"
    assert settings.database.url == f"sqlite:///{tmp_path}/rows/jobs.db"
    assert settings.storage.root == Path("/srv/dicom")
    assert settings.model.path == str(tmp_path / "models/mine")


@pytest.mark.parametrize(
    ("values", "path", "says"),
    [
        ({"recevier": {}}, "recevier", "unknown key; allowed here: node, receiver"),
        ({"receiver": {"prot": 1}}, "receiver.prot", "unknown key; allowed here: ae_title, host, port"),
        (
            {"receiver": {"peers": [{"ae_title": "A", "address": "a", "aet": "A"}]}},
            "receiver.peers.0.aet",
            "allowed here: ae_title, address",
        ),
        ({"destinations": [DESTINATION | {"aet": "X"}]}, "destinations.0.aet", "allowed here: name, protocol"),
        ({"receiver": 7}, "receiver", "must be a section with the keys ae_title, host, port"),
        ({"receiver": {"port": 0}}, "receiver.port", "greater than or equal to 1"),
        ({"receiver": {"port": 65536}}, "receiver.port", "less than or equal to 65535"),
        ({"receiver": {"port": "many"}}, "receiver.port", "integer"),
        ({"receiver": {"ae_title": "SEVENTEEN_LETTERS"}}, "receiver.ae_title", "1 to 16 printable ASCII"),
        ({"receiver": {"ae_title": "   "}}, "receiver.ae_title", "1 to 16 printable ASCII"),
        ({"receiver": {"ae_title": "A\\B"}}, "receiver.ae_title", "no backslash"),
        ({"receiver": {"max_pdu": 4095}}, "receiver.max_pdu", "4096"),
        ({"receiver": {"processes": 0}}, "receiver.processes", "greater than or equal to 1"),
        ({"receiver": {"max_associations": 0}}, "receiver.max_associations", "greater than or equal to 1"),
        ({"receiver": {"min_free_bytes": "1 gigabyte"}}, "receiver.min_free_bytes", "500MiB or 1GiB"),
        ({"receiver": {"min_free_bytes": -1}}, "receiver.min_free_bytes", "greater than or equal to 0"),
        ({"receiver": {"tls": TLS | {"cert": "x"}}}, "receiver.tls.cert", "allowed here: certificate, key, ca"),
        ({"receiver": {"tls": {"certificate": "x", "key": "y"}}}, "receiver.tls", "ca is needed"),
        (
            {"receiver": {"peers": [{"ae_title": "A", "address": "a", "certificate": "sha256:12"}]}},
            "receiver.peers.0.certificate",
            "sha256:<64 hexadecimal digits> or name:",
        ),
        ({"audit": {"syslog": "udp://a"}}, "audit.syslog", "syslog+tls://host:6514"),
        ({"audit": {"syslog": "syslog+tls://a"}}, "audit", "tls.ca is needed"),
        ({"receiver": {"peers": [{"ae_title": "A"}]}}, "receiver.peers.0.address", "required"),
        ({"assembly": {"quiet_period_s": -1}}, "assembly.quiet_period_s", "greater than or equal to 0"),
        ({"assembly": {"quiet_period_s": 60, "max_age_s": 5}}, "assembly", "must not be shorter than quiet_period_s"),
        ({"database": {"url": "mysql://host/name"}}, "database.url", "must be sqlite or postgresql"),
        ({"database": {"url": "just words"}}, "database.url", "sqlite:///var/knowmvg.db or postgresql"),
        ({"broker": {"url": "sqs://queue"}}, "broker.url", "redis://"),
        ({"storage": {"url": "s3://Bucket"}}, "storage.url", "s3://bucket/prefix"),
        ({"storage": {"url": "s3://bucket/a b"}}, "storage.url", "s3://bucket/prefix"),
        ({"storage": {"url": "s3://bucket", "endpoint": "http://store"}}, "storage", "allow_http"),
        ({"storage": {"url": "s3://bucket", "endpoint": "store:9000"}}, "storage", "https://s3.hospital.example"),
        ({"storage": {"url": "file://"}}, "storage.url", "file://var/dicom"),
        ({"model": {"device": "gpu"}}, "model.device", "auto, cpu, cuda or cuda:<number>"),
        ({"model": {"batch_size": 0}}, "model.batch_size", "greater than or equal to 1"),
        (
            {"priority": {"rules": [{"calling_ae_title": "ER", "priority": "NOW"}]}},
            "priority.rules.0.priority",
            "'STAT'",
        ),
        ({"priority": {"longest_wait_s": -1}}, "priority.longest_wait_s", "greater than or equal to 0"),
        ({"destinations": [DESTINATION | {"name": "a b"}]}, "destinations.0.name", "letters, digits"),
        ({"destinations": [DESTINATION | {"protocol": "fax"}]}, "destinations.0.protocol", "'dimse'"),
        ({"destinations": [DESTINATION | {"sr_class": "2d"}]}, "destinations.0.sr_class", "'comprehensive'"),
        ({"destinations": [DESTINATION, DESTINATION]}, "(whole file)", "two destinations have the same name"),
        ({"results": {"min_confidence": 1.5}}, "results.min_confidence", "less than or equal to 1"),
        ({"results": {"when_nothing_localized": "pdf"}}, "results.when_nothing_localized", "'tid1500'"),
        ({"node": {"station": "S" * 17}}, "node.station", "at most 16"),
        ({"node": {"institution": "I" * 65}}, "node.institution", "at most 64"),
    ],
)
def test_a_fault_is_named_by_its_path_and_says_what_is_allowed(
    load: Load, values: object, path: str, says: str
) -> None:
    (fault,) = faults_of(load, values)
    assert fault.startswith(f"{path}: ")
    assert says in fault


def test_all_faults_are_reported_at_once(load: Load) -> None:
    values = {"receiver": {"port": 0, "ae_title": ""}, "model": {"device": "gpu"}, "nonsense": 1}
    assert {fault.split(":")[0] for fault in faults_of(load, values)} == {
        "receiver.port",
        "receiver.ae_title",
        "model.device",
        "nonsense",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [("- a\n- b\n", "not a list"), ("just text", "not a str"), ("receiver: [", "cannot be read as YAML")],
)
def test_a_file_that_holds_no_sections_is_refused_by_name(load: Load, tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load(text)
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.yaml", "binary.yaml"):
        with pytest.raises(SettingsError, match=name):
            load_settings(tmp_path / name, {})


def test_the_environment_overrides_the_file(load: Load) -> None:
    environment = {
        "KNOWMVG__RECEIVER__PORT": "11999",
        "KNOWMVG__RECEIVER__MIN_FREE_BYTES": "2MiB",
        "KNOWMVG__RECEIVER__PEERS": "[{ae_title: CT, address: 10.0.0.1}]",
        "KNOWMVG__NODE__INSTITUTION": "Anywhere",
        "UNRELATED": "1",
    }
    settings = load({"receiver": {"port": 104, "ae_title": "KEPT"}}, environment)
    assert settings.receiver.port == 11999
    assert settings.receiver.min_free_bytes == 2 * 1024**2
    assert settings.receiver.peers[0].ae_title == "CT"
    assert settings.receiver.ae_title == "KEPT"
    assert settings.node.institution == "Anywhere"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KNOWMVG__RECEIVER__PROT", "1", "receiver.prot: unknown key"),
        ("KNOWMVG__RECEIVER__PORT", "x", "receiver.port"),
        ("KNOWMVG__RECEIVER__PEERS", "[{", "environment variable KNOWMVG__RECEIVER__PEERS"),
    ],
)
def test_a_fault_in_the_environment_is_named(load: Load, name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load({}, {name: value})


@pytest.mark.parametrize(
    ("text", "number"), [("1GiB", 2**30), ("500 MB", 500_000_000), ("1.5 kib", 1536), ("12", 12), ("7B", 7), (99, 99)]
)
def test_sizes_may_be_written_with_a_unit(text: object, number: int) -> None:
    assert parse_bytes(text) == number


def test_passwords_are_masked(load: Load) -> None:
    settings = load(
        {"database": {"url": "postgresql://node:s3cret@db/knowmvg"}, "broker": {"url": "redis://:hunter2@mq:6379/0"}}
    )
    assert settings.database.url == "postgresql+psycopg://node:s3cret@db/knowmvg"
    values = masked(settings)
    assert values["database"]["url"] == f"postgresql+psycopg://node:{MASK}@db/knowmvg"
    assert values["broker"]["url"] == f"redis://:{MASK}@mq:6379/0"
    assert "s3cret" not in yaml.safe_dump(values)


def test_masked_settings_can_be_loaded_again(load: Load) -> None:
    settings = load({"destinations": [DESTINATION], "receiver": {"any": True}})
    assert load(masked(settings)) == settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:p%40ss@h:5432/db", f"postgresql+psycopg://u:{MASK}@h:5432/db"),
        ("redis://:secret@h:6379/0", f"redis://:{MASK}@h:6379/0"),
        ("postgresql+psycopg://h/db?password=secret&x=1", f"postgresql+psycopg://h/db?password={MASK}&x=1"),
        ("sqlite:////srv/a:b@c.db", "sqlite:////srv/a:b@c.db"),
        ("embedded", "embedded"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_passwords_come_from_files(load: Load, tmp_path: Path) -> None:
    (tmp_path / "db").write_text("p@ss/word\n")
    (tmp_path / "broker").write_text("other")
    settings = load(
        {
            "database": {"url": "postgresql://me@db.example/jobs", "password_file": "db"},
            "broker": {"url": "redis://queue:6379/0", "password_file": str(tmp_path / "broker")},
        }
    )
    assert make_url(settings.database.url).password == "p@ss/word"
    assert settings.broker.url == "redis://:other@queue:6379/0"
    shown = str(masked(settings))
    assert "p@ss" not in shown and "p%40ss" not in shown and "other" not in shown


def test_a_password_file_that_is_missing_is_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere cannot be read"):
        load({"database": {"url": "postgresql://me@db/jobs", "password_file": "nowhere"}})


def test_files_of_certificates_belong_to_the_file(load: Load, tmp_path: Path) -> None:
    tls = {"ca": "ca.pem"}
    settings = load({"destinations": [DESTINATION | {"tls": tls}], "receiver": {"peers": [
        {"ae_title": "A", "address": "a", "tls": tls, "certificate": "sha256:" + "AB:" * 31 + "AB"}
    ]}})  # fmt: skip
    assert settings.destinations[0].tls is not None
    assert settings.destinations[0].tls.ca == tmp_path / "ca.pem"
    (peer,) = settings.receiver.peers
    assert peer.tls is not None and peer.tls.ca == tmp_path / "ca.pem"
    assert peer.certificate == "sha256:" + "ab" * 32
