"""Differences of the two views' augmentation parameters, the targets of `predictive_target`."""

import math

import pytest
import torch

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.augmentations import Augmentation, Fade, PitchShift, TimeShift, TimeStretch, TwoViewAugmentation
from mtslvr_hf.configuration_mtslvr import AUGMENTATION_PARAMETERS


class Plain(Augmentation):
    """Gain with an amount that it does not declare."""

    name = "gain"
    parameter_names = ("gain_db", "seed")

    def sample_parameters(self, n, generator):
        return {"gain_db": 12 * torch.rand(n, generator=generator) - 6, "seed": torch.arange(n)}

    def transform(self, waveforms, parameters):
        return waveforms * 10 ** (parameters["gain_db"][:, None] / 20)


class Gain(Plain):
    """Gain whose range is a class attribute."""

    parameter_ranges = {"gain_db": (-6.0, 6.0)}


def drawn_values(draw, name):
    augmentation, parameter = name.split(".")
    return draw.values[augmentation][parameter].double()


def test_targets_of_a_draw_by_hand():
    draw = TwoViewAugmentation(seed=4).draw(6, step=2)
    differences = draw.differences(AUGMENTATION_PARAMETERS)
    assert differences.shape == (6, 12) and differences.dtype == torch.float32
    widths = {"semitones": 30, "in_fraction": 0.5, "out_fraction": 0.5, "snr_db": 27, "rate": 1.0}
    widths |= {"start_fraction": 1.0, "length_fraction": 0.125}
    for name, found in zip(AUGMENTATION_PARAMETERS[:10], differences[:, :10].T, strict=True):
        width = {"white_noise.exponent": 1, "mixed_noise.exponent": 4}.get(name) or widths[name.split(".")[1]]
        for clip, (first, second) in enumerate(drawn_values(draw, name).tolist()):
            assert found[clip].item() == pytest.approx(
                (first - second) / width * math.sqrt(12) / math.sqrt(2), abs=1e-5
            )
    for clip, (first, second) in enumerate(drawn_values(draw, "time_shift.shift_fraction").tolist()):
        angle = 2 * math.pi * (first - second)
        expected = (math.sqrt(2) * math.sin(angle), math.sqrt(2) * math.cos(angle))
        assert differences[clip, 10:].tolist() == pytest.approx(expected, abs=1e-5)


def test_targets_of_uniform_draws_have_variance_1():
    differences = TwoViewAugmentation().draw(50_000, step=0).differences(AUGMENTATION_PARAMETERS)
    assert differences.mean(0).abs().max() < 0.02
    uniform = [name != "time_masking.start_fraction" for name in AUGMENTATION_PARAMETERS]
    assert (differences.var(0)[uniform] - 1).abs().max() < 0.02
    assert differences.var(0)[[not u for u in uniform]].item() == pytest.approx(0.886, abs=0.02)  # 1 - length at most


def test_the_default_parameters_are_those_that_the_augmentations_declare():
    draw = TwoViewAugmentation().draw(1, step=0)
    declared = [
        f"{augmentation.name}.{key}"
        for augmentation in draw.augmentations
        for key in augmentation.parameter_differences(draw.values[augmentation.name])
    ]
    assert tuple(declared) == AUGMENTATION_PARAMETERS
    assert MTSLVRConfig(predictive_target="both").parameter_targets == declared


def test_a_shift_by_a_whole_clip_is_none():
    shift = TimeShift(-1.0, 1.0)
    values = {"shift_fraction": torch.tensor([[0.6, 0.0], [-0.4, 0.0], [0.5, -0.1], [0.9, -0.7]])}
    for name, difference in shift.parameter_differences(values).items():
        assert name in ("shift_fraction_sine", "shift_fraction_cosine")
        torch.testing.assert_close(difference, difference[:1].expand(4))
    waveforms = torch.randn(1, 1000).expand(2, -1)
    rolled = shift.apply(waveforms, {"shift_fraction": torch.tensor([0.6, -0.4])})
    assert torch.equal(rolled[0], rolled[1])


@pytest.mark.parametrize("limits", [(-0.1, 0.1), (0.0, 0.7), (-1.0, 0.5), (-0.5, 0.5)])
def test_circular_targets_have_mean_0_and_variance_1_in_any_range(limits):
    names = ["time_shift.shift_fraction_sine", "time_shift.shift_fraction_cosine"]
    differences = TwoViewAugmentation([TimeShift(*limits)]).draw(50_000, step=0).differences(names)
    assert differences.mean(0).abs().max() < 0.02 and (differences.var(0) - 1).abs().max() < 0.02


def test_ranges_are_those_of_the_constructor():
    augmentations = [PitchShift(-2.0, 1.0), Fade(0.1, 0.3), TimeStretch(0.9, 1.2)]
    draw = TwoViewAugmentation(augmentations).draw(5, step=0)
    names = ["fade.out_fraction", "pitch_shift.semitones", "time_stretch.rate"]
    for name, width, found in zip(names, (0.3, 3.0, 0.3), draw.differences(names).T, strict=True):
        values = drawn_values(draw, name)
        torch.testing.assert_close(found.double(), (values[:, 0] - values[:, 1]) / width * 6**0.5, rtol=0, atol=1e-5)


def test_the_targets_do_not_depend_on_the_number_of_processes():
    pipeline, waveforms = TwoViewAugmentation(seed=1), torch.randn(8, 2000)
    whole = pipeline(waveforms, step=3).parameters.differences(AUGMENTATION_PARAMETERS)
    parts = [pipeline(waveforms[n : n + 2], 3, offset=n, total=8).parameters for n in range(0, 8, 2)]
    assert torch.equal(torch.cat([part.differences(AUGMENTATION_PARAMETERS) for part in parts]), whole)


def test_an_augmentation_of_ones_own():
    draw = TwoViewAugmentation([Gain(), "fade"]).draw(4, step=0)
    values = draw.values["gain"]["gain_db"]
    expected = (values[:, :1] - values[:, 1:]) / 12 * 6**0.5
    torch.testing.assert_close(draw.differences(["gain.gain_db"]), expected)
    without = TwoViewAugmentation([Plain(), "fade"]).draw(4, step=0)
    assert without.differences(["fade.in_fraction"]).shape == (4, 1)
    with pytest.raises(ValueError, match=r"difference of 'gain.gain_db' to predict; there are fade.in_fraction, fade"):
        without.differences(["fade.in_fraction", "gain.gain_db"])
    with pytest.raises(ValueError, match="there are none"):
        TwoViewAugmentation([Plain()]).draw(4, step=0).differences(["gain.gain_db"])


def test_a_range_of_one_value_is_refused_and_other_ranges_that_cannot_be():
    draw = TwoViewAugmentation([PitchShift(3.0, 3.0), "fade"]).draw(4, step=0)
    assert draw.differences(["fade.in_fraction"]).shape == (4, 1)
    with pytest.raises(ValueError, match=r"'pitch_shift.semitones' .* a range of one value has no differences"):
        draw.differences(["pitch_shift.semitones"])
    gain, values = Gain(), {"gain_db": torch.zeros(1, 2), "seed": torch.zeros(1, 2)}
    for ranges in ({"gain": (0.0, 1.0)}, {"gain_db": (1.0, 0.0)}, {"gain_db": (0.0, math.inf)}):
        gain.parameter_ranges = ranges
        with pytest.raises(ValueError, match=r"`parameter_ranges` holds .* expected a parameter among gain_db, seed"):
            gain.parameter_differences(values)
