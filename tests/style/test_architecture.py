"""docs/architecture.md names every module; a new one finds its place there with the change that makes it."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
MODULES = PAGE[PAGE.index("## Modules") : PAGE.index("## Imports point one way")]


def test_every_module_is_in_the_list() -> None:
    """Of a package's `__init__` the folder's own name stands there."""
    named = set(re.findall(r"`([a-z_]+)/?`", MODULES))
    there = {path.stem for path in (ROOT / "edge").rglob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (ROOT / "edge").glob("*/__init__.py")}
    assert there - named == set()
    assert named - there == set()
