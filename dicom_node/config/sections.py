"""The sections of the configuration, their keys and defaults; values do not change after start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dicom_node.config.console import ConsoleSettings
from dicom_node.config.section import Port, Section
from dicom_node.config.values import (
    check_ae_title,
    check_certificate,
    check_device,
    check_http_url,
    check_mail_address,
    check_name,
    parse_broker_url,
    parse_bytes,
    parse_database_url,
    parse_storage_url,
    parse_syslog_url,
)

AeTitle = Annotated[str, AfterValidator(check_ae_title)]
Bytes = Annotated[int, Field(ge=0), BeforeValidator(parse_bytes)]


class NodeSettings(Section):
    """Where the node keeps its files, and how it names itself in the results."""

    data_dir: Path = Path("var")
    institution: str = Field(default="", max_length=64)
    station: str = Field(default="", max_length=16)


class ServerTlsSettings(Section):
    """TLS of the receiver: its certificate and key, and the authorities that sign those of the senders."""

    certificate: Path
    key: Path
    ca: Path | None = None
    require_client_certificate: bool = True

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.require_client_certificate and self.ca is None:
            raise ValueError("ca is needed to check the senders' certificates (or require_client_certificate: false)")
        return self


class ClientTlsSettings(Section):
    """TLS towards a peer: the authorities that sign its certificate, and our own certificate for it to check."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    check_name: bool = True


class PeerSettings(Section):
    """A sender that is let in: calling AE title, the address it calls from, and its certificate where there is TLS.

    `port` is where it takes reports of storage commitment.
    """

    ae_title: AeTitle
    address: str = Field(min_length=1)
    certificate: Annotated[str, AfterValidator(check_certificate)] | None = None
    max_associations: int | None = Field(default=None, ge=1, le=1000)
    port: Port | None = None
    tls: ClientTlsSettings | None = None


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
    tls: ServerTlsSettings | None = None
    min_free_bytes: Bytes = 1024**3
    max_instance_bytes: Annotated[Bytes, Field(ge=1024**2)] = 2 * 1024**3
    idle_s: float = Field(default=60, ge=5, le=3600)


class AssemblySettings(Section):
    """When a study counts as complete."""

    quiet_period_s: float = Field(default=5, ge=0, le=86400)
    max_age_s: float = Field(default=3600, gt=0, le=30 * 86400)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_age_s < self.quiet_period_s:
            raise ValueError("max_age_s must not be shorter than quiet_period_s")
        return self


class PriorityRuleSettings(Section):
    """How urgent the studies of a sender are, whatever else is said of them."""

    calling_ae_title: AeTitle
    priority: Literal["STAT", "ROUTINE"]


class PrioritySettings(Section):
    """What makes a study STAT, and how long a routine one waits for those that are."""

    header: bool = True
    c_store: bool = True
    rules: tuple[PriorityRuleSettings, ...] = ()
    longest_wait_s: float = Field(default=900, ge=0, le=7 * 86400)


class DatabaseSettings(Section):
    """The job database; empty means SQLite in the data folder. `password_file` holds the password alone."""

    url: Annotated[str, BeforeValidator(lambda value: value and parse_database_url(value))] = ""
    password_file: Path | None = None


class BrokerSettings(Section):
    """What rings the workers."""

    url: Annotated[str, BeforeValidator(parse_broker_url)] = "embedded"
    password_file: Path | None = None


