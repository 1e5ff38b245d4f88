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

MAX_POSITIVE_WEIGHT = 100.0  # of a class with less than one clip in a hundred: more makes training unsteady


def single_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`accuracy`, and `macro_f1`: the mean over classes of the harmonic mean of precision and recall.

    Classes that are neither among the labels nor predicted are left out, as scikit-learn's `f1_score` does.

    Args:
        prediction: Logits (N, C) and labels (N,).
    """
    predicted, labels = np.asarray(prediction.predictions).argmax(-1), prediction.label_ids
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


def multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`map`: average precision of each class's ranking of the clips, averaged over the classes, as for AudioSet.

    Classes without a clip in the evaluation are left out, and `map_classes` says how many are not.

    Args:
        prediction: Logits (N, C) and multi-hot labels (N, C).

    Source: Gemmeke et al., "Audio Set", ICASSP 2017, section 5 ("mAP").
    """
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    value = mean_average_precision(torch.from_numpy(prediction.predictions), labels)
    return {"map": float(value), "map_classes": int((labels.sum(0) > 0).sum())}


def balanced_weights(labels: np.ndarray, multi_label: bool) -> torch.Tensor:
    """Weights by which all classes count alike, (C,).

    Args:
        labels: (N, C), 1 where a clip of the training set is of a class.
        multi_label: With several classes a clip, the weight of a class's clips is the number of others divided by
            that of its own, at most 100; with one class a clip, it is N / (C x its clips), so that their mean over
            the clips is 1. Classes without a clip have the weight 1.
    """
    counts = labels.sum(0)
    present = np.maximum(counts, 1)
    weights = (len(labels) - counts) / present if multi_label else len(labels) / (np.count_nonzero(counts) * present)
    weights = np.minimum(weights, MAX_POSITIVE_WEIGHT) if multi_label else weights
    return torch.from_numpy(np.where(counts > 0, weights, 1.0)).float()


class WeightedLoss:
    """Cross-entropy whose classes have weights, for Trainer's `compute_loss_func`.

    Each clip's loss is multiplied by its class's weight and the sum divided by the number of clips, so that the loss
    is the same however clips are spread over accumulated batches and processes. (PyTorch's own divides by the sum of
    a batch's weights.)

    Args:
        weights: (C,), of `balanced_weights`.
        multi_label: Whether labels are multi-hot; the weights are then those of the positive term alone.
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
        """The loss of logits (B, C) and labels (B,) or (B, C); `num_items_in_batch` counts the labels of all."""
        logits = outputs["logits"].float()
        weights = self.weights.to(logits.device)
        if self.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
        else:
            losses = F.cross_entropy(logits, labels, weight=weights, reduction="sum")
        return losses / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


__all__ = ["WeightedLoss", "balanced_weights", "multi_label_metrics", "single_label_metrics"]
