"""All clips at once, as on a GPU: the views of the groups, in a number of operators that is always the same."""

import sys
from pathlib import Path

import pytest
import torch
from test_two_views import Add, clips

from mtslvr_hf.augmentations import (
    AUGMENTATIONS,
    Fade,
    PitchShift,
    TwoViewAugmentation,
    resampling,
    vocoder,
)
from mtslvr_hf.augmentations.rounds import apply_in_rounds

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from launches import count_launches


def in_rounds(pipeline: TwoViewAugmentation, waveforms: torch.Tensor, step: int) -> torch.Tensor:
    drawn = pipeline.draw(len(waveforms), step)
    views = waveforms.unsqueeze(1).repeat(1, 2, 1)
    apply_in_rounds(views, drawn.order, drawn.values, pipeline.augmentations)
    return views


def check(pipeline: TwoViewAugmentation, waveforms: torch.Tensor, step: int = 0) -> None:
    """Rounds make the views of the groups; rounding errors grow in the vocoder."""
    expected = pipeline(waveforms, step).views
    error = (in_rounds(pipeline, waveforms, step) - expected).abs().amax(2)
    assert (error <= 5e-4 * expected.abs().amax(2)).all()


@pytest.fixture
def computed_as_on_a_gpu(monkeypatch):
    groups = resampling._groups
    monkeypatch.setattr(resampling, "_groups", lambda steps, levels, _: groups(steps, levels, torch.device("meta")))
    monkeypatch.setattr(vocoder, "_running_product", lambda steps: steps.cumprod(0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_is_that_of_the_groups(name, computed_as_on_a_gpu):
    pipeline, waveforms = TwoViewAugmentation([name], seed=2), clips(6)
    expected, found = pipeline(waveforms, step=1).views, in_rounds(pipeline, waveforms, step=1)
    tolerance = 1e-4 if name in ("pitch_shift", "time_stretch") else 2e-6
    assert ((found - expected).abs().amax(2) <= tolerance * expected.abs().amax(2)).all()


@pytest.mark.parametrize("samples", [8000, 7919, 33, 1])
def test_pipelines_are_those_of_the_groups(samples, computed_as_on_a_gpu):
    for seed in range(4):
        check(TwoViewAugmentation(seed=seed), clips(10, samples), step=seed)
    check(TwoViewAugmentation(seed=4, min_augmentations=7), clips(8, samples))
    check(TwoViewAugmentation(seed=5, max_augmentations=1), clips(8, samples))
    check(TwoViewAugmentation(seed=6), clips(1, samples))


def test_no_augmentation_at_all_leaves_the_clips():
    waveforms = clips(3, 500)
    found = in_rounds(TwoViewAugmentation(min_augmentations=0, max_augmentations=0), waveforms, step=0)
    assert torch.equal(found, waveforms.unsqueeze(1).expand(-1, 2, -1))
    assert in_rounds(TwoViewAugmentation(), waveforms[:0], step=0).shape == (0, 2, 500)


class Halves(Fade):
    """Subclass that computes something else with the same parameters."""

    def transform(self, waveforms, parameters):
        return waveforms / 2


@pytest.mark.parametrize("extra", [[Add("ones", 1.0), Add("tens", 10.0)], [Halves()], [PitchShift(n_fft=640)]])
def test_other_augmentations_run_as_a_group_at_their_place(extra):
    names = [name for name in AUGMENTATIONS if name not in {augmentation.name for augmentation in extra}]
    pipeline = TwoViewAugmentation([*names, *extra], seed=7)
    for step in range(3):
        check(pipeline, clips(8, 4000), step)


def test_fades_may_overlap():
    check(TwoViewAugmentation([Fade(max_in_fraction=1.0, max_out_fraction=1.0)]), clips(8, 3000))


def test_shifts_of_stretched_and_shifted_clips_come_in_their_order():
    pipeline = TwoViewAugmentation(["time_shift", "fade", "time_masking", "time_stretch"], min_augmentations=4, seed=1)
    for step in range(4):
        check(pipeline, clips(8, 3000), step)


def launches(batch: int, samples: int, step: int = 1, **options):
    """Count for two views on a device; nothing of them can be read back from `meta`."""
    pipeline = TwoViewAugmentation(seed=0, **options)
    drawn = pipeline.draw(batch, step)
    views = torch.empty(batch, 2, samples, device="meta")
    return count_launches(lambda: apply_in_rounds(views, drawn.order, drawn.values, pipeline.augmentations))


def test_two_views_need_at_most_400_kernels_whatever_the_batch():
    counts = {batch: launches(batch, 16_000).launches.total() for batch in (8, 64, 256, 1024)}
    assert counts[256] == counts[1024] and max(counts.values()) == counts[1024] <= 400
    other = launches(256, 160_000, step=2).launches.total()  # few clips, or none, need the last rounds
    assert min(*counts.values(), other) >= 0.95 * counts[1024] and other <= 400
    assert launches(256, 16_000, min_augmentations=7).launches.total() <= 400


def test_the_count_knows_kernels_from_views_and_allocations():
    def function():
        values = torch.empty(4, 6, device="meta")
        values[:, 1:3].t().add_(1)
        return values.reshape(24).exp() + torch.ones(24).to("meta")

    counter = count_launches(function)
    assert counter.launches == {"add_": 1, "exp": 1, "_to_copy": 1, "add": 1} and counter.on_host == 1
    with pytest.raises(RuntimeError, match="meta"):
        count_launches(lambda: torch.ones(3, device="meta").sum().item())
