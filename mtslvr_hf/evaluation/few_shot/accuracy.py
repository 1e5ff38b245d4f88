"""Accuracy over few-shot episodes.

Shapes: N clips, D embedding size, E episodes, W ways, K shots, Q queries, P clips in use.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize as unit_length

from .episodes import Episodes, sample_episodes
from .solvers import logistic_regression, nearest_centroid

logger = logging.getLogger(__name__)

CLASSIFIERS = ("centroid", "logistic")
# Numbers in the largest array of a block of episodes: 32 MB in float64.
_BLOCK_NUMBERS = 2**22
# All pairs of clips are multiplied at once up to this many products per clip of an episode: to gather a clip of 1000
# numbers takes as long as 50 to 115 products.
_PAIRS_PER_CLIP = 64
_MOST_CLIPS = 6000  # 290 MB of products


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy over few-shot episodes.

    Attributes:
        accuracy: Mean over episodes, 0 to 1.
        interval: Half width of its 95 % interval, 1.96 * standard deviation over episodes / sqrt(episodes).
        ways, shots, queries, episodes, seed, group_disjoint: Arguments of `sample_episodes`.
        classifier: "centroid" or "logistic".
        episodes_sha256: Digest of the episodes.
        left_out: Reason for each class without episodes.
    """

    accuracy: float
    interval: float
    episodes: int
    ways: int
    shots: int
    queries: int
    seed: int
    group_disjoint: bool
    classifier: str
    episodes_sha256: str
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.interval:.1f} %"


def few_shot_accuracy(
    embeddings: torch.Tensor,
    labels: Sequence[Hashable],
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    episodes: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    standardize: bool = True,
    classifier: str = "centroid",
    normalize: bool = True,
) -> FewShotResult:
    """Accuracy of a classifier over few-shot episodes.

    Args:
        embeddings: (N, D).
        labels, ways, shots, queries, episodes, seed, groups: See `sample_episodes`.
        standardize, classifier, normalize: See `score_episodes`.

    Raises:
        ValueError: As `sample_episodes` and `score_episodes`, or if embeddings and labels differ in length.
    """
    if len(embeddings) != len(labels):
        raise ValueError(f"got {len(embeddings)} embeddings and {len(labels)} labels; expected one label per clip.")
    drawn = sample_episodes(labels, ways, shots, queries, episodes, seed, groups)
    mean = mean_and_interval(score_episodes(embeddings, drawn, standardize, classifier, normalize))
    return FewShotResult(
        *mean, episodes, ways, shots, queries, seed, groups is not None, classifier, drawn.sha256, drawn.left_out
    )


