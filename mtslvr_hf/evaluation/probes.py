"""Linear probe and nearest neighbours on a whole data set: fitted to one part of it, measured on the other.

Shapes: N clips, M test clips, D embedding size, C classes, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from ..data.splits import divide
from ..metrics import Ranking
from .probe_solver import LogisticRegression

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear probe, the strongest regularisation first
NEIGHBOURS = (50, 20, 10, 5, 3, 1)  # the smoothest first
TEST_SHARE = 0.3
VALIDATION_SHARE = 0.2  # of the clips to fit to, for the choice of C or k
RESAMPLES = 500
_BLOCK_NUMBERS = 2**23  # in the largest array of similarities or votes: 64 MB in float64


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
class _Part:
    """Embeddings (N, D), labels (N, C) and groups (N,) of the clips of one part."""

    embeddings: Tensor
    labels: Tensor
    groups: list[Hashable] | None

    def select(self, indices: np.ndarray | Tensor) -> _Part:
        indices = torch.as_tensor(indices)
        groups = None if self.groups is None else [self.groups[index] for index in indices.tolist()]
        return replace(self, embeddings=self.embeddings[indices], labels=self.labels[indices], groups=groups)


def probe(
    embeddings: Tensor,
    labels: np.ndarray | Tensor,
    multi_label: bool = False,
    groups: Sequence[Hashable] | None = None,
    kind: str = "linear",
    seed: int = 0,
) -> ProbeResult:
    """Accuracy, or mean average precision, of a probe on 30 % of each class, held out by `split`.

    "linear" is a logistic regression, see `LogisticRegression`. In "knn" the k most similar train clips vote, each
    with weight (1 + cosine) / 2 for its classes. Dimensions are standardised by mean and deviation of the train part.
    Of several C or k the best is taken for a fifth of the train part that is held out, and the probe then fitted to
    all of it. Among equals, the smallest C or the largest k.

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
    if kind not in KINDS:
        raise ValueError(f"the kind of probe is {kind!r}; expected one of {', '.join(KINDS)}")
    whole = _part(embeddings, labels, multi_label, groups)
    parts = [whole.select(indices) for indices in split(labels, groups, TEST_SHARE, seed)]
    return _measure(_KINDS[kind], *parts, multi_label, seed)


