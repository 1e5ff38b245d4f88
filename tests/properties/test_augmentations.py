"""Properties of the augmentations: of each one for any clips and parameters, and of the two views of a batch."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtslvr_hf.augmentations import (
    AUGMENTATIONS,
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    TwoViewAugmentation,
    WhiteNoise,
)
from mtslvr_hf.augmentations.base import Augmentation

KINDS = [PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift]
FEWER = settings(max_examples=settings.default.max_examples // 3)
seeds = st.integers(0, 2**32 - 1)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@st.composite
def batches(draw, smallest=1, largest=4_000, clips=4):
    """Clips (B, S) with energy at low frequencies, at levels of their own."""
    generator = torch.Generator().manual_seed(draw(seeds))
    shape = draw(st.integers(1, clips)), draw(st.integers(smallest, largest))
    waveforms = torch.randn(shape, generator=generator).cumsum(1) / shape[1] ** 0.5
    return waveforms * 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 3)


def draw_for(augmentation, waveforms, seed):
    return augmentation.sample_parameters(len(waveforms), torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    """Equal but for the last bits: torch rounds the last few values of an array otherwise than the others."""
    assert ((actual - expected).abs() <= 1e-6 * expected.abs().amax(1, keepdim=True)).all()


def power(waveforms):
    return waveforms.double().square().mean(1)


@kinds
@FEWER
@given(batches(), seeds)
def test_a_clip_has_the_same_result_alone_and_in_any_batch(kind, waveforms, seed):
    augmentation, before = kind(), waveforms.clone()
    parameters = draw_for(augmentation, waveforms, seed)
    together = augmentation.apply(waveforms, parameters)
    assert together.shape == waveforms.shape and together.dtype == torch.float32 and together.isfinite().all()
    assert torch.equal(waveforms, before)
    with patch.object(Augmentation, "cpu_block", 1), patch.object(kind, "cpu_block", 1):
        assert_close(augmentation.apply(waveforms, parameters), together)
    for n in range(len(waveforms)):
        own = {key: value[n : n + 1] for key, value in parameters.items()}
        assert_close(augmentation.apply(waveforms[n : n + 1], own), together[n : n + 1])


@kinds
@FEWER
@given(batches(), seeds, st.integers(-8, 8))
def test_a_louder_clip_gets_the_same_result_louder(kind, waveforms, seed, exponent):
    augmentation, level = kind(), 2.0**exponent
    parameters = draw_for(augmentation, waveforms, seed)
    expected = level * augmentation.apply(waveforms, parameters)
    torch.testing.assert_close(
        augmentation.apply(level * waveforms, parameters),
        expected,
        rtol=1e-3,
        atol=1e-4 * float(expected.abs().max()) + 1e-12,
    )


@kinds
@FEWER
@given(st.integers(1, 500), seeds)
def test_parameters_lie_in_their_ranges_and_silence_stays_silence(kind, count, seed):
    augmentation = kind()
    parameters = draw_for(augmentation, torch.zeros(count, 1), seed)
    assert set(parameters) == set(augmentation.parameter_names)
    assert all(value.shape == (count,) for value in parameters.values())
    for name, (low, high) in augmentation.parameter_ranges.items():
        assert low <= parameters[name].min() and parameters[name].max() <= high
    few = {name: value[:3] for name, value in parameters.items()}
    assert not augmentation.apply(torch.zeros(len(few[augmentation.parameter_names[0]]), 700), few).any()


@given(batches(), st.floats(-2, 2))
def test_a_time_shift_rolls_the_clip_and_its_opposite_undoes_it(waveforms, fraction):
    def shift(clips, fraction):
        return TimeShift().apply(clips, {"shift_fraction": torch.full((len(clips),), fraction, dtype=torch.float64)})

    samples = waveforms.shape[1]
    shifted = shift(waveforms, fraction)
    assert torch.equal(shifted, waveforms.roll(round(fraction * samples), 1))
    assert torch.equal(shift(shifted, -fraction), waveforms)


@given(batches(), seeds)
def test_a_time_mask_changes_its_segment_alone(waveforms, seed):
    augmentation = TimeMasking()
    parameters = draw_for(augmentation, waveforms, seed)
    masked = augmentation.apply(waveforms, parameters)
    samples = waveforms.shape[1]
    for n, (before, after) in enumerate(zip(waveforms, masked)):
        start = round(float(parameters["start_fraction"][n].double()) * samples)
        length = round(float(parameters["length_fraction"][n].double()) * samples)
        inside = slice(start, start + length)
        assert torch.equal(before[:start], after[:start])
        assert torch.equal(before[start + length :], after[start + length :])
        assert length <= samples / 8 + 1
        if not parameters["fill"][n]:
            assert not after[inside].any()
        elif length > 100:
            assert 0.3 < float(power(after[None, inside]) / power(before[None])) < 3


@given(batches(), seeds)
def test_a_fade_only_lowers_and_leaves_what_lies_between(waveforms, seed):
    augmentation = Fade()
    parameters = draw_for(augmentation, torch.ones_like(waveforms), seed)
    gains = augmentation.apply(torch.ones_like(waveforms), parameters)
    assert gains.min() >= 0 and gains.max() <= 1
    torch.testing.assert_close(augmentation.apply(waveforms, parameters), waveforms * gains)
    samples = waveforms.shape[1]
    for n, gain in enumerate(gains):
        begin, end = (round(float(parameters[name][n].double()) * samples) for name in ("in_fraction", "out_fraction"))
        if begin + end <= samples:
            assert (gain[begin - (begin > 1) : samples - end + (end > 1)] == 1).all()
            assert (gain[:begin].diff() >= 0).all() and (gain[samples - end :].diff() <= 0).all()
            assert (begin < 2 or gain[0] == 0) and (end < 2 or gain[-1] == 0)


@pytest.mark.parametrize("kind", [WhiteNoise, MixedNoise])
@given(batches(smallest=2), seeds)
def test_noise_has_exactly_the_signal_to_noise_ratio(kind, waveforms, seed):
    parameters = draw_for(kind(), waveforms, seed)
    added = kind().apply(waveforms, parameters).double() - waveforms.double()
    ratio = 10 * torch.log10(power(waveforms) / power(added))
    torch.testing.assert_close(ratio, parameters["snr_db"].double(), rtol=0, atol=0.02)


@given(batches(smallest=64), st.floats(0.5, 1.5))
def test_a_stretched_clip_is_cut_or_repeated_to_its_length(waveforms, rate):
    samples = waveforms.shape[1]
    rates = torch.full((len(waveforms),), rate, dtype=torch.float64)
    stretched = TimeStretch().apply(waveforms, {"rate": rates})
    length = min(samples, round(samples / rate))
    assert torch.equal(stretched[:, length:], stretched[:, : samples - length])


@FEWER
@given(st.floats(-12, 12), st.floats(0.05, 0.12), st.floats(0, 6))
def test_a_pitch_shift_moves_a_tone_by_its_semitones_and_a_stretch_does_not(semitones, place, phase):
    samples = 16_000
    tone = torch.sin(2 * torch.pi * place * torch.arange(samples) + phase)[None]

    def frequency(clip):  # cycles in a sample
        middle = clip[0, 4_000:10_000] * torch.hann_window(6_000)
        return float(torch.fft.rfft(middle, n=2**16).abs().argmax()) / 2**16

    shifted = PitchShift().apply(tone, {"semitones": torch.tensor([semitones])})
    assert abs(frequency(shifted) / (place * 2 ** (semitones / 12)) - 1) < 0.005
    stretched = TimeStretch().apply(tone, {"rate": torch.tensor([2 ** (semitones / 24)])})
    assert abs(frequency(stretched) / place - 1) < 0.005


@st.composite
def pipelines(draw):
    names = draw(st.permutations(AUGMENTATIONS))[: draw(st.integers(1, 7))]
    most = draw(st.integers(0, len(names)))
    return TwoViewAugmentation(names, 16_000, draw(seeds), draw(st.integers(0, most)), most)


@given(pipelines(), st.integers(1, 50), st.integers(0, 10**6), st.sampled_from(["train", "eval"]))
def test_a_clip_gets_each_augmentation_once_at_most_and_as_many_as_asked(pipeline, total, step, split):
    drawn = pipeline.draw(total, step, split)
    for order, labels in zip(drawn.order.tolist(), drawn.labels.tolist()):
        used = [position for position in order if position >= 0]
        assert order == used + [-1] * (len(pipeline.names) - len(used))
        assert len(set(used)) == len(used)
        assert pipeline.min_augmentations <= len(used) <= pipeline.max_augmentations
        assert labels == [float(position in used) for position in range(len(pipeline.names))]


@FEWER
@given(pipelines(), batches(clips=6, largest=1_500), st.integers(0, 10**6), st.data())
def test_processes_that_share_a_batch_make_the_views_of_one(pipeline, waveforms, step, data):
    total = len(waveforms)
    whole = pipeline(waveforms, step)
    begin = data.draw(st.integers(0, total - 1))
    end = data.draw(st.integers(begin + 1, total))
    part = pipeline(waveforms[begin:end], step, offset=begin, total=total)
    assert_close(part.views.flatten(0, 1), whole.views[begin:end].flatten(0, 1))
    assert torch.equal(part.labels, whole.labels[begin:end])
    unused = whole.labels.sum(1) == 0
    assert torch.equal(whole.views[unused], waveforms[unused][:, None].expand(-1, 2, -1))


@given(pipelines(), st.integers(1, 40), st.integers(0, 10**6))
def test_exchanged_views_negate_the_differences_of_their_parameters(pipeline, total, step):
    drawn = pipeline.draw(total, step)
    for augmentation in pipeline.augmentations:
        values = drawn.values[augmentation.name]
        forth = augmentation.parameter_differences(values)
        back = augmentation.parameter_differences({name: value.flip(1) for name, value in values.items()})
        for name, difference in forth.items():
            assert difference.shape == (total,) and difference.abs().max() <= 6**0.5 + 1e-4
            torch.testing.assert_close(back[name], difference if name.endswith("_cosine") else -difference)
