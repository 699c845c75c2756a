"""Settings: built-in defaults, overlaid by a YAML file, overlaid by environment variables KNOWMVG__SECTION__KEY.

Everything is checked at once, here and nowhere else; every fault is reported with its path in the file. Relative paths
are relative to the folder of the configuration file (or the working folder without one).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from dicom_node.errors import SettingsError

DEFAULT_FILE = Path("config.yaml")
ENVIRONMENT_PREFIX = "KNOWMVG__"
MASK = "********"

_BYTES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?\s*$", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000))
}


def parse_bytes(value: object) -> object:
    """Turn "1GiB" or "500 MB" into a number of bytes; leave numbers as they are."""
    if not isinstance(value, str):
        return value
    match = _BYTES.match(value)
    if match is None:
        raise ValueError("a size is a number of bytes or a text such as 500MiB or 1GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def parse_database_url(value: object) -> object:
    """Refuse what SQLAlchemy cannot read or what the node does not support."""
    try:
        url = make_url(str(value))
    except ArgumentError:
        raise ValueError("a database URL looks like sqlite:///var/knowmvg.db or postgresql+psycopg://…") from None
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ValueError("the database must be sqlite or postgresql")
    return url.set(drivername="postgresql+psycopg").render_as_string(False) if url.drivername == "postgresql" else value


def parse_broker_url(value: object) -> object:
    """Refuse brokers that the node was never tried with."""
    if value != "embedded" and urlsplit(str(value)).scheme not in {"redis", "rediss", "amqp", "amqps"}:
        raise ValueError("the broker is `embedded`, or a redis://, rediss://, amqp:// or amqps:// URL")
    return value


def parse_storage_url(value: object) -> object:
    """Only folders on this host are supported."""
    if not str(value).startswith("file://") or len(str(value)) == len("file://"):
        raise ValueError("the storage is a folder, as file://var/dicom or file:///srv/knowmvg/dicom")
    return value


def check_ae_title(value: str) -> str:
    """Refuse what PS3.5 6.2 does not allow as an AE title."""
    if not (1 <= len(value) <= 16 and value.isascii() and value.isprintable() and "\\" not in value and value.strip()):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return value


def check_name(value: str) -> str:
    """Refuse what would not read well in a table or a log line."""
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value) is None:
        raise ValueError("a name has 1 to 64 letters, digits, dots, dashes or underscores")
    return value


def check_device(value: str) -> str:
    """Refuse devices that torch does not have."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is None:
        raise ValueError("the device is auto, cpu, cuda or cuda:<number>")
    return value


def refuse_tls(value: object) -> None:
    """Say that TLS is not there yet, rather than listen in clear where it was asked for."""
    if value is not None:
        raise ValueError("TLS is not available in this version; keep null and put the node behind a TLS proxy")


