"""The pipeline that makes two views: what is drawn, who gets it, and that places and processes do not matter."""

import re

import pytest
import torch

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.augmentations import (
    AUGMENTATIONS,
    Augmentation,
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    TwoViewAugmentation,
    WhiteNoise,
)

CLASSES = (PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift)


def clips(count: int, samples: int = 8000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, samples, generator=generator).cumsum(1) / 30  # energy at low frequencies, as in audio


class Add(Augmentation):
    """Adds a number: makes visible who got what."""

    parameter_names = ("amount",)

    def __init__(self, name: str, low: float):
        self.name = name
        self.low = low

    def sample_parameters(self, n, generator):
        return {"amount": self.low * (1 + torch.rand(n, generator=generator))}

    def transform(self, waveforms, parameters):
        return waveforms + parameters["amount"].unsqueeze(1)


def test_names_are_the_configuration_s():
    assert tuple(kind.name for kind in CLASSES) == AUGMENTATIONS
    assert TwoViewAugmentation().names == AUGMENTATIONS == tuple(MTSLVRConfig().augmentations)


def test_views_labels_and_record_have_their_shapes():
    views, labels, parameters = TwoViewAugmentation()(clips(5), step=0)
    assert views.shape == (5, 2, 8000) and views.dtype == torch.float32 and views.isfinite().all()
    assert labels.shape == (5, 7) and labels.dtype == torch.float32
    assert parameters.names == AUGMENTATIONS and parameters.order.shape == (5, 7)
    assert tuple(parameters.values) == AUGMENTATIONS
    assert all(value.shape == (5, 2) for own in parameters.values.values() for value in own.values())


def test_views_are_what_the_record_says():
    """Oracle: clip by clip, view by view, augmentation by augmentation."""
    waveforms = clips(6)
    views, labels, drawn = TwoViewAugmentation(seed=3)(waveforms, step=5)
    kinds = dict(zip(AUGMENTATIONS, CLASSES, strict=True))
    for row, order in enumerate(drawn.order.tolist()):
        names = [AUGMENTATIONS[position] for position in order if position >= 0]
        assert [position for position in order if position < 0] == [-1] * (7 - len(names))
        assert labels[row].tolist() == [float(name in names) for name in AUGMENTATIONS]
        for view in range(2):
            expected = waveforms[row : row + 1]
            for name in names:
                own = {key: value[row : row + 1, view] for key, value in drawn.values[name].items()}
                expected = kinds[name]().apply(expected, own)
            torch.testing.assert_close(views[row, view], expected[0], rtol=0, atol=1e-5)


def test_each_view_can_have_a_crop_of_its_own():
    crops = torch.stack([clips(6), clips(6).flip(1)], dim=1)  # (6, 2, samples)
    pipeline = TwoViewAugmentation(seed=3)
    before = crops.clone()
    views, labels, _ = pipeline(crops, step=5)
    assert torch.equal(crops, before)
    for view in range(2):
        alone = pipeline(crops[:, view], step=5)
        torch.testing.assert_close(views[:, view], alone.views[:, view], rtol=0, atol=1e-5)
        assert torch.equal(labels, alone.labels)


def test_both_views_get_the_same_augmentations_with_different_parameters():
    pipeline = TwoViewAugmentation([Add("ones", 1.0), Add("hundreds", 100.0), Add("many", 1e4)])
    views, labels, drawn = pipeline(torch.zeros(200, 3), step=0)
    amounts = torch.stack([drawn.values[name]["amount"] for name in drawn.names], dim=2)  # (B, V, A)
    torch.testing.assert_close(views[:, :, 0], (amounts * labels.unsqueeze(1)).sum(2))
    assert (amounts[:, 0] != amounts[:, 1]).all()


def test_number_and_order_are_uniform():
    drawn = TwoViewAugmentation().draw(14000, step=0)
    used = (drawn.order >= 0).sum(1)
    assert torch.equal(drawn.labels.sum(1).long(), used)
    counts = torch.bincount(used, minlength=8)
    assert counts[0] == 0 and (counts[1:] - 2000).abs().max() < 200  # 4.8 standard deviations
    first = torch.bincount(drawn.order[:, 0], minlength=7)
    assert (first - 2000).abs().max() < 200
    last = torch.bincount(drawn.order[used == 7][:, 6], minlength=7)
    assert (last - len(drawn.order[used == 7]) / 7).abs().max() < 90


