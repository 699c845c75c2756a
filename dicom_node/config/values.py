"""What a value of the configuration may be: one function per kind, which returns it or raises ValueError."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

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
    """A folder, or a bucket of an object store that speaks S3, and what its keys begin with."""
    text = str(value)
    if re.fullmatch(r"file://.+|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_./-]*)?", text) is None:
        raise ValueError(
            "the storage is a folder, as file://var/dicom or file:///srv/knowmvg/dicom, or a bucket, as "
            "s3://bucket/prefix"
        )
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


def check_certificate(value: str) -> str:
    """Refuse what says nothing of a certificate: its SHA-256 fingerprint or a name in it."""
    kind, _, rest = value.partition(":")
    rest = rest.replace(":", "").strip() if kind == "sha256" else rest.strip()
    if (kind == "sha256" and re.fullmatch(r"[0-9A-Fa-f]{64}", rest) is None) or kind not in ("sha256", "name"):
        raise ValueError("a certificate is given as sha256:<64 hexadecimal digits> or name:<common or DNS name>")
    return f"{kind}:{rest.lower() if kind == 'sha256' else rest}"


def parse_syslog_url(value: object) -> object:
    """Refuse what is no collector of audit messages."""
    url = urlsplit(str(value))
    if url.scheme not in {"syslog+tls", "syslog+tcp"} or not url.hostname or url.port == 0:  # raises above 65535
        raise ValueError("the collector is given as syslog+tls://host:6514 (or syslog+tcp://host:601)")
    return value


def check_http_url(value: str) -> str:
    """Refuse what is no address of HTTP."""
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:  # raises above 65535
        raise ValueError("an address is given as https://host/path")
    return value


def check_mail_address(value: str) -> str:
    """Refuse what is no mail address, or would be more than one line of a header."""
    if re.fullmatch(r"[^\s@<>,;:\"]+@[^\s@<>,;:\"]+", value) is None:
        raise ValueError("a mail address looks like name@host")
    return value


def check_host_name(value: str) -> str:
    """Refuse what no Host header names; return it as browsers write it."""
    if re.fullmatch(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", value) is None:
        raise ValueError("a host is given by its name or address alone, without port: console.hospital.example")
    return value.lower()


def check_password_hash(value: str) -> str:
    """Refuse what is no hash of a password, such as the password itself."""
    if re.fullmatch(r"\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+", value) is None:
        raise ValueError("a password is kept as its argon2id hash, which `knowmvg users hash` prints")
    return value
