"""Metrics of a training run, summed on the device without waiting for it.

Shapes: B clips, V views, D embedding size, A augmentations, P augmentation parameters.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from ..metrics import mean_average_precision

LOSSES = ("loss", "contrastive_loss", "predictive_loss")
PREDICTIVE_LOSSES = ("label_loss", "parameter_loss")  # both terms of the predictive loss, if it has two
TASKS = ("contrastive", "predictive")
MAX_RANKED_VIEWS = 16384  # newest views, in each process, on which average precision is computed


def embedding_spread(embeddings: torch.Tensor) -> torch.Tensor:
    """Spread of embeddings (B, V, D) over the sphere: 1 if they are uniform, 0 if they collapsed to a point.

    It is sqrt(D) times the mean over dimensions of the normalized embeddings' standard deviation over the batch, ().

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.
    """
    normalized = F.normalize(embeddings.float(), dim=-1)
    return normalized.std(dim=0).mean() * embeddings.shape[-1] ** 0.5


class StepAverages:
    """Averages over steps and processes. `add...` never wait for the device, `compute` does once.

    Args:
        parameters: Names of the P augmentation parameters whose differences are added.
    """

    def __init__(self, parameters: Sequence[str] = ()):
        self.parameters = parameters
        self.steps = 0
        self._fit: torch.Tensor | None = None  # (4, P): clips; sums of squared errors, differences and their squares
        self._sums: dict[str, torch.Tensor] = {}
        self._ranked: deque[tuple[torch.Tensor, torch.Tensor]] = deque()  # (V x B, A) logits and labels of each step
        self._ranked_views = 0

    @torch.no_grad()
    def add(self, outputs: ModelOutput, labels: torch.Tensor) -> None:
        """Adds the outputs of MTSLVRForPreTraining for two views, and the multi-hot labels (B, A)."""
        values = {name: outputs[name] for name in LOSSES if outputs.get(name) is not None}
        if all(outputs.get(name) is not None for name in PREDICTIVE_LOSSES):
            values |= {name: outputs[name] for name in PREDICTIVE_LOSSES}
        for task in TASKS:
            embeddings = outputs.get(f"{task}_embeds")
            if embeddings is not None:
                values[f"{task}_spread"] = embedding_spread(embeddings)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        logits = outputs.get("augmentation_logits")  # (B, V, A)
        if logits is not None:
            self._rank(logits.detach().flatten(0, 1), labels.repeat_interleave(logits.shape[1], dim=0))
        self.steps += 1

    @torch.no_grad()
    def add_differences(self, predicted: torch.Tensor, actual: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds predicted and actual differences of parameters, (B, P), where the mask (B, P) is 1."""
        errors = (predicted.float() - actual).square()
        sums = torch.stack([(mask * value).sum(0) for value in (torch.ones_like(mask), errors, actual, actual**2)])
        self._fit = sums if self._fit is None else self._fit + sums

    def _rank(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._ranked.append((logits, labels))
        self._ranked_views += len(logits)
        while self._ranked_views - len(self._ranked[0][0]) >= MAX_RANKED_VIEWS:
            self._ranked_views -= len(self._ranked.popleft()[0])

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Averages by name, the same in every process; every process must call it.

        R2 of a parameter is 1 minus the squared error over the variance, of the clips with its augmentation in all
        steps; it is missing without two such clips. `augmentation_r2` is the mean over the parameters.
        """
        if not self.steps:
            return {}
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self.steps, reduction="mean")
        results = dict(zip(self._sums, means))
        if self._ranked:
            logits, labels = (accelerator.gather(torch.cat(parts)) for parts in zip(*self._ranked))
            results["augmentation_map"] = mean_average_precision(logits, labels)
        if self._fit is not None:
            clips, errors, total, squares = accelerator.reduce(self._fit, reduction="sum")  # (P,) each
            spread = squares - total**2 / clips.clamp(min=1)
            r2 = torch.where((clips > 1) & (spread > 0), 1 - errors / spread, torch.nan)
            results |= {r2_name(name): value for name, value in zip(self.parameters, r2)}
            results["augmentation_r2"] = r2.nanmean()
        numbers = dict(zip(results, torch.stack(list(results.values())).tolist()))
        unknown = [name for name in map(r2_name, self.parameters) if math.isnan(numbers.get(name, 0.0))]
        return {name: number for name, number in numbers.items() if name not in unknown}


def r2_name(parameter: str) -> str:
    """Name of the metric of a parameter: `"r2_pitch_shift_semitones"` of `"pitch_shift.semitones"`."""
    return f"r2_{parameter.replace('.', '_')}"


class Stopwatch:
    """Time of training without evaluations and checkpoints; starts at the `seconds` of a resumed run."""

    def __init__(self, seconds: float = 0.0):
        self._before = self._lap = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Total time in seconds."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Starts the stopwatch unless it runs."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Stops the stopwatch if it runs."""
        self._before, self._since = self.seconds, None

    def lap(self) -> float:
        """Time since the last call in seconds."""
        elapsed = self.seconds - self._lap
        self._lap += elapsed
        return elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which the stopwatch does not run."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


__all__ = ["StepAverages", "Stopwatch", "embedding_spread"]
