"""Private names stay inside their module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("mtslvr_hf", "training", "demo", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)


def private_imports(source: str) -> list[str]:
    """Names with one leading underscore that a module imports from another."""
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    names = (alias.name for node in imports for alias in node.names)
    return [name for name in names if name.startswith("_") and not name.startswith("__")]


def test_an_import_of_a_private_name_is_found():
    assert private_imports("def f():\n    from .module import name, _private") == ["_private"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_private_name_is_imported(file):
    assert private_imports(file.read_text(encoding="utf-8")) == []
