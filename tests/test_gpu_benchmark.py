"""benchmarks/gpu_pretraining.py, rehearsed without a GPU."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from pretraining_runs import ROOT

SCRIPT = ROOT / "benchmarks/gpu_pretraining.py"
SECTIONS = ["device", "correctness", "augmentations", "step", "feed", "end_to_end", "memory", "compiled", "run"]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_pretraining", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_section_that_cannot_run_or_fails_does_not_stop_the_others(script, monkeypatch, capfd, tmp_path):
    output = tmp_path / "gpu.md"
    # A section of this file's script that its parser does not know ends with an error.
    sections = {"feed": (60, ("no_such_package",)), "unknown": (60, ()), "device": (60, ())}
    monkeypatch.setattr(script, "SECTIONS", sections)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--device", "cpu", "--output", str(output)])
    script.main()
    written = output.read_text()
    assert [name for name in re.findall(r"^## (\w+)", written, re.MULTILINE)] == list(sections)
    assert "Left out: no_such_package missing" in written and "invalid choice: 'unknown'" in written
    assert "a rehearsal, whose figures mean nothing" in written and written in capfd.readouterr().out + "\n"


def test_a_section_that_takes_too_long_is_cut_off(script, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--device", "cpu"])
    script.start_section("step", 0.5, said.append)
    assert any("Cut off after 0 s" in line for line in said)


def test_without_a_gpu_and_without_saying_so_it_ends_with_advice():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2 and "rehearse with --quick --device cpu" in done.stderr


@pytest.mark.slow
def test_the_rehearsal_runs_every_section(tmp_path):
    output = tmp_path / "gpu.md"
    command = [sys.executable, SCRIPT, "--quick", "--device", "cpu", "--output", output]
    subprocess.run(command, check=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})
    written = output.read_text()
    assert re.findall(r"^## (\w+)", written, re.MULTILINE) == SECTIONS
    assert "Left out: " not in written and "Ended with" not in written and "Cut off" not in written
    assert "FAILS" not in written and written.count("| ok |") == 4
