"""Hints for missing packages name extras that exist, and install from a clone: the package is on no index."""

import re
import sys
from pathlib import Path

import pytest

from mtslvr_cli import main
from mtslvr_hf.installation import install_hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # of pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def texts():
    """Names and texts of the files that may hold a hint, strings over several lines joined."""
    files = [ROOT / "mtslvr_cli.py", *ROOT.glob("*.md")]
    for folder in ("mtslvr_hf", "training", "benchmarks", "demo", "docs", "model_cards"):
        files += [file for kind in ("py", "md", "html", "yaml") for file in (ROOT / folder).rglob(f"*.{kind}")]
    names = {file.relative_to(ROOT).as_posix(): file for file in files if ROOT / "demo/output" not in file.parents}
    return {name: re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for name, file in names.items()}


def test_hints_say_how_to_install_from_a_clone():
    assert install_hint("onnx") == "`pip install -e '.[onnx]'` in a clone of the repository"


def test_no_text_installs_the_package_from_an_index_or_replaces_an_editable_installation():
    found = texts()
    commands = [(name, command) for name in found for command in re.findall(r"pip install [^`\n]*", found[name])]
    assert len(commands) > 10
    wrong = [(name, command) for name, command in commands if re.search(r"mtslvr|install '?\.", command)]
    assert not wrong


def test_extras_exist():
    text = "\n".join(texts().values())
    named = set(re.findall(r"install_hint\([\"']([\w-]+)[\"']\)", text))
    named |= {extra for extras in re.findall(r"pip install -e '\.\[([\w,-]+)\]'", text) for extra in extras.split(",")}
    assert len(named) > 5 and named <= EXTRAS.keys()


@pytest.mark.parametrize(("command", "extra"), [("evaluate", "evaluation"), ("export", "onnx")])
def test_help_gives_the_same_hints(command, extra, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert install_hint(extra) in " ".join(capsys.readouterr().out.split())
