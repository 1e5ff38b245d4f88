"""Average precision: scikit-learn's, of classes that there are, with weights, and of no numbers at all."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from mtslvr_hf.evaluation import mean_average_precision
from mtslvr_hf.metrics import Ranking


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_is_scikit_learns(ties):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    logits = logits.round() if ties else logits
    labels = (torch.rand(200, 7, generator=generator) + 0.2 * logits > 0.6).float()
    expected = np.mean([average_precision_score(labels[:, a], logits[:, a]) for a in range(7)])
    assert mean_average_precision(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_mean_average_precision_leaves_out_what_nobody_had():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mean_average_precision(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), labels).item() == 1.0
    assert mean_average_precision(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), labels).item() == 0.5


def test_weighted_average_precision_is_that_of_repeated_clips():
    generator = np.random.default_rng(0)
    scores, labels = generator.standard_normal((50, 3)).round(1), generator.random((50, 3)) < 0.4
    weights = generator.integers(0, 4, 50)
    found = Ranking(torch.from_numpy(scores), torch.from_numpy(labels)).average_precision(torch.from_numpy(weights))
    repeated = np.repeat(np.arange(50), weights)
    expected = [average_precision_score(labels[repeated, c], scores[repeated, c]) for c in range(3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_scores_that_are_no_numbers_have_no_average_precision():
    scores = torch.tensor([[0.5, 1.0], [torch.nan, 2.0], [torch.nan, 0.0]])
    assert mean_average_precision(scores, torch.tensor([[1, 1], [0, 0], [1, 0]])).isnan()
    assert mean_average_precision(scores[:, 1:], torch.tensor([[1], [0], [0]])) == 0.5
