"""Settings: TOML in, typed and validated settings out.

`load_settings` reads one file; without one, `Settings()` are the defaults. What the file says is checked in three
steps, and the first problem is raised as `ConfigError` with file, dotted key and reason: unknown keys and words outside
a closed set (`_check_names`), types and ranges (msgspec), and the rest (`edge.configcheck`).
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from edge.configcheck import problems, warnings
from edge.errors import ConfigError
from edge.settings import (
    Accounting,
    Admin,
    Auth,
    Hook,
    Limits,
    Listen,
    Msrp,
    Network,
    Outbound,
    Policy,
    Section,
    Settings,
    Sip,
    Storage,
    Tls,
    TlsCertificate,
    parse_networks,
    split_host_port,
)

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT_FILE",
    "Accounting",
    "Admin",
    "Auth",
    "Hook",
    "Limits",
    "Listen",
    "Msrp",
    "Network",
    "Outbound",
    "Policy",
    "Settings",
    "Sip",
    "Storage",
    "Tls",
    "TlsCertificate",
    "build_settings",
    "find_config",
    "load_settings",
    "parse_networks",
    "settings_warnings",
    "split_host_port",
]

ENVIRONMENT_FILE = "EDGE_CONFIG"
DEFAULTS = "defaults"  # what errors name where there is no file
_SECRETS = (("admin", "token"), ("storage", "url"), ("hooks", "url"), ("hooks", "secret"), ("accounting", "url"))
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "datetime": "a date",
}


def find_config(path: Path | None) -> Path | None:
    """Choose the file: the given one, else the one `EDGE_CONFIG` names, else none."""
    if path is None and (named := os.environ.get(ENVIRONMENT_FILE)):
        return Path(named)
    return path


def load_settings(path: Path | None = None) -> Settings:
    """Read and check the configuration file; without one (`find_config`) the defaults.

    Raises:
        ConfigError: the file cannot be read or used.
    """
    found = find_config(path)
    if found is None:
        return Settings()
    return build_settings(_read(found), str(found))


def build_settings(data: dict[str, Any], source: str) -> Settings:
    """Make settings from the parsed content of a file; `source` names it in errors.

    Raises:
        ConfigError: a key or a value that cannot be used.
    """
    for key, reason in _check_names(data, Settings, ""):
        raise ConfigError(source, key, reason)
    try:
        settings = _normalise(msgspec.convert(_resolve_secrets(data, source), Settings), data)
    except msgspec.ValidationError as error:
        raise _explain(error, data, source) from None
    for key, reason in problems(settings):
        raise ConfigError(source, key, reason)
    return settings


def settings_warnings(settings: Settings) -> list[str]:
    """List what works but is risky or of no effect, each as `key: sentence`."""
    return [f"{key}: {text}" for key, text in warnings(settings)]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(str(path), "", f"not valid TOML: {error}") from error


def _resolve_secrets(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Put the variable's content where a secret reads `env:NAME`."""
    resolved = dict(data)
    for section, key in _SECRETS:
        value = resolved.get(section)
        if isinstance(value, list):
            tables = (_resolve(table, key, f"{section}[{index}].{key}", source) for index, table in enumerate(value))
            resolved[section] = list(tables)
        elif value is not None:
            resolved[section] = _resolve(value, key, f"{section}.{key}", source)
    return resolved


def _resolve(table: Any, key: str, dotted: str, source: str) -> Any:
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, str) or not value.startswith("env:"):
        return table
    name = value.removeprefix("env:")
    if not (secret := os.environ.get(name)):
        raise ConfigError(source, dotted, f'environment variable "{name}" is not set')
    return {**table, key: secret}


def _normalise(settings: Settings, data: dict[str, Any]) -> Settings:
    """Lower the case of domains; let an unset default lifetime follow the bounds that are set."""
    changed: dict[str, Any] = {"domains": tuple(domain.lower() for domain in settings.domains)}
    for name, section in (("sip", settings.sip), ("msrp", settings.msrp)):
        if "default_expires" not in data.get(name, {}):
            lifetime = max(section.min_expires, min(section.default_expires, section.max_expires))
            changed[name] = msgspec.structs.replace(section, default_expires=lifetime)
    return msgspec.structs.replace(settings, **changed)


def _check_names(value: Any, kind: Any, key: str) -> Iterator[tuple[str, str]]:
    """Find unknown keys and words outside a closed set, which deserve a better error than a type mismatch."""
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        for name, item in value.items():
            dotted = f"{key}.{name}" if key else name
            if name in fields:
                yield from _check_names(item, fields[name], dotted)
            else:
                yield dotted, "unknown key" + _suggest(name, list(fields))
    elif get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_names(item, get_args(kind)[0], f"{key}[{index}]")
    elif get_origin(kind) is Literal and isinstance(value, str) and value not in get_args(kind):
        yield key, f'"{value}" is not one of {", ".join(get_args(kind))}'


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; known here: {', '.join(sorted(known))}"


def _explain(error: msgspec.ValidationError, data: dict[str, Any], source: str) -> ConfigError:
    """Say a type or range error in words of the file: dotted key, plain type names."""
    text, _, path = str(error).partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", text):
        return ConfigError(source, f"{key}.{missing[1]}" if key else missing[1], "required")
    reason = re.sub(r"`(\w+)`", lambda found: _TYPE_NAMES.get(found[1], found[1]), text)
    got = _value_at(data, key)
    if ", got" not in reason and isinstance(got, int | float):
        reason += f", got {got}"
    return ConfigError(source, key, reason[:1].lower() + reason[1:])


def _value_at(data: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        data = data[int(part)] if isinstance(data, list) else data.get(part)
    return data
