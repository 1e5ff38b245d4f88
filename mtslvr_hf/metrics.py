"""Mean average precision, on the device of the scores.

Shapes: N clips, C classes, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ranking:
    """Ranking of clips by their scores for each class, computed once for any weights.

    Equal scores share a rank, as in scikit-learn's `average_precision_score`.

    Args:
        scores: (N, C).
        labels: (N, C), 1 where a clip belongs to a class.
    """

    def __init__(self, scores: Tensor, labels: Tensor):
        ordered, self._order = scores.float().T.contiguous().sort(dim=1)  # (C, N) ascending
        self._positive = labels.float().T.gather(1, self._order)  # (C, N)
        first = torch.searchsorted(ordered, ordered)  # (C, N) index of the first clip with the same score
        self._first = first.clamp(max=ordered.shape[1] - 1)  # the index of NaN is N

    def average_precision(self, weights: Tensor | None = None) -> Tensor:
        """Average precision of each class, (C,); NaN for a class without clips.

        Args:
            weights: (N,) weight of each clip; 1 by default.
        """
        dtype = self._positive.dtype
        counts = torch.ones_like(self._positive) if weights is None else weights.to(dtype)[self._order]  # (C, N)
        positive = self._positive * counts
        total, clips = positive.sum(dim=1, keepdim=True), counts.sum(dim=1, keepdim=True)  # (C, 1)
        positives_before = (positive.cumsum(dim=1) - positive).gather(1, self._first)  # with lower scores
        before = (counts.cumsum(dim=1) - counts).gather(1, self._first)
        # (C, N) among clips with this score or a higher one; their weights may all be 0.
        precision = (total - positives_before) / (clips - before).clamp(min=1)
        return (precision * positive).sum(dim=1) / total[:, 0]


def mean_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over classes of the average precision, (), from 0 to 1; NaN if no class has clips or a score is NaN.

    Classes without clips are left out. Chance is a class's share of the clips: 4/7 for augmentations if a view has one
    to seven of seven.

    Args:
        scores, labels: (N, C), as for [`Ranking`].
    """
    value = Ranking(scores, labels).average_precision().nanmean()
    return torch.where(scores.isnan().any(), torch.nan, value)


__all__ = ["Ranking", "mean_average_precision"]
