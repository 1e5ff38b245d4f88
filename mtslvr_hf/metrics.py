"""Mean average precision, on the device of the scores.

Shapes: N clips, C classes, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ranking:
    """Clips ranked by their scores for each class, once, whatever weights they then get.

    Equal scores share a rank, as in scikit-learn's `average_precision_score`.

    Args:
        scores: (N, C).
        labels: (N, C), 1 where a clip is of a class.
    """

    def __init__(self, scores: Tensor, labels: Tensor):
        ordered, self._order = scores.float().T.contiguous().sort(dim=1)  # (C, N) ascending
        self._positive = labels.float().T.gather(1, self._order)  # (C, N)
        first = torch.searchsorted(ordered, ordered)  # (C, N) index of the first clip with the same score
        self._first = first.clamp(max=ordered.shape[1] - 1)  # NaN is sought behind the last one

    def average_precision(self, weights: Tensor | None = None) -> Tensor:
        """Average precision of each class, (C,); NaN for a class that no clip is of.

        Args:
            weights: (N,) how often each clip counts; once unless given.
        """
        dtype = self._positive.dtype
        counts = torch.ones_like(self._positive) if weights is None else weights.to(dtype)[self._order]  # (C, N)
        positive = self._positive * counts
        total, clips = positive.sum(dim=1, keepdim=True), counts.sum(dim=1, keepdim=True)  # (C, 1)
        positives_before = (positive.cumsum(dim=1) - positive).gather(1, self._first)  # that score less
        before = (counts.cumsum(dim=1) - counts).gather(1, self._first)
        # (C, N) among the clips from this score up; there are none where those of weight 0 have the highest.
        precision = (total - positives_before) / (clips - before).clamp(min=1)
        return (precision * positive).sum(dim=1) / total[:, 0]


def mean_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class's scores as a ranking of the clips, averaged over the classes.

    Equal scores share a rank, as in scikit-learn's `average_precision_score`. Classes that no clip is of are left out.
    Guessing scores a class's share of the clips: 4/7 for augmentations of which a view has one to seven of seven.

    Args:
        scores: (N, C).
        labels: (N, C), 1 where a clip is of a class.

    Returns:
        () between 0 and 1; NaN if no clip is of any class, or a score is NaN.
    """
    value = Ranking(scores, labels).average_precision().nanmean()
    return torch.where(scores.isnan().any(), torch.nan, value)


__all__ = ["Ranking", "mean_average_precision"]
