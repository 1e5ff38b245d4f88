"""Stratified parts, groups kept together."""

import numpy as np
import pytest

from mtslvr_hf.data.splits import divide, make_folds


def one_hot(classes, count=None):
    return np.eye(count or max(classes) + 1, dtype=bool)[classes]


def test_folds_have_their_share_of_every_class():
    labels = one_hot(np.repeat([0, 1, 2], [50, 13, 7]))
    folds = make_folds(labels, 5, seed=1)
    counts = np.stack([labels[folds == fold].sum(0) for fold in range(5)])  # (folds, C)
    assert counts.sum(0).tolist() == [50, 13, 7]
    assert (counts[:, 0] == 10).all()
    assert (np.abs(counts - np.array([10, 2.6, 1.4])) < 1).all()
    assert np.ptp(np.bincount(folds)) <= 1


def test_a_held_out_part_has_its_share_of_every_class():
    labels = one_hot(np.repeat(np.arange(4), [100, 40, 10, 2]))
    held_out = divide(labels, (0.2, 0.8), seed=3) == 0
    assert labels[held_out].sum(0).tolist() == [20, 8, 2, 0]  # of two clips none: the training needs them more


def test_the_seed_decides_which_clips_they_are():
    labels = one_hot(np.repeat([0, 1], 20))
    assert (make_folds(labels, 4, seed=1) == make_folds(labels, 4, seed=1)).all()
    assert (make_folds(labels, 4, seed=1) != make_folds(labels, 4, seed=2)).any()


def test_groups_stay_together_and_classes_stay_divided():
    generator = np.random.default_rng(0)
    groups = [f"speaker {n}" for n in generator.integers(0, 24, 240)]
    labels = one_hot(generator.integers(0, 3, 240))
    folds = make_folds(labels, 4, groups=groups)
    for name in set(groups):
        assert len({fold for fold, group in zip(folds, groups) if group == name}) == 1
    for fold in range(4):
        shares = labels[folds == fold].sum(0) / labels.sum(0)
        assert (np.abs(shares - 0.25) < 0.1).all(), shares


def test_clips_of_several_classes_are_divided_by_each():
    labels = np.random.default_rng(0).random((300, 6)) < [0.5, 0.3, 0.1, 0.05, 0.03, 0.02]
    folds = make_folds(labels, 3)
    for fold in range(3):
        expected = labels.sum(0) / 3
        assert (np.abs(labels[folds == fold].sum(0) - expected) <= 1.5).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"folds": 1}, "at least 2 folds"),
        ({"folds": 7}, "6 clips cannot be divided into 7"),
        ({"folds": 3, "groups": list("aabbbb")}, "2 groups cannot be divided into 3"),
    ],
)
def test_what_cannot_be_divided_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        make_folds(one_hot([0, 0, 0, 1, 1, 1]), **options)


def test_shares_add_up():
    with pytest.raises(ValueError, match="add up to 1"):
        divide(one_hot([0, 1]), (0.5, 0.6))
