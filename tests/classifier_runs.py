"""Labelled tones and small models, for the tests of classification."""

from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForPreTraining

ROOT = Path(__file__).parent.parent
RATE = 16_000
HERTZ = {"high": 3000, "low": 200, "middle": 900}
TINY = {"base_width": 4, "window_seconds": 1.0, "embedding_size": 8}


def tone(hertz, number, seconds=1.0):
    """A tone near a frequency in noise, another for each number: (samples,)."""
    generator = np.random.default_rng([hertz, number])
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * hertz * generator.uniform(0.9, 1.1) * time + generator.uniform(0, 6))
    return (0.3 * wave + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


def write_folder(folder, clips=6, seconds=1.0, classes=HERTZ):
    """A folder of WAV files per class."""
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(clips):
            soundfile.write(folder / label / f"{number}.wav", tone(HERTZ[label], number, seconds), RATE)
    return folder


def encoded(hertz, number, folder):
    """`{"bytes", "path"}` of a WAV file."""
    path = folder / f"{hertz}-{number}.wav"
    soundfile.write(path, tone(hertz, number), RATE)
    return {"bytes": path.read_bytes(), "path": path.name}


def make_rows(folder, label, labels, **columns):
    """A data set of tones: `labels(name of the class, number)` gives each row's label, of the type `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(name, number) for number in range(4) for name in HERTZ]
    rows = {
        "audio": [encoded(HERTZ[name], number, folder) for name, number in cases],
        "label": [labels(name, number) for name, number in cases],
        **{column: [value(name, number) for name, number in cases] for column, value in columns.items()},
    }
    features = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": label}
    features |= {column: datasets.Value("string") for column in columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def save_model(folder, **changes):
    """A pre-trained model, as it were, and its feature extractor."""
    torch.manual_seed(0)
    MTSLVRForPreTraining(MTSLVRConfig(**{**TINY, **changes})).save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    return folder
