"""Modules that importing the package, and asking the command for help, must not load."""

import subprocess
import sys

import pytest
from interrupted_runs import environment

# What transformers' own registration of models does not load: each costs 0.1 to 2 s.
NEEDLESS = (
    "datasets",
    "sklearn",
    "pyarrow",
    "pandas",
    "matplotlib",
    "onnx",
    "faiss",
    "mteb",
    "fsspec.implementations.http",
)
# The parts of transformers that the classes of a model and their registration need.
TRANSFORMERS = (
    "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, "
    "AutoModelForPreTraining, AutoProcessor, PreTrainedModel, SequenceFeatureExtractor, audio_utils, modeling_layers"
)
ROOMS = (
    "adapters",
    "audio",
    "caching",
    "cards",
    "classification",
    "data",
    "embedding",
    "evaluation",
    "export",
    "trainer",
)


def loaded(code):
    code = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before), sep='\\n')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines())


def test_the_package_loads_what_registration_needs():
    # What transformers loads to define a model, it may load again.
    beyond = loaded("import mtslvr_hf") - loaded(TRANSFORMERS)
    assert not [name for name in NEEDLESS if name in beyond]
    assert not [room for room in ROOMS if f"mtslvr_hf.{room}" in beyond]


@pytest.mark.parametrize("command", ["", "embed", "cache", "evaluate", "convert", "export"])
def test_help_loads_no_library(command):
    arguments = [*command.split(), "--help"]
    found = loaded(
        f"import contextlib, mtslvr_cli\nwith contextlib.suppress(SystemExit):\n  mtslvr_cli.main({arguments})"
    )
    assert "argparse" in found
    assert not found & {"mtslvr_hf", "numpy", "torch", "transformers"}
