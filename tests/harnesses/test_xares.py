"""X-ARES' requirements of an encoder."""

from functools import partial

import pytest
import torch
from small_models import assert_close
from torch import nn

from mtslvr_hf import MTSLVRModel
from mtslvr_hf.harnesses import xares


@pytest.fixture(scope="module")
def encoder(folder):
    return xares.MTSLVREncoder(str(folder))


def test_what_the_checker_asks_for(encoder):
    """xares.audio_encoder_checker, which feeds two clips of 50,000 samples."""
    assert isinstance(encoder, nn.Module) and type(encoder).__name__.endswith("Encoder")
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, 8, 1000)
    with torch.inference_mode():
        embeddings = encoder(torch.randn(2, 50_000))
    assert embeddings.shape == (2, 4, 8)  # 3.125 s, of which the fourth frame has the rest
    assert embeddings.dtype == torch.float32
    # Its runner looks for the one name of the file that ends in Encoder, and calls it without arguments.
    names = {"partial": partial, "xares": xares, "Encoder": partial(xares.MTSLVREncoder, "outputs/my-model")}
    assert [name for name in names if name.endswith("Encoder")] == ["Encoder"]


def test_the_mean_over_whole_windows_is_the_embedding(folder, encoder):
    clips = 0.1 * torch.randn(2, 32_000)
    expected = MTSLVRModel.from_pretrained(folder).encode(clips, 16_000)
    assert_close(encoder(clips).mean(1), expected)
    alone = xares.MTSLVREncoder(str(folder), tasks="predictive")
    assert alone.output_dim == 4
    assert_close(alone(clips).mean(1), expected[:, 4:])


def test_wrong_audio(encoder):
    for audio in (torch.zeros(16_000), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match=r"must be \(batch, samples\), not empty"):
            encoder(audio)
    with pytest.raises(ValueError, match=r"Clip 1: the sample at .* is NaN"):
        encoder(torch.stack([torch.zeros(99), torch.full((99,), torch.nan)]))