AeTitle = Annotated[str, AfterValidator(check_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Bytes = Annotated[int, Field(ge=0), BeforeValidator(parse_bytes)]


class Section(BaseModel):
    """A part of the file: unknown keys are refused, values do not change after start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(Section):
    """Where the node keeps its files, and how it names itself in the results."""

    data_dir: Path = Path("var")
    institution: str = Field(default="", max_length=64)
    station: str = Field(default="", max_length=16)


class PeerSettings(Section):
    """A sender that is let in: calling AE title, and the address it calls from."""

    ae_title: AeTitle
    address: str = Field(min_length=1)


class ReceiverSettings(Section):
    """The Storage SCP."""

    ae_title: AeTitle = "KNOWMVG"
    host: str = "127.0.0.1"
    port: Port = 11112
    processes: int = Field(default=1, ge=1, le=64)
    max_associations: int = Field(default=32, ge=1, le=1000)
    max_pdu: int = Field(default=131072, ge=4096, le=131072)
    peers: tuple[PeerSettings, ...] = ()
    any: bool = False
    tls: Annotated[None, BeforeValidator(refuse_tls)] = None
    min_free_bytes: Bytes = 1024**3


class AssemblySettings(Section):
    """When a study counts as complete."""

    quiet_period_s: float = Field(default=5, ge=0, le=86400)
    max_age_s: float = Field(default=3600, gt=0, le=30 * 86400)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_age_s < self.quiet_period_s:
            raise ValueError("max_age_s must not be shorter than quiet_period_s")
        return self


class DatabaseSettings(Section):
    """The job database; empty means SQLite in the data folder."""

    url: Annotated[str, BeforeValidator(lambda value: value and parse_database_url(value))] = ""


class BrokerSettings(Section):
    """What rings the workers."""

    url: Annotated[str, BeforeValidator(parse_broker_url)] = "embedded"


class StorageSettings(Section):
    """Where instances are kept; empty means the folder `dicom` in the data folder."""

    url: Annotated[str, BeforeValidator(lambda value: value and parse_storage_url(value))] = ""

    @property
    def root(self) -> Path:
        """The folder."""
        return Path(self.url.removeprefix("file://"))


class ModelSettings(Section):
    """Which checkpoint grounds, and where it runs."""

    path: str = Field(default="default", min_length=1)
    device: Annotated[str, AfterValidator(check_device)] = "auto"
    batch_size: int = Field(default=8, ge=1, le=1024)
    max_wait_ms: float = Field(default=20, ge=0, le=10_000)


class DestinationSettings(Section):
    """An archive that results are sent to."""

    name: Annotated[str, AfterValidator(check_name)]
    protocol: Literal["dimse"] = "dimse"
    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: Port
    commitment: bool = True
    sr_class: Literal["auto", "comprehensive_3d", "comprehensive"] = "auto"


class ResultsSettings(Section):
    """What is written back."""

    sr: bool = True
    gsps: bool = True
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    when_nothing_localized: Literal["none", "text", "tid1500"] = "text"
    window: Literal["image", "reader"] = "image"
    tracking: Literal["cornerstone", "plain"] = "cornerstone"


class ConsoleSettings(Section):
    """The HTTP process: health, metrics, jobs."""

    host: str = "127.0.0.1"
    port: Port = 8042
    users: tuple[str, ...] = ()


class Settings(Section):
    """The whole configuration."""

    node: NodeSettings = NodeSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    assembly: AssemblySettings = AssemblySettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    storage: StorageSettings = StorageSettings()
    model: ModelSettings = ModelSettings()
    destinations: tuple[DestinationSettings, ...] = ()
    results: ResultsSettings = ResultsSettings()
    console: ConsoleSettings = ConsoleSettings()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("destinations: two destinations have the same name")
        return self


def load_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the effective settings.

    Without `path`, config.yaml of the working folder is read if there is one. Raises SettingsError with every fault.
    """
    environment = os.environ if environment is None else environment
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    values = _overlay(_read_yaml(file) if file else {}, environment)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_describe(error, file)) from None
    return _resolve(settings, (file.parent if file else Path()).resolve())


def masked(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, passwords in URLs replaced by asterisks."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    for section in ("database", "broker"):
        url = values[section]["url"]
        password = urlsplit(url).password if "://" in url else None
        if password:
            values[section]["url"] = url.replace(f":{password}@", f":{MASK}@")
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold sections such as `receiver:`, not a {type(values).__name__}")
    return values or {}


def _overlay(values: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Put KNOWMVG__SECTION__KEY over the file's values; their text is read as YAML, so lists and numbers work."""
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        *sections, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            value = yaml.safe_load(environment[name])
        except yaml.YAMLError as error:
            raise SettingsError(f"environment variable {name}: not a YAML value: {error}") from error
        target = merged
        for section in sections:
            if not isinstance(target.get(section), dict):
                target[section] = {}
            target = target[section]
        target[key] = value
    return merged


def _describe(error: ValidationError, path: Path | None) -> str:
    lines = [f"{path or 'the configuration'} has {error.error_count()} fault(s):"]
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
        lines.append(f"  {where}: {_explain(fault['type'], fault['msg'], fault['loc'])}")
    return "\n".join(lines)


def _explain(kind: str, message: str, where: tuple[int | str, ...]) -> str:
    message = message.removeprefix("Value error, ")
    if kind == "model_type":
        return f"must be a section with the keys {', '.join(_allowed_keys(where))}"
    if kind == "tuple_type":
        return "must be a list"
    if kind != "extra_forbidden":
        return message
    allowed = _allowed_keys(where[:-1])
    return f"unknown key; allowed here: {', '.join(allowed)}" if allowed else "unknown key"


def _allowed_keys(where: tuple[int | str, ...]) -> list[str]:
    section: Any = Settings
    for part in where:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        section = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Section)), annotation)
    return list(section.model_fields)


def _resolve(settings: Settings, folder: Path) -> Settings:
    data_dir = folder / settings.node.data_dir.expanduser()
    storage = folder / settings.storage.root if settings.storage.url else data_dir / "dicom"
    model = settings.model.path if settings.model.path == "default" else str(folder / Path(settings.model.path))
    return settings.model_copy(
        update={
            "node": settings.node.model_copy(update={"data_dir": data_dir}),
            "database": DatabaseSettings(url=_resolve_database(settings.database.url, folder, data_dir)),
            "storage": StorageSettings(url=f"file://{storage}"),
            "model": settings.model.model_copy(update={"path": model}),
        }
    )


def _resolve_database(text: str, folder: Path, data_dir: Path) -> str:
    if not text:
        return f"sqlite:///{data_dir / 'knowmvg.db'}"
    url = make_url(text)
    if url.get_backend_name() != "sqlite" or not url.database:
        return text
    return str(url.set(database=str(folder / url.database)))
