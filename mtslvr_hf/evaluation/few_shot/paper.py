"""Few-shot episodes of the paper: pieces of clips, classified by stochastic gradient descent on raw embeddings.

Shapes: N clips, P pieces of clips, D embedding size, E episodes, B episodes of a block, W ways, K shots, Q queries,
S = W * K.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import one_hot

from .accuracy import checked_embeddings
from .episodes import Episodes, distinct_numbers
from .sgd import sgd_one_vs_all

_BLOCK_NUMBERS = 2**22  # numbers in the largest array of a block of episodes: 32 MB in float64
_STREAM = 1  # of the random numbers, next to the one of `sample_episodes`


@dataclass(frozen=True)
class PaperEpisodes:
    """Few-shot episodes of pieces.

    Attributes:
        support: Random piece of each support clip, int64 (E, W, K), of P.
        query: Clips to classify, int64 (E, W, Q), of N.
        bounds: int64 (N + 1,): the pieces of clip n are those from `bounds[n]` to `bounds[n + 1]`.
        permutations: Permutation of the support in each one-vs-all classifier, int64 (E, W, S).
        left_out: Reason for each class without episodes.
    """

    support: torch.Tensor
    query: torch.Tensor
    bounds: torch.Tensor
    permutations: torch.Tensor
    left_out: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """Digest of the episodes, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for numbers in (self.support, self.query, self.bounds, self.permutations):
            digest.update(repr(tuple(numbers.shape)).encode())
            digest.update(np.ascontiguousarray(numbers.numpy(), dtype="<i8").tobytes())
        return digest.hexdigest()


def paper_episodes(episodes: Episodes, bounds: Sequence[int], seed: int) -> PaperEpisodes:
    """Episodes with a random piece of each support clip, and a random permutation for each classifier.

    Args:
        episodes: Episodes of N clips.
        bounds: N + 1 places, see `PaperEpisodes`; each clip has a piece or more.
        seed: Alone decides the draws: machine and versions of torch and numpy do not matter.
    """
    draws = np.random.PCG64([seed, _STREAM])
    places = torch.tensor(bounds)
    counts = places.diff()[episodes.support]  # (E, W, K)
    piece = torch.from_numpy(distinct_numbers(counts.numpy(), 1, draws))[..., 0]
    episode_count, ways, shots = episodes.support.shape
    permutations = distinct_numbers(np.full((episode_count, ways), ways * shots), ways * shots, draws)
    support = places[episodes.support] + piece
    return PaperEpisodes(support, episodes.query, places, torch.from_numpy(permutations), episodes.left_out)


class Fitted(NamedTuple):
    """Classifiers of a block of episodes.

    Attributes:
        episodes: Their indices, (B,).
        weights: (B, W, D).
        intercepts: (B, W).
    """

    episodes: torch.Tensor
    weights: torch.Tensor
    intercepts: torch.Tensor


def fitted_classifiers(embeddings: torch.Tensor, episodes: PaperEpisodes) -> Iterator[Fitted]:
    """Classifiers of `sgd_one_vs_all` of all episodes, in blocks; those of the longest queries come last.

    Args:
        embeddings: (P, D) float, neither standardized nor scaled.
        episodes: Episodes of these pieces.

    Raises:
        ValueError: If embeddings are not a finite (P, D) matrix.
    """
    embeddings = checked_embeddings(embeddings).double()
    ways = episodes.support.shape[1]
    support = episodes.support.flatten(1)  # (E, S)
    largest = max(support.shape[1], episodes.query[0].numel()) * embeddings.shape[1]
    longest = episodes.bounds.diff()[episodes.query].amax((1, 2))  # (E,)
    for block in longest.argsort(stable=True).split(max(1, _BLOCK_NUMBERS // largest)):
        examples = embeddings[support[block]]  # (B, S, D)
        dual, intercepts = sgd_one_vs_all(examples @ examples.mT, episodes.permutations[block], ways)
        yield Fitted(block, dual @ examples, intercepts)


def score_paper_episodes(embeddings: torch.Tensor, episodes: PaperEpisodes) -> torch.Tensor:
    """Accuracy of each episode, (E,): the share of queries whose class gets most votes of their pieces.

    A piece votes for the class with the largest decision value. Of classes with equally many votes, the first one of
    the episode wins, as with `torch.mode` and `scipy.stats.mode`; the order of an episode's classes is random.

    Args:
        embeddings: (P, D) float, neither standardized nor scaled.
        episodes: Episodes of these pieces.

    Raises:
        ValueError: If embeddings are not a finite (P, D) matrix.

    Source:
        The authors' evaluation code (`classifiers_/sklLinear.py`). Differs from: for clips of variable length, it
        votes by the rounded probabilities of the classes, which may be equal when decision values differ.
    """
    embeddings = embeddings.double()
    ways, queries = episodes.query.shape[1:]
    target = torch.arange(ways).repeat_interleave(queries)  # (W * Q,)
    counts = episodes.bounds.diff()
    accuracies = torch.empty(len(episodes.query), dtype=torch.float64)
    for block, weights, intercepts in fitted_classifiers(embeddings, episodes):
        clips = episodes.query[block].flatten(1)  # (B, W * Q)
        votes = torch.zeros(*clips.shape, ways, dtype=torch.int64)
        for number in range(int(counts[clips].max())):
            piece = episodes.bounds[clips] + number
            present = number < counts[clips]  # (B, W * Q)
            piece = torch.where(present, piece, 0)
            scores = embeddings[piece] @ weights.mT + intercepts[:, None]  # (B, W * Q, W)
            votes += one_hot(scores.argmax(-1), ways) * present[..., None]
        accuracies[block] = (votes.argmax(-1) == target).double().mean(-1)
    return accuracies


__all__ = ["Fitted", "PaperEpisodes", "fitted_classifiers", "paper_episodes", "score_paper_episodes"]
