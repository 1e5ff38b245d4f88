"""Small networks, sounds, and the plain forward that encoding must agree with."""

import io

import numpy as np
import soundfile
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

RATE = 16_000
SIZE = 8


def make_model(seed=0, model_class=MTSLVRModel, **changes):
    torch.manual_seed(seed)
    return model_class(MTSLVRConfig(**{"base_width": 4, "window_seconds": 1.0, "embedding_size": SIZE} | changes))


def noise(samples, channels=None, seed=0):
    shape = samples if channels is None else (channels, samples)
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def wav(samples, rate=RATE, subtype="FLOAT", format="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, subtype=subtype, format=format)
    return buffer.getvalue()


@torch.no_grad()
def by_forward(model, clips, extractor=None, **options):
    inputs = (extractor or MTSLVRFeatureExtractor())(
        clips, sampling_rate=RATE, return_tensors="pt", channels_first=True
    )
    training = model.training
    output = model.eval()(**inputs, **options)
    model.train(training)
    return output.pooler_output.numpy()


def assert_close(actual, expected, tolerance=1e-5):
    """Arrays or tensors differ by at most `tolerance` of the largest value: processors add in different orders."""
    actual, expected = (x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in (actual, expected))
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
