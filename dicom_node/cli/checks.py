"""What `knowmvg check` tries, in order: each part of the node, and everything the node talks to."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dicom_node.cli.options import refuse_absent_file
from dicom_node.clock import utc_now
from dicom_node.config import DestinationSettings, Settings, find_file, load_settings
from dicom_node.console.health import Check, check_database, check_storage
from dicom_node.errors import NodeError, SettingsError
from dicom_node.objects import open_bucket
from dicom_node.queries import make_engine
from grounding.types import ModelError


def run_checks(config: Path | None) -> Iterator[Check]:
    """Yield each check when it is done; a configuration that is wrong is the only check."""
    try:
        settings = load_settings(config)
    except SettingsError as error:
        yield Check("configuration", False, str(error))
        return
    yield check_configuration(settings, find_file(config))
    yield check_rows(settings)
    yield check_broker(settings)
    yield check_bytes(settings)
    for destination in settings.destinations:
        yield check_destination(settings, destination)
    yield from check_channels(settings)
    yield check_model(settings)


def check_configuration(settings: Settings, config: Path | None) -> Check:
    """Tell what follows from the settings that a reader might overlook."""
    peers = "every sender" if settings.receiver.any else f"{len(settings.receiver.peers)} sender(s)"
    warning = "" if settings.receiver.any or settings.receiver.peers else "; receiver.peers is empty, nobody can send"
    warning += _describe_exposed(settings, config)
    warning += "" if settings.destinations else "; destinations is empty, results go nowhere"
    return Check("configuration", True, f"{config or 'built-in defaults'}: lets in {peers}{warning}")


def _describe_exposed(settings: Settings, config: Path | None) -> str:
    """Name the files with secrets that other users can read."""
    tls = settings.receiver.tls
    files = [tls.key if tls else None, settings.database.password_file, settings.broker.password_file]
    files += [settings.storage.credentials_file]
    files += [settings.console.tls.key] if settings.console.tls else []
    files += [settings.console.oidc.client_secret_file] if settings.console.oidc else []
    files += [destination.tls.key for destination in settings.destinations if destination.tls]
    files += [webhook.secret_file for webhook in settings.notifications.webhooks]
    files += [settings.notifications.email.password_file] if settings.notifications.email else []
    if config is not None and _holds_password(config):
        files.append(config)
    exposed = [str(path) for path in files if path is not None and path.exists() and _is_exposed(path)]
    return f"; other users can read the secrets in {', '.join(exposed)}: chmod 600" if exposed else ""


def _is_exposed(path: Path) -> bool:
    """Tell whether others than its user can read a secret; root's may be given to a group, as in containers."""
    found = path.stat()
    return bool(found.st_mode & (0o037 if found.st_uid == 0 else 0o077))


def _holds_password(config: Path) -> bool:
    urls = re.findall(r"\w+://[^\s\"']*", config.read_text(encoding="utf-8"))
    return any(urlsplit(url).password for url in urls)


def check_rows(settings: Settings) -> Check:
    """Tell whether the database is there, answers and has the schema of this version."""
    try:
        refuse_absent_file(settings)
    except NodeError as error:
        return Check("database", False, str(error))
    return check_database(settings, make_engine(settings.database.url))


def check_bytes(settings: Settings) -> Check:
    """Tell whether instances can be kept; a bucket is given a small object, asked for it, and told to remove it."""
    check = check_storage(settings)
    if not (check.ok and settings.storage.is_bucket):
        return check
    fault = open_bucket(settings).try_out(f"check-{socket.gethostname()}-{os.getpid()}")
    return Check("storage", False, f"{settings.storage.url}: {fault}") if fault else check


def check_broker(settings: Settings) -> Check:
    """Tell whether a message could be sent now."""
    from workers.app import check_broker as connect

    try:
        return Check("broker", True, connect(settings))
    except NodeError as error:
        return Check("broker", False, str(error))


def check_destination(settings: Settings, destination: DestinationSettings) -> Check:
    """Tell whether an archive answers C-ECHO."""
    from dicom_node.scu import echo

    name = f"destination {destination.name}"
    try:
        echo(destination, settings.receiver.ae_title)
    except NodeError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"{destination.ae_title} at {destination.host}:{destination.port} answers C-ECHO")


def check_channels(settings: Settings) -> Iterator[Check]:
    """Tell of each way by which administrators are told whether it takes messages; webhooks are posted a test."""
    from dicom_node.channels import ChannelError, make_channels, make_test

    for channel in make_channels(settings):
        try:
            yield Check(channel.name, True, channel.check(make_test(utc_now(), settings)))
        except ChannelError as error:
            yield Check(channel.name, False, str(error))


def check_model(settings: Settings) -> Check:
    """Tell whether the model loads, which one it is and where it runs."""
    from grounding.checkpoint import load_predictor

    try:
        predictor = load_predictor(settings.model.path, settings.model.device)
    except ModelError as error:
        return Check("model", False, str(error))
    identity = predictor.identity
    return Check(
        "model", True, f"{identity.name} {identity.version}, sha256 {identity.sha256[:12]}, on {predictor.device}"
    )
