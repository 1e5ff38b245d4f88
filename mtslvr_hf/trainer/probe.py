"""Probe: evaluation of the embeddings of a model in training on labelled clips.

Shapes: N clips, S samples of a clip, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..configuration_mtslvr import MTSLVRConfig
from ..data import BadClipError, decode_clip
from ..evaluation.data import EvaluationData
from ..evaluation.few_shot.accuracy import few_shot_accuracy
from ..evaluation.probes import KINDS, probe, split
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor, normalize_waveforms
from ..modeling_mtslvr import MTSLVRForPreTraining

logger = logging.getLogger(__name__)

PROBE_KINDS = ("few_shot", *KINDS)


class Probe:
    """Evaluation of each embedding of a model on labelled clips, which MTSLVRTrainer runs and logs.

    The metrics are `eval_{name}_accuracy_contrastive`, `..._predictive` and `..._both` (those that the model has), or
    `eval_{name}_map_...` for clips with several classes. `metric_for_best_model` may be one of them. The clips are
    decoded once and kept in memory. A probe changes no weights, statistics or random states, hence no losses.

    Args:
        data: Labelled clips with audio. Groups stay in one part if `data.group_disjoint` is true.
        kind: "linear" or "knn", see `probe`, measured on held-out clips; or "few_shot", see `few_shot_accuracy`.
        name: Part of the metrics' names; several probes of a run need different names.
        steps: Steps between two calls; None: with every evaluation.
        max_clips: Largest number of clips; every class keeps its share. 1000 clips of 5 s take 320 MB.
        clip_seconds: Length in s of the middle of each clip that is used; shorter clips are repeated. None: the
            model's window.
        ways, shots, queries, episodes: Few-shot episodes: classes, labelled clips and test clips per class, number.
        seed: Seed of the choice of clips, parts and episodes.

    Raises:
        ValueError: If the data has no audio, the kind is unknown, a few-shot probe has clips with several classes, or
            a number is out of range.
    """

    def __init__(
        self,
        data: EvaluationData,
        kind: str = "linear",
        name: str = "probe",
        steps: int | None = None,
        max_clips: int = 1000,
        clip_seconds: float | None = None,
        ways: int = 5,
        shots: int = 1,
        queries: int = 5,
        episodes: int = 1000,
        seed: int = 0,
    ):
        if kind not in PROBE_KINDS:
            raise ValueError(f"The kind of probe is {kind!r}; expected one of {', '.join(PROBE_KINDS)}.")
        if data.audio is None:
            raise ValueError(f"{data.name} has no audio, only embeddings: a probe needs audio.")
        if kind == "few_shot" and data.multi_label:
            raise ValueError(
                f"Clips of {data.name} have several classes, few-shot episodes need one: use {' or '.join(KINDS)}."
            )
        if (steps is not None and steps < 1) or max_clips < 2:
            raise ValueError(
                f"`steps` is {steps} and `max_clips` {max_clips}; expected None or at least 1, and at least 2."
            )
        self.data = data
        self.kind = kind
        self.name = name
        self.steps = steps
        self.max_clips = max_clips
        self.clip_seconds = clip_seconds
        self.seed = seed
        self._protocol: dict[str, Any] = {"ways": ways, "shots": shots, "queries": queries, "episodes": episodes}
        self._clips: torch.Tensor | None = None  # (N, S)

    def is_due(self, step: int) -> bool:
        """True if the probe runs at this training step; without `steps`, it runs with every evaluation."""
        return self.steps is None or step % self.steps == 0

    def metric_names(self, config: MTSLVRConfig) -> list[str]:
        """Names of the metrics, one for each embedding of a model; that of the whole embedding is last."""
        metric = "map" if self.data.multi_label else "accuracy"
        return [f"eval_{self.name}_{metric}_{part}" for part in _part_names(config)]

    def check(self, args: TrainingArguments, config: MTSLVRConfig) -> None:
        """Raises ValueError if a run with these arguments never calls the probe or cannot select models by it."""
        if self.steps is None and args.eval_strategy == IntervalStrategy.NO:
            raise ValueError(f"The probe {self.name!r} waits for evaluations and there are none: give it `steps`.")
        wanted, own = args.metric_for_best_model or "", self.metric_names(config)
        wanted = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if wanted.startswith(f"eval_{self.name}_") and wanted not in own:
            raise ValueError(f"`metric_for_best_model` is {wanted!r}; this probe measures {', '.join(own)}.")
        if wanted in own and self.steps is not None:
            raise ValueError(
                f"`metric_for_best_model` is {wanted!r}, which every evaluation needs: leave out the probe's `steps`."
            )

    def prepare(self, config: MTSLVRConfig) -> None:
        """Decodes the clips once, and tests the probe on random embeddings.

        Raises:
            ValueError: If no clip can be used, or the clips do not allow this kind of probe.
        """
        if self._clips is not None:
            return
        chosen = _stratified(self.data.labels, self.max_clips, self.seed)
        seconds = self.clip_seconds or config.window_seconds
        clips, kept = _decode(self.data, chosen, seconds, config.sampling_rate)
        self.data = self.data.select(kept)
        self._score(torch.randn(len(clips), 2, generator=torch.Generator().manual_seed(self.seed)))
        self._clips = clips

    @torch.no_grad()
    def __call__(
        self, model: MTSLVRForPreTraining, feature_extractor: MTSLVRFeatureExtractor, batch_size: int = 32
    ) -> dict[str, float]:
        """Metrics of a model by name; the model does not change, the feature extractor sets the normalization."""
        self.prepare(model.config)
        assert self._clips is not None
        pooled = []
        with _evaluating(model):
            for clips in self._clips.split(batch_size):
                clips = normalize_waveforms(
                    clips.to(model.device),
                    feature_extractor.normalization,
                    feature_extractor.mean,
                    feature_extractor.std,
                )
                pooled.append(model.base_model(clips, tasks=model.config.tasks).pooler_output.float().cpu())
        whole = torch.cat(pooled)  # (N, D)
        parts = list(whole.split(model.config.head_size, dim=1))
        embeddings = parts if len(parts) == 1 else [*parts, whole]  # as in _part_names
        with torch.autocast("cpu", enabled=False):  # scores in float32
            return dict(zip(self.metric_names(model.config), map(self._score, embeddings)))

    def _score(self, embeddings: torch.Tensor) -> float:
        """Score of one embedding of all clips (N, D); NaN if it is not finite."""
        if not torch.isfinite(embeddings).all():
            return float("nan")
        data = self.data
        groups = data.groups if data.group_disjoint else None
        if self.kind == "few_shot":
            labels = data.labels.argmax(1)
            return few_shot_accuracy(embeddings, labels, groups=groups, seed=self.seed, **self._protocol).accuracy
        return probe(embeddings, data.labels, data.multi_label, groups, self.kind, self.seed).value


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Context in which every module is in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _part_names(config: MTSLVRConfig) -> list[str]:
    """Names of the heads' embeddings; "both" for that of all heads."""
    heads: dict[str, list[str]] = {}
    for task in config.tasks:
        heads.setdefault(config.embedding_parts[task], []).append(task)
    names = [tasks[0] if len(tasks) == 1 else "both" for tasks in heads.values()]
    return names if len(names) == 1 else [*names, "both"]


def _decode(
    data: EvaluationData, indices: Sequence[int], seconds: float, sampling_rate: int
) -> tuple[torch.Tensor, list[int]]:
    """Clips that can be used (N, S) and their indices; logs the other clips.

    Raises:
        ValueError: If no clip can be used.
    """
    assert data.audio is not None  # Probe checks it
    clips, kept, failures = [], [], []
    for index in indices:
        try:
            clips.append(torch.from_numpy(decode_clip(data.audio[index], seconds, sampling_rate)))
            kept.append(index)
        except BadClipError as error:
            failures.append(error)
    if not clips:
        raise ValueError(f"{data.name}: none of {len(failures)} clips can be used, the first: {failures[0]}")
    if failures:
        logger.warning("%s: %d clips cannot be used, the first: %s", data.name, len(failures), failures[0])
    return torch.stack(clips), kept


def _stratified(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """Indices of at most `most` clips; each class keeps its share."""
    if len(labels) <= most:
        return list(range(len(labels)))
    return split(labels, None, most / len(labels), seed)[1].tolist()


__all__ = ["PROBE_KINDS", "Probe"]
