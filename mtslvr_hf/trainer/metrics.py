"""Metrics of a training run, summed on the device without waiting for it.

Shapes: B clips, V views, D embedding size, A augmentations, P augmentation parameters.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from ..metrics import mean_average_precision

LOSSES = ("loss", "contrastive_loss", "predictive_loss")
PREDICTIVE_LOSSES = ("label_loss", "parameter_loss")  # both terms of the predictive loss, if it has two
TASKS = ("contrastive", "predictive")
SUMS = ("_counted", "_sums", "_fit")  # in the state of StepAverages
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
        only_finite: Steps whose loss is not finite are left out, as training skips them.
    """

    def __init__(self, parameters: Sequence[str] = (), only_finite: bool = False):
        self.parameters = parameters
        self.only_finite = only_finite
        self.steps = 0
        self._counted: torch.Tensor | float = 0.0  # steps in the sums
        self._counts = torch.ones((), dtype=torch.bool)  # the last step does
        self._fit: torch.Tensor | None = None  # (4, P): clips; sums of squared errors, differences and their squares
        self._sums: dict[str, torch.Tensor] = {}
        # Of each step (V x B, A) logits and labels, and (V x B) True for those that count.
        self._ranked: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
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
        counts = torch.isfinite(outputs["loss"].detach())
        self._counts = counts if self.only_finite else torch.ones_like(counts)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(self._counts, value.detach().float(), 0.0)
        self._counted = self._counted + self._counts.float()
        logits = outputs.get("augmentation_logits")  # (B, V, A)
        if logits is not None:
            # A copy: the next step of a compiled model may write its logits to the same memory.
            self._rank(logits.detach().flatten(0, 1).clone(), labels.repeat_interleave(logits.shape[1], dim=0))
        self.steps += 1

    @torch.no_grad()
    def add_differences(self, predicted: torch.Tensor, actual: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds predicted and actual differences of parameters, (B, P), where the mask (B, P) is 1."""
        errors = (predicted.float() - actual).square()
        mask = mask * self._counts
        values = (torch.ones_like(mask), torch.where(self._counts, errors, 0.0), actual, actual**2)
        sums = torch.stack([(mask * value).sum(0) for value in values])
        self._fit = sums if self._fit is None else self._fit + sums

    def _rank(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._ranked.append((logits, labels, self._counts.expand(len(logits))))
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
        *sums, counted = accelerator.reduce(
            torch.stack([*self._sums.values(), cast(torch.Tensor, self._counted)]), reduction="sum"
        )
        results = {name: total / counted for name, total in zip(self._sums, sums)}
        if self._ranked:
            logits, labels, counts = (accelerator.gather(torch.cat(parts)) for parts in zip(*self._ranked))
            results["augmentation_map"] = mean_average_precision(logits[counts], labels[counts])
        if self._fit is not None:
            clips, errors, total, squares = accelerator.reduce(self._fit, reduction="sum")  # (P,) each
            spread = squares - total**2 / clips.clamp(min=1)
            r2 = torch.where((clips > 1) & (spread > 0), 1 - errors / spread, torch.nan)
            results |= {r2_name(name): value for name, value in zip(self.parameters, r2)}
            results["augmentation_r2"] = r2.nanmean()
        numbers = dict(zip(results, torch.stack(list(results.values())).tolist()))
        unknown = [name for name in map(r2_name, self.parameters) if math.isnan(numbers.get(name, 0.0))]
        if self.only_finite:  # no step was finite
            unknown += [name for name, number in numbers.items() if math.isnan(number)]
        return {name: number for name, number in numbers.items() if name not in unknown}

    def state_dict(self) -> dict[str, Any]:
        """Sums, for `torch.save`."""
        return {"steps": self.steps, **{name: getattr(self, name) for name in SUMS}, "_ranked": list(self._ranked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict`, whose tensors are on the device of training."""
        self.steps, self._ranked = state["steps"], deque(state["_ranked"])
        self._ranked_views = sum(len(logits) for logits, *_ in self._ranked)
        for name in SUMS:
            setattr(self, name, state[name])


def r2_name(parameter: str) -> str:
    """Name of the metric of a parameter: `"r2_pitch_shift_semitones"` of `"pitch_shift.semitones"`."""
    return f"r2_{parameter.replace('.', '_')}"


class Stopwatch:
    """Time of training without evaluations and checkpoints; a resumed run gives its `seconds` and last lap."""

    def __init__(self, seconds: float = 0.0, last_lap: float | None = None):
        self._before = seconds
        self.last_lap = seconds if last_lap is None else last_lap  # when `lap` was called
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
        elapsed = self.seconds - self.last_lap
        self.last_lap += elapsed
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
