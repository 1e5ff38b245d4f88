"""The seven augmentations of CLAR, as MT-SLVR uses them.

Source: Heggan et al., "MT-SLVR" (Interspeech 2023), section 3.3; Al-Tahan and Mohsenzadeh, "CLAR" (AISTATS 2021). All
parameters are uniform, continuous ones (semitones too) over the whole range. Shapes: B clips, S samples.
"""

from abc import abstractmethod
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Augmentation, check_range, counting, draw_seeds, samples_of, to_device, uniform
from .noise import colored_noise, mean_power, white_noise
from .resampling import GRID, resample
from .vocoder import phase_vocoder

FADE_SHAPES = ("linear", "logarithmic", "exponential")


class VocoderInput(NamedTuple):
    """Arguments of `phase_vocoder`."""

    waveforms: Tensor
    rates: Tensor
    lengths: Tensor
    num_samples: int


class VocoderAugmentation(Augmentation):
    """Augmentation that is a phase vocoder with something before and behind it."""

    n_fft: int

    @abstractmethod
    def prepare(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> VocoderInput:
        """Input of the phase vocoder for `waveforms` (B, S)."""

    def finish(self, vocoded: Tensor, samples: int, parameters: dict[str, Tensor]) -> Tensor:
        """Clips (B, `samples`) from the output of the phase vocoder (B, num_samples or more)."""
        return vocoded

    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        ready = self.prepare(waveforms, parameters)
        vocoded = phase_vocoder([ready.waveforms], ready.rates, ready.lengths, ready.num_samples, self.n_fft)
        return self.finish(vocoded, waveforms.shape[1], parameters)


class PitchShift(VocoderAugmentation):
    """Pitch shift with length and tempo kept: resampling, then the phase vocoder back to the clip's length.

    Parameters drawn: `semitones`. Frequencies above half the sampling rate are filtered out.
    Differs from the authors' code, whose phase vocoder advances every bin by one constant and uses no window.
    """

    name = "pitch_shift"
    parameter_names = ("semitones",)
    effort = 3
    sort_by = "semitones"
    cpu_block = 2**18

    def __init__(self, min_semitones: float = -15.0, max_semitones: float = 15.0, n_fft: int = 1280):
        check_range("PitchShift", "semitones", min_semitones, max_semitones)
        _check_n_fft(n_fft)
        self.min_semitones = min_semitones
        self.max_semitones = max_semitones
        self.n_fft = n_fft

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {"semitones": (self.min_semitones, self.max_semitones)}

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"semitones": uniform(self.min_semitones, self.max_semitones, n, generator)}

    def prepare(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> VocoderInput:
        steps = torch.exp2(parameters["semitones"].double() / 12).mul_(GRID).round_().long().clamp_(min=1)
        resampled, lengths = resample(waveforms, steps)
        return VocoderInput(resampled, GRID / steps.double(), lengths, waveforms.shape[1])


def _check_n_fft(n_fft: int) -> None:
    if n_fft < 16 or n_fft % 16:
        raise ValueError(f"n_fft must be a positive multiple of 16, got {n_fft}.")


class TimeStretch(VocoderAugmentation):
    """Time stretch with pitch kept; a faster clip is repeated to its old length, a slower clip is cut at its end.

    Parameters drawn: `rate`; > 1 is faster. Differs from the authors' code as PitchShift does.
    """

    name = "time_stretch"
    parameter_names = ("rate",)
    effort = 2
    sort_by = "rate"
    cpu_block = 2**18

    def __init__(self, min_rate: float = 0.5, max_rate: float = 1.5, n_fft: int = 1280):
        check_range("TimeStretch", "rate", min_rate, max_rate, smallest=1e-3)
        _check_n_fft(n_fft)
        self.min_rate = min_rate
        self.max_rate = max_rate
        self.n_fft = n_fft

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {"rate": (self.min_rate, self.max_rate)}

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"rate": uniform(self.min_rate, self.max_rate, n, generator)}

    def prepare(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> VocoderInput:
        batch, samples = waveforms.shape
        longest = int(self._lengths(parameters, samples).max())
        return VocoderInput(waveforms, parameters["rate"].double(), torch.full((batch,), samples), longest)

    def finish(self, vocoded: Tensor, samples: int, parameters: dict[str, Tensor]) -> Tensor:
        lengths = self._lengths(parameters, samples)
        if lengths.min() == samples:
            return vocoded
        index = counting(samples, vocoded.device) % to_device(lengths, vocoded)  # (B, S)
        return vocoded.gather(1, index)

    def _lengths(self, parameters: dict[str, Tensor], samples: int) -> Tensor:
        return (samples / parameters["rate"].double()).round_().long().clamp_(1, samples)


class Fade(Augmentation):
    """Fade-in at the start and fade-out at the end of a clip, with the curves of torchaudio.transforms.Fade.

    Parameters drawn: `in_fraction`, `out_fraction` (of the clip), `shape` (a position in FADE_SHAPES).
    """

    name = "fade"
    parameter_names = ("in_fraction", "out_fraction", "shape")
    cpu_block = 2**19

    def __init__(self, max_in_fraction: float = 0.5, max_out_fraction: float = 0.5):
        check_range("Fade", "in_fraction", 0, max_in_fraction)
        check_range("Fade", "out_fraction", 0, max_out_fraction)
        self.max_in_fraction = max_in_fraction
        self.max_out_fraction = max_out_fraction

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {"in_fraction": (0.0, self.max_in_fraction), "out_fraction": (0.0, self.max_out_fraction)}

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "in_fraction": uniform(0, self.max_in_fraction, n, generator),
            "out_fraction": uniform(0, self.max_out_fraction, n, generator),
            "shape": torch.randint(0, len(FADE_SHAPES), (n,), generator=generator),
        }

    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        output = waveforms.clone()
        shapes = to_device(parameters["shape"], waveforms)
        for key, backwards in (("in_fraction", False), ("out_fraction", True)):
            lengths = samples_of(parameters[key], waveforms.shape[1])
            gains = _fade_gains(lengths, shapes, int(lengths.max()))  # (B, longest fade)
            longest = gains.shape[1]
            if backwards:
                output[:, output.shape[1] - longest :] *= gains.flip(1)
            else:
                output[:, :longest] *= gains
        return output


