"""A folder of labelled sounds and small models, made once."""

import numpy as np
import pytest
import soundfile
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

RATE = 16_000


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """Five classes of eight noises, each class with a band of its own, and a sixth of only two clips."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for number, name in enumerate(["anvil", "bell", "cello", "drum", "engine", "flute"]):
        (folder / name).mkdir()
        for clip in range(2 if name == "flute" else 8):
            spectrum = np.fft.rfft(generator.standard_normal(RATE // 2))
            spectrum[: 100 + 500 * number] = 0
            spectrum[600 + 500 * number :] = 0
            waveform = np.fft.irfft(spectrum)
            soundfile.write(folder / name / f"{clip}.flac", waveform / np.abs(waveform).max(), RATE)
    return folder


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Saves a small model with its extractor and returns the folder; `seed` gives its weights."""

    def save(seed: int = 1, **changes):
        folder = tmp_path_factory.mktemp("models") / "model"
        sizes = {"base_width": 4, "embedding_size": 12, "window_seconds": 0.5, "num_mel_bins": 32}
        torch.manual_seed(seed)
        MTSLVRModel(MTSLVRConfig(**sizes | changes)).save_pretrained(folder)
        MTSLVRFeatureExtractor().save_pretrained(folder)
        return folder

    return save
