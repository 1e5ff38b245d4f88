"""Quality of PitchShift and TimeStretch on tones, chords and noise.

python benchmarks/augmentation_quality.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from as_published import machine
from torch import Tensor

from mtslvr_hf.augmentations import PitchShift, TimeStretch

RATE, SECONDS = 16_000, 3
SEMITONES = (-15.0, -12.0, -7.0, -0.5, 3.3, 7.0, 12.0, 15.0)
RATES = (0.5, 0.7, 0.9, 1.2, 1.5)
HERTZ = (110.0, 220.0, 440.0, 1000.0, 2500.0)
CHORD = (220.0, 277.2, 329.6, 440.0)
EDGE = 2000  # ignored samples at both ends
Change = Callable[[Tensor], list[tuple[Tensor, float]]]


def main() -> None:
    """Prints the table of worst results."""
    print(f"Clips of {SECONDS} s; {machine()}\n")
    print("| worst of all shifts or rates, dB | PitchShift | TimeStretch |\n| --- | --- | --- |")
    tones = [tone(hertz) for hertz in HERTZ]
    chord = sum(tone(hertz) for hertz in CHORD)
    noise = torch.randn(RATE * SECONDS, generator=torch.Generator().manual_seed(0))
    rows = {
        "all but a tone, below it": [max(rest(c, [h], w) for c, h in zip(tones, HERTZ)) for w in (shifts, stretches)],
        "a tone's level": [max(level(c, w) for c in tones) for w in (shifts, stretches)],
        f"all but a chord of {', '.join(f'{h:g}' for h in CHORD)} Hz, below it": [
            rest(chord, CHORD, w) for w in (shifts, stretches)
        ],
        "white noise's level": [level(noise, w) for w in (shifts, stretches)],
    }
    for name, (shifted, stretched) in rows.items():
        print(f"| {name} | {shifted:.2f} | {stretched:.2f} |")


def tone(hertz: float) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(RATE * SECONDS) / RATE + 0.3)


def shifts(clip: Tensor) -> list[tuple[Tensor, float]]:
    """Clip at each shift, with the factor of its frequencies."""
    changed = PitchShift().apply(clip.expand(len(SEMITONES), -1), {"semitones": torch.tensor(SEMITONES)})
    return [(own, 2 ** (semitones / 12)) for own, semitones in zip(changed, SEMITONES)]


def stretches(clip: Tensor) -> list[tuple[Tensor, float]]:
    """Clip at each rate, with the factor of its frequencies."""
    changed = TimeStretch().apply(clip.expand(len(RATES), -1), {"rate": torch.tensor(RATES)})
    return [(own[: int(len(clip) / max(rate, 1))], 1.0) for own, rate in zip(changed, RATES)]


def rest(clip: Tensor, partials: Sequence[float], change: Change) -> float:
    """Power further than 8 Hz (or 2 %) from the partials, relative to all power, in dB; the worst of all changes."""
    worst = -math.inf
    for changed, factor in change(clip):
        inside = changed[EDGE:-EDGE].double()
        power = torch.fft.rfft(inside * torch.hann_window(len(inside), dtype=torch.float64)).abs().square()
        hertz = torch.arange(len(power)) * RATE / len(inside)
        own = torch.zeros(len(power), dtype=torch.bool)
        for partial in partials:
            own |= (hertz - partial * factor).abs() < max(8.0, 0.02 * partial * factor)
        worst = max(worst, float(10 * torch.log10(power[~own].sum() / power.sum())))
    return worst


def level(clip: Tensor, change: Change) -> float:
    """Largest change of a clip's level, in dB."""
    original = clip[EDGE:-EDGE].double().square().mean()
    return max(
        abs(float(10 * torch.log10(c[EDGE:-EDGE].double().square().mean() / original))) for c, _ in change(clip)
    )


if __name__ == "__main__":
    main()