def _fade_gains(lengths: Tensor, shapes: Tensor, longest: int) -> Tensor:
    # Gains (B, longest) of a fade-in: 0 at the first sample, 1 from sample length - 1 on.
    columns = torch.arange(longest, dtype=torch.float32, device=shapes.device)
    lengths = to_device(lengths, shapes)
    time = (columns + (lengths == 0)).div_((lengths - 1).clamp_(min=1)).clamp_(max=1)
    logarithmic = (time + 0.1).log10_().add_(1).clamp_(0, 1)
    exponential = (time - 1).exp2_().mul_(time)
    return torch.where(shapes == 0, time, torch.where(shapes == 1, logarithmic, exponential))


def fade_gains(parameters: dict[str, Tensor], starts: Tensor, like: Tensor) -> Tensor:
    """Gains (B, S) of fades, rolled, for rows `like` (..., S).

    Args:
        parameters: Those of `Fade`, sorted by shape, on the CPU.
        starts: (B,) int64, the sample of each clip whose gain comes first, on the CPU.
    """
    samples, device = like.shape[-1], like.device
    lengths = torch.stack([samples_of(parameters[key], samples) for key in ("in_fraction", "out_fraction")])
    none, spans = (lengths == 0).float(), (lengths - 1).clamp_(min=1).float()  # (2, B)
    columns = torch.stack([starts.float(), none[0], none[1] + samples - 1, *spans]).unsqueeze(2)
    start, before, after, *_ = columns = columns.to(device, non_blocking=True)  # (5, B, 1)
    place = (counting(samples, device, torch.float32) + start).remainder_(samples)
    gains = place.new_empty(2, *place.shape)  # of fade-in and fade-out
    torch.add(place, before, out=gains[0])
    torch.sub(after, place, out=gains[1])
    gains.div_(columns[3:]).clamp_(max=1)
    linear, logarithmic, _ = torch.bincount(parameters["shape"], minlength=len(FADE_SHAPES)).tolist()
    gains[:, linear : linear + logarithmic].add_(0.1).log10_().add_(1).clamp_(0, 1)
    exponential = gains[:, linear + logarithmic :]
    exponential.mul_((exponential - 1).exp2_())
    return gains[0].mul_(gains[1])


