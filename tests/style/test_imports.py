"""The sans-IO modules know no socket, no event loop, no clock and no dice; import-linter checks the layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

WORLD = {"asyncio", "socket", "ssl", "time", "random", "secrets", "select", "selectors", "threading", "uvloop"}
OBSERVERS = {"edge.metrics", "edge.trace"}

# Modules that take bytes, `now` and a random source, and give back bytes and events: whole folders, and single modules of
# the top one. Beside these only the listener, the connections, the server, the storage and the admin port touch the world.
FOLDERS = ("auth", "sip", "msrp", "outbound")
MODULES = ("demux", "proxyprotocol", "websocket", "wsframes", "timers", "events", "errors", "trace")
RESOLVER = "edge/sip/resolver"


def sans_io_files() -> list[Path]:
    """The files of the above, of a module that was split into a folder all of them."""
    found = [path for name in (*FOLDERS, *MODULES) for path in sorted((ROOT / "edge" / name).rglob("*.py"))]
    found += [path for name in MODULES if (path := ROOT / "edge" / f"{name}.py").exists()]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(RESOLVER)]


def imported(source: str) -> set[str]:
    """Every module a source text imports, wherever in it; `from a.b import c` gives a.b and a.b.c."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def broken_rules(source: str) -> set[str]:
    """The imports of a sans-IO source text that it may not have."""
    names = imported(source)
    return {name for name in names if name.split(".")[0] in WORLD} | (names & OBSERVERS)


@pytest.mark.parametrize("path", sans_io_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sans_io_module_does_not_touch_the_world(path: Path) -> None:
    assert broken_rules(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        ("import asyncio", {"asyncio"}),
        ("def f():\n    from time import monotonic", {"time", "time.monotonic"}),
        ("from edge import metrics", {"edge.metrics"}),
        ("import socketserver\nfrom edge.timers import Wheel", set()),
    ],
)
def test_the_rule_sees_imports_wherever_they_are(source: str, broken: set[str]) -> None:
    assert broken_rules(source) == broken
