"""Shares of classifier weights against scikit-learn's classifiers, and where the answer is known."""

from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

from mtslvr_hf.evaluation.few_shot.episodes import sample_episodes
from mtslvr_hf.evaluation.few_shot.weight_shares import weight_shares

CLASSES, CLIPS = 6, 20
LABELS = [clip % CLASSES for clip in range(CLASSES * CLIPS)]


def head(size: int, spread: float, seed: int) -> torch.Tensor:
    """Embeddings (N, size) of classes whose centers are `spread` times as far apart as their clips."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, size, generator=generator)
    return spread * centers[torch.tensor(LABELS)] + torch.randn(len(LABELS), size, generator=generator)


@pytest.mark.parametrize("shots", [1, 3])
def test_shares_are_those_of_scikit_learn_s_weights(shots):
    heads = {"contrastive": 7 * head(12, 2.0, 1), "predictive": head(5, 0.5, 2)}
    episodes = sample_episodes(LABELS, 4, shots, 2, 8)
    prepared = normalize(StandardScaler().fit_transform(torch.cat(list(heads.values()), 1).double().numpy()))
    expected = []
    for support in episodes.support.flatten(1).numpy():
        model = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000)
        weights = np.abs(model.fit(prepared[support], np.arange(4).repeat(shots)).coef_)
        expected.append(weights[:, :12].sum() / weights.sum())
    found = weight_shares(heads, episodes)
    assert found.shares["contrastive"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.intervals["contrastive"] == pytest.approx(1.96 * np.std(expected, ddof=1) / 8**0.5, abs=1e-6)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.sizes == {"contrastive": 12, "predictive": 5} and found.episodes == 8


def test_the_same_head_twice_shares_alike():
    values = head(9, 1.0, 3)
    found = weight_shares({"one": values, "other": 100 * values}, sample_episodes(LABELS, 5, 1, 1, 50))
    assert found.shares == pytest.approx({"one": 0.5, "other": 0.5})
    assert found.intervals == pytest.approx({"one": 0, "other": 0}, abs=1e-9)


def test_a_collapsed_head_has_no_share_and_an_informative_one_the_larger():
    episodes = sample_episodes(LABELS, 5, 5, 1, 100)
    useful, noise, collapsed = head(10, 3.0, 4), head(10, 0.0, 5), torch.ones(len(LABELS), 10)
    assert weight_shares({"useful": useful, "collapsed": collapsed}, episodes).shares["collapsed"] == 0
    found = weight_shares({"useful": useful, "noise": noise}, episodes)
    assert found.shares["useful"] - found.intervals["useful"] > 0.6


def test_the_number_of_episodes_at_once_changes_nothing(monkeypatch):
    heads = {"contrastive": head(6, 1.0, 6), "predictive": head(6, 1.0, 7)}
    episodes = sample_episodes(LABELS, 3, 2, 1, 30)
    at_once = weight_shares(heads, episodes)
    monkeypatch.setattr(import_module("mtslvr_hf.evaluation.few_shot.weight_shares"), "_BLOCK_NUMBERS", 1)
    assert weight_shares(heads, episodes).shares == pytest.approx(at_once.shares)


def test_episodes_of_equal_clips_are_left_out():
    values = head(4, 1.0, 8)
    values[:-CLASSES] = values[0]  # clips differ in the last round of classes only
    found = weight_shares({"one": values, "other": values}, sample_episodes(LABELS, 2, 1, 1, 100))
    assert 0 < found.episodes < 100 and found.shares["one"] == pytest.approx(0.5)


def test_misuse_is_explained():
    episodes, values = sample_episodes(LABELS, 2, 1, 1, 5), head(4, 1.0, 9)
    with pytest.raises(ValueError, match="the heads are all; expected two or more"):
        weight_shares({"all": values}, episodes)
    with pytest.raises(ValueError, match="the heads embed 119, 120 clips"):
        weight_shares({"one": values, "other": values[1:]}, episodes)
    with pytest.raises(ValueError, match=r"'other' are torch\.int64 of shape"):
        weight_shares({"one": values, "other": values.long()}, episodes)
    with pytest.raises(ValueError, match="have no weights"):
        weight_shares({"one": torch.ones(120, 3), "other": torch.zeros(120, 3)}, episodes)