class StorageSettings(Section):
    """Where instances are kept; empty means the folder `dicom` in the data folder.

    The other keys are about a bucket. `credentials_file` is YAML with `access_key_id` and `secret_access_key`; without
    one they come from the environment, or from the instance's role.
    """

    url: Annotated[str, BeforeValidator(lambda value: value and parse_storage_url(value))] = ""
    endpoint: str | None = None
    region: str | None = None
    credentials_file: Path | None = None
    allow_http: bool = False

    @property
    def is_bucket(self) -> bool:
        """Whether it is an object store."""
        return self.url.startswith("s3://")

    @property
    def root(self) -> Path:
        """The folder, where it is one."""
        return Path(self.url.removeprefix("file://"))

    @property
    def bucket(self) -> tuple[str, str]:
        """The bucket, and what its keys begin with."""
        name, _, prefix = self.url.removeprefix("s3://").partition("/")
        return name, prefix.strip("/")

    @model_validator(mode="after")
    def _in_clear(self) -> Self:
        if self.endpoint is None:
            return self
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("endpoint is the address of the object store, as https://s3.hospital.example")
        if parts.scheme == "http" and not self.allow_http:
            raise ValueError("endpoint is http: patients' images would pass in clear; write https, or allow_http: true")
        return self


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
    confirmation: Literal["auto", "commitment", "query"] = "auto"
    report_within_s: float = Field(default=300, ge=1, le=7 * 86400)
    patience_s: float = Field(default=7 * 86400, ge=60, le=90 * 86400)
    tls: ClientTlsSettings | None = None
    sr_class: Literal["auto", "comprehensive_3d", "comprehensive"] = "auto"


class ResultsSettings(Section):
    """What is written back."""

    sr: bool = True
    gsps: bool = True
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    when_nothing_localized: Literal["none", "text", "tid1500"] = "text"
    window: Literal["image", "reader"] = "image"
    tracking: Literal["cornerstone", "plain"] = "cornerstone"


class RetentionSettings(Section):
    """When received bytes may be removed: so many days after every destination confirmed the results; null: never."""

    inputs_days: float | None = Field(default=None, ge=0, le=36500)


class AuditSettings(Section):
    """Where audit messages are sent besides the database; empty: nowhere."""

    syslog: Annotated[str, BeforeValidator(lambda value: value and parse_syslog_url(value))] = ""
    tls: ClientTlsSettings | None = None
    site: str = Field(default="", max_length=64)

    @model_validator(mode="after")
    def _trusted(self) -> Self:
        scheme = urlsplit(self.syslog).scheme
        if scheme == "syslog+tls" and self.tls is None:
            raise ValueError("tls.ca is needed for syslog+tls: the authorities that sign the collector's certificate")
        if scheme == "syslog+tcp" and self.tls is not None:
            raise ValueError("syslog+tcp sends in clear, so that tls is of no use: write syslog+tls, or leave tls out")
        return self


class WebhookSettings(Section):
    """An HTTP address that administrators' messages are posted to; `secret_file` holds what signs them."""

    name: Annotated[str, AfterValidator(check_name)]
    url: Annotated[str, AfterValidator(check_http_url)]
    secret_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = Field(default=10, ge=1, le=60)


class EmailSettings(Section):
    """The mail server that takes messages to administrators."""

    host: str = Field(min_length=1)
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    sender: Annotated[str, AfterValidator(check_mail_address)]
    recipients: tuple[Annotated[str, AfterValidator(check_mail_address)], ...] = Field(min_length=1)
    timeout_s: float = Field(default=20, ge=1, le=60)

    @model_validator(mode="after")
    def _kept_secret(self) -> Self:
        if self.user and self.security == "none":
            raise ValueError("a password is not sent in clear: security must be starttls or tls where there is a user")
        return self


class NotificationSettings(Section):
    """Who is told of what calls for a person, and how often at most of the same."""

    webhooks: tuple[WebhookSettings, ...] = ()
    email: EmailSettings | None = None
    interval_s: float = Field(default=3600, ge=0, le=7 * 86400)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [webhook.name for webhook in self.webhooks]
        if len(names) != len(set(names)):
            raise ValueError("webhooks: two webhooks have the same name")
        return self


class Settings(Section):
    """The whole configuration."""

    node: NodeSettings = NodeSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    assembly: AssemblySettings = AssemblySettings()
    priority: PrioritySettings = PrioritySettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    storage: StorageSettings = StorageSettings()
    model: ModelSettings = ModelSettings()
    destinations: tuple[DestinationSettings, ...] = ()
    results: ResultsSettings = ResultsSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    notifications: NotificationSettings = NotificationSettings()
    console: ConsoleSettings = ConsoleSettings()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("destinations: two destinations have the same name")
        return self
