"""Metrics of classifiers, and losses with class weights.

Shapes: B clips of a batch, N of an evaluation, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.modeling_outputs import SequenceClassifierOutput

from ..metrics import mean_average_precision

MAX_POSITIVE_WEIGHT = 100.0  # of a class with less than one clip in a hundred: more makes training unstable


def single_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`accuracy` and scikit-learn's `macro_f1` of logits (N, C) and labels (N,).

    `macro_f1` leaves out classes that are neither among the labels nor predicted.
    """
    predicted, labels = np.asarray(prediction.predictions).argmax(-1), prediction.label_ids
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


def multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`map`, mean average precision over classes, of logits (N, C) and multi-hot labels (N, C).

    Classes without clips in the evaluation are left out; `map_classes` is the number of the others.

    Source: Gemmeke et al., "Audio Set", ICASSP 2017, section 5 ("mAP").
    """
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    value = mean_average_precision(torch.from_numpy(prediction.predictions), labels)
    return {"map": float(value), "map_classes": int((labels.sum(0) > 0).sum())}


def balanced_weights(labels: np.ndarray, multi_label: bool) -> torch.Tensor:
    """Class weights (C,) that balance the classes; 1 for classes without clips.

    Args:
        labels: Multi-hot labels (N, C) of the training set.
        multi_label: True for several classes per clip: the weight of a class is its number of negative clips divided
            by that of its positive ones, at most 100. Else it is N / (C x its clips), with the mean 1 over the clips.
    """
    counts = labels.sum(0)
    present = np.maximum(counts, 1)
    weights = (len(labels) - counts) / present if multi_label else len(labels) / (np.count_nonzero(counts) * present)
    weights = np.minimum(weights, MAX_POSITIVE_WEIGHT) if multi_label else weights
    return torch.from_numpy(np.where(counts > 0, weights, 1.0)).float()


class WeightedLoss:
    """Cross-entropy with class weights (C,) of `balanced_weights`, for Trainer's `compute_loss_func`.

    The weighted losses are divided by the number of clips (in PyTorch by the sum of a batch's weights), so that the
    division into batches and processes does not matter. Multi-hot labels weight the positive term only.
    """

    def __init__(self, weights: torch.Tensor, multi_label: bool):
        self.weights = weights
        self.multi_label = multi_label

    def __call__(
        self,
        outputs: SequenceClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss () of logits (B, C) and labels (B,) or (B, C); `num_items_in_batch` counts all labels of the step."""
        logits = outputs["logits"].float()
        weights = self.weights.to(logits.device)
        if self.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
        else:
            losses = F.cross_entropy(logits, labels, weight=weights, reduction="sum")
        return losses / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


__all__ = ["WeightedLoss", "balanced_weights", "multi_label_metrics", "single_label_metrics"]
