"""Projection of embeddings to two dimensions, for plots.

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
    """Clips of a data set in two dimensions of one embedding.

    Attributes:
        data, model: Their names.
        embedding: "contrastive", "predictive" or "both"; "" for a model with one embedding.
        method: Description of the dimensions.
        points: (x, y) of each clip.
        labels: Class of each clip.
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
    """Two principal components of embeddings, prepared as for few-shot classifiers.

    Only labels and seed decide the choice of clips: several embeddings of a data set show the same clips.

    Args:
        embeddings: (N, D) float.
        labels: (N,) class of each clip.
        data, model, embedding: Attributes of the `Projection`.
        max_classes: Number of classes shown; if there are more, a random choice.
        max_clips: Number of clips of these shown; if there are more, a random choice.
        seed: Seed of the choices.

    Raises:
        ValueError: If embeddings are not a finite (N, D) matrix with a label per row, or fewer than 2 clips are shown.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or not torch.isfinite(embeddings).all():
        raise ValueError(
            f"got embeddings of shape {tuple(embeddings.shape)} and {len(labels)} labels; expected finite (N, D) and "
            "a label per row."
        )
    shown = _shown(labels, max_classes, max_clips, seed)
    if len(shown) < 2:
        raise ValueError(f"there are {len(shown)} clips to show; expected two or more.")
    prepared = unit_length(standardized(embeddings.double().cpu()), dim=1)[shown]  # (M, D)
    components = PCA(min(2, prepared.shape[1]), svd_solver="full")
    with np.errstate(invalid="ignore"):  # equal clips have no variance
        points = components.fit_transform(prepared.numpy())  # (M, 2), or (M, 1) of a single dimension
    points *= np.sign(points[np.abs(points).argmax(0), np.arange(points.shape[1])])  # the farthest clip is positive
    share = np.nan_to_num(components.explained_variance_ratio_.sum(), nan=1.0)
    method = f"two principal components, {100 * share:.0f} % of the variance"
    rounded = [(round(x, 4), round(y, 4)) for x, y, *_ in np.pad(points, ((0, 0), (0, 1))).tolist()]
    return Projection(data, model, embedding, method, rounded, [labels[index] for index in shown])


def _shown(labels: Sequence[str], max_classes: int, max_clips: int, seed: int) -> list[int]:
    """Indices of the clips shown, ascending."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(labels))
    chosen = {names[index] for index in torch.randperm(len(names), generator=generator)[:max_classes].tolist()}
    clips = [index for index, label in enumerate(labels) if label in chosen]
    return sorted(clips[index] for index in torch.randperm(len(clips), generator=generator)[:max_clips].tolist())


__all__ = ["Projection", "project"]
