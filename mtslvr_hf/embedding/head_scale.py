"""Scales of the heads of an embedding, chosen on unlabeled audio.

Shapes: N files, S samples, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor, normalize_waveforms
from ..modeling_mtslvr import MTSLVRPreTrainedModel

SHARES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of a head, relative to the first one
FEWEST_FILES = 16
ROUNDS = 2  # over the heads, if there are more than two


def choose_embedding_scale(
    model: MTSLVRPreTrainedModel,
    crops: Tensor,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """Scales of the heads with which crops of the same file find each other best, for `config.embedding_scale`.

    Each head is first brought to a standard deviation of 1. Then the share of each further head is the one of `SHARES`
    with the largest mean reciprocal rank: among the second crops of all files, sorted by cosine similarity to a file's
    first crop, the rank of its own second crop. Dimensions are standardized within their head. No labels are used.

    Args:
        model: Model with several heads.
        crops: (N, 2, S) waveforms at the model's rate, not normalized: two crops of each of N files.
        feature_extractor: Source of the normalization; default: AudioSet's statistics.
        batch_size: Crops per batch.

    Returns:
        Scale of each task of the embedding that has a head of its own; the largest is 1.

    Raises:
        ValueError: If the embedding has a single head, or the crops are too few or have another shape.
    """
    config = model.config
    tasks = [task for task in config.embedding_tasks if config.embedding_parts[task] == task]
    if len(tasks) < 2:
        raise ValueError(
            f"the embedding is that of {config.embedding_tasks} with one head; expected several to scale."
        )
    if crops.ndim != 3 or crops.shape[1] != 2 or len(crops) < FEWEST_FILES:
        raise ValueError(
            f"got crops of shape {tuple(crops.shape)}; expected (files, 2, samples) of at least {FEWEST_FILES} files."
        )
    heads = _embed(model, crops, tasks, feature_extractor or MTSLVRFeatureExtractor(), batch_size)
    standard = {task: _standardized(values) for task, values in heads.items()}
    shares = dict.fromkeys(tasks, 1.0)
    for _ in range(ROUNDS if len(tasks) > 2 else 1):
        for task in tasks[1:]:
            found = {share: reciprocal_rank(standard, {**shares, task: share}) for share in SHARES}
            shares[task] = max(found, key=lambda share: (found[share], -abs(share - 1)))
    scales = {task: shares[task] / deviation(heads[task]) for task in tasks}
    largest = max(scales.values())
    return {task: round(scale / largest, 6) for task, scale in scales.items()}


def deviation(embeddings: Tensor) -> float:
    """Standard deviation of embeddings (..., D) around their mean, over all dimensions together."""
    flat = embeddings.flatten(0, -2).double()
    return max(flat.var(0, correction=0).mean().sqrt().item(), torch.finfo(torch.float32).tiny)


def reciprocal_rank(heads: Mapping[str, Tensor], shares: Mapping[str, float]) -> float:
    """Mean reciprocal rank of the second crop of each file among those of all files, by cosine similarity.

    Args:
        heads: Standardized embeddings (N, 2, D) of each head.
        shares: Factor of each head.
    """
    both = F.normalize(torch.cat([shares[task] * values for task, values in heads.items()], dim=-1), dim=-1)
    similarities = both[:, 0] @ both[:, 1].T  # (N, N)
    better = (similarities > similarities.diagonal()[:, None]).sum(1)
    return (1 / (1 + better.double())).mean().item()


def _standardized(embeddings: Tensor) -> Tensor:
    """Embeddings (N, 2, D) with mean 0 and deviation 1 in each dimension over all crops; constant ones are 0."""
    from sklearn.preprocessing import StandardScaler  # takes a second to import

    flat = embeddings.double().flatten(0, 1).numpy()
    return torch.from_numpy(StandardScaler().fit_transform(flat)).view(embeddings.shape)


@torch.no_grad()
def _embed(
    model: MTSLVRPreTrainedModel,
    crops: Tensor,
    tasks: list[str],
    extractor: MTSLVRFeatureExtractor,
    batch_size: int,
) -> dict[str, Tensor]:
    """Embeddings (N, 2, D) of each task, on the CPU and without a scale."""
    network = model.base_model.inference_network(tasks)
    found: dict[str, list[Tensor]] = {task: [] for task in tasks}
    for batch in crops.flatten(0, 1).split(batch_size):
        batch = normalize_waveforms(batch.to(network.device), extractor.normalization, extractor.mean, extractor.std)
        output = network(batch, tasks=tasks)
        own = {
            "contrastive": output.contrastive_embeds,
            "predictive": output.predictive_embeds,
            **(output.added_embeds or {}),
        }
        for task in tasks:
            found[task].append(own[task].float().cpu())
    return {task: torch.cat(values).unflatten(0, (-1, 2)) for task, values in found.items()}


__all__ = ["choose_embedding_scale", "deviation", "reciprocal_rank"]
