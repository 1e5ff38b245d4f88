"""The README's Python runs as it stands, and its links and file names exist."""

import re
import shutil
from pathlib import Path

import pytest

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder that looks as the repository does after `make demo`, with an untrained model of the demo's sizes."""
    model = tmp_path / "demo" / "output" / "model"
    MTSLVRModel(MTSLVRConfig(base_width=16, window_seconds=2.0)).save_pretrained(model)
    MTSLVRFeatureExtractor().save_pretrained(model)
    shutil.copytree(ROOT / "demo" / "audio" / "flute", tmp_path / "demo" / "audio" / "flute")
    monkeypatch.chdir(tmp_path)


def test_python_blocks_run_and_print_what_they_say(demo, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        promised = re.findall(r"print\(.*\)  # (.*)", block)
        assert capsys.readouterr().out.splitlines() == promised


def test_files_it_names_exist():
    names = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`((?:training|tests|demo/audio)/[\w./]+)`", README
    )
    names += [f"mtslvr_hf/configs/paper/{name}.yaml" for name in re.findall(r"`((?:mt|cont|pred)_[a-z]+\w*)`", README)]
    missing = [name for name in names if not (ROOT / name).exists()]
    assert len(names) > 15 and not missing
