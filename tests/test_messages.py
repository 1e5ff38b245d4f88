"""Words: messages of errors end in a full stop, their classes in Error, and first lines of docstrings name a thing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*sorted(ROOT.glob("mtslvr_hf/**/*.py")), *sorted(ROOT.glob("training/*.py")), ROOT / "mtslvr_cli.py"]


def message_end(call):
    """The text that ends a raised message; None if it is a value, as another error's message is."""
    message = call.args[-1] if call.args else None
    while isinstance(message, ast.BinOp):
        message = message.right
    if isinstance(message, ast.JoinedStr):
        message = message.values[-1]
    return message.value if isinstance(message, ast.Constant) and isinstance(message.value, str) else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_messages_end_in_a_full_stop(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            end = message_end(node.exc)
            assert end is None or end.endswith((".", "?")), f"line {node.lineno}: {end!r}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_names_of_errors(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            is_error = any(re.search(r"(Error|Exception)$", base) for base in bases)
            assert not is_error or node.name.endswith("Error"), node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_first_lines_of_docstrings(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert not re.match(r"(What|How|Where|When|Which|Whether)\b", first), first
