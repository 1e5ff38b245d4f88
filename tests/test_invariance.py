"""A clip's embedding depends on the clip alone: not on its batch, its padding, or how it was given."""

import copy

import numpy as np
import pytest
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

BATCHES = 200
TOLERANCE = 1e-5


def random_clips(generator, window):
    """1 to 6 clips of a few samples to three windows, some exactly a window or a sample off."""
    count = int(generator.integers(1, 7))
    lengths = generator.integers(2, 3 * window, count)
    special = generator.random(count) < 0.3
    lengths[special] = generator.choice([1, 2, window - 1, window, window + 1, 2 * window], int(special.sum()))
    return [generator.standard_normal(length).astype(np.float32) * generator.uniform(0.01, 1) for length in lengths]


@pytest.fixture(scope="module", params=["mel_stft", pytest.param("waveform", marks=pytest.mark.slow)])
def model(request):
    torch.manual_seed(0)
    config = MTSLVRConfig(frontend=request.param, base_width=8, window_seconds=0.5, embedding_size=32)
    model = MTSLVRModel(config).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, config.window_samples))
    return model.eval()


@torch.no_grad()
def test_embeddings_over_random_batches_and_paddings(model):
    generator = np.random.default_rng(0)
    extractor = MTSLVRFeatureExtractor()
    worst = {"forward": 0.0, "encode": 0.0}
    for number in range(BATCHES):
        clips = random_clips(generator, model.config.window_samples)
        alone = [extractor(clip, sampling_rate=16_000, return_tensors="pt") for clip in clips]
        expected = torch.cat([model(**inputs).pooler_output for inputs in alone])
        longest = max(map(len, clips)) + int(generator.integers(0, 2 * model.config.window_samples))
        padded = extractor(clips, sampling_rate=16_000, padding="max_length", max_length=longest, return_tensors="pt")
        padded["input_values"][padded["attention_mask"] == 0] = float(generator.normal())  # whatever the padding is
        embeddings = {"forward": model(**padded).pooler_output}
        if number % 4 == 0:
            order = generator.permutation(len(clips))
            batch_size = int(generator.integers(1, 9))
            encoded = model.encode(
                [clips[i] for i in order], 16_000, batch_size=batch_size, convert_to="torch", num_workers=0
            )
            embeddings["encode"] = encoded[torch.from_numpy(np.argsort(order))]
        for name, values in embeddings.items():
            error = (values - expected).norm(dim=1) / expected.norm(dim=1)
            worst[name] = max(worst[name], float(error.max()))
    print(f"{model.config.frontend}: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items()))
    assert max(worst.values()) <= TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-2), (torch.bfloat16, 1e-1)])
def test_encode_on_a_gpu_is_encode_on_a_cpu(model, dtype, tolerance):
    """Within what a flipped phase makes: that of a real number, as frames at an edge have, is 0 or pi by rounding."""
    clips = random_clips(np.random.default_rng(1), model.config.window_samples)
    expected = model.encode(clips, 16_000)
    encoded = copy.deepcopy(model).to("cuda", dtype).encode(clips, 16_000)
    assert np.linalg.norm(encoded - expected) <= tolerance * np.linalg.norm(expected)
