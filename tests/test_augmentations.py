"""The augmentations on signals whose answer is known, and the two-view pipeline."""

import math

import pytest
import torch
import torchaudio

from mtslvr_hf.augmentations import AUGMENTATIONS, TwoViewAugmentation
from mtslvr_hf.augmentations.transforms import (
    FADE_SHAPES,
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    WhiteNoise,
)

RATE = 16000
ALL = (PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift)


def tone(frequency: float, samples: int = 5 * RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(samples, dtype=torch.float64) / RATE).float()


def spectrum(signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies in Hz and levels in dB below the peak, edges left out."""
    middle = signal[RATE // 4 : -RATE // 4].double()
    power = torch.fft.rfft(middle * torch.hann_window(len(middle), dtype=torch.float64)).abs()
    return torch.fft.rfftfreq(len(middle), 1 / RATE), 20 * torch.log10(power / power.max() + 1e-12)


@pytest.mark.parametrize("semitones", (7.0, -15.0, -7.0, 0.5, 12.0, 15.0))
@pytest.mark.parametrize("frequency", (220.0, 440.0, 1500.0))
def test_pitch_shift_moves_a_tone_and_nothing_else(frequency, semitones):
    shifted = PitchShift().apply(tone(frequency)[None], {"semitones": torch.tensor([semitones])})
    assert shifted.shape == (1, 5 * RATE)
    hertz, level = spectrum(shifted[0])
    expected = frequency * 2 ** (semitones / 12)
    assert hertz[level.argmax()].item() == pytest.approx(expected, rel=0.01)
    assert level[(hertz - expected).abs() > 0.05 * expected].max() < -30


@pytest.mark.parametrize("rate", (0.5, 0.8, 1.25, 1.5))
def test_time_stretch_moves_clicks_and_keeps_pitch(rate):
    clicks = torch.zeros(1, 6 * RATE)
    clicks[0, RATE // 2 :: RATE] = 1.0
    stretched = TimeStretch().apply(clicks, {"rate": torch.tensor([rate])})[0].abs()
    assert len(stretched) == 6 * RATE
    for number in range(math.floor(min(5, 6 * rate - 1)) - 1):
        place = (0.5 + number) / rate * RATE
        around = slice(int(place - 0.1 * RATE), int(place + 0.1 * RATE))
        assert abs(int(stretched[around].argmax()) + around.start - place) < 0.01 * RATE
    hertz, level = spectrum(TimeStretch().apply(tone(440.0)[None], {"rate": torch.tensor([rate])})[0, : 3 * RATE])
    assert hertz[level.argmax()].item() == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("kind,exponents", [(WhiteNoise, (-1.0, -0.5, 0.0)), (MixedNoise, (-2.0, 0.0, 1.0, 2.0))])
def test_noise_has_the_level_and_the_slope_asked_for(kind, exponents):
    clips = torch.stack([tone(300.0, 10 * RATE)] * len(exponents))
    snr = torch.linspace(3, 30, len(exponents))
    parameters = {
        "snr_db": snr,
        "exponent": torch.tensor(exponents),
        "noise_seed": torch.arange(len(exponents)),
    }
    noise = kind().apply(clips, parameters).double() - clips
    measured = 10 * torch.log10(clips.double().square().mean(1) / noise.square().mean(1))
    torch.testing.assert_close(measured, snr.double(), atol=0.1, rtol=0)
    for row, exponent in zip(noise, exponents):
        frames = torch.stft(row, 1024, 512, window=torch.hann_window(1024, dtype=torch.float64), return_complex=True)
        log_power = frames.abs().square().mean(-1)[4:480].log()
        log_hertz = torch.arange(4, 480, dtype=torch.float64).log()
        slope = torch.linalg.lstsq(torch.stack([log_hertz, torch.ones(476)], 1).double(), log_power[:, None]).solution
        assert slope[0].item() == pytest.approx(exponent, abs=0.1)


def test_mask_covers_exactly_what_it_says():
    clips = torch.ones(2, 1000)
    parameters = {
        "start_fraction": torch.tensor([0.25, 0.9]),
        "length_fraction": torch.tensor([0.1, 0.1]),
        "fill": torch.tensor([0, 1]),
        "noise_seed": torch.tensor([1, 2]),
    }
    masked = TimeMasking().apply(clips, parameters)
    assert (masked[0] == 0).nonzero().flatten().tolist() == list(range(250, 350))
    assert (masked[1] != 1).nonzero().flatten().tolist() == list(range(900, 1000))


def test_shift_back_is_the_identity():
    clips = torch.randn(3, 777)
    fractions = torch.tensor([0.1, -0.33, 0.5])
    there = TimeShift().apply(clips, {"shift_fraction": fractions})
    assert torch.equal(there[0], clips[0].roll(round(0.1 * 777)))
    assert torch.equal(TimeShift().apply(there, {"shift_fraction": -fractions}), clips)


@pytest.mark.parametrize("shape", FADE_SHAPES)
def test_fades_follow_torchaudios_curves(shape):
    parameters = {
        "in_fraction": torch.tensor([0.25, 0.0]),
        "out_fraction": torch.tensor([0.5, 0.1]),
        "shape": torch.full((2,), FADE_SHAPES.index(shape)),
    }
    faded = Fade().apply(torch.ones(2, 1000), parameters)
    for row, lengths in zip(faded, ((250, 500), (0, 100))):
        torch.testing.assert_close(row, torchaudio.transforms.Fade(*lengths, shape)(torch.ones(1000)))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("samples", (50, 700, 20000))
def test_a_clip_alone_is_as_in_a_batch(kind, samples):
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(5, samples, generator=generator)
    before = clips.clone()
    augmentation = kind()
    parameters = augmentation.sample_parameters(5, generator)
    together = augmentation.apply(clips, parameters)
    assert torch.equal(clips, before) and together.isfinite().all() and together.shape == clips.shape
    for row in range(5):
        alone = augmentation.apply(
            clips[row : row + 1], {key: value[row : row + 1] for key, value in parameters.items()}
        )
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_views_depend_on_seed_split_and_step_alone():
    clips = torch.randn(6, 8000)
    pipeline = TwoViewAugmentation(seed=3)
    views, labels, drawn = pipeline(clips, step=5)
    again = TwoViewAugmentation(seed=3)(clips, step=5)
    assert torch.equal(views, again.views) and torch.equal(labels, again.labels)
    for other in (
        pipeline(clips, step=6),
        pipeline(clips, step=5, split="eval"),
        TwoViewAugmentation(seed=4)(clips, 5),
    ):
        assert not torch.equal(views, other.views)
    parts = [pipeline(clips[a:b], step=5, offset=a, total=6) for a, b in ((0, 2), (2, 6))]
    torch.testing.assert_close(torch.cat([part.views for part in parts]), views, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat([part.labels for part in parts]), labels)
    assert not torch.equal(views[:, 0], views[:, 1])
    assert [len(set(row[row >= 0].tolist())) for row in drawn.order] == labels.sum(1).int().tolist()


def test_one_to_seven_augmentations_equally_likely():
    drawn = TwoViewAugmentation().draw(7000, step=0)
    counts = torch.bincount(drawn.labels.sum(1).long(), minlength=8)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 150
    assert (drawn.labels.mean(0) - 4 / 7).abs().max() < 0.03
    assert drawn.names == AUGMENTATIONS


@pytest.mark.gpu
def test_views_are_the_same_on_a_gpu():
    clips = torch.randn(16, 5 * RATE)
    here, there = TwoViewAugmentation()(clips, step=0), TwoViewAugmentation()(clips.cuda(), step=0)
    assert torch.equal(here.labels, there.labels.cpu())
    torch.testing.assert_close(there.views.cpu(), here.views, atol=1e-3, rtol=1e-3)
