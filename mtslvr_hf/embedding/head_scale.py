"""Scales of the heads of an embedding: equal variance, measured on unlabeled audio.

Shapes: N clips, S samples, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor, normalize_waveforms
from ..modeling_mtslvr import MTSLVRPreTrainedModel

FEWEST_CLIPS = 16


def equal_variance_scale(
    model: MTSLVRPreTrainedModel,
    clips: Tensor,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """Scales of the heads that give each part of the embedding the same variance, for `config.embedding_scale`.

    Without them, the head with the larger values decides the distances of the whole embedding. No labels are used.
    What other shares of the heads are worth is in docs/recipe.md.

    Args:
        model: Model with several heads.
        clips: (N, S) waveforms at the model's rate, not normalized.
        feature_extractor: Source of the normalization; default: AudioSet's statistics.
        batch_size: Clips per batch.

    Returns:
        Scale of each task of the embedding that has a head of its own; the largest is 1.

    Raises:
        ValueError: If the embedding has a single head, a part of it does not vary, or the clips are too few or have
            another shape.
    """
    config = model.config
    tasks = [task for task in config.embedding_tasks if config.embedding_parts[task] == task]
    if len(tasks) < 2:
        raise ValueError(
            f"the embedding is that of {config.embedding_tasks} with one head; expected several to scale."
        )
    if clips.ndim != 2 or len(clips) < FEWEST_CLIPS:
        raise ValueError(
            f"got clips of shape {tuple(clips.shape)}; expected (clips, samples) of at least {FEWEST_CLIPS} clips."
        )
    heads = _embed(model, clips, tasks, feature_extractor or MTSLVRFeatureExtractor(), batch_size)
    deviations = {task: deviation(values) for task, values in heads.items()}
    constant = [task for task, value in deviations.items() if value == 0]
    if constant:
        raise ValueError(f"the embeds of {', '.join(constant)} are the same for all clips; no scale changes that.")
    smallest = min(deviations.values())
    return {task: round(smallest / value, 6) for task, value in deviations.items()}


def deviation(embeddings: Tensor) -> float:
    """Standard deviation of embeddings (N, D) around their mean, over all dimensions together."""
    return embeddings.double().var(0, correction=0).mean().sqrt().item()


@torch.no_grad()
def _embed(
    model: MTSLVRPreTrainedModel,
    clips: Tensor,
    tasks: list[str],
    extractor: MTSLVRFeatureExtractor,
    batch_size: int,
) -> dict[str, Tensor]:
    """Embeddings (N, D) of each task, on the CPU and without a scale."""
    network = model.base_model.inference_network(tasks)
    found: dict[str, list[Tensor]] = {task: [] for task in tasks}
    for batch in clips.split(batch_size):
        batch = normalize_waveforms(batch.to(network.device), extractor.normalization, extractor.mean, extractor.std)
        output = network(batch, tasks=tasks)
        own = {
            "contrastive": output.contrastive_embeds,
            "predictive": output.predictive_embeds,
            **(output.added_embeds or {}),
        }
        for task in tasks:
            found[task].append(own[task].float().cpu())
    return {task: torch.cat(values) for task, values in found.items()}


__all__ = ["deviation", "equal_variance_scale"]
