"""Linear and nearest-neighbor probes of embeddings: fitted to one part of a data set, tested on the other.

Shapes: N clips, M other clips, D embedding size, C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..data.splits import divide
from ..metrics import Ranking
from .few_shot.accuracy import checked_embeddings

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear probe, strongest regularization first
NEIGHBORS = (50, 20, 10, 5, 3, 1)  # k, smoothest first
TEST_SHARE = 0.3
VALIDATION_SHARE = 0.2  # of the train clips, for the choice of C or k
RESAMPLES = 500


@dataclass(frozen=True)
class ProbeResult:
    """Test score of a classifier on frozen embeddings.

    Attributes:
        name: "linear" or "knn".
        metric: "accuracy", or "mAP" for multi-label data.
        value, interval: The metric, 0 to 1, and its 95 % interval, (lower, upper).
        protocol: Protocol in words, to print with the value.
        train_clips, test_clips: Their numbers; train clips include those for the choice of C or k.
    """

    name: str
    metric: str
    value: float
    interval: tuple[float, float]
    protocol: str
    train_clips: int
    test_clips: int

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        return f"{100 * self.value:.1f} % ({low:.1f} to {high:.1f})"


@dataclass(frozen=True)
class _Clips:
    """Embeddings (N, D) float64, labels (N, C) bool, and groups (N,) or None."""

    embeddings: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None

    def select(self, indices: np.ndarray) -> _Clips:
        groups = None if self.groups is None else self.groups[indices]
        return _Clips(self.embeddings[indices], self.labels[indices], groups)

    def count(self, clips: str, groups: str) -> str:
        return f"{len(self.labels)} {clips}" + ("" if self.groups is None else f" of {len(set(self.groups))} {groups}")


def probe(
    embeddings: Tensor,
    labels: np.ndarray | Tensor,
    multi_label: bool = False,
    groups: Sequence[Hashable] | None = None,
    kind: str = "linear",
    seed: int = 0,
) -> ProbeResult:
    """Accuracy or mean average precision of a probe on 30 % of the clips of each class, held out by `split`.

    "linear" is a multinomial logistic regression, or one per class if `multi_label`. In "knn", the k most similar
    train clips vote for their classes with weight (1 + cosine) / 2. Mean and deviation of the train part standardize
    the dimensions. The C or k is the best on a fifth of the train part (of equals, the smallest C or largest k); the
    probe is then fitted to the whole train part.

    The 95 % interval covers the choice of test clips, not of train clips: Wilson's for an accuracy without groups,
    otherwise percentiles over resampled test clips or, as clips of a group are not independent, resampled groups.

    Args:
        embeddings: (N, D) float.
        labels: (N, C) bool.
        multi_label: True for mean average precision over the classes with test clips; a clip may have any number of
            classes. False for accuracy of clips with exactly one class, without test clips of classes not in train.
        groups: (N,) group (speaker, recording) of each clip; each group is in one part only.
        kind: "linear" or "knn".
        seed: Seed of the parts and of resampling.

    Raises:
        ValueError: If the probe is unknown, shapes do not match, an embedding is not finite, a clip does not have
            exactly one class (unless `multi_label`), or there are too few clips or groups.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927, for the interval.
    """
    if kind not in _KINDS:
        raise ValueError(f"the kind of probe is {kind!r}; expected one of {', '.join(KINDS)}.")
    clips = _check(embeddings, labels, multi_label, groups)
    train, test = (clips.select(part) for part in split(clips.labels, clips.groups, TEST_SHARE, seed))
    given, known = len(test.labels), train.labels.any(0)
    if not multi_label:
        test = test.select(np.flatnonzero(test.labels[:, known].any(1)))
    if not test.labels[:, known].any():
        raise ValueError("no test clip is of a class with train clips; the probe needs more labeled clips.")
    best, choice = _choose(_KINDS[kind], train, multi_label, seed)
    (scores,) = _scores(_KINDS[kind], train, test.embeddings, [best], multi_label)
    value, interval, how = _measure(scores, test, multi_label, seed)
    metric = "mAP" if multi_label else "accuracy"
    protocol = [
        f"{_KINDS[kind].words[multi_label]} on {train.count('clips', 'groups')}, dimensions standardized by these",
        choice,
        f"{metric} over {test.labels.any(0).sum()} classes on {test.count('other clips', 'other groups')}",
        how,
        *([f"{given - len(test.labels)} test clips of other classes left out"] if given > len(test.labels) else []),
        f"seed {seed}",
    ]
    return ProbeResult(kind, metric, value, interval, "; ".join(protocol), len(train.labels), len(test.labels))


def split(
    labels: np.ndarray | Tensor,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    fraction: float = TEST_SHARE,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified train and test parts: ascending indices of their clips.

    Args:
        labels: (N, C) bool.
        groups: (N,) group of each clip; each group is in one part only.
        fraction: Share of the test part.
        seed: Seed of the parts.

    Raises:
        ValueError: If there are fewer than two clips or groups.
    """
    part = divide(np.asarray(labels), (1 - fraction, fraction), seed, groups)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def _check(
    embeddings: Tensor, labels: np.ndarray | Tensor, multi_label: bool, groups: Sequence[Hashable] | None
) -> _Clips:
    values = checked_embeddings(embeddings).detach().double().cpu().numpy()
    labels = torch.as_tensor(labels).bool().cpu().numpy()
    if labels.ndim != 2 or len(labels) != len(values):
        raise ValueError(
            f"labels have the shape {labels.shape}; expected ({len(values)}, classes), a row per embedding."
        )
    several = np.flatnonzero(labels.sum(1) != 1)
    if not multi_label and len(several):
        raise ValueError(
            f"clip {several[0]} is of {labels[several[0]].sum()} classes; expected one. Set multi_label=True if clips "
            "may have several."
        )
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"there are {len(groups)} groups and {len(values)} clips; expected one group per clip.")
    return _Clips(values, labels, None if groups is None else np.array([str(name) for name in groups]))


