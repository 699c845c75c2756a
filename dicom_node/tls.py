"""DICOM over TLS: contexts after the BCP 195 profiles (PS3.15 B.12), and what a certificate says of its holder.

TLS 1.2 or 1.3, forward secrecy and authenticated encryption only; certificates are checked on both sides.
"""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node.config import CertificateSettings, ClientTlsSettings, ServerTlsSettings
from dicom_node.errors import SettingsError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!PSK"
"""Of TLS 1.2 (RFC 9325, which is BCP 195, 4.2); those of TLS 1.3 are all good."""


def server_context(settings: ServerTlsSettings) -> ssl.SSLContext:
    """Return the receiver's context. Raises SettingsError that names the file at fault."""
    context = _make_context(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(context, "receiver.tls", settings.certificate, settings.key)
    if settings.require_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, "receiver.tls", settings.ca)
    return context


def client_context(settings: ClientTlsSettings) -> ssl.SSLContext:
    """Return the context towards a destination, a sender or a collector. Raises SettingsError that names the file."""
    context = _make_context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = settings.check_name
    _load_authorities(context, "tls", settings.ca)
    if settings.certificate is not None:
        _load_chain(context, "tls", settings.certificate, settings.key)
    return context


def console_context(settings: CertificateSettings) -> ssl.SSLContext:
    """Return the console's context, towards browsers. Raises SettingsError that names the file at fault."""
    context = _make_context(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(context, "console.tls", settings.certificate, settings.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def authorities_context(path: Path | None) -> ssl.SSLContext:
    """Return the context towards a server of the web: signed by authorities of the file, or by those of the system."""
    context = ssl.create_default_context()
    if path is not None:
        context = _make_context(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, "console.oidc", path)
    return context


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a DER certificate, as `sha256:` and hexadecimal digits."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def names_in(certificate: dict[str, Any]) -> tuple[str, ...]:
    """Return the common names and DNS names of a certificate, as `ssl.SSLSocket.getpeercert` describes it."""
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return tuple(dict.fromkeys([*subject, *others]))


def expiries(path: Path) -> tuple[datetime, ...]:
    """Return when each certificate of a PEM file expires; of a file that cannot be read, nothing."""
    from cryptography import x509  # the receiver needs it for nothing

    try:
        return tuple(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError):
        return ()


def explain(error: OSError) -> str:
    """Return why a hand-shake failed, in words for a log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or type(error).__name__).replace("_", " ").lower()
    return "no hand-shake within the time allowed" if isinstance(error, TimeoutError) else "the peer hung up"


def _make_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_chain(context: ssl.SSLContext, where: str, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except (OSError, ValueError) as error:
        files = " and ".join(str(path) for path in (certificate, key) if path is not None)
        raise SettingsError(f"{where}: no certificate with its unencrypted private key in {files}: {error}") from error


def _refuse_to_ask() -> str:
    raise ValueError("the key is encrypted; keep it unencrypted in a file that this user alone may read")


def _load_authorities(context: ssl.SSLContext, where: str, path: Path | None) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, TypeError) as error:
        raise SettingsError(f"{where}.ca: no certificates of authorities in {path}: {error}") from error
