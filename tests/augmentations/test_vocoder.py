"""Pitch and time: on tones, chords and clicks, and against slow, obvious second versions.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

import math

import numpy as np
import pytest
import torch
from signals import RATE, chord_in_noise, level_db, peak_and_rest, tone

from mtslvr_hf.augmentations import PitchShift, TimeStretch
from mtslvr_hf.augmentations.resampling import GRID, resample
from mtslvr_hf.augmentations.vocoder import phase_vocoder


def test_pitch_shift_of_a_440_hz_tone_by_seven_semitones():
    shifted = PitchShift().apply(tone(440.0).unsqueeze(0), {"semitones": torch.tensor([7.0])})
    assert shifted.shape == (1, 3 * RATE)
    hertz, highest, power = peak_and_rest(shifted[0])
    assert abs(hertz / 659.26 - 1) < 0.01
    assert highest < -30 and power < -30


@pytest.mark.parametrize("hertz", [110.0, 220.0, 440.0, 1000.0, 3000.0])
def test_pitch_shift_moves_tones_and_keeps_their_level(hertz):
    semitones = torch.tensor([-15.0, -12.0, -7.0, -0.5, 3.3, 7.0, 12.0, 15.0])
    clips = tone(hertz).expand(len(semitones), -1)
    for clip, shift in zip(PitchShift().apply(clips, {"semitones": semitones}), semitones.tolist(), strict=True):
        found, highest, power = peak_and_rest(clip)
        assert abs(found / (hertz * 2 ** (shift / 12)) - 1) < 0.005
        assert highest < -40 and power < -40
        assert abs(level_db(clip) - level_db(clips[0])) < 0.3


def test_pitch_shift_keeps_a_harmonic_sound_harmonic():
    partials = range(1, 11)
    sound = sum(tone(150.0 * k, phase=k * k) / k for k in partials).unsqueeze(0)
    shifted = PitchShift().apply(sound, {"semitones": torch.tensor([4.0])})[0]
    spectrum = torch.fft.rfft(shifted * torch.hann_window(len(shifted))).abs()
    for k in partials:
        expected = 150.0 * k * 2 ** (4 / 12) * len(shifted) / RATE  # in bins
        around = spectrum[int(expected) - 60 : int(expected) + 60]
        assert abs(int(around.argmax()) + int(expected) - 60 - expected) < 3
        assert abs(20 * math.log10(float(around.max()) * k / (len(shifted) / 4))) < 2


def test_pitch_shift_up_does_not_alias():
    shifted = PitchShift().apply(tone(7000.0).expand(3, -1), {"semitones": torch.tensor([3.0, 7.0, 15.0])})
    for clip in shifted:
        assert level_db(clip) < -40


@pytest.mark.parametrize("augmentation, neutral", [(PitchShift(), 0.0), (TimeStretch(), 1.0)])
def test_neutral_pitch_and_time_change_nothing(augmentation, neutral):
    clips = chord_in_noise(3)
    changed = augmentation.apply(clips, {augmentation.parameter_names[0]: torch.full((3,), neutral)})
    assert (changed - clips).abs().max() < 2e-3 * clips.abs().max()  # the interpolation filter's ripple
    if neutral == 1.0:
        torch.testing.assert_close(changed, clips, rtol=0, atol=1e-5)


@pytest.mark.parametrize("background", [0.0, 0.01])
def test_clicks_come_one_over_rate_apart_after_stretching(background):
    rates = torch.tensor([0.5, 0.63, 0.8, 1.2, 1.5])
    clip = background * torch.randn(6 * RATE, generator=torch.Generator().manual_seed(0))
    clip[RATE // 2 :: RATE] = 1.0
    for stretched, rate in zip(
        TimeStretch().apply(clip.expand(len(rates), -1), {"rate": rates}), rates.tolist(), strict=True
    ):
        places = []
        for second in range(6):
            expected = (second + 0.5) * RATE / rate
            if expected + 2000 < min(6 * RATE, 6 * RATE / rate):
                begin = int(expected) - 2000
                places.append(begin + int(stretched[begin : begin + 4000].abs().argmax()))
                assert abs(places[-1] - expected) <= 0.005 * RATE
        assert len(places) >= 2
        assert np.allclose(np.diff(places), RATE / rate, atol=0.008 * RATE)


def test_time_stretch_keeps_pitch_and_level():
    rates = torch.tensor([0.5, 0.7, 0.9, 1.2, 1.5])
    for hertz in (220.0, 440.0, 2500.0):
        clips = tone(hertz).expand(len(rates), -1)
        for clip, rate in zip(TimeStretch().apply(clips, {"rate": rates}), rates.tolist(), strict=True):
            once = clip[: int(len(clip) / max(rate, 1))]
            found, highest, power = peak_and_rest(once)
            assert abs(found / hertz - 1) < 0.005
            assert highest < -40 and power < -40
            assert abs(level_db(once) - level_db(clips[0])) < 0.3


def test_time_stretch_repeats_a_fast_clip_and_cuts_a_slow_one():
    clips = chord_in_noise(2)
    fast, slow = TimeStretch().apply(clips, {"rate": torch.tensor([1.25, 0.5])})
    length = round(RATE / 1.25)
    assert torch.equal(fast[length:], fast[: RATE - length])
    longer = phase_vocoder([clips[1:]], torch.tensor([0.5]).double(), torch.tensor([RATE]), 2 * RATE, 1280)[0]
    assert torch.equal(slow, longer[:RATE])


def slow_attacks(waveform, centers, reach, half_frame):
    """The frames in which something begins, and the sample at which it does."""
    blocks = np.pad(waveform, (0, -len(waveform) % 32)).reshape(-1, 32)
    energies = (blocks.astype(np.float64) ** 2).sum(1)

    def block_of(sample):
        return min(max(sample // 32, 0), len(energies))

    attacks = {}
    for n, center in enumerate(centers):
        first, behind = block_of(center - reach), block_of(center + reach)
        before = energies[block_of(center - reach - half_frame) : first].sum() / half_frame
        least = 8 * (before + 1e-5 * energies.sum() / len(waveform))
        if energies[first:behind].sum() / (2 * reach) > least:
            high = [32 * block for block in range(first, behind) if energies[block] / 32 > least]
            attacks[n] = high[0] if high else center
    return attacks


def slow_frames(waveform, rate, count, n_fft):
    """Position of each frame's reading, and the frame from which its phases count."""
    hop, half = n_fft // 2, n_fft // 2
    written = [(n - 1) * hop for n in range(count)]
    reads = [min(max(round(place * rate), -half), len(waveform) + half) for place in written]
    attacks = slow_attacks(waveform, reads, math.ceil(rate * hop / 2), half)
    begin = {n: place - round(place / rate) + written[n] for n, place in attacks.items()}
    late = {n: round(place / rate) > written[n] for n, place in attacks.items()}
    references = [max([0] + [m for m in attacks if m <= n]) for n in range(count)]
    for n in range(count):
        if n in attacks:
            reads[n] = begin[n]
        elif n + 1 in attacks and not late[n + 1]:
            reads[n], references[n] = begin[n + 1] - hop, n + 1
        elif n - 1 in attacks and late[n - 1]:
            reads[n] = begin[n - 1] + hop
    return reads, references


