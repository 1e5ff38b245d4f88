"""The README's Python runs as it stands, and its links and file names exist."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from processes import launch

from mtslvr_cli import main
from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "mtslvr_hf")))  # an import of these is an error
"""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder that looks as the repository does after `make demo`, with an untrained model of the demo's sizes."""
    model = tmp_path / "demo" / "output" / "model"
    MTSLVRModel(MTSLVRConfig(base_width=16, window_seconds=2.0)).save_pretrained(model)
    MTSLVRFeatureExtractor().save_pretrained(model)
    shutil.copytree(ROOT / "demo" / "audio" / "flute", tmp_path / "demo" / "audio" / "flute")
    monkeypatch.chdir(tmp_path)


def test_python_blocks_run_and_print_what_they_say(demo, capsys):
    blocks = [block for block in BLOCKS if "import onnxruntime" not in block]
    assert len(blocks) > 1
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.splitlines() == promised(block)


def promised(block):
    return re.findall(r"print\(.*\)  # (.*)", block)


def test_onnx_block_runs_without_torch(demo, tmp_path):
    """In a process of its own; its embedding is that of `encode`."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    (block,) = [block for block in BLOCKS if "import onnxruntime" in block]
    (file,) = re.findall(r"demo/audio/\S+\.flac", block)
    assert main(["export", "demo/output/model", "--output", "model.onnx"]) == 0
    script = tmp_path / "example.py"
    script.write_text(f"{WITHOUT}{block}\nnp.save('embeddings.npy', embeddings)\n", encoding="utf-8")
    assert launch([script], tmp_path).splitlines() == promised(block)
    (found,), expected = np.load("embeddings.npy"), MTSLVRModel.from_pretrained("demo/output/model").encode(file)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_files_it_names_exist():
    names = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`((?:training|tests|demo/audio)/[\w./]+)`", README
    )
    names += [f"mtslvr_hf/configs/paper/{name}.yaml" for name in re.findall(r"`((?:mt|cont|pred)_[a-z]+\w*)`", README)]
    missing = [name for name in names if not (ROOT / name).exists()]
    assert len(names) > 15 and not missing
