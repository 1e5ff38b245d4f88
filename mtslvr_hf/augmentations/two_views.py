"""Two augmented views of every clip, with labels and parameters.

Shapes: B clips, V = 2 views, S samples, A augmentations.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_mtslvr import AUGMENTATIONS
from .base import DEVICE_BLOCK, Augmentation
from .rounds import apply_in_rounds
from .transforms import Fade, MixedNoise, PitchShift, TimeMasking, TimeShift, TimeStretch, WhiteNoise

_CLASSES: dict[str, type[Augmentation]] = {
    kind.name: kind for kind in (PitchShift, Fade, WhiteNoise, MixedNoise, TimeStretch, TimeMasking, TimeShift)
}


class AugmentationDraw(NamedTuple):
    """Augmentations and parameters drawn for a batch, all on the CPU.

    names: The A augmentations, in the order of the labels.
    order: (B, A) int64; row b holds the positions in `names` of the augmentations of clip b, first to last, then -1.
    values: Parameters by name, each (B, V); drawn for every clip, used by clips whose `order` has the name.
    augmentations: The A augmentations themselves.
    """

    names: tuple[str, ...]
    order: Tensor
    values: dict[str, dict[str, Tensor]]
    augmentations: tuple[Augmentation, ...]

    @property
    def labels(self) -> Tensor:
        """Multi-hot augmentations of the clips, (B, A) float32 on the CPU."""
        return (self.order.unsqueeze(2) == torch.arange(len(self.names))).any(dim=1).float()

    def clips(self, start: int, stop: int) -> "AugmentationDraw":
        """Draw of clips start..stop-1."""
        values = {name: {key: value[start:stop] for key, value in own.items()} for name, own in self.values.items()}
        return self._replace(order=self.order[start:stop], values=values)

    def differences(self, parameters: Sequence[str]) -> Tensor:
        """Differences of parameters between a clip's views, (B, P) float32 on the CPU, also where they are not used.

        Args:
            parameters: The P parameters, as `MTSLVRConfig.parameter_targets` names them: `"pitch_shift.semitones"`.
                [`Augmentation.parameter_differences`] describes the values.

        Raises:
            ValueError: If no augmentation declares a range for a parameter, or a range is not allowed.
        """
        known = {
            f"{augmentation.name}.{key}": value
            for augmentation in self.augmentations
            for key, value in augmentation.parameter_differences(self.values[augmentation.name]).items()
        }
        for name in parameters:
            if name not in known:
                raise ValueError(
                    f"There is no difference of {name!r} to predict; there are {', '.join(known) or 'none'}. "
                    "`parameter_ranges` of an augmentation declares its parameters; a range of one value has no "
                    "differences. Name others in `augmentation_parameters`."
                )
        return torch.stack([known[name] for name in parameters], dim=1)


class TwoViews(NamedTuple):
    """Output of the pipeline.

    views: (B, 2, S) float32 on the waveforms' device.
    labels: (B, A) float32 on the same device, multi-hot.
    parameters: Draw of these clips.
    """

    views: Tensor
    labels: Tensor
    parameters: AugmentationDraw


class TwoViewAugmentation:
    """Two views of every clip: the same augmentations in the same order, with different parameters.

    A clip gets k of the A augmentations, k uniform in min_augmentations..max_augmentations, without replacement, in
    random order. The result depends only on (seed, split, step) and the clip's place in the batch, not on device or
    process.

    Source: Heggan et al., "MT-SLVR" (Interspeech 2023), section 3.3.

    Args:
        augmentations: Names from `AUGMENTATIONS`, or `Augmentation` objects, in the order of the labels.
        sampling_rate: Sampling rate of the waveforms in Hz.
        seed: Seed of the whole run.
        min_augmentations, max_augmentations: Limits of k; a maximum of None is A.

    Raises:
        ValueError: If a name is unknown or occurs twice, or the limits are out of 0..A.

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
        """Draws augmentations and parameters of `total` clips for one step."""
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
        return AugmentationDraw(self.names, order, values, self.augmentations)

    @torch.no_grad()
    def apply(self, waveforms: Tensor, drawn: AugmentationDraw) -> Tensor:
        """Views (B, 2, S) of waveforms, (B, S) or (B, 2, S), by a draw of B clips.

        A CPU takes the clips that need the same augmentation next as a group, so that intermediate results stay in its
        cache. Other devices take all clips at once, because there each operator costs more than its computation.
        """
        views = waveforms.float()
        views = views.unsqueeze(1) if views.dim() == 2 else views
        views = views.expand(-1, 2, -1).clone(memory_format=torch.contiguous_format)
        if views.device.type == "cpu":
            self._apply_in_groups(views, drawn)
            return views
        clips = max(1, DEVICE_BLOCK // (2 * views.shape[2]))
        with torch.autocast(views.device.type, enabled=False):
            for begin in range(0, len(views), clips):
                part = drawn.clips(begin, begin + clips)
                apply_in_rounds(views[begin : begin + clips], part.order, part.values, self.augmentations)
        return views

    def _apply_in_groups(self, views: Tensor, drawn: AugmentationDraw) -> None:
        for position, clips in self._groups(drawn.order):
            augmentation = self.augmentations[position]
            parameters = {key: value[clips].flatten() for key, value in drawn.values[augmentation.name].items()}
            augmented = augmentation.apply(views.index_select(0, clips).flatten(0, 1), parameters)
            views.index_copy_(0, clips, augmented.unflatten(0, (-1, 2)))

    def _groups(self, order: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields an augmentation's position and the clips (n,) that need it next, until `order` (B, A) is done.

        Augmentations with least effort come first, among them the one that most clips need. So all pitch shifts run at
        once, and there are half as many launches as with a loop over the columns of `order`.
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
        """Views of clips offset..offset + B - 1 of a batch of `total` clips.

        Args:
            waveforms: Normalized clips of one process, (B, S); or (B, 2, S), a crop of the clip for each view.
            step, split: Each step has new draws, and so has each split (training, evaluation).
            offset: Position of the first clip in the whole batch of all processes.
            total: Size of the whole batch of all processes; None for offset + B.

        Raises:
            ValueError: If the waveforms have another shape, or the clips are not inside the whole batch.
        """
        if waveforms.dim() not in (2, 3) or waveforms.shape[1:-1] not in ((), (2,)) or waveforms.shape[-1] == 0:
            raise ValueError(
                f"Waveforms must be (batch, samples) or (batch, 2, samples), got {tuple(waveforms.shape)}."
            )
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
