"""The invariance report, on embeddings whose answers are known."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_score

from mtslvr_hf.augmentations import AUGMENTATIONS, PitchShift, TwoViewAugmentation
from mtslvr_hf.evaluation.invariance import PENALTIES, cross_predict, draw_strength, measure_invariance

CLIPS = 60


def clips():
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(CLIPS, 4000, generator=generator)
    return waveforms * torch.linspace(0.5, 2, CLIPS).unsqueeze(1)


def level(waveforms):
    return waveforms.square().mean(1, keepdim=True).log()


def by_hand(waveforms):
    """`level` a roll does not change; `place` is where the clip's beginning went."""
    place = (waveforms * torch.linspace(-1, 1, waveforms.shape[1])).sum(1, keepdim=True)
    return {"level": torch.cat([level(waveforms), level(waveforms).square()], 1), "place": place}


def of(report, augmentation, task):
    return [d for d in report.displacements if (d.augmentation, d.task) == (augmentation, task)]


@pytest.fixture(scope="module")
def report():
    return measure_invariance(by_hand, clips(), show_progress_bar=False)


def test_an_invariant_embedding_does_not_move(report):
    for entry in of(report, "time_shift", "level"):
        assert entry.mahalanobis < 1e-4 and entry.relative < 1e-4 and entry.cosine == pytest.approx(1, abs=1e-6)
    assert all(entry.relative > 0.3 for entry in of(report, "time_shift", "place"))


def test_stronger_augmentations_move_an_embedding_further(report):
    for name in ("white_noise", "mixed_noise", "fade"):
        weak, middle, strong = (entry.relative for entry in of(report, name, "level"))
        assert weak < middle < strong


def test_everything_is_measured_once(report):
    found = [(d.augmentation, d.strength, d.task) for d in report.displacements]
    assert sorted(found) == sorted(
        (a, s, t) for a in AUGMENTATIONS for s in (0.25, 0.5, 1.0) for t in by_hand(clips())
    )
    assert len(report.readabilities) == 2 * len(AUGMENTATIONS)
    lines = report.to_markdown().splitlines()
    assert len(lines) == 2 + 2 * len(AUGMENTATIONS) and len({line.count("|") for line in lines}) == 1


def test_probes_read_what_is_there_and_nothing_else():
    """An embedding that says how a constant clip was faded, beside one that is noise."""
    generator = torch.Generator().manual_seed(1)

    def embed(waveforms):
        zero = (waveforms[:, :2000].abs() < 0.999).double().mean(1, keepdim=True)  # the fade-in's length
        return {"fade": torch.cat([zero, zero**2], 1), "noise": torch.randn(len(waveforms), 5, generator=generator)}

    report = measure_invariance(embed, torch.ones(200, 4000), strengths=(1.0,), show_progress_bar=False)
    own = {reading.task: reading for reading in report.readabilities if reading.augmentation == "fade"}
    fade, noise = own["fade"], own["noise"]
    assert fade.parameter == "in_fraction" and fade.r2 > 0.95 and fade.presence > 0.9
    assert abs(noise.presence - 0.5) < 0.1 and noise.r2 < 0.05


def test_presence_is_read_at_each_strength():
    """Share of constant clips that a fade takes away, read through noise that hides a weak fade."""
    generator = torch.Generator().manual_seed(2)

    def embed(waveforms):
        noise = 0.05 * torch.randn(len(waveforms), 1, generator=generator)
        return {"faded": waveforms.mean(1, keepdim=True) + noise}

    report = measure_invariance(embed, torch.ones(200, 4000), strengths=(0.01, 1.0), show_progress_bar=False)
    weak, strong = (entry.presence for entry in of(report, "fade", "faded"))
    assert abs(weak - 0.5) < 0.1 and strong > 0.95


@pytest.mark.parametrize("count, size", [(40, 5), (20, 60)])
def test_probes_are_ridge_regressions_that_never_saw_the_clip(count, size):
    """Of the penalties the one with the least leave-one-out error, found by leaving clips out."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(count, size, generator=generator, dtype=torch.float64)
    targets = inputs[:, 0] + 0.5 * torch.randn(count, generator=generator, dtype=torch.float64)
    folds = torch.arange(count) % 5
    predicted = cross_predict(inputs, targets, folds)
    for fold in range(5):
        x, y = inputs[folds != fold].numpy(), targets[folds != fold].numpy()
        z = (inputs[folds == fold].numpy() - x.mean(0)) / x.std(0)
        x = (x - x.mean(0)) / x.std(0)
        models = [Ridge(penalty * len(x)) for penalty in PENALTIES]
        errors = [
            -cross_val_score(model, x, y, cv=LeaveOneOut(), scoring="neg_mean_squared_error").mean()
            for model in models
        ]
        expected = models[int(np.argmin(errors))].fit(x, y).predict(z)
        assert np.abs(predicted[folds == fold] - expected).max() < 1e-9


@pytest.mark.parametrize("count, size", [(40, 2), (20, 60)])
def test_distances_are_mahalanobis_s_by_the_shrunk_covariance(count, size):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4000, size, generator=generator)
    waveforms = torch.randn(count, 4000, generator=generator)
    report = measure_invariance(lambda x: {"all": x @ weight}, waveforms, strengths=(1.0,), show_progress_bar=False)
    originals = (waveforms @ weight).double().numpy()
    inverse = np.linalg.inv(LedoitWolf().fit(originals).covariance_)
    apart = originals - np.roll(originals, 1, 0)
    expected = np.sqrt(np.einsum("nd,de,ne->n", apart, inverse, apart)).mean()
    entry = report.displacements[0]
    assert entry.mahalanobis / entry.relative == pytest.approx(expected, rel=1e-6)


def test_strength_is_a_share_of_the_range():
    generator = torch.Generator().manual_seed(0)
    semitones = draw_strength(PitchShift(), 0.5, 100, generator)["semitones"]
    assert sorted(semitones.unique().tolist()) == [-7.5, 7.5]
    noise = TwoViewAugmentation(["white_noise"]).augmentations[0]
    assert draw_strength(noise, 1.0, 5, generator)["snr_db"].tolist() == [3.0] * 5
    assert draw_strength(noise, 0.0, 5, generator)["snr_db"].tolist() == [30.0] * 5


def test_a_collapsed_embedding_is_no_error():
    report = measure_invariance(lambda x: {"all": torch.ones(len(x), 4)}, clips()[:10], show_progress_bar=False)
    assert all(entry.cosine == pytest.approx(1) and entry.mahalanobis == 0 for entry in report.displacements)


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="at least 10 clips"):
        measure_invariance(by_hand, clips()[:9])
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]; got \(0.5, 1.5\)"):
        measure_invariance(by_hand, clips(), strengths=(0.5, 1.5))
