"""Every public module, class and function says what it does.

ruff's D102 asks the same of methods, and also of the one-line methods of a Protocol, whose names and signatures are all
there is to say; this test knows the difference, and leaves alone what fills in a method described elsewhere.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "edge").rglob("*.py"))
Described = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _is_declaration(function: ast.AST) -> bool:
    """Whether it is a signature without a body: `def fetch(self, name: str) -> None: ...`."""
    body = getattr(function, "body", [])
    return len(body) == 1 and isinstance(body[0], ast.Expr) and getattr(body[0].value, "value", None) is ...


def _is_override(function: ast.AST) -> bool:
    """Whether it says with a decorator that its description is the base class's."""
    return any(ast.unparse(decorator).endswith("override") for decorator in getattr(function, "decorator_list", []))


def undescribed(source: str) -> list[str]:
    """The public names of a source text that have no docstring, by dotted name; "" is the module itself."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [""]

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, Described) or child.name.startswith("_"):
                continue
            if not ast.get_docstring(child) and not _is_declaration(child) and not _is_override(child):
                found.append(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")

    walk(tree, "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_described(path: Path) -> None:
    assert undescribed(path.read_text()) == []


def test_the_rule_sees_what_is_missing() -> None:
    source = '''
class Store(Protocol):
    """Where things are."""
    def fetch(self, name: str) -> None: ...

class Shelf:
    def fetch(self, name: str) -> None:
        return None
    def _look(self) -> None:
        return None
    @override
    def close(self) -> None:
        return None

def find() -> None:
    """Find one."""
    def inner() -> None:
        return None
'''
    assert undescribed(source) == ["", "Shelf", "Shelf.fetch"]
