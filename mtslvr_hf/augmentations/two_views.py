"""Two augmented views of every clip, the labels that say what was done, and all parameters.

Shapes: B clips, V = 2 views, S samples, A augmentations.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_mtslvr import AUGMENTATIONS
from .base import Augmentation
from .transforms import (
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    WhiteNoise,
)

_CLASSES: dict[str, type[Augmentation]] = {
    kind.name: kind for kind in (PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift)
}


class AugmentationDraw(NamedTuple):
    """Augmentations and parameters drawn for a batch, all on the CPU.

    names: the A augmentations, in the labels' order.
    order: (B, A) int64; row b holds the positions in `names` of what clip b goes through, first to last, then -1.
    values: for each name its parameters, each (B, V); drawn for every clip, used by those whose `order` has the name.
    """

    names: tuple[str, ...]
    order: Tensor
    values: dict[str, dict[str, Tensor]]

    @property
    def labels(self) -> Tensor:
        """(B, A) float32 on the CPU: 1 where the clip goes through the augmentation."""
        return (self.order.unsqueeze(2) == torch.arange(len(self.names))).any(dim=1).float()

    def clips(self, start: int, stop: int) -> "AugmentationDraw":
        """The part of the draw that belongs to clips start..stop-1."""
        values = {
            name: {key: value[start:stop] for key, value in parameters.items()}
            for name, parameters in self.values.items()
        }
        return AugmentationDraw(self.names, self.order[start:stop], values)


class TwoViews(NamedTuple):
    """Views, labels and parameters that the pipeline returns.

    views: (B, 2, S) float32 on the waveforms' device.
    labels: (B, A) float32 on the same device, multi-hot.
    parameters: what was drawn for these clips.
    """

    views: Tensor
    labels: Tensor
    parameters: AugmentationDraw


class TwoViewAugmentation:
    """Makes two views of every clip: the same augmentations in the same order, each with parameters of its own.

    A clip gets k of the A augmentations, k uniform in min_augmentations..max_augmentations, without replacement, in
    random order. All depends on (seed, split, step) and a clip's place in the batch only, not on device or process.

    Source: Heggan et al., "MT-SLVR" (Interspeech 2023), section 3.3.

    Args:
        augmentations: names from `AUGMENTATIONS`, or `Augmentation` objects; their order is the labels'.
        sampling_rate: Hz, of the waveforms.
        seed: of the whole run.
        max_augmentations: None for all of them.

    Raises:
        ValueError: a name is unknown or given twice, or the numbers of augmentations are out of 0..A.

    Example:
        >>> pipeline = TwoViewAugmentation(seed=0)
        >>> views, labels, parameters = pipeline(torch.randn(8, 80000), step=0)
        >>> views.shape, labels.shape
        (torch.Size([8, 2, 80000]), torch.Size([8, 7]))
    """

    def __init__(
        self,
        augmentations: Sequence[str | Augmentation] = AUGMENTATIONS,
        sampling_rate: int = 16000,
        seed: int = 0,
        min_augmentations: int = 1,
        max_augmentations: int | None = None,
    ):
        self.augmentations = tuple(_build(entry, sampling_rate) for entry in augmentations)
        self.names = tuple(augmentation.name for augmentation in self.augmentations)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Every augmentation may appear once, got {self.names}.")
        self.seed = seed
        self.min_augmentations = min_augmentations
        self.max_augmentations = len(self.names) if max_augmentations is None else max_augmentations
        if not 0 <= self.min_augmentations <= self.max_augmentations <= len(self.names):
            raise ValueError(
                f"A clip cannot get {self.min_augmentations} to {self.max_augmentations} of "
                f"{len(self.names)} augmentations."
            )

    def draw(self, total: int, step: int, split: str = "train") -> AugmentationDraw:
        """Draws what happens to `total` clips at one step."""
        digest = hashlib.blake2b(f"{self.seed}/{split}/{step}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        count = len(self.names)
        order = torch.rand(total, count, generator=generator).argsort(dim=1)
        used = torch.randint(self.min_augmentations, self.max_augmentations + 1, (total, 1), generator=generator)
        order[torch.arange(count) >= used] = -1
        values = {}
        for augmentation in self.augmentations:
            parameters = augmentation.sample_parameters(2 * total, generator)
            values[augmentation.name] = {key: value.view(total, 2) for key, value in parameters.items()}
        return AugmentationDraw(self.names, order, values)

    @torch.no_grad()
    def apply(self, waveforms: Tensor, drawn: AugmentationDraw) -> Tensor:
        """Makes the views (B, 2, S) that a draw for B clips describes."""
        views = waveforms.float().unsqueeze(1).repeat(1, 2, 1)  # (B, 2, S)
        for position, clips in self._groups(drawn.order):
            augmentation = self.augmentations[position]
            parameters = {key: value[clips].flatten() for key, value in drawn.values[augmentation.name].items()}
            clips = clips.to(views.device, non_blocking=True)
            augmented = augmentation.apply(views[clips].flatten(0, 1), parameters)
            views[clips] = augmented.unflatten(0, (-1, 2))
        return views

    def _groups(self, order: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields an augmentation's position and the clips (n,) that it is the next for, until `order` (B, A) is done.

        Of the augmentations that clips wait for, it is one of least effort, and of these the one most wait for. So all
        clips get their pitch shifts in one go, and there are half as many launches as by going from place to place.
        """
        order = F.pad(order, (0, 1), value=-1)  # (B, A + 1)
        done = torch.zeros(len(order), 1, dtype=torch.long)
        while True:
            coming = order.gather(1, done).squeeze(1)  # (B,), -1 for a clip that is done
            waiting = torch.bincount(coming + 1, minlength=len(self.names) + 1)[1:].tolist()
            if not any(waiting):
                return
            position = min(
                (position for position, clips in enumerate(waiting) if clips),
                key=lambda position: (self.augmentations[position].effort, -waiting[position]),
            )
            clips = torch.nonzero(coming == position).squeeze(1)
            yield position, clips
            done[clips] += 1

    def __call__(
        self, waveforms: Tensor, step: int, split: str = "train", offset: int = 0, total: int | None = None
    ) -> TwoViews:
        """Draws for `total` clips and makes the views of clips offset..offset + B - 1.

        Args:
            waveforms: (B, S), one process's clips, normalized.
            step: each gives new draws; "split" keeps those of training and evaluation apart.
            offset: the place of the first clip in the whole batch, over all processes.
            total: the whole batch's size, over all processes; None for B.

        Raises:
            ValueError: the waveforms are not (B, S), or the clips do not lie inside the whole batch.
        """
        if waveforms.dim() != 2:
            raise ValueError(f"Waveforms must be (batch, samples), got {tuple(waveforms.shape)}.")
        end = offset + waveforms.shape[0]
        total = end if total is None else total
        if not 0 <= offset <= end <= total:
            raise ValueError(f"Clips {offset}..{end - 1} do not lie inside a batch of {total}.")
        drawn = self.draw(total, step, split).clips(offset, end)
        return TwoViews(self.apply(waveforms, drawn), drawn.labels.to(waveforms.device, non_blocking=True), drawn)


def _build(entry: str | Augmentation, sampling_rate: int) -> Augmentation:
    if isinstance(entry, Augmentation):
        return entry
    if entry not in _CLASSES:
        raise ValueError(f"Unknown augmentation {entry!r}; there are {', '.join(_CLASSES)}.")
    kind = _CLASSES[entry]
    return kind(sampling_rate=sampling_rate) if issubclass(kind, (WhiteNoise, MixedNoise)) else kind()


__all__ = ["AUGMENTATIONS", "AugmentationDraw", "TwoViewAugmentation", "TwoViews"]
