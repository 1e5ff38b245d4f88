"""The objectives of MT-SLVR. Pure modules over tensors, in float32 even under autocast.

Shapes: B clips of this process, P processes, D size of a projection, A augmentations.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class NTXentLoss(nn.Module):
    """Normalized temperature-scaled cross-entropy: each view must find its clip's other view among all views.

    The similarities of 2B views, for B = 2 clips a and b (+ the positive, - negatives, the diagonal is left out):

            a1  b1  a2  b2
        a1   .   -   +   -
        b1   -   .   -   +
        a2   +   -   .   -
        b2   -   +   -   .

    Under torch.distributed the negatives are the views of all processes, gathered with gradient, and each process
    averages over its own views: the mean over processes, which is what DistributedDataParallel makes of gradients, is
    the loss of one process with the whole batch.

    Args:
        temperature: What cosine similarities are divided by.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1 and
    algorithm 1.
    """

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0, got {temperature}.")
        self.temperature = temperature

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """Args:
            z1: (B, D) projections of the first views.
            z2: (B, D) projections of the second views, in the same order.

        Returns:
            () mean over this process's 2B views.

        Raises:
            ValueError: If the shapes differ, or there is only one clip in all processes and so no negative.
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
            others = others + (others >= own[:, None])  # steps over the anchor's own column
            return F.cross_entropy(logits.gather(1, others), positive - (positive > own).long())


class NegativeCosineLoss(nn.Module):
    """Symmetric negative cosine similarity of predictions and projections, gradient stopped at the projections.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, eq. 1 to 4.
    """

    def forward(self, p1: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """Args:
            p1: (B, D) predictions from the first views.
            p2: (B, D) predictions from the second views.
            z1: (B, D) projections of the first views.
            z2: (B, D) projections of the second views.

        Returns:
            () between -1 (each prediction hits the other view's projection) and 1.
        """
        with torch.autocast(device_type=p1.device.type, enabled=False):
            first = F.cosine_similarity(p1.float(), z2.detach().float(), dim=1).mean()
            second = F.cosine_similarity(p2.float(), z1.detach().float(), dim=1).mean()
            return -0.5 * (first + second)


class AugmentationPredictionLoss(nn.Module):
    """Binary cross-entropy over which augmentations a view got (multi-label augmentation prediction).

    Source: Heggan et al., "MT-SLVR", Interspeech 2023, section 3.1.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Args:
            logits: (2B, A) of the first views, then of the second.
            labels: (2B, A) multi-hot; the two views of a clip got the same augmentations.

        Returns:
            () mean over views and augmentations.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """(B, D) of this process -> (P x B, D) of all processes in the order of their ranks, with gradient to each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


__all__ = ["AugmentationPredictionLoss", "NTXentLoss", "NegativeCosineLoss", "gather_with_gradient"]