def _linear_scores(
    train: np.ndarray, labels: np.ndarray, others: np.ndarray, values: Sequence[float], multi_label: bool
) -> np.ndarray:
    varied = np.flatnonzero(labels.any(0) & ~labels.all(0))
    if len(train) < train.shape[1]:  # a rotation into the span of the clips changes no score
        axes = np.linalg.svd(train, full_matrices=False)[2].T
        train, others = train @ axes, others @ axes
    # A class of no clip, or of all clips, has the same score for every clip.
    scores = np.tile(labels.mean(0), (len(values), len(others), 1))
    targets = [(column, labels[:, column]) for column in varied] if multi_label else [(varied, labels.argmax(1))]
    # For two classes scikit-learn fits one weight vector; twice its C equals the C of the multinomial regression.
    factor = 2 if len(varied) == 2 and not multi_label else 1
    for columns, target in targets if len(varied) else []:
        # Second order: weak regularization takes a tenth of the iterations of lbfgs.
        model = LogisticRegression(solver="newton-cg", tol=1e-6, max_iter=1000, warm_start=True)
        for of_one, c in zip(scores, values):
            with threadpool_limits(1, user_api="blas"):  # small products: threads would wait for each other
                model.set_params(C=factor * c).fit(train, target)
            of_one[:, columns] = model.decision_function(others) if multi_label else model.predict_proba(others)
    return scores


def _nearest_scores(
    train: np.ndarray, labels: np.ndarray, others: np.ndarray, values: Sequence[int], multi_label: bool
) -> np.ndarray:
    neighbors = NearestNeighbors(n_neighbors=max(values), metric="cosine").fit(train)
    distances, nearest = neighbors.kneighbors(others)  # (M, k)

    def vote(k: int) -> np.ndarray:
        weights, places = (1 - distances[:, :k] / 2).ravel(), nearest[:, :k].ravel()
        return csr_array((weights, places, k * np.arange(len(others) + 1)), (len(others), len(train))) @ labels

    return np.stack([vote(k) for k in values])


