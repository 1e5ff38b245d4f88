"""Measures against scikit-learn's, losses against PyTorch's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F
from transformers import EvalPrediction

from mtslvr_hf.classification import WeightedLoss, balanced_weights, multi_label_metrics, single_label_metrics


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((60, 5)), generator.integers(0, 4, 60)
    logits[:, 3] -= 9  # a class that is never predicted
    logits[np.arange(60), labels] += 1
    measures = single_label_metrics(EvalPrediction(logits, labels))
    assert measures["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert measures["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))


def test_map_leaves_out_classes_without_clips():
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((50, 4)).astype(np.float32)
    labels = (generator.random((50, 4)) < [0.5, 0.2, 0.1, 0]).astype(np.float32)
    measures = multi_label_metrics(EvalPrediction(logits, labels))
    expected = np.mean([average_precision_score(labels[:, c], logits[:, c]) for c in range(3)])
    assert measures == {"map": pytest.approx(expected, abs=1e-6), "map_classes": 3}


def test_balanced_weights_make_classes_count_alike():
    labels = np.eye(4, dtype=bool)[[0] * 6 + [1] * 3 + [2]]
    weights = balanced_weights(labels, multi_label=False)
    assert (weights.numpy() * labels.sum(0))[:3] == pytest.approx([10 / 3] * 3)
    assert weights[3] == 1
    assert (labels @ weights.numpy()).mean() == pytest.approx(1)
    many = np.zeros((500, 3), dtype=bool)
    many[:100, 0] = many[0, 1] = True
    assert balanced_weights(many, multi_label=True).tolist() == [4, 100, 1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_weighted_loss_without_weights_is_the_usual_one_however_batches_are_cut(multi_label):
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.randint(0, 3, (8,))
    expected = F.cross_entropy(logits, labels)
    if multi_label:
        labels = (torch.rand(8, 3) < 0.5).float()
        expected = F.binary_cross_entropy_with_logits(logits, labels)
    loss = WeightedLoss(torch.ones(3), multi_label)
    assert torch.allclose(loss({"logits": logits}, labels), expected)
    parts = [
        loss({"logits": logits[p]}, labels[p], num_items_in_batch=labels.numel()) for p in (slice(3), slice(3, 8))
    ]
    assert torch.allclose(sum(parts), expected)


def test_weights_multiply_a_clips_loss():
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    each = F.cross_entropy(logits, labels, reduction="none")
    value = WeightedLoss(torch.tensor([3.0, 0.5]), False)({"logits": logits}, labels)
    assert torch.allclose(value, (3 * each[0] + 0.5 * each[1]) / 2)
    multi_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = torch.tensor([5.0, 1.0])
    value = WeightedLoss(weights, True)({"logits": logits}, multi_hot)
    assert torch.allclose(value, F.binary_cross_entropy_with_logits(logits, multi_hot, pos_weight=weights))