def test_the_number_of_augmentations_can_be_limited():
    used = (TwoViewAugmentation(min_augmentations=2, max_augmentations=3).draw(500, step=0).order >= 0).sum(1)
    assert used.unique().tolist() == [2, 3]
    waveforms = clips(2)
    views, labels, _ = TwoViewAugmentation(min_augmentations=0, max_augmentations=0)(waveforms, step=0)
    assert torch.equal(views, waveforms.unsqueeze(1).expand(-1, 2, -1)) and not labels.any()


def test_same_seed_split_and_step_give_the_same_views_and_others_do_not():
    waveforms = clips(4, 2000)
    torch.manual_seed(1)
    first = TwoViewAugmentation(seed=1)(waveforms, step=3)
    torch.manual_seed(2)
    again = TwoViewAugmentation(seed=1)(waveforms, step=3)
    assert torch.equal(first.views, again.views) and torch.equal(first.labels, again.labels)
    for other in (
        TwoViewAugmentation(seed=1)(waveforms, step=4),
        TwoViewAugmentation(seed=2)(waveforms, step=3),
        TwoViewAugmentation(seed=1)(waveforms, step=3, split="eval"),
    ):
        assert not torch.equal(first.views, other.views)
        assert not torch.equal(first.parameters.order, other.parameters.order)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TwoViewAugmentation()(clips(2, 1000), step=0)
    assert torch.equal(torch.rand(3), expected)


def test_processes_draw_what_one_would():
    waveforms, pipeline = clips(8), TwoViewAugmentation()
    whole = pipeline(waveforms, step=9)
    parts = [pipeline(waveforms[begin : begin + 2], 9, offset=begin, total=8) for begin in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat([part.views for part in parts]), whole.views, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert torch.equal(torch.cat([part.parameters.order for part in parts]), whole.parameters.order)


@pytest.mark.parametrize("samples", [8000, 7919])
def test_a_clip_alone_is_the_clip_in_a_batch(samples):
    waveforms, pipeline = clips(12, samples), TwoViewAugmentation()
    for step in range(2):
        together = pipeline(waveforms, step).views
        for row in range(12):
            alone = pipeline(waveforms[row : row + 1], step, offset=row, total=12).views[0]
            torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-5)


def test_input_is_not_modified_and_any_real_type_will_do():
    waveforms = (clips(3, 2000) * 100).short()
    before, pipeline = waveforms.clone(), TwoViewAugmentation()
    views = pipeline(waveforms, step=1).views
    assert torch.equal(waveforms, before) and views.dtype == torch.float32
    as_float = waveforms.float().requires_grad_()
    views_of_float = pipeline(as_float, step=1).views
    assert torch.equal(views_of_float, views) and not views_of_float.requires_grad
    assert torch.equal(as_float.detach(), before.float())


def test_some_augmentations_by_name_or_with_other_ranges():
    pipeline = TwoViewAugmentation(["fade", TimeStretch(min_rate=0.9, max_rate=1.1)], sampling_rate=8000)
    _, labels, drawn = pipeline(clips(4), step=0)
    assert pipeline.names == ("fade", "time_stretch") and labels.shape == (4, 2)
    assert drawn.values["time_stretch"]["rate"].min() >= 0.9
    noise = TwoViewAugmentation(["white_noise"], sampling_rate=8000).augmentations[0]
    assert noise.sampling_rate == 8000


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="Unknown augmentation 'echo'; there are pitch_shift, fade"):
        TwoViewAugmentation(["echo"])
    with pytest.raises(ValueError, match="may appear once"):
        TwoViewAugmentation(["fade", "fade"])
    with pytest.raises(ValueError, match="cannot get 1 to 8 of 7"):
        TwoViewAugmentation(max_augmentations=8)
    pipeline = TwoViewAugmentation()
    for shape in [(100,), (2, 3, 100), (2, 2, 2, 100)]:
        with pytest.raises(ValueError, match=rf"must be .* or \(batch, 2, samples\), got {re.escape(str(shape))}"):
            pipeline(torch.zeros(shape), step=0)
    with pytest.raises(ValueError, match=r"Clips 3\.\.4 do not lie inside a batch of 4"):
        pipeline(torch.zeros(2, 100), step=0, offset=3, total=4)


@pytest.mark.gpu
def test_views_on_cuda_equal_those_on_the_cpu():
    waveforms, pipeline = clips(16, 48000), TwoViewAugmentation()
    on_cpu, on_cuda = pipeline(waveforms, step=0), pipeline(waveforms.cuda(), step=0)
    assert on_cuda.views.device.type == on_cuda.labels.device.type == "cuda"
    assert torch.equal(on_cuda.labels.cpu(), on_cpu.labels)
    error = (on_cuda.views.cpu() - on_cpu.views).square().mean(2).sqrt()
    assert (error < 1e-3 * on_cpu.views.square().mean(2).sqrt()).all()