def split(
    labels: np.ndarray | Tensor, groups: Sequence[Hashable] | None = None, fraction: float = TEST_SHARE, seed: int = 0
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


def _part(
    embeddings: Tensor, labels: np.ndarray | Tensor, multi_label: bool, groups: Sequence[Hashable] | None
) -> _Part:
    """Checks what belongs together; embeddings on the CPU in float64."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        kind = f"{embeddings.dtype} of shape {tuple(embeddings.shape)}"
        raise ValueError(f"embeddings are {kind}; expected floats of shape (N, D)")
    embeddings = embeddings.detach().double().cpu()
    bad = ~torch.isfinite(embeddings).all(1)
    if bad.any():
        raise ValueError(f"the embedding of clip {int(bad.nonzero()[0])} is not finite")
    labels = torch.as_tensor(labels).bool().cpu()
    if labels.ndim != 2 or len(labels) != len(embeddings):
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}; expected ({len(embeddings)}, classes), a row for "
            "each embedding"
        )
    if not multi_label and not (labels.sum(1) == 1).all():
        clip = int((labels.sum(1) != 1).nonzero()[0])
        raise ValueError(
            f"clip {clip} is of {int(labels[clip].sum())} classes; expected one. Say multi_label=True if clips "
            "may be of several"
        )
    if groups is not None and len(groups) != len(embeddings):
        raise ValueError(f"there are {len(groups)} groups and {len(embeddings)} clips; expected one for each")
    return _Part(embeddings, labels, None if groups is None else list(groups))


@dataclass(frozen=True)
class _Kind:
    """A probe: `scores(train, embeddings, values, multi_label)` are the embeddings' (M, C), for each of the values.

    words: what it is, of a clip's one class and of several.
    parameter: what is chosen from `grid`; the values that are preferred among equals come first.
    """

    name: str
    words: tuple[str, str]
    parameter: str
    grid: tuple[float, ...]
    scores: Callable[[_Part, Tensor, Sequence[float], bool], list[Tensor]]


def _linear_scores(train: _Part, embeddings: Tensor, values: Sequence[float], multi_label: bool) -> list[Tensor]:
    own, embeddings = _standardised(train.embeddings, embeddings)
    regression = LogisticRegression(own, train.labels, multi_label)
    return [regression.fit(c)(embeddings) for c in values]


def _nearest_scores(train: _Part, embeddings: Tensor, values: Sequence[float], multi_label: bool) -> list[Tensor]:
    own, embeddings = (unit_length(part, dim=1) for part in _standardised(train.embeddings, embeddings))
    labels, most = train.labels.to(own), int(max(values))
    scores: list[list[Tensor]] = [[] for _ in values]
    for block in embeddings.split(max(1, _BLOCK_NUMBERS // max(len(own), most * labels.shape[1]))):
        cosines, nearest = (block @ own.T).topk(most)  # (m, k)
        votes = ((1 + cosines) / 2)[:, :, None] * labels[nearest]  # (m, k, C)
        for parts, k in zip(scores, values):
            parts.append(votes[:, : int(k)].sum(1))
    return [torch.cat(parts) for parts in scores]


_KINDS = {
    "linear": _Kind(
        "linear",
        ("multinomial logistic regression (L2)", "logistic regression (L2) for each class"),
        "C",
        STRENGTHS,
        _linear_scores,
    ),
    "knn": _Kind(
        "knn",
        ("nearest neighbours by cosine",) * 2,
        "k",
        NEIGHBOURS,
        _nearest_scores,
    ),
}
KINDS = tuple(_KINDS)


def _standardised(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the dimensions of `train` at mean 0 and deviation 1; one that is constant there becomes 0."""
    mean = train.mean(0)
    deviation = (train - mean).square().mean(0).sqrt()
    # A constant dimension's deviation is not quite 0: its mean is rounded.
    varies = deviation > 1e-6 * train.abs().amax(0)
    scale = torch.where(varies, 1 / deviation.clamp(min=torch.finfo(deviation.dtype).tiny), 0.0)
    return (train - mean) * scale, (other - mean) * scale


def _measure(kind: _Kind, train: _Part, test: _Part, multi_label: bool, seed: int) -> ProbeResult:
    given = len(test.labels)
    if not multi_label:
        test = test.select((test.labels & train.labels.any(0)).any(1).nonzero()[:, 0])
    if not (test.labels & train.labels.any(0)).any():
        raise ValueError("no test clip is of a class that there are train clips of: nothing can be measured")
    best, choice = _choose(kind, train, multi_label, seed)
    (scores,) = kind.scores(train, test.embeddings, [best], multi_label)
    interval, how = _interval(scores, test, multi_label, seed)
    metric = "mAP" if multi_label else "accuracy"
    protocol = [
        f"{kind.words[multi_label]} on {_count(train, 'clips', 'groups')}, dimensions standardised by these",
        choice,
        f"{metric} over {int(test.labels.any(0).sum())} classes on {_test_clips(train, test)}",
        how,
        *([f"{given - len(test.labels)} test clips of other classes left out"] if given > len(test.labels) else []),
        f"seed {seed}",
    ]
    value = _metric(scores, test.labels, multi_label)
    return ProbeResult(kind.name, metric, value, interval, "; ".join(protocol), len(train.labels), len(test.labels))


def _test_clips(train: _Part, test: _Part) -> str:
    shared = set(train.groups or ()) & set(test.groups or ())
    return _count(test, "other clips", "groups" if shared or train.groups is None else "other groups")


def _count(part: _Part, clips: str, groups: str) -> str:
    return f"{len(part.labels)} {clips}" + ("" if part.groups is None else f" of {len(set(part.groups))} {groups}")


def _choose(kind: _Kind, train: _Part, multi_label: bool, seed: int) -> tuple[float, str]:
    """The parameter that is best for a held-out share of the train clips, and how it was chosen, in words."""
    if train.groups is not None and len(set(train.groups)) == 1:  # which has to be split
        train = replace(train, groups=None)
    fitted, held_out = (train.select(part) for part in split(train.labels, train.groups, VALIDATION_SHARE, seed))
    grid = [value for value in kind.grid if kind.parameter != "k" or value <= len(fitted.labels)]
    scores = kind.scores(fitted, held_out.embeddings, grid, multi_label)
    values = [_metric(of_one, held_out.labels, multi_label) for of_one in scores]
    if np.isnan(values).all():
        raise ValueError(
            f"none of the {len(held_out.labels)} train clips held out for the choice of {kind.parameter} is of any "
            "class: the probe needs more labelled clips"
        )
    best = grid[int(np.nanargmax(values))]
    tried, clips = ", ".join(f"{value:g}" for value in sorted(grid)), _count(held_out, "of these clips", "groups")
    return best, f"{kind.parameter} = {best:g}, of {tried} the best for {clips} held out"


def _metric(scores: Tensor, labels: Tensor, multi_label: bool) -> float:
    if multi_label:
        return float(Ranking(scores, labels).average_precision().nanmean())
    return float(_hits(scores, labels).mean())


def _hits(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(1) == labels.int().argmax(1)).double()  # (M,)


def _interval(scores: Tensor, test: _Part, multi_label: bool, seed: int) -> tuple[tuple[float, float], str]:
    """The metric's 95 % interval, and what it is."""
    if not multi_label and test.groups is None:
        hits = _hits(scores, test.labels)
        low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
        return (float(low), float(high)), "95 % interval: Wilson's over test clips"
    weights = _resampled(test, seed)  # (R, M)
    if multi_label:
        ranking = Ranking(scores, test.labels)
        values = torch.stack([ranking.average_precision(of_one).nanmean() for of_one in weights])
    else:
        values = weights @ _hits(scores, test.labels) / weights.sum(1)
    low, high = values.double().nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    what = "clips" if test.groups is None else "groups"
    return (low, high), f"95 % interval: bootstrap over test {what}, {RESAMPLES} resamples"


def _resampled(test: _Part, seed: int) -> Tensor:
    """Bootstrap counts of each clip in each resample, (R, M) float64: the draws of its group, or of itself."""
    names, group = np.unique(
        np.arange(len(test.labels)) if test.groups is None else np.array([str(name) for name in test.groups]),
        return_inverse=True,
    )
    draws = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))  # (R, G)
    counts = np.stack([np.bincount(drawn, minlength=len(names)) for drawn in draws])
    return torch.from_numpy(counts[:, group]).double()


__all__ = ["KINDS", "ProbeResult", "probe", "split"]
