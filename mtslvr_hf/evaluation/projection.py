"""Embeddings in the plane, to be looked at class by class.

Shapes: N clips, M clips shown, D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from .few_shot.accuracy import standardized


@dataclass(frozen=True)
class Projection:
    """One embedding of some clips of a data set, in two dimensions.

    Attributes:
        data: name of the data set.
        model: name of the model.
        embedding: "contrastive", "predictive" or "both"; empty for what has only one.
        method: how the two dimensions were found, and what they show.
        points: (x, y) of each clip that is shown.
        labels: the class of each.
    """

    data: str
    model: str
    embedding: str
    method: str
    points: list[tuple[float, float]]
    labels: list[str]


def project(
    embeddings: Tensor,
    labels: Sequence[str],
    *,
    data: str,
    model: str,
    embedding: str,
    max_classes: int = 10,
    max_clips: int = 500,
    seed: int = 0,
) -> Projection:
    """The two directions in which the embeddings of some clips vary most.

    Embeddings are prepared as for few-shot classifiers: dimensions standardized over the N clips, clips scaled to
    length 1. Labels have no part in the directions. Which clips are shown depends on the labels and the seed alone, so
    that the projections of several embeddings show the same clips.

    Args:
        embeddings: (N, D), float.
        labels: the class of each clip, (N,).
        data: name of the data set.
        model: name of the model.
        embedding: which of the model's embeddings it is.
        max_classes: classes shown; drawn at random if there are more.
        max_clips: clips shown; drawn at random from these classes' if there are more.
        seed: draws them.

    Raises:
        ValueError: when embeddings are not a finite (N, D) matrix with a label for each row, or fewer than two clips
            are to be shown.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or not torch.isfinite(embeddings).all():
        raise ValueError(
            f"got embeddings of shape {tuple(embeddings.shape)} and {len(labels)} labels; expected finite (N, D) and "
            "a label for each row."
        )
    shown = _shown(labels, max_classes, max_clips, seed)
    if len(shown) < 2:
        raise ValueError(f"there are {len(shown)} clips to show; expected two or more.")
    prepared = unit_length(standardized(embeddings.double().cpu()), dim=1)[shown]  # (M, D)
    components = PCA(min(2, prepared.shape[1]), svd_solver="full")
    with np.errstate(invalid="ignore"):  # clips that are all the same have no variance
        points = components.fit_transform(prepared.numpy())  # (M, 2), or (M, 1) of a single dimension
    share = np.nan_to_num(components.explained_variance_ratio_.sum(), nan=1.0)
    method = f"two principal components, {100 * share:.0f} % of the variance"
    rounded = [(round(x, 4), round(y, 4)) for x, y, *_ in np.pad(points, ((0, 0), (0, 1))).tolist()]
    return Projection(data, model, embedding, method, rounded, [labels[index] for index in shown])


def _shown(labels: Sequence[str], max_classes: int, max_clips: int, seed: int) -> list[int]:
    """Indices of the clips that are shown, ascending."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(labels))
    chosen = {names[index] for index in torch.randperm(len(names), generator=generator)[:max_classes].tolist()}
    clips = [index for index, label in enumerate(labels) if label in chosen]
    return sorted(clips[index] for index in torch.randperm(len(clips), generator=generator)[:max_clips].tolist())


__all__ = ["Projection", "project"]
