"""Linear probe and nearest neighbors on a whole data set: fitted to one part of it, measured on the other.

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
from torch import Tensor

from ..data.splits import divide
from ..metrics import Ranking
from .few_shot.accuracy import checked_embeddings

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear probe, the strongest regularization first
NEIGHBOURS = (50, 20, 10, 5, 3, 1)  # the smoothest first
TEST_SHARE = 0.3
VALIDATION_SHARE = 0.2  # of the clips to fit to, for the choice of C or k
RESAMPLES = 500


@dataclass(frozen=True)
class ProbeResult:
    """Score of a classifier on frozen embeddings, on clips that it was not fitted to.

    Attributes:
        name: "linear" or "knn".
        metric: "accuracy", or "mAP" where clips have several classes or none.
        value: the metric, 0 to 1.
        interval: its 95 % interval, (lower, upper).
        protocol: how it was measured, in words: to be printed beside the value.
        train_clips: clips it was fitted to, those that C or k was chosen by among them.
        test_clips: clips it was measured on.
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
    """Embeddings (N, D) float64, labels (N, C) bool, and groups (N,) if there are any."""

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
    """Accuracy, or mean average precision, of a probe on 30 % of each class, held out by `split`.

    "linear" is a multinomial logistic regression, or one for each class if `multi_label`. In "knn" the k most similar
    train clips vote, each with weight (1 + cosine) / 2 for its classes. Dimensions are standardized by mean and
    deviation of the train part. Of several C or k the best is taken for a fifth of the train part that is held out,
    and the probe then fitted to all of it. Among equals, the smallest C or the largest k.

    The 95 % interval says what other test clips of the same kind would have changed, not other train clips: Wilson's
    for an accuracy without groups, otherwise the percentiles of resampled test clips, or of resampled groups of them,
    as clips of a group are no independent draws.

    Args:
        embeddings: (N, D), float.
        labels: (N, C) bool, which classes a clip is of.
        multi_label: whether a clip may be of several classes or none, and mean average precision is measured, over
            the classes of which there are test clips. Otherwise a clip is of exactly one, and it is accuracy; test
            clips of classes without train clips are left out.
        groups: the group (speaker, recording) of each clip, (N,): no group is both fitted to and held out.
        kind: "linear" or "knn".
        seed: same seed, same parts, whatever the embeddings; it resamples as well.

    Raises:
        ValueError: if there is no such probe, shapes do not fit, an embedding is not finite, a clip is not of one
            class though `multi_label` is false, or there are too few clips or groups.

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
        raise ValueError("no test clip is of a class that there are train clips of: nothing can be measured.")
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
    """Divides clips into a part to fit to and a part to measure on, each with its share of every class.

    Args:
        labels: (N, C), which classes a clip is of.
        groups: the group of each clip, (N,): the parts share none.
        fraction: the second part's share.
        seed: same seed, same parts.

    Returns:
        Indices of the clips of both parts, ascending.

    Raises:
        ValueError: if there are fewer than two clips, or groups.
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
            f"labels have the shape {labels.shape}; expected ({len(values)}, classes), a row for each embedding."
        )
    several = np.flatnonzero(labels.sum(1) != 1)
    if not multi_label and len(several):
        raise ValueError(
            f"clip {several[0]} is of {labels[several[0]].sum()} classes; expected one. Say multi_label=True if clips "
            "may be of several."
        )
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"there are {len(groups)} groups and {len(values)} clips; expected one for each.")
    return _Clips(values, labels, None if groups is None else np.array([str(name) for name in groups]))


def _linear_scores(
    train: np.ndarray, labels: np.ndarray, others: np.ndarray, values: Sequence[float], multi_label: bool
) -> np.ndarray:
    varied = np.flatnonzero(labels.any(0) & ~labels.all(0))
    # A class that no clip is of, or all are, has the same score for every clip.
    scores = np.tile(labels.mean(0), (len(values), len(others), 1))
    targets = [(column, labels[:, column]) for column in varied] if multi_label else [(varied, labels.argmax(1))]
    # Of two classes scikit-learn has the weights of one alone; twice its C is the C of the multinomial regression.
    factor = 2 if len(varied) == 2 and not multi_label else 1
    for columns, target in targets if len(varied) else []:
        model = LogisticRegression(tol=1e-5, max_iter=1000, warm_start=True)
        for of_one, c in zip(scores, values):
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
    """A probe.

    words: what it is, of a clip's one class and of several.
    parameter: what is chosen from `grid`; the values that are preferred among equals come first.
    scores: from standardized train clips, their labels, other clips and values of the parameter to (values, M, C).
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
    "knn": _Kind(("nearest neighbors by cosine",) * 2, "k", NEIGHBOURS, _nearest_scores),
}
KINDS = tuple(_KINDS)


def _scores(
    kind: _Kind, train: _Clips, embeddings: np.ndarray, values: Sequence[float], multi_label: bool
) -> np.ndarray:
    """Scores of other clips for each value of the probe's parameter, (values, M, C)."""
    scaler = StandardScaler().fit(train.embeddings)
    own, others = scaler.transform(train.embeddings), scaler.transform(embeddings)
    return kind.scores(own, train.labels, others, values, multi_label)


def _choose(kind: _Kind, train: _Clips, multi_label: bool, seed: int) -> tuple[float, str]:
    """The parameter that is best for a held-out share of the train clips, and how it was chosen, in words."""
    if train.groups is not None and len(set(train.groups)) == 1:  # which has to be split
        train = replace(train, groups=None)
    fitted, held_out = (train.select(part) for part in split(train.labels, train.groups, VALIDATION_SHARE, seed))
    grid = [value for value in kind.grid if kind.parameter != "k" or value <= len(fitted.labels)]
    scores = _scores(kind, fitted, held_out.embeddings, grid, multi_label)
    values = [_metric(of_one, held_out.labels, multi_label)() for of_one in scores]
    if np.isnan(values).all():
        raise ValueError(
            f"none of the {len(held_out.labels)} train clips held out for the choice of {kind.parameter} is of any "
            "class: the probe needs more labelled clips."
        )
    best = grid[int(np.nanargmax(values))]
    tried, clips = ", ".join(f"{value:g}" for value in sorted(grid)), held_out.count("of these clips", "groups")
    return best, f"{kind.parameter} = {best:g}, of {tried} the best for {clips} held out"


def _metric(scores: np.ndarray, labels: np.ndarray, multi_label: bool) -> Callable[..., float]:
    """The metric of scores (M, C), as a function of how often each clip counts, (M,): once unless given."""
    if multi_label:
        ranking = Ranking(torch.from_numpy(scores), torch.from_numpy(labels))
        return lambda counts=None: float(
            ranking.average_precision(None if counts is None else torch.from_numpy(counts)).nanmean()
        )
    hits = scores.argmax(1) == labels.argmax(1)
    return lambda counts=None: float(np.average(hits, weights=counts))


def _measure(scores: np.ndarray, test: _Clips, multi_label: bool, seed: int) -> tuple[float, tuple[float, float], str]:
    """The metric, its 95 % interval, and what that is."""
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
