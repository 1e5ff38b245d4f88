"""Weight shares of heads in few-shot classifiers.

Shapes: N clips, P pieces of clips, D embedding size, D_h size of a head, E episodes, B episodes of a block, W ways,
S support clips per episode.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from .accuracy import mean_and_interval, standardized
from .episodes import Episodes
from .paper import PaperEpisodes, fitted_classifiers
from .solvers import logistic_regression_duals

logger = logging.getLogger(__name__)

_BLOCK_NUMBERS = 2**22  # numbers in the largest array of a block of episodes: 32 MB in float64


@dataclass(frozen=True)
class WeightShares:
    """Shares of each head in the absolute weights of few-shot classifiers.

    Attributes:
        shares: Mean over episodes, 0 to 1.
        intervals: Half width of the 95 % interval of the mean.
        sizes: Dimensions.
        episodes: Number of episodes.
    """

    shares: dict[str, float]
    intervals: dict[str, float]
    sizes: dict[str, int]
    episodes: int


def weight_shares(heads: Mapping[str, Tensor], episodes: Episodes) -> WeightShares:
    """Weight shares of heads in multinomial logistic regressions on few-shot episodes.

    Embeddings of the heads are concatenated, dimensions standardized over the N clips and clips scaled to length 1, as
    in `score_episodes`. With the weight w_kd of class k on dimension d, the share of a head in an episode is

        sum over k and the head's d of |w_kd| / sum over k and all d of |w_kd|

    Heads with equally important dimensions have shares in proportion to their sizes. Episodes with equal support clips
    have no weights and are left out.

    Args:
        heads: Float embeddings (N, D_h) of each head, such as `{"contrastive": ..., "predictive": ...}`.
        episodes: Episodes of indices of these rows.

    Raises:
        ValueError: If there are fewer than two heads, their numbers of clips differ, an embedding is not finite float,
            or no episode has weights.

    Source: Heggan et al. (2023), section on learnt invariance: reliance of linear classifiers on each head.
    """
    _check(heads)
    sizes = {name: values.shape[1] for name, values in heads.items()}
    embeddings = unit_length(standardized(torch.cat([values.double() for values in heads.values()], 1)), dim=1)
    support = episodes.support.to(embeddings.device)
    ways, clips = support.shape[1], support.shape[1] * support.shape[2]
    largest = max(ways * clips**2, max(ways, clips) * embeddings.shape[1])  # numbers per episode
    sums, unconverged = [], 0
    for rows in support.flatten(1).split(max(1, _BLOCK_NUMBERS // largest)):
        examples = embeddings[rows]  # (E, S, D)
        dual, _, converged = logistic_regression_duals(examples @ examples.transpose(1, 2), ways)
        weights = (dual @ examples).abs().sum(1)  # (E, D)
        sums.append(torch.stack([part.sum(1) for part in weights.split(list(sizes.values()), 1)], 1))
        unconverged += int((~converged).sum())
    if unconverged:
        logger.warning("%d of %d logistic regressions did not converge.", unconverged, len(support))
    return _mean_shares(torch.cat(sums).cpu(), sizes)


def paper_weight_shares(heads: Mapping[str, Tensor], episodes: PaperEpisodes) -> WeightShares:
    """Weight shares of heads in the classifiers of `fitted_classifiers`, on raw embeddings.

    With the mean m_h of |w_kd| over all classes k and the dimensions d of head h, the share of the head in an episode
    is m_h / sum of the means of all heads. Weights are sums of support embeddings with coefficients: a head whose
    values are a times as large has weights that are a times as large, however useful it is.

    Args:
        heads: Float embeddings (P, D_h) of each head.
        episodes: Episodes of these pieces.

    Raises:
        ValueError: As `weight_shares`.

    Source:
        Heggan et al. (2023), average weight of features in the linear classifiers. Differs from: their exact measure
        is not known.
    """
    _check(heads)
    sizes = {name: values.shape[1] for name, values in heads.items()}
    embeddings = torch.cat(list(heads.values()), 1)  # (P, D)
    means = torch.empty(len(episodes.support), len(heads), dtype=torch.float64)
    for fitted in fitted_classifiers(embeddings, episodes):
        parts = fitted.weights.abs().mean(1).split(list(sizes.values()), 1)  # (B, D_h) of each head
        means[fitted.episodes] = torch.stack([part.mean(1) for part in parts], 1)
    return _mean_shares(means, sizes)


def _check(heads: Mapping[str, Tensor]) -> None:
    if len(heads) < 2:
        raise ValueError(f"the heads are {', '.join(heads) or 'none'}; expected two or more.")
    counts = {len(values) for values in heads.values()}
    if len(counts) > 1:
        raise ValueError(f"the heads embed {', '.join(map(str, sorted(counts)))} clips; expected the same of all.")
    for name, values in heads.items():
        if values.ndim != 2 or not values.is_floating_point() or not torch.isfinite(values).all():
            raise ValueError(
                f"the embeddings of {name!r} are {values.dtype} of shape {tuple(values.shape)}; expected finite "
                "floats of shape (N, D)."
            )


def _mean_shares(sums: Tensor, sizes: dict[str, int]) -> WeightShares:
    """Shares from sums (or means) of absolute weights per episode and head, (E, heads)."""
    totals = sums.sum(1, keepdim=True)  # (E, 1)
    shares = (sums / totals)[totals[:, 0] > 0]
    if not len(shares):
        raise ValueError(
            "the support clips of every episode have equal embeddings: their classifiers have no weights."
        )
    found = {name: mean_and_interval(values) for name, values in zip(sizes, shares.T)}
    means, intervals = ({name: pair[which] for name, pair in found.items()} for which in (0, 1))
    return WeightShares(means, intervals, sizes, len(shares))


__all__ = ["WeightShares", "paper_weight_shares", "weight_shares"]
