"""The seven augmentations, on signals whose answer is known and against slow, obvious second versions.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

import numpy as np
import pytest
import torch
import torchaudio
from signals import RATE, chord_in_noise, level_db

from mtslvr_hf.augmentations import (
    FADE_SHAPES,
    Augmentation,
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    WhiteNoise,
)
from mtslvr_hf.augmentations.noise import colored_noise, random_bits, white_noise

ALL = (PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift)
RANGES = {
    "semitones": (-15, 15),
    "in_fraction": (0, 0.5),
    "out_fraction": (0, 0.5),
    "shape": (0, 2),
    "snr_db": (3, 30),
    "rate": (0.5, 1.5),
    "start_fraction": (0, 1),
    "length_fraction": (0, 0.125),
    "fill": (0, 1),
    "shift_fraction": (-0.5, 0.5),
    "noise_seed": (0, 2**31 - 1),
}


def draw(augmentation: Augmentation, clips: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return augmentation.sample_parameters(clips, torch.Generator().manual_seed(seed))


# Noise


def test_random_bits_equal_the_published_hash():
    def mix(value):
        value ^= value >> 16
        value = value * 0x7FEB352D % 2**32
        value ^= value >> 15
        value = value * 0x846CA68B % 2**32
        return value ^ value >> 16

    seeds = torch.tensor([0, 1, 123456789, 2**31 - 1])
    for bits, seed in zip(random_bits(seeds, 50, torch.device("cpu")).tolist(), seeds.tolist(), strict=True):
        expected = [mix((mix(seed) + n * 0x9E3779B9) % 2**32) for n in range(50)]
        assert [value % 2**32 for value in bits] == expected


def test_white_noise_is_gaussian_and_differs_between_seeds():
    noise = white_noise(torch.arange(8), 40001, torch.device("cpu")).double()
    assert noise.shape == (8, 40001)
    assert noise.mean(1).abs().max() < 0.02
    assert (noise.std(1) - 1).abs().max() < 0.02
    assert (noise.pow(4).mean(1) - 3).abs().max() < 0.15
    correlations = torch.corrcoef(noise) - torch.eye(8)
    assert correlations.abs().max() < 0.02
    assert torch.corrcoef(torch.stack([noise[0, 1:], noise[0, :-1]]))[0, 1].abs() < 0.02


@pytest.mark.parametrize("kind", [WhiteNoise, MixedNoise])
def test_noise_hits_its_snr(kind):
    clips = chord_in_noise(6)
    augmentation = kind()
    parameters = draw(augmentation, 6)
    noise = (augmentation.apply(clips, parameters) - clips).double()
    snr_db = 10 * torch.log10(clips.double().square().mean(1) / noise.square().mean(1))
    torch.testing.assert_close(snr_db, parameters["snr_db"].double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("samples", [4 * RATE, 60013])
@pytest.mark.parametrize("exponent", [-2.0, -1.0, -0.5, 0.0, 1.0, 2.0])
def test_noise_power_spectral_density_has_its_slope(exponent, samples):
    seeds, exponents = torch.arange(12), torch.full((12,), exponent)
    noise = colored_noise(seeds, exponents, samples, RATE, torch.device("cpu"))
    frames = noise.unfold(1, 4096, 2048).double() * torch.hann_window(4096, dtype=torch.float64)
    density = torch.fft.rfft(frames).abs().square().mean((0, 1)).numpy()
    hertz = np.arange(len(density)) * RATE / 4096
    band = (hertz > 100) & (hertz < 7500)
    slope = np.polyfit(np.log(hertz[band]), np.log(density[band]), 1, w=hertz[band] ** -0.5)[0]
    assert abs(slope - exponent) < 0.05


# Masks, shifts and fades


def test_time_mask_covers_exactly_what_it_says():
    clips = chord_in_noise(6) + 3.0
    starts, lengths = torch.tensor([0, 100, 16000 - 777, 5, 4000, 9]), torch.tensor([2000, 1, 777, 0, 1500, 1999])
    parameters = {
        "start_fraction": starts / RATE,
        "length_fraction": lengths / RATE,
        "fill": torch.tensor([0, 0, 1, 1, 1, 0]),
        "noise_seed": torch.arange(6),
    }
    masked = TimeMasking().apply(clips, parameters)
    for clip, original, start, length, fill in zip(
        masked, clips, starts.tolist(), lengths.tolist(), parameters["fill"].tolist(), strict=True
    ):
        inside = torch.zeros(RATE, dtype=torch.bool)
        inside[start : start + length] = True
        assert torch.equal(clip[~inside], original[~inside])
        if fill == 0:
            assert (clip[inside] == 0).all()
        elif length > 0:
            assert (clip[inside] != original[inside]).all()
            assert abs(level_db(clip[inside]) - level_db(original)) < 1


def test_drawn_time_masks_lie_inside_the_clip():
    augmentation = TimeMasking()
    parameters = draw(augmentation, 2000)
    assert (parameters["start_fraction"] + parameters["length_fraction"]).max() <= 1 + 1e-6
    masked = augmentation.apply(torch.ones(2000, 160), parameters | {"fill": torch.zeros(2000)})
    expected = (parameters["length_fraction"].double() * 160).round()
    assert ((masked == 0).sum(1) - expected).abs().max() <= 1  # the end's rounding may cost the last sample
    assert ((masked == 0).sum(1) == expected).float().mean() > 0.95


def test_time_shift_rolls_and_its_opposite_undoes_it():
    clips = chord_in_noise(5)
    fractions = torch.tensor([-0.5, -0.12345, 0.0, 0.3, 0.5])
    shifted = TimeShift().apply(clips, {"shift_fraction": fractions})
    for clip, original, fraction in zip(shifted, clips, fractions.tolist(), strict=True):
        assert torch.equal(clip, original.roll(round(fraction * RATE)))
    assert torch.equal(TimeShift().apply(shifted, {"shift_fraction": -fractions}), clips)


def test_fades_follow_torchaudio_curves():
    clips = chord_in_noise(6)
    shapes = torch.tensor([0, 1, 2, 0, 1, 2])
    fade_in, fade_out = torch.tensor([4000, 1, 8000, 0, 5, 2]), torch.tensor([8000, 3000, 0, 2, 17, 5000])
    parameters = {"in_fraction": fade_in / RATE, "out_fraction": fade_out / RATE, "shape": shapes}
    faded = Fade().apply(clips, parameters)
    for row in range(6):
        expected = torchaudio.transforms.Fade(int(fade_in[row]), int(fade_out[row]), FADE_SHAPES[shapes[row]])
        torch.testing.assert_close(faded[row], expected(clips[row]), rtol=1e-5, atol=1e-6)


# What all of them promise


@pytest.mark.parametrize("kind", ALL)
def test_parameters_lie_in_their_ranges_and_fill_them(kind):
    augmentation = kind()
    parameters = draw(augmentation, 4000)
    assert tuple(parameters) == augmentation.parameter_names
    ranges = RANGES | {"exponent": (-1, 0) if kind is WhiteNoise else (-2, 2)}
    for name, values in parameters.items():
        low, high = ranges[name]
        assert values.shape == (4000,) and values.device.type == "cpu"
        assert values.min() >= low and values.max() <= high
        assert (values.min() - low) / (high - low) < 0.01 and (high - values.max()) / (high - low) < 0.01
        if name != "start_fraction":  # its range shrinks with the mask's length
            assert abs(float(values.double().mean()) - (low + high) / 2) < 0.03 * (high - low)
    again = draw(augmentation, 4000)
    assert all(torch.equal(values, again[name]) for name, values in parameters.items())


@pytest.mark.parametrize("samples", [RATE, 15001])
@pytest.mark.parametrize("kind", ALL)
def test_a_clip_alone_is_the_clip_in_a_batch(kind, samples):
    clips, augmentation = chord_in_noise(6)[:, :samples], kind()
    parameters = draw(augmentation, 6)
    together = augmentation.apply(clips, parameters)
    for row in range(6):
        own = {name: values[row : row + 1] for name, values in parameters.items()}
        alone = augmentation.apply(clips[row : row + 1], own)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16])
def test_any_real_input_gives_new_float32_without_gradient(kind, dtype):
    clips = (chord_in_noise(3, seconds=0.3) * 100).to(dtype)
    before = clips.clone()
    if dtype.is_floating_point:
        clips.requires_grad_()
    augmentation = kind()
    parameters = draw(augmentation, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = augmentation.apply(clips, parameters)
    assert changed.dtype == torch.float32 and changed.shape == clips.shape and not changed.requires_grad
    assert torch.equal(clips.detach(), before)
    assert torch.equal(changed, augmentation.apply(before.float(), parameters))


@pytest.mark.parametrize("kind", ALL)
def test_float32_input_is_not_modified(kind):
    clips, augmentation = chord_in_noise(3, seconds=0.3), kind()
    before = clips.clone()
    augmentation.apply(clips, draw(augmentation, 3)).zero_()
    assert torch.equal(clips, before)


@pytest.mark.parametrize("samples", [1, 2, 33, 500, 1025])
@pytest.mark.parametrize("kind", ALL)
def test_short_and_silent_clips_stay_finite(kind, samples):
    augmentation = kind()
    parameters = draw(augmentation, 4)
    changed = augmentation.apply(torch.randn(4, samples, generator=torch.Generator().manual_seed(0)), parameters)
    assert changed.shape == (4, samples) and changed.isfinite().all()
    assert (augmentation.apply(torch.zeros(4, samples), parameters) == 0).all()
    assert augmentation.apply(torch.zeros(0, samples), draw(augmentation, 0)).shape == (0, samples)


@pytest.mark.parametrize("kind", ALL)
def test_scaling_a_clip_scales_the_result(kind):
    clips, augmentation = chord_in_noise(3, seconds=0.3), kind()
    parameters = draw(augmentation, 3)
    quiet = augmentation.apply(clips * 2**-20, parameters)
    torch.testing.assert_close(quiet * 2**20, augmentation.apply(clips, parameters), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_waits_for_the_device(kind):
    """Meta tensors have no values: whatever read one back, as a GPU would have to be waited for, would fail."""
    augmentation = kind()
    changed = augmentation.transform(torch.empty(4, RATE, device="meta"), draw(augmentation, 4))
    assert changed.shape == (4, RATE) and changed.device.type == "meta"


def test_misuse_is_explained():
    clips = torch.zeros(2, 100)
    with pytest.raises(ValueError, match=r"must be \(batch, samples\), got \(100,\)"):
        TimeShift().apply(clips[0], {"shift_fraction": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'rate' must be .*got nothing"):
        TimeStretch().apply(clips, {})
    with pytest.raises(ValueError, match=r"'semitones' must be \(2,\), got shape \(3,\)"):
        PitchShift().apply(clips, {"semitones": torch.zeros(3)})
    with pytest.raises(TypeError, match="must be real"):
        TimeShift().apply(clips.to(torch.complex64), {"shift_fraction": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"semitones is 3\.\.-3"):
        PitchShift(min_semitones=3, max_semitones=-3)
    with pytest.raises(ValueError, match=r"rate is 0\.\.2"):
        TimeStretch(min_rate=0, max_rate=2)
    with pytest.raises(ValueError, match="multiple of 16, got 1001"):
        PitchShift(n_fft=1001)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ALL)
def test_results_on_cuda_equal_those_on_the_cpu(kind):
    clips, augmentation = chord_in_noise(6, seconds=3.0), kind()
    parameters = draw(augmentation, 6)
    on_cuda = augmentation.apply(clips.cuda(), parameters)
    assert on_cuda.device.type == "cuda"
    difference = (on_cuda.cpu() - augmentation.apply(clips, parameters)).abs().amax(1)
    assert (difference < 1e-3 * clips.abs().amax(1)).all()
