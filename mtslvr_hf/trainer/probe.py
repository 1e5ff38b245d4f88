"""Probe of a model in training: an evaluator that measures its embeddings on labelled clips.

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
    """Evaluator of each embedding of a model on labelled clips, which MTSLVRTrainer calls and logs.

    It measures `eval_{name}_accuracy_contrastive`, `..._predictive` and `..._both`, or `eval_{name}_map_...` where
    clips have several classes: whichever embeddings the model has. `metric_for_best_model` may name one of them; then
    the best checkpoint and early stopping follow it.

    The clips are decoded once and kept in memory. Neither weights nor statistics nor the state of any random generator
    are changed: a run has the same losses with a probe and without.

    Args:
        data: What to probe on; it must have audio. Its groups are kept apart if its `group_disjoint` says so.
        kind: "linear" or "knn", see `probe`, whose held-out part is measured; or "few_shot", see `few_shot_accuracy`.
        name: What its measures are called by, for several probes in a run.
        steps: Called every so many steps of the training; with every evaluation if None.
        max_clips: Clips to use at most, chosen so that every class keeps its share. 1000 of 5 s take 320 MB.
        clip_seconds: Middle of each clip to use; shorter ones are repeated. The model's window unless given.
        ways: Classes in an episode.
        shots: Labelled clips of each class in an episode.
        queries: Clips of each class to be told apart in an episode.
        episodes: Number of few-shot episodes.
        seed: Chooses clips, parts and episodes, which are the same for all probes of a run.

    Raises:
        ValueError: If the data has no audio, there is no such kind, episodes are to be drawn from clips of
            several classes, or a number is out of its range.
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
            raise ValueError(f"the kind of probe is {kind!r}; expected one of {', '.join(PROBE_KINDS)}.")
        if data.audio is None:
            raise ValueError(f"{data.name} has no audio: a model in training needs it, embeddings alone do not do.")
        if kind == "few_shot" and data.multi_label:
            raise ValueError(
                f"clips of {data.name} have several classes, episodes need one: use {' or '.join(KINDS)}."
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
        """Whether it is called at this step of the training, with an evaluation if it has no steps of its own."""
        return self.steps is None or step % self.steps == 0

    def metric_names(self, config: MTSLVRConfig) -> list[str]:
        """Names of the metrics: one for each embedding of a model, the whole one last."""
        metric = "map" if self.data.multi_label else "accuracy"
        return [f"eval_{self.name}_{metric}_{part}" for part in _part_names(config)]

    def check(self, args: TrainingArguments, config: MTSLVRConfig) -> None:
        """Raises ValueError if a run with these arguments would never call it, or could not follow its metrics."""
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
        """Decodes the clips, once, and tries the probe on embeddings that say nothing.

        Raises:
            ValueError: If none of the clips can be used, or they do not allow this kind of probe.
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
        """The metrics of a model, by name.

        Args:
            model: On its device; it is left as it was.
            feature_extractor: Names the normalization of its input.
            batch_size: Clips embedded at once.
        """
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
        with torch.autocast("cpu", enabled=False):  # they are float32, and are scored as such
            return dict(zip(self.metric_names(model.config), map(self._score, embeddings)))

    def _score(self, embeddings: torch.Tensor) -> float:
        """The measure of one embedding of all clips (N, D); NaN if it is not finite, as the losses then are."""
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
    """Has every module in evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _part_names(config: MTSLVRConfig) -> list[str]:
    """Names of the heads' embeddings, and of all of them together."""
    heads: dict[str, list[str]] = {}
    for task in config.tasks:
        heads.setdefault(config.embedding_parts[task], []).append(task)
    names = [tasks[0] if len(tasks) == 1 else "both" for tasks in heads.values()]
    return names if len(names) == 1 else [*names, "both"]


def _decode(
    data: EvaluationData, indices: Sequence[int], seconds: float, sampling_rate: int
) -> tuple[torch.Tensor, list[int]]:
    """Those of the clips that can be used (N, S), and their indices; a warning tells of the others.

    Raises:
        ValueError: If none can.
    """
    assert data.audio is not None  # `Probe` takes no other data
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
    """At most so many of the clips, each class keeping its share."""
    if len(labels) <= most:
        return list(range(len(labels)))
    return split(labels, None, most / len(labels), seed)[1].tolist()


__all__ = ["PROBE_KINDS", "Probe"]