class ColoredNoise(Augmentation):
    """Gaussian noise with a power spectral density proportional to frequency ** exponent (flat below 20 Hz).

    Parameters drawn: `snr_db`, the exact ratio of the mean squares of clip and noise; `exponent`; `noise_seed`.
    Silence stays silence.
    """

    parameter_names = ("snr_db", "exponent", "noise_seed")
    cpu_block = 2**19

    def __init__(
        self, min_snr_db: float, max_snr_db: float, min_exponent: float, max_exponent: float, sampling_rate: int
    ):
        check_range(type(self).__name__, "snr_db", min_snr_db, max_snr_db)
        check_range(type(self).__name__, "exponent", min_exponent, max_exponent)
        self.min_snr_db = min_snr_db
        self.max_snr_db = max_snr_db
        self.min_exponent = min_exponent
        self.max_exponent = max_exponent
        self.sampling_rate = sampling_rate

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {
            "snr_db": (self.min_snr_db, self.max_snr_db),
            "exponent": (self.min_exponent, self.max_exponent),
        }

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "snr_db": uniform(self.min_snr_db, self.max_snr_db, n, generator),
            "exponent": uniform(self.min_exponent, self.max_exponent, n, generator),
            "noise_seed": draw_seeds(n, generator),
        }

    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        seeds, exponents = parameters["noise_seed"], parameters["exponent"]
        noise = colored_noise(seeds, exponents, waveforms.shape[1], self.sampling_rate, waveforms.device)
        share = to_device(torch.pow(10.0, parameters["snr_db"].float() / -10), waveforms)
        smallest = torch.finfo(torch.float32).tiny  # a clip of one sample has only 0 Hz, so no noise
        gain = (mean_power(waveforms) * share / mean_power(noise).clamp_(min=smallest)).sqrt_()
        return noise.mul_(gain).add_(waveforms)


class WhiteNoise(ColoredNoise):
    """White to pink noise, exponents -1 to 0."""

    name = "white_noise"

    def __init__(
        self,
        min_snr_db: float = 3.0,
        max_snr_db: float = 30.0,
        min_exponent: float = -1.0,
        max_exponent: float = 0.0,
        sampling_rate: int = 16000,
    ):
        super().__init__(min_snr_db, max_snr_db, min_exponent, max_exponent, sampling_rate)


class MixedNoise(ColoredNoise):
    """Noise of any color, exponents -2 (brown) to 2 (violet)."""

    name = "mixed_noise"

    def __init__(
        self,
        min_snr_db: float = 3.0,
        max_snr_db: float = 30.0,
        min_exponent: float = -2.0,
        max_exponent: float = 2.0,
        sampling_rate: int = 16000,
    ):
        super().__init__(min_snr_db, max_snr_db, min_exponent, max_exponent, sampling_rate)


