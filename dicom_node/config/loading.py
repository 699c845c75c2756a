"""Reading the configuration: defaults, overlaid by the file, overlaid by the environment; checked at once; masked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlsplit

import yaml
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from dicom_node.config.console import mask_console
from dicom_node.config.section import Section
from dicom_node.config.sections import Settings, StorageSettings
from dicom_node.errors import SettingsError

DEFAULT_FILE = Path("config.yaml")
ENVIRONMENT_PREFIX = "KNOWMVG__"
MASK = "********"


def load_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the effective settings.

    Without `path`, config.yaml of the working folder is read if there is one. Raises SettingsError with every fault.
    """
    environment = os.environ if environment is None else environment
    file = find_file(path)
    values = _overlay(_read_yaml(file) if file else {}, environment)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_describe(error, file)) from None
    return _resolve(settings, (file.parent if file else Path()).resolve())


def find_file(path: Path | None = None) -> Path | None:
    """Return the file that is read: `path`, else config.yaml of the working folder; None if there is none."""
    return path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def masked(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, passwords in URLs replaced by asterisks."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    for section in ("database", "broker"):
        values[section]["url"] = mask_url(values[section]["url"])
    for webhook in values["notifications"]["webhooks"]:  # of which path and query may be the secret
        webhook["url"] = f"{mask_url(webhook['url']).split('/', 3)[2]}/{MASK}"
    mask_console(values["console"], MASK)
    return values


def mask_url(url: str) -> str:
    """Return a URL without its password, nor one that a query string holds."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    netloc = parts.netloc
    if parts.password:
        user, _, where = netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}:{MASK}@{where}"
    query = re.sub(r"(?i)((?:^|&)[^=&]*pass[^=&]*=)[^&]*", rf"\g<1>{MASK}", parts.query)
    return (
        url if (netloc, query) == (parts.netloc, parts.query) else parts._replace(netloc=netloc, query=query).geturl()
    )


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
        if isinstance(part, int) or part not in section.model_fields:  # of a list, or the name of an entry
            continue
        annotation = section.model_fields[part].annotation
        section = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Section)), annotation)
    return list(section.model_fields)


def _resolve(settings: Settings, folder: Path) -> Settings:
    data_dir = folder / settings.node.data_dir.expanduser()
    model = settings.model.path if settings.model.path == "default" else str(folder / Path(settings.model.path))
    placed: Settings = _place(settings, folder)
    database, broker = placed.database, placed.broker
    return placed.model_copy(
        update={
            "node": settings.node.model_copy(update={"data_dir": data_dir}),
            "database": database.model_copy(
                update={
                    "url": _with_password(_resolve_database(database.url, folder, data_dir), database.password_file)
                }
            ),
            "broker": broker.model_copy(update={"url": _with_password(broker.url, broker.password_file)}),
            "storage": placed.storage.model_copy(update={"url": _resolve_storage(settings.storage, folder, data_dir)}),
            "model": settings.model.model_copy(update={"path": model}),
        }
    )


def _place(section: Any, folder: Path) -> Any:
    """Return a section with its relative paths in `folder`."""
    if isinstance(section, tuple):
        return tuple(_place(item, folder) for item in section)
    if isinstance(section, Path):
        return folder / section.expanduser()
    if not isinstance(section, Section):
        return section
    return section.model_copy(
        update={name: _place(getattr(section, name), folder) for name in type(section).model_fields}
    )


def _with_password(url: str, path: Path | None) -> str:
    """Put the password of a file into a URL."""
    if path is None:
        return url
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the password file {path} cannot be read: {error}") from error
    parts = urlsplit(url)
    if not parts.hostname:
        raise SettingsError(f"password_file {path} is given, but its URL names no server")
    user = parts.username or ""
    where = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{where}").geturl()


def _resolve_storage(storage: StorageSettings, folder: Path, data_dir: Path) -> str:
    if storage.is_bucket:
        return storage.url
    return f"file://{folder / storage.root if storage.url else data_dir / 'dicom'}"


def _resolve_database(text: str, folder: Path, data_dir: Path) -> str:
    if not text:
        return f"sqlite:///{data_dir / 'knowmvg.db'}"
    url = make_url(text)
    if url.get_backend_name() != "sqlite" or not url.database:
        return text
    return str(url.set(database=str(folder / url.database)))
