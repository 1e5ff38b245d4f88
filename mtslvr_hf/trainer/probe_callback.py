"""Probe of a model in training: a callback that measures its embeddings on labelled clips.

Shapes: N clips, S samples of a clip, D embedding size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from ..data import BadClip, decode_clip
from ..evaluation.few_shot.accuracy import few_shot_accuracy
from ..evaluation.probes import KINDS, probe, split
from ..feature_extraction_mtslvr import normalize_waveforms
from .arguments import MTSLVRTrainingArguments

if TYPE_CHECKING:
    from ..evaluation.data import EvaluationData

logger = logging.getLogger(__name__)

PROBE_KINDS = ("few_shot", *KINDS)


class ProbeCallback(TrainerCallback):
    """Probes each embedding of the model on labelled clips, as part of evaluations or every so many steps.

    It measures `eval_{name}_accuracy_contrastive`, `..._predictive` and `..._both`, or `eval_{name}_map_...` where
    clips have several classes: whichever embeddings the model has. `metric_for_best_model` may name one of them; then
    the best checkpoint and early stopping follow it. Beside them, `eval_{name}_seconds` is what this probe took, and
    `eval_{name}_total_seconds` all of them so far.

    The clips are decoded once, before the first step, and the process that saves the model keeps them in memory and
    probes while the others wait. Neither weights nor statistics nor the state of any random generator are changed: a
    run has the same losses with a probe and without.

    Args:
        data: What to probe on; it must have audio. Its groups are kept apart if its `group_disjoint` says so.
        kind: "linear" or "knn", see `probe`, whose held-out part is measured; or "few_shot", see `few_shot_accuracy`.
        name: What its measures are called by, for several probes in a run.
        steps: Probe every so many steps; with every evaluation if None.
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
            raise ValueError(f"the kind of probe is {kind!r}; expected one of {', '.join(PROBE_KINDS)}")
        if data.audio is None:
            raise ValueError(f"{data.name} has no audio: a model in training needs it, embeddings alone do not do")
        if kind == "few_shot" and data.multi_label:
            raise ValueError(f"clips of {data.name} have several classes, episodes need one: use {' or '.join(KINDS)}")
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
        self._protocol = {"ways": ways, "shots": shots, "queries": queries, "episodes": episodes}
        self._trainer: Trainer | None = None
        self._paused: Callable[[], AbstractContextManager[None]] = nullcontext
        self._clips: torch.Tensor | None = None  # (N, S) of the process that probes
        self._seconds = 0.0  # spent on all probes

    # What MTSLVRTrainer calls

    def attach(self, trainer: Trainer, paused: Callable[[], AbstractContextManager[None]]) -> None:
        """Sets the Trainer whose model is probed, and the context in which its stopwatch pauses."""
        self._trainer, self._paused = trainer, paused

    def metric_names(self) -> list[str]:
        """Names of the logged metrics: one for each embedding of the model, the whole one last."""
        metric = "map" if self.data.multi_label else "accuracy"
        return [f"eval_{self.name}_{metric}_{part}" for part in _part_names(self._trainer.model.config)]

    def metrics(self) -> dict[str, float]:
        """Measures for an evaluation; none during training between the probe's steps.

        Every process must call it, and gets the same.
        """
        if self._trainer.is_in_train and not self._due():
            return {}
        return self._measure()

    def state_dict(self) -> dict[str, float]:
        """Seconds spent so far, for a run that is resumed."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores the seconds of a `state_dict`; 0 from an empty one."""
        self._seconds = state.get("seconds", 0.0)

    # What Trainer calls

    def on_train_begin(
        self, args: MTSLVRTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decodes the clips and tries the probe, so that what cannot work fails before the first step.

        Raises:
            ValueError: If it would never run, cannot choose the best checkpoint, or the clips do not allow it.
        """
        if self._trainer is None:
            raise TypeError("A ProbeCallback needs an MTSLVRTrainer.")
        if self.steps is None and args.eval_strategy == IntervalStrategy.NO:
            raise ValueError(f"The probe {self.name!r} waits for evaluations and there are none: give it `steps`.")
        wanted, own = args.metric_for_best_model or "", self.metric_names()
        wanted = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if wanted.startswith(f"eval_{self.name}_") and wanted not in own:
            raise ValueError(f"`metric_for_best_model` is {wanted!r}; this probe measures {', '.join(own)}.")
        if self._drives(args) and self.steps is not None:
            raise ValueError(
                f"`metric_for_best_model` is {wanted!r}, which every evaluation needs: leave out the probe's `steps`."
            )
        if self._trainer.is_world_process_zero():
            self._prepare()

    def on_step_end(
        self, args: MTSLVRTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probes where no evaluation follows, which would do so."""
        if not control.should_evaluate and self.steps is not None and self._due():
            with self._paused():
                metrics = self._measure()
            should_log = control.should_log
            self._trainer.log(metrics)  # which takes the step's own log for done
            control.should_log = should_log

    # Parts

    def _due(self) -> bool:
        return self.steps is None or self._trainer.state.global_step % self.steps == 0

    def _drives(self, args: MTSLVRTrainingArguments) -> bool:
        wanted = args.metric_for_best_model or ""
        return {wanted, f"eval_{wanted}"} & set(self.metric_names()) != set()

    def _measure(self) -> dict[str, float]:
        """The measures, the same in every process."""
        measures = None
        if self._trainer.is_world_process_zero():
            self._prepare()
            begin = time.perf_counter()
            scores = [self._score(embeddings) for embeddings in self._embed()]
            seconds = time.perf_counter() - begin
            self._seconds += seconds
            measures = dict(zip(self.metric_names(), scores))
            measures[f"eval_{self.name}_seconds"] = seconds
            measures[f"eval_{self.name}_total_seconds"] = self._seconds
        return _from_main(measures)

    def _prepare(self) -> None:
        """Decodes the clips, once, and tries the probe on embeddings that say nothing."""
        if self._clips is not None:
            return
        config = self._trainer.model.config
        chosen = _stratified(self.data.labels, self.max_clips, self.seed)
        seconds = self.clip_seconds or config.window_seconds
        clips, kept = _decode(self.data, chosen, seconds, config.sampling_rate)
        self.data = self.data.select(kept)
        self._score(torch.randn(len(clips), 2, generator=torch.Generator().manual_seed(self.seed)))
        self._clips = clips

    @torch.no_grad()
    def _embed(self) -> list[torch.Tensor]:
        """Each embedding of all clips (N, D), in the order of the metrics' names, on the CPU."""
        trainer = self._trainer
        model, extractor = trainer.model, trainer.processing_class
        pooled = []
        with _evaluating(model), trainer.accelerator.autocast():
            for clips in self._clips.split(trainer.args.eval_batch_size):
                clips = clips.to(trainer.args.device)
                clips = normalize_waveforms(clips, extractor.normalization, extractor.mean, extractor.std)
                pooled.append(model.base_model(clips, tasks=model.config.tasks).pooler_output.float().cpu())
        whole = torch.cat(pooled)  # (N, D)
        parts = list(whole.split(model.config.head_size, dim=1))
        return parts if len(parts) == 1 else [*parts, whole]

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


def _part_names(config: Any) -> list[str]:
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
    clips, kept, failures = [], [], []
    for index in indices:
        try:
            clips.append(torch.from_numpy(decode_clip(data.audio[index], seconds, sampling_rate)))
            kept.append(index)
        except BadClip as error:
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


def _from_main(value: Any) -> Any:
    """The value of the process that saves the model, in all of them; each must call it."""
    return broadcast_object_list([value])[0]


__all__ = ["PROBE_KINDS", "ProbeCallback"]
