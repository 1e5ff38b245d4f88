"""Loads what is to be published in a new process, and compares its output with that of this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..files import sha256_of
from ..shards.folder import MANIFEST
from .kinds import ADAPTER, CLASSIFIER, Kind

SECONDS = 3
MINUTES = 10  # limit of the new process

# Arguments: folder, file of the clip, file for the output, base model of an adapter.
MODEL = """
import sys
{hide}
import numpy as np
import torch
from transformers import AutoFeatureExtractor, {auto}

folder, clip, output, base = sys.argv[1:5]
torch.set_num_threads(1)
extractor = AutoFeatureExtractor.from_pretrained(base or folder, trust_remote_code={remote})
model = {auto}.from_pretrained(base or folder, trust_remote_code={remote}, dtype=torch.float32).eval()
options = {{}}
if base:
    options = {{"tasks": [model.load_adapter(folder)]}}
clip = np.load(clip)
with torch.no_grad():
    outputs = model(**extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt"), **options)
np.save(output, outputs.{field}.numpy())
"""
HIDE = "sys.modules['mtslvr_hf'] = None  # as where the package is not installed"

# Arguments: folder, and configuration and split, or an empty text.
ROWS = """
import sys
import datasets

folder, config, split = sys.argv[1:4]
datasets.disable_progress_bars()
rows = datasets.load_dataset(folder, config or None, split=split or "train", streaming=True)
print(sum(1 for _ in rows.decode(False)))
"""


def check_loading(folder: Path, staged: Path, kind: Kind, base_model: str | None) -> None:
    """Loads a staged folder in a new process; its output must be that of the original folder.

    Models and classifiers load without this package, with the code beside their weights. Their embedding or logits of
    a reference clip must be equal to the last bit. Adapters load into their base model. Of shards, checksums and the
    number of rows are compared with the manifests.

    Raises:
        ValueError: If loading fails, or something differs.
    """
    if kind.repo_type == "dataset":
        return _check_shards(staged)
    alone = kind != ADAPTER  # loads without the package
    auto, field = "AutoModel", "pooler_output"
    if kind == CLASSIFIER:
        auto, field = "AutoModelForAudioClassification", "logits"
    with_package = MODEL.format(hide="import mtslvr_hf", remote=False, auto=auto, field=field)
    published = MODEL.format(hide=HIDE, remote=True, auto=auto, field=field) if alone else with_package
    with tempfile.TemporaryDirectory() as home:
        clip, outputs = f"{home}/clip.npy", []
        np.save(clip, reference_clip())
        for place, code in ((folder, with_package), (staged, published)):
            arguments = (str(place.resolve()), clip, f"{home}/output.npy", base_model or "")
            _run(code, *arguments, home=home, offline=alone)
            outputs.append(np.load(f"{home}/output.npy"))
    if not np.array_equal(*outputs):
        far = np.abs(outputs[0] - outputs[1]).max() if outputs[0].shape == outputs[1].shape else float("nan")
        raise ValueError(
            f"what would be published differs from {folder}: the output for a reference clip by {far:.2e}. Save the "
            "model again with this version of the package, which writes its code beside the weights."
        )


def reference_clip() -> np.ndarray:
    """Decaying tones in noise, always the same: (samples,) float32 at any rate."""
    generator = np.random.default_rng(0)
    time = np.arange(SECONDS * 16_000) / 16_000
    tones = sum(np.sin(2 * np.pi * f * time) for f in (220, 555, 1234, 3100)) * np.exp(-2 * time)
    return (0.1 * tones + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def _check_shards(staged: Path) -> None:
    """Compares the shards with their manifests, and the rows that `datasets` finds with those of the manifests."""
    for path in sorted(staged.rglob(MANIFEST)):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "shards" not in manifest:  # summary of several splits
            continue
        for shard in manifest["shards"]:
            file = path.parent / shard["file"]
            if not file.is_file() or sha256_of(file) != shard["sha256"]:
                raise ValueError(
                    f"{shard['file']} is not the shard in {MANIFEST}: run the command that writes it again."
                )
        with tempfile.TemporaryDirectory() as home:
            names = [manifest.get("config") or "", manifest["split"] or ""] if path.parent != staged else ["", ""]
            rows = int(_run(ROWS, str(staged), *names, home=home))
        if rows != manifest["rows"]:
            raise ValueError(f"datasets finds {rows} rows in {staged}, and {MANIFEST} has {manifest['rows']}.")


def _run(code: str, *arguments: str, home: str, offline: bool = True) -> str:
    """Output of Python code in a new process, which has its own caches."""
    own = {"HF_MODULES_CACHE": f"{home}/modules", "HF_DATASETS_CACHE": f"{home}/datasets"}
    own |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"what would be published did not load within {MINUTES} minutes.") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(f"what would be published does not load: {lines[-1]}")
    return done.stdout


__all__ = ["check_loading", "reference_clip"]