def score_episodes(
    embeddings: torch.Tensor,
    episodes: Episodes,
    standardize: bool = True,
    classifier: str = "centroid",
    normalize: bool = True,
    head_sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """Accuracy of each episode, (E,), such as for paired comparisons of embeddings.

    Logistic regressions that did not converge count at their last step; a warning gives their number.

    Args:
        embeddings: (N, D) float.
        episodes: Episodes of indices of these rows.
        standardize: Scales every dimension to mean 0 and deviation 1 over the N clips. This uses query clips, without
            labels: report it, and compare only results with the same setting.
        classifier: "centroid" (`nearest_centroid`) or "logistic" (`logistic_regression`).
        normalize: Scales embeddings to length 1, after `standardize`.
        head_sizes: See `standardized`.

    Raises:
        ValueError: If embeddings are not a finite (N, D) matrix, or the classifier is unknown.
    """
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier is {classifier!r}; expected one of {', '.join(CLASSIFIERS)}.")
    embeddings = checked_embeddings(embeddings).double()
    if standardize:
        embeddings = standardized(embeddings, head_sizes)
    if normalize:
        embeddings = unit_length(embeddings, dim=-1)
    ways, queries = episodes.query.shape[1:]
    target = torch.arange(ways, device=embeddings.device).repeat_interleave(queries)  # (W * Q,)
    accuracies, unconverged = [], 0
    for support_gram, query_gram in _inner_products(embeddings, episodes):
        if classifier == "centroid":
            scores = nearest_centroid(support_gram, query_gram, ways, cosine=normalize)  # (E, W * Q, W)
        else:
            scores, converged = logistic_regression(support_gram, query_gram, ways)
            unconverged += int((~converged).sum())
        accuracies.append((scores.argmax(-1) == target).double().mean(-1))  # (E,)
    if unconverged:
        logger.warning("%d of %d logistic regressions did not converge.", unconverged, len(episodes.query))
    return torch.cat(accuracies).cpu()


def checked_embeddings(embeddings: torch.Tensor) -> torch.Tensor:
    """The same embeddings; ValueError if they are not a finite (N, D) matrix of floats."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}; expected floats of shape (N, D)."
        )
    if not torch.isfinite(embeddings).all():
        bad = (~torch.isfinite(embeddings)).any(1).nonzero()[0].item()
        raise ValueError(f"the embedding of clip {bad} is not finite.")
    return embeddings


def _inner_products(embeddings: torch.Tensor, episodes: Episodes) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inner products of support clips (E, W * K, W * K), and of queries with them (E, W * Q, W * K), in blocks."""
    support, query = episodes.support.to(embeddings.device), episodes.query.to(embeddings.device)
    ways, shots, queries = *support.shape[1:], query.shape[2]
    largest = max(ways * (ways * shots) ** 2, ways * queries * ways * shots)  # numbers per episode in the solvers
    used = torch.cat([support.flatten(), query.flatten()]).unique()  # (P,)
    at_once = len(used) <= _MOST_CLIPS and len(used) ** 2 <= _PAIRS_PER_CLIP * (support.numel() + query.numel())
    if at_once:
        chosen = embeddings[used]  # (P, D)
        gram = chosen @ chosen.T  # (P, P)
        support, query = (torch.searchsorted(used, clips) for clips in (support, query))
    else:
        largest = max(largest, ways * max(shots, queries) * embeddings.shape[1])
    block = max(1, _BLOCK_NUMBERS // largest)
    for rows, others in zip(support.flatten(1).split(block), query.flatten(1).split(block)):
        if at_once:
            yield gram[rows[:, :, None], rows[:, None]], gram[others[:, :, None], rows[:, None]]
        else:
            examples = embeddings[rows].transpose(1, 2)  # (E, D, W * K)
            yield embeddings[rows] @ examples, embeddings[others] @ examples


def standardized(embeddings: torch.Tensor, head_sizes: Sequence[int] | None = None) -> torch.Tensor:
    """Embeddings (N, D) with mean 0 and deviation 1 in each dimension; constant dimensions become 0.

    Args:
        embeddings: (N, D).
        head_sizes: Sizes of heads, together D, that keep their own deviation (over all dimensions of the head), since
            their scales were chosen; None: deviation 1.
    """
    centered = embeddings - embeddings.mean(0)
    deviation = centered.pow(2).mean(0).sqrt()  # (D,)
    # Rounding of the mean leaves a constant dimension a small deviation.
    constant = deviation <= 1e-6 * embeddings.abs().amax(0)
    standard = torch.where(constant, 0.0, centered / deviation.clamp(min=torch.finfo(deviation.dtype).tiny))
    if head_sizes is None:
        return standard
    of_heads = [head.square().mean().sqrt().expand(len(head)) for head in deviation.split(list(head_sizes))]
    return standard * torch.cat(of_heads)


def mean_and_interval(accuracies: torch.Tensor) -> tuple[float, float]:
    """Mean of accuracies (E,), and the half width of its 95 % interval (NaN for a single episode)."""
    accuracies = accuracies.double()
    return accuracies.mean().item(), (1.96 * accuracies.std() / len(accuracies) ** 0.5).item()


__all__ = [
    "CLASSIFIERS",
    "FewShotResult",
    "checked_embeddings",
    "few_shot_accuracy",
    "mean_and_interval",
    "score_episodes",
    "standardized",
]
