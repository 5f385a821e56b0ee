"""Functions of at most 60 lines and modules of at most 500: what is longer is hard to read as a whole."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FUNCTION_LINES = 60
MODULE_LINES = 500

# Longer on purpose, with the reason; "path::Class.function".
LONG_FUNCTIONS: dict[str, str] = {}

FILES = sorted((ROOT / "edge").rglob("*.py"))


def functions(path: Path) -> dict[str, int]:
    """Lines of each function of a file, decorators left out and docstring counted, by `path::Class.function`."""
    found: dict[str, int] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found[prefix + child.name] = (child.end_lineno or child.lineno) - child.lineno + 1
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(path.read_text()), f"{path.relative_to(ROOT)}::")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_module_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES
    assert {n: c for n, c in functions(path).items() if c > FUNCTION_LINES and n not in LONG_FUNCTIONS} == {}


def test_the_exceptions_are_still_needed() -> None:
    lengths = {name: lines for path in FILES for name, lines in functions(path).items()}
    assert {name for name in LONG_FUNCTIONS if lengths.get(name, 0) <= FUNCTION_LINES} == set()