def slow_phase_vocoder(waveform, rate, num_samples, n_fft):
    """One clip, frame by frame, with phases as angles in float64."""
    hop = n_fft // 2
    slope = np.kaiser(n_fft // 2 + 1, 2 * np.pi).cumsum()
    window = np.sqrt(np.concatenate([slope[:-1], slope[-2::-1]]) / slope[-1])
    count = (num_samples + n_fft // 2 - 2) // hop + 2
    reads, references = slow_frames(waveform, rate, count, n_fft)

    def spectrum(center):
        samples = np.arange(center - n_fft // 2, center + n_fft // 2)
        inside = (samples >= 0) & (samples < len(waveform))
        return np.fft.rfft(window * np.where(inside, waveform[samples.clip(0, len(waveform) - 1)], 0.0))

    def around(values, weights):
        return np.convolve(values[:-1], weights, mode="same")  # the last bin takes no part

    frames = [spectrum(center) for center in reads]
    floors = [1e-4 * (np.abs(np.fft.fft(np.fft.irfft(frame))) ** 2).mean() for frame in frames]
    angles = [np.zeros(n_fft // 2)]
    for n in range(1, count):
        step = around(frames[n - 1] * spectrum(reads[n] - hop).conj(), [1, 4, 6, 4, 1])
        angles.append(angles[-1] + np.angle(step + floors[n]))
    output = np.zeros(num_samples + 3 * n_fft)
    for n, frame in enumerate(frames):
        turned = np.exp(1j * (angles[n] - angles[references[n]]))
        mean = around(np.append(turned, 0) * np.abs(frame) ** 2, [1, 6, 15, 20, 15, 6, 1]) + floors[n]
        frame[:-1] *= np.exp(1j * np.angle(mean))
        begin = (n - 1) * hop - n_fft // 2 + n_fft
        output[begin : begin + n_fft] += np.fft.irfft(frame) * window
    return output[n_fft : n_fft + num_samples]


@pytest.mark.parametrize("rate", [0.42, 0.77, 1.0, 1.31, 2.378])
def test_phase_vocoder_equals_a_slow_version(rate):
    clips = chord_in_noise(3, seconds=0.5)
    lengths = torch.full((3,), clips.shape[1])
    fast = phase_vocoder([clips], torch.full((3,), rate, dtype=torch.float64), lengths, 6000, 256)
    for clip, expected in zip(fast, clips, strict=True):
        slow = slow_phase_vocoder(expected.numpy(), rate, 6000, 256)
        np.testing.assert_allclose(clip.numpy(), slow, rtol=0, atol=2e-4)


def test_resampling_reads_a_band_limited_signal_between_its_samples():
    generator = torch.Generator().manual_seed(3)
    steps = torch.tensor([430, 789, 1024, 1331, 2435])
    hertz = torch.rand(20, generator=generator, dtype=torch.float64) * 3000  # under 8000 * 0.9 / 2.378
    phases = torch.rand(20, generator=generator, dtype=torch.float64) * 6

    def signal(time):  # in samples
        return torch.sin(2 * math.pi * hertz.unsqueeze(1) * time / RATE + phases.unsqueeze(1)).mean(0)

    clip = signal(torch.arange(RATE)).float()
    clips, lengths = resample(clip.expand(5, -1), steps)
    assert lengths.tolist() == [math.ceil(RATE * GRID / step) for step in steps.tolist()]
    for resampled, step, length in zip(clips, steps.tolist(), lengths.tolist(), strict=True):
        inside = slice(300, length - 300)  # at the ends the signal is cut, and what is cut is not band-limited
        expected = signal(torch.arange(length) * step / GRID)
        assert (resampled[:length] - expected)[inside].abs().max() < 1e-3 * clip.abs().max()  # -60 dB
        assert (resampled[length:] == 0).all()


@pytest.mark.parametrize("step", [500, 1024, 1700])
def test_resampling_passes_what_it_should_and_nothing_else(step):
    highest = 8000 * min(1.0, GRID / step)  # Hz of the input that the output can hold, or the input itself
    for share, least, most in ((0.89, -0.1, 0.1), (1.02, -200, -55)) if step > GRID else ((0.89, -0.1, 0.1),):
        clips, lengths = resample(tone(share * highest).unsqueeze(0), torch.tensor([step]))
        inside = clips[0, 300 : int(lengths[0]) - 300]
        assert least < level_db(inside) - level_db(tone(share * highest)) < most


def test_resampling_down_in_pitch_makes_no_images():
    resampled = resample(tone(7000.0).unsqueeze(0), torch.tensor([GRID // 2]))[0][0]
    hertz, highest, _ = peak_and_rest(resampled[600 : 6 * RATE - 600])
    assert abs(hertz - 3500) < 1 and highest < -60


def test_attacks_keep_their_shape_and_come_at_their_time():
    """A decaying burst after silence sounds as recorded, whatever the rate: not smeared, not doubled."""
    generator = torch.Generator().manual_seed(1)
    clip = torch.zeros(2 * RATE)
    burst = torch.randn(400, generator=generator) * torch.linspace(1, 0, 400)
    clip[20000:20400] = burst
    rates = torch.tensor([0.5, 0.71, 0.9, 1.13, 1.5])
    stretched = TimeStretch().apply(clip.expand(len(rates), -1), {"rate": rates})
    for copy, rate in zip(stretched, rates.tolist(), strict=True):
        if 20400 / rate > 2 * RATE:
            continue
        near = copy[int(20000 / rate) - 60 : int(20000 / rate) + 460]
        match = torch.nn.functional.conv1d(near[None, None], burst[None, None]).max() / burst.square().sum()
        assert 0.97 < match < 1.03
        assert near.square().sum() < 1.06 * burst.square().sum()
