"""Logistic regression on all clips of a data set, multinomial or one for each class.

Shapes: N clips, D embedding size, R dimensions that the clips span, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softmax

logger = logging.getLogger(__name__)

# Largest entry of the gradient of the mean loss, in coordinates of about equal curvature.
_TOLERANCE = 1e-7
_MAX_ITERATIONS = 2000
_HISTORY = 20
# Directions with a smaller share of the largest one's variance are rounding.
_NO_VARIANCE = 1e-12
_FLAT = 1e-9  # smallest curvature that is reckoned with


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of classes: embeddings @ weight + intercept.

    Attributes:
        weight: (D, C) float64.
        intercept: (C,) float64.
    """

    weight: Tensor
    intercept: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores (N, C) of embeddings (N, D)."""
        return embeddings.to(self.weight) @ self.weight + self.intercept


class LogisticRegression:
    """Logistic regressions on the same clips with different strengths of regularisation.

    Minimises, over weights w_k and intercepts b_k of the classes k,

        C * sum over clips of loss(w_k . x + b_k) + 1/2 sum over k of |w_k|^2

    with scikit-learn's C (but of two classes it has the weights of one alone: there, twice our C is its C), and
    intercepts that nothing penalises. The loss is the cross-entropy of the softmax where a clip is of one class, and
    otherwise the sum over classes of each one's binary cross-entropy. L-BFGS over all clips in float64. Coordinates
    are along the clips' principal axes, each scaled by the curvature there: far fewer iterations to the same optimum,
    which has no weight in directions that the clips do not span.

    A class that no clip is of, or of several classes a clip one that all are of, has no optimum. Its score is the same
    for every clip: minus infinity where a clip is of one class, which is then never the answer, otherwise 0.

    Args:
        embeddings: (N, D).
        labels: (N, C) bool, which classes a clip is of; exactly one unless `multi_label`.
        multi_label: whether a clip may be of several or none.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989 (`torch.optim`'s).
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, multi_label: bool):
        embeddings = embeddings.double()
        self._multi_label = multi_label
        self._used = labels.any(0) & ~labels.all(0) if multi_label else labels.any(0)  # (C,)
        self._classes = len(self._used)
        self._targets = labels[:, self._used].to(embeddings)  # (N, C') of the classes with a decision to make
        self._mean = embeddings.mean(0)  # intercepts take up what centring changes
        centred = embeddings - self._mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        spanned = variances > _NO_VARIANCE * variances.amax()
        self._variances, self._axes = variances[spanned], axes[:, spanned]  # (R,), (D, R)
        self._clips = centred @ self._axes  # (N, R)
        self._start = self._clips.new_zeros(self._clips.shape[1] + 1, self._targets.shape[1])  # (R + 1, C')

    def fit(self, c: float) -> LinearClassifier:
        """The optimum for one C. Starts from the last one found: ask for them in ascending order."""
        if not self._used.any():
            return self._classifier(self._start)
        penalty = 1 / (c * len(self._clips))
        scale = self._scale(penalty)
        point = (self._start / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=_MAX_ITERATIONS,
            max_eval=2 * _MAX_ITERATIONS,
            tolerance_grad=_TOLERANCE,
            tolerance_change=0.0,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            value, gradient = self._objective(point.detach() * scale, penalty)
            point.grad = gradient * scale
            return value

        optimizer.step(evaluate)
        evaluate()
        if point.grad.abs().max() > 10 * _TOLERANCE:
            logger.warning("The logistic regression with C = %g did not converge; what it had reached is used.", c)
        self._start = point.detach() * scale
        return self._classifier(self._start)

    def _scale(self, penalty: float) -> Tensor:
        """Scale of the coordinates, (R + 1, 1): their curvature is about 1 at the start of the search."""
        probabilities = self._probabilities(self._clips @ self._start[:-1] + self._start[-1])
        curvature = (probabilities * (1 - probabilities)).mean().clamp(min=_FLAT)  # along an axis of variance 1
        return torch.cat([curvature * self._variances + penalty, curvature[None]]).rsqrt()[:, None]

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self._multi_label else softmax(logits, 1)

    def _objective(self, parameters: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Mean loss with its penalty, and its gradient (R + 1, C'), at weights (R, C') and intercepts below them."""
        weight, intercept = parameters[:-1], parameters[-1]
        logits = self._clips @ weight + intercept  # (N, C')
        if self._multi_label:
            loss = binary_cross_entropy_with_logits(logits, self._targets, reduction="sum")
        else:
            loss = cross_entropy(logits, self._targets, reduction="sum")
        residual = (self._probabilities(logits) - self._targets) / len(logits)
        gradient = torch.cat([self._clips.T @ residual + penalty * weight, residual.sum(0, keepdim=True)])
        return loss / len(logits) + penalty / 2 * weight.square().sum(), gradient

    def _classifier(self, parameters: Tensor) -> LinearClassifier:
        weight = self._axes.new_zeros(len(self._mean), self._classes)
        never = 0.0 if self._multi_label else -torch.inf
        intercept = torch.full_like(weight[0], never)
        weight[:, self._used] = self._axes @ parameters[:-1]
        intercept[self._used] = parameters[-1] - self._mean @ weight[:, self._used]
        return LinearClassifier(weight, intercept)


__all__ = ["LinearClassifier", "LogisticRegression"]