@dataclass(frozen=True)
class _Kind:
    """Kind of probe.

    words: Description for one class per clip and for multi-label data.
    parameter: Name of the parameter; of equally good values in `grid` the first is chosen.
    scores: From standardized train clips, their labels, other clips and parameter values to (values, M, C).
    """

    words: tuple[str, str]
    parameter: str
    grid: tuple[float, ...]
    scores: Callable[..., np.ndarray]


_KINDS = {
    "linear": _Kind(
        ("multinomial logistic regression (L2)", "logistic regression (L2) for each class"),
        "C",
        STRENGTHS,
        _linear_scores,
    ),
    "knn": _Kind(("nearest neighbors by cosine",) * 2, "k", NEIGHBORS, _nearest_scores),
}
KINDS = tuple(_KINDS)


def _scores(
    kind: _Kind, train: _Clips, embeddings: np.ndarray, values: Sequence[float], multi_label: bool
) -> np.ndarray:
    """Scores of other clips for each parameter value, (values, M, C)."""
    scaler = StandardScaler().fit(train.embeddings)
    own, others = scaler.transform(train.embeddings), scaler.transform(embeddings)
    return kind.scores(own, train.labels, others, values, multi_label)


def _choose(kind: _Kind, train: _Clips, multi_label: bool, seed: int) -> tuple[float, str]:
    """Best parameter on held-out train clips, and a description of the choice."""
    if train.groups is not None and len(set(train.groups)) == 1:  # one group cannot be split
        train = replace(train, groups=None)
    fitted, held_out = (train.select(part) for part in split(train.labels, train.groups, VALIDATION_SHARE, seed))
    grid = [value for value in kind.grid if kind.parameter != "k" or value <= len(fitted.labels)]
    scores = _scores(kind, fitted, held_out.embeddings, grid, multi_label)
    values = [_metric(of_one, held_out.labels, multi_label)() for of_one in scores]
    if np.isnan(values).all():
        raise ValueError(
            f"none of the {len(held_out.labels)} train clips held out for the choice of {kind.parameter} has a class; "
            "the probe needs more labeled clips."
        )
    best = grid[int(np.nanargmax(values))]
    tried, clips = ", ".join(f"{value:g}" for value in sorted(grid)), held_out.count("of these clips", "groups")
    return best, f"{kind.parameter} = {best:g}, of {tried} the best for {clips} held out"


def _metric(scores: np.ndarray, labels: np.ndarray, multi_label: bool) -> Callable[..., float]:
    """Metric of scores (M, C) as a function of the count of each clip, (M,), by default 1."""
    if multi_label:
        ranking = Ranking(torch.from_numpy(scores), torch.from_numpy(labels))
        return lambda counts=None: float(
            ranking.average_precision(None if counts is None else torch.from_numpy(counts)).nanmean()
        )
    hits = scores.argmax(1) == labels.argmax(1)
    return lambda counts=None: float(np.average(hits, weights=counts))


def _measure(scores: np.ndarray, test: _Clips, multi_label: bool, seed: int) -> tuple[float, tuple[float, float], str]:
    """Metric, its 95 % interval, and a description of the interval."""
    metric, count = _metric(scores, test.labels, multi_label), len(test.labels)
    value = metric()
    if not multi_label and test.groups is None:
        low, high = binomtest(round(value * count), count).proportion_ci(method="wilson")
        return value, (float(low), float(high)), "95 % interval: Wilson's over test clips"
    names, group = np.unique(np.arange(count) if test.groups is None else test.groups, return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    values = [metric(np.bincount(drawn, minlength=len(names))[group]) for drawn in draws]
    low, high = np.nanquantile(values, [0.025, 0.975]).tolist()
    what = "clips" if test.groups is None else "groups"
    return value, (low, high), f"95 % interval: bootstrap over test {what}, {RESAMPLES} resamples"


__all__ = ["KINDS", "ProbeResult", "probe", "split"]