class TimeMasking(Augmentation):
    """Time mask: one segment of a clip becomes zeros or white noise of the clip's mean power.

    Parameters drawn: `start_fraction` and `length_fraction` of the clip (rounded to whole samples, inside the clip),
    `fill` (0 zeros, 1 noise, equally likely), `noise_seed`.
    Differs from the authors' code, which declares masking by noise but does not implement it.
    """

    name = "time_masking"
    parameter_names = ("start_fraction", "length_fraction", "fill", "noise_seed")

    def __init__(self, max_length_fraction: float = 0.125):
        check_range("TimeMasking", "length_fraction", 0, max_length_fraction)
        self.max_length_fraction = max_length_fraction

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {"start_fraction": (0.0, 1.0), "length_fraction": (0.0, self.max_length_fraction)}

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        length_fraction = uniform(0, self.max_length_fraction, n, generator)
        return {
            "start_fraction": uniform(0, 1, n, generator) * (1 - length_fraction),
            "length_fraction": length_fraction,
            "fill": torch.randint(0, 2, (n,), generator=generator),
            "noise_seed": draw_seeds(n, generator),
        }

    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        samples, device = waveforms.shape[1], waveforms.device
        starts, lengths = mask_bounds(parameters, samples)
        longest = int(lengths.max())
        columns = torch.arange(longest, device=device)
        index = (columns + to_device(starts, waveforms)) % samples  # (B, longest); after a clip's mask: unchanged
        level = mean_power(waveforms).sqrt_() * to_device(parameters["fill"], waveforms)
        filling = white_noise(parameters["noise_seed"], longest, device) * level
        filling = torch.where(columns < to_device(lengths, waveforms), filling, waveforms.gather(1, index))
        return waveforms.scatter(1, index, filling)


def mask_bounds(parameters: dict[str, Tensor], samples: int) -> tuple[Tensor, Tensor]:
    """First samples and lengths of time masks in clips of `samples`, (B,) int64 each, on the CPU."""
    starts = samples_of(parameters["start_fraction"], samples)
    return starts, torch.minimum(samples_of(parameters["length_fraction"], samples), samples - starts)


class TimeShift(Augmentation):
    """Circular time shift.

    Parameters drawn: `shift_fraction` of the clip (rounded to whole samples); > 0 is later.
    """

    name = "time_shift"
    parameter_names = ("shift_fraction",)
    parameter_periods = MappingProxyType({"shift_fraction": 1.0})

    def __init__(self, min_shift_fraction: float = -0.5, max_shift_fraction: float = 0.5):
        check_range("TimeShift", "shift_fraction", min_shift_fraction, max_shift_fraction)
        self.min_shift_fraction = min_shift_fraction
        self.max_shift_fraction = max_shift_fraction

    @property
    def parameter_ranges(self) -> dict[str, tuple[float, float]]:
        return {"shift_fraction": (self.min_shift_fraction, self.max_shift_fraction)}

    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"shift_fraction": uniform(self.min_shift_fraction, self.max_shift_fraction, n, generator)}

    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        samples = waveforms.shape[1]
        return rolled(waveforms, -samples_of(parameters["shift_fraction"], samples) % samples)


def rolled(waveforms: Tensor, starts: Tensor) -> Tensor:
    """Clips (B, S) rolled so that they begin at their samples `starts` (B,), on the CPU."""
    return slices_of_twice(waveforms, slices_for(starts, waveforms.shape[1]).to(waveforms.device, non_blocking=True))


def slices_for(starts: Tensor, samples: int) -> Tensor:
    """Slices (B,) for `slices_of_twice`, on the CPU: clips of `samples` that begin at their samples `starts` (B,)."""
    return starts + 2 * samples * torch.arange(len(starts))


def slices_of_twice(waveforms: Tensor, slices: Tensor) -> Tensor:
    """Rolled clips (B, S), which are slices of the clips twice in a row; `slices` on the clips' device."""
    twice = torch.cat([waveforms, waveforms], dim=1).flatten()
    return twice.unfold(0, waveforms.shape[1], 1).index_select(0, slices)


__all__ = [
    "FADE_SHAPES",
    "ColoredNoise",
    "Fade",
    "MixedNoise",
    "PitchShift",
    "TimeMasking",
    "TimeShift",
    "TimeStretch",
    "VocoderAugmentation",
    "WhiteNoise",
]
