"""Losses of MT-SLVR, in float32 also under autocast.

Shapes: B clips of this process, P processes, D size of a projection, A augmentations, T augmentation parameters.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class NTXentLoss(nn.Module):
    """Normalized temperature-scaled cross-entropy (NT-Xent): each view must find the other view of its clip.

    Similarities of 2B views for B = 2 clips a and b (+ positive, - negative, . left out):

            a1  b1  a2  b2
        a1   .   -   +   -
        b1   -   .   -   +
        a2   +   -   .   -
        b2   -   +   -   .

    Under torch.distributed the views of all processes are gathered with gradient as negatives, and each process
    averages over its own views. The mean over processes, which DistributedDataParallel takes of gradients, equals the
    loss of one process with the whole batch.

    Args:
        temperature: Divisor of cosine similarities.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1 and
    algorithm 1.
    """

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0, got {temperature}.")
        self.temperature = temperature

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """Mean loss () over the 2B views of this process.

        Args:
            z1, z2: (B, D) projections of the first and of the second views.

        Raises:
            ValueError: If the shapes differ, or all processes together have one clip only.
        """
        if z1.shape != z2.shape or z1.ndim != 2:
            raise ValueError(f"NT-Xent needs two (batch, size) tensors; got {tuple(z1.shape)} and {tuple(z2.shape)}.")
        with torch.autocast(device_type=z1.device.type, enabled=False):
            z1, z2 = F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)
            all_z1, all_z2 = gather_with_gradient(z1), gather_with_gradient(z2)  # (P x B, D)
            clips, first = len(all_z1), _rank() * len(z1)
            if clips < 2:
                raise ValueError("NT-Xent needs at least two clips: one clip has no negatives.")
            anchors, views = torch.cat([z1, z2]), torch.cat([all_z1, all_z2])  # (2B, D), (2PB, D)
            logits = anchors @ views.T / self.temperature  # (2B, 2PB)
            own = torch.arange(first, first + len(z1), device=z1.device)
            own = torch.cat([own, own + clips])  # (2B,) column of the anchor itself
            positive = (own + clips) % (2 * clips)  # (2B,)
            others = torch.arange(2 * clips - 1, device=z1.device).expand(len(own), -1)  # (2B, 2PB - 1)
            others = others + (others >= own[:, None])  # skips the anchor's own column
            return F.cross_entropy(logits.gather(1, others), positive - (positive > own).long())


class NegativeCosineLoss(nn.Module):
    """Symmetric negative cosine similarity of predictions and projections, without gradient to the projections.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, eq. 1 to 4.
    """

    def forward(self, p1: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """Mean loss (), from -1 (predictions equal the projections of the other views) to 1.

        Args:
            p1, p2: (B, D) predictions from the first and from the second views.
            z1, z2: (B, D) projections of the first and of the second views.
        """
        with torch.autocast(device_type=p1.device.type, enabled=False):
            first = F.cosine_similarity(p1.float(), z2.detach().float(), dim=1).mean()
            second = F.cosine_similarity(p2.float(), z1.detach().float(), dim=1).mean()
            return -0.5 * (first + second)


class AugmentationPredictionLoss(nn.Module):
    """Binary cross-entropy of the augmentations of a view (multi-label augmentation prediction).

    Source: Heggan et al., "MT-SLVR", Interspeech 2023, section 3.1.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss () over views and augmentations.

        Args:
            logits: (2B, A) of the first views, then of the second.
            labels: (2B, A) multi-hot; the two views of a clip have the same labels.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


class ParameterDifferenceLoss(nn.Module):
    """Squared error of the differences of two views' augmentation parameters.

    A target counts for the clips that got its augmentation. Its error is the mean over these clips; the loss is the
    mean over the targets of the batch. Under torch.distributed the counts are those of all processes, so the mean over
    processes equals the loss of one process with the whole batch.

    Source: Lee et al., "Improving Transferability of Representations via Augmentation-Aware Self-Supervision"
    (AugSelf), NeurIPS 2021.
    """

    def forward(self, predictions: torch.Tensor, differences: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss (); 1 for predictions of 0 if the differences are standardized, 0 if no clip got an augmentation.

        Args:
            predictions, differences: (B, T).
            mask: (B, T), 1 for a clip that got the augmentation of a target, else 0.
        """
        with torch.autocast(device_type=predictions.device.type, enabled=False):
            errors = (predictions.float() - differences.float()).square()
            counts = gather_with_gradient(mask.float().sum(dim=0, keepdim=True))  # (P, T)
            clips = counts.sum(dim=0)  # (T,)
            means = (errors * mask).sum(dim=0) / clips.clamp(min=1)  # (T,) shares of this process
            return len(counts) * means.sum() / (clips > 0).sum().clamp(min=1)


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors (B, D) of all processes in the order of their ranks, (P x B, D), with gradient to each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


__all__ = ["AugmentationPredictionLoss", "NTXentLoss", "NegativeCosineLoss", "ParameterDifferenceLoss"]
