"""The option reference and the example say what the program does."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any, get_args, get_origin

import msgspec
import pytest

from edge.config import Settings, build_settings, load_settings, settings_warnings
from edge.settings import Section
from tests.conftest import ROOT

REFERENCE = (ROOT / "docs" / "configuration.md").read_text()
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.*?) \|\s*(.*?)\s*\| `(.*?)` \| (.+) \|$", re.MULTILINE)
ROWS = {found[1]: found for found in ROW.finditer(REFERENCE)}


def keys_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of the file with its default; those of a list of tables under the list's name."""
    keys: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        inner = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(inner, type) and issubclass(inner, Section):
            keys |= keys_of(inner, f"{prefix}{field.name}.")
        else:
            keys[prefix + field.name] = {} if field.default_factory is dict else field.default
    return keys


KEYS = keys_of(Settings)


def test_every_key_is_described_and_nothing_else() -> None:
    assert set(ROWS) == set(KEYS)


@pytest.mark.parametrize("key", sorted(set(KEYS) & set(ROWS) - {"domains", "listen.bind"}))
def test_the_default_is_the_programs(key: str) -> None:
    assert tomllib.loads(f"value = {ROWS[key][2].strip('`')}")["value"] == json.loads(json.dumps(KEYS[key]))


@pytest.mark.parametrize("key", sorted(set(ROWS) - {"outbound.token_keys"}))
def test_the_example_has_the_right_type(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_ADMIN_TOKEN", "x")
    monkeypatch.setenv("EDGE_HOOK_SECRET", "x")
    example = tomllib.loads(f"value = {ROWS[key][4]}")["value"]
    section, _, name = key.rpartition(".")
    data: dict[str, Any] = {section: {name: example}} if section else {name: example}
    if section == "listen":
        data = {section: [{"bind": "127.0.0.1:5060", name: example}]}
    if section == "hooks":
        action = {} if name in ("exec", "url", "call") else {"url": "https://example.com/"}
        data = {section: [{"events": ["connection.failed"], **action, name: example}]}
    if key in ("tls.certificate", "tls.private_key"):
        data["tls"] = {"certificate": "a", "private_key": "b", name: example}
    if section == "tls.certificates":
        more = {"certificate": "c", "private_key": "d", name: example}
        data = {"tls": {"certificate": "a", "private_key": "b", "certificates": [more]}}
    if key == "role":
        msgspec.convert(data, Settings)  # named, but not available yet
    else:
        build_settings(data, "docs")


@pytest.mark.parametrize("key", sorted(KEYS))
def test_numbers_with_a_dimension_have_a_unit(key: str) -> None:
    timed = key.endswith(("_timeout", "_expires", "_timer", "_lifetime"))
    assert not timed or ROWS[key][3] == "s"


def test_the_example_file_is_accepted_without_surprises() -> None:
    settings = load_settings(ROOT / "deploy" / "edge.toml")
    assert settings.domains == ("example.com",)
    assert [warning.partition(":")[0] for warning in settings_warnings(settings)] == ["tls.certificate"]


def test_what_the_example_leaves_in_comments_is_accepted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_ADMIN_TOKEN", "x")
    text = (ROOT / "deploy" / "edge.toml").read_text()
    data = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    assert data["tls"]["certificate"]
    assert settings_warnings(build_settings(data, "edge.toml")) == []


def test_the_example_sets_nothing_but_defaults_where_it_can() -> None:
    settings = load_settings(ROOT / "deploy" / "edge.toml")
    default = Settings()
    for name in ("auth", "sip", "outbound", "msrp", "limits", "admin", "tls"):
        assert getattr(settings, name) == getattr(default, name)
