"""MT-SLVR pre-training as a transformers Trainer.

Shapes: B clips of this process, V views, A augmentations, P processes or augmentation parameters.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate.utils import AutocastKwargs, broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, SchedulerType, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, TrainOutput
from transformers.training_args import TrainingArguments

from ..augmentations import TwoViewAugmentation, TwoViews
from ..cards.parts import save_card
from ..cards.pretraining import TrainingSummary, create_model_card
from ..configuration_mtslvr import MTSLVRConfig
from ..data import AudioStream, dequantize_clips
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor, normalize_waveforms
from ..files import output_folder
from ..modeling_mtslvr import MTSLVRForPreTraining
from ..resumable import ResumableTrainer
from ..resumable.checkpoints import load_run_state
from .arguments import ADAM, MTSLVRTrainingArguments
from .metrics import LOSSES, PREDICTIVE_LOSSES, TASKS, StepAverages, Stopwatch
from .precision import bfloat16_is_faster
from .probe import Probe
from .stream_state import StreamProgress, check_stream, kind_of
from .views_ahead import ViewsAhead, threads_for_views

logger = logging.getLogger(__name__)

SPREADS = tuple(f"{task}_spread" for task in TASKS)
FEWEST_EVAL_CLIPS = 2  # NT-Xent compares clips
LOG_WINDOW_NAME = "log_window_{rank}.pt"
CARD_METRICS = (*LOSSES, *PREDICTIVE_LOSSES, "augmentation_map", "augmentation_r2", *SPREADS)
Made = TypeVar("Made", TwoViews, torch.Tensor)


class SideStream:
    """CUDA stream of its own for the views of a batch, which the GPU makes while it still runs the step before.

    The host waits for nothing in a step, so it is up to a step ahead. On other devices the views are made directly.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make(self, function: Callable[[torch.Tensor], Made], values: torch.Tensor) -> Made:
        """Views, or a tensor, made of `values` (batch, ...) on the CPU or the device; the current stream waits for it.

        Evaluations use it too: augmentations keep filters and windows, which one stream must write and read.
        """
        if self._stream is None:
            return function(values)
        current = torch.cuda.current_stream(self._stream.device)
        if values.is_cuda:
            self._stream.wait_stream(current)  # which may not have written the values yet
            values.record_stream(self._stream)  # keeps their memory until this stream has read them
        with torch.cuda.stream(self._stream):
            made = function(values)
        current.wait_stream(self._stream)  # an event behind the last kernel of the views
        # The views' memory belongs to the side stream. Without this, the side stream could write the next views there
        # as soon as Python drops these, before the current stream has read them.
        for tensor in (made.views, made.labels) if isinstance(made, TwoViews) else (made,):
            tensor.record_stream(current)
        return made


class SaveBestCallback(TrainerCallback):
    """Checkpoint after each evaluation that is the best so far, so that it can be loaded at the end."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert args.metric_for_best_model is not None  # TrainingArguments sets it if the best model is to be loaded
        value = kwargs["metrics"].get(f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
        if value is None or not math.isfinite(value):
            return
        better = state.best_metric is None or (
            value > state.best_metric if args.greater_is_better else value < state.best_metric
        )
        control.should_save = control.should_save or better


class StepEndCallback(TrainerCallback):
    """Call of a function after each step that no evaluation follows."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not control.should_evaluate:
            self.function()


class MTSLVRTrainer(ResumableTrainer):
    """Trainer of MTSLVRForPreTraining on a stream of clips; makes two views of each clip on the model's device.

    In each step, every process reads a batch of its share of the stream, normalizes it, augments it twice, and runs
    one forward pass over both views. The augmentations' draws depend on the seed and the step only: they are the same
    with P processes as with one that has the whole batch, and the same in a resumed run as without interruption.
    Checkpoints also hold each process's position in its stream and its count of skipped rows.

    Args:
        model, args, callbacks, optimizers: As for Trainer.
        train_dataset: Endless stream of batches of this process's share; not needed for evaluation.
        eval_dataset: This process's share of the held-out clips, (N, samples) or with a crop for each view (N, 2,
            samples), not normalized; or several by name. Only full batches are used, or one smaller one, with the
            same augmentations in each evaluation, so that losses can be compared.
        processing_class: The feature extractor. It sets the normalization (default: AudioSet's statistics) and is
            saved with the model.
        augmentation: Makes the two views; default: all of `model.config.augmentations`.
        summary: Facts for the model card that the Trainer cannot know, such as the data set's name.
        probes: Evaluators of the embeddings, each with its own name. Process 0 calls them. Their metrics are logged
            with `eval_{name}_seconds` (of this call) and `eval_{name}_total_seconds` (of all calls).

    Raises:
        TypeError: If a data set has the wrong type.
        ValueError: If the stream was made for another batch size or number of processes, `max_steps` is missing, two
            probes have the same name, or `augmentation` has other augmentations or parameters than the model predicts.
    """

    model: MTSLVRForPreTraining
    args: MTSLVRTrainingArguments
    train_dataset: AudioStream | None
    eval_dataset: torch.Tensor | dict[str, torch.Tensor] | None
    processing_class: MTSLVRFeatureExtractor

    def __init__(
        self,
        model: MTSLVRForPreTraining,
        args: MTSLVRTrainingArguments,
        train_dataset: AudioStream | None = None,
        eval_dataset: torch.Tensor | dict[str, torch.Tensor] | None = None,
        processing_class: MTSLVRFeatureExtractor | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        augmentation: TwoViewAugmentation | None = None,
        summary: TrainingSummary | None = None,
        probes: Sequence[Probe] = (),
    ):
        check_stream(train_dataset, args)
        names = [probe.name for probe in probes]
        if len(set(names)) < len(names):
            raise ValueError(f"The probes are named {', '.join(names)}; give each a `name` that no other has.")
        own_callbacks: list[TrainerCallback] = [StepEndCallback(self._probe_at_step_end)]
        if args.load_best_model_at_end:
            own_callbacks.append(SaveBestCallback())
        if args.early_stopping_patience and args.eval_strategy != IntervalStrategy.NO:
            own_callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        if args.sync_batch_norm and args.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # As the activations lie: convolutions need not copy their kernels, nor the gradients of these, at each call.
        nn.Module.to(model, memory_format=torch.channels_last)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or MTSLVRFeatureExtractor(sampling_rate=model.config.sampling_rate),
            callbacks=[*own_callbacks, *(callbacks or [])],
            optimizers=optimizers,
        )
        vars(model.config).pop("use_cache", None)  # Trainer's, for text generation; not to be saved
        seed = args.seed if args.data_seed is None else args.data_seed
        self.augmentation = augmentation or TwoViewAugmentation(
            model.config.augmentations, sampling_rate=model.config.sampling_rate, seed=seed
        )
        if isinstance(self.augmentation, TwoViewAugmentation) and "predictive" in model.config.tasks:
            _check_augmentation(self.augmentation, model.config)
        self.summary = summary or TrainingSummary()
        self.probes = probes
        self.progress: StreamProgress | None = None
        self._side_stream = SideStream(args.device)
        self._weights_step: int | None = None  # where the loaded best weights come from
        self._averages = self._new_averages(only_finite=True)
        self._clips = 0  # of this process since the last log
        self._small_evaluation = False  # was logged
        self._precision: str | None = None  # of this run, "no" or "bf16", if a measurement chose it
        self._names: list[str] = []  # of the clips of a step
        self._micro_step = (0, -1)  # optimizer step, batch within it
        self._watch = Stopwatch()
        self._probe_seconds: dict[str, float] = {}  # by name, of all calls

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the stream, from the resumed checkpoint's position on; accelerate need not divide them."""
        if self.train_dataset is None:
            raise ValueError("Training needs a `train_dataset`.")
        self.progress = StreamProgress(self.train_dataset, cast(int, self.args.dataloader_num_workers))
        self._averages, self._clips, self._micro_step = self._new_averages(only_finite=True), 0, (0, -1)
        self._watch, self._probe_seconds = Stopwatch(), {}
        if self._resumed_from is not None:
            state = load_run_state(self._resumed_from, self.args.process_index, self.args.world_size)
            self.progress.load_state_dict(state["stream"])
            self._watch = Stopwatch(state["training_seconds"], state["logged_seconds"])
            self._probe_seconds, self._clips = state["probe_seconds"], state["clips"]
            self._set_precision(state.get("precision"))
            window = Path(self._resumed_from) / LOG_WINDOW_NAME.format(rank=self.args.process_index)
            device = "cpu" if self.args.device.type == "cpu" else self.args.device  # torch.load knows no "cpu:0"
            self._averages.load_state_dict(torch.load(window, map_location=device, weights_only=True))
        elif self._precision is None and self.args.device.type == "cpu" and self.accelerator.mixed_precision == "bf16":
            faster = bfloat16_is_faster(self.model, self.accelerator, self.args.per_device_train_batch_size)
            self._set_precision("bf16" if faster else "no")
        return self.progress.dataloader(
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            then=self._views_ahead,
        )

    def _views_ahead(self, batches: Iterator[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Batches from the present step on, on several cores of a CPU with the views of the next ones."""
        threads = threads_for_views(self.model.config, torch.get_num_threads())
        if self.args.device.type != "cpu" or threads < 1:
            return batches

        def make(batch: Mapping[str, Any], draw: int) -> TwoViews:
            return self.make_views(batch["input_values"], draw, "train", batch["scales"])

        return ViewsAhead(batches, make, self.state.global_step * self.args.gradient_accumulation_steps, threads)

    def get_eval_dataloader(self, eval_dataset: str | torch.Tensor | Dataset | None = None) -> DataLoader:
        """Full batches of this process's evaluation clips, the same number in every process.

        Clips that do not fill one batch are one smaller batch.
        """
        clips = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(clips, str) and isinstance(self.eval_dataset, dict):
            clips = self.eval_dataset[clips]
        if not isinstance(clips, torch.Tensor) or clips.ndim not in (2, 3):
            raise TypeError(
                "Evaluation needs a (clips, samples) or (clips, 2, samples) tensor, as `load_clips` returns; got "
                f"{kind_of(clips)}."
            )
        batch = self.args.eval_batch_size
        fewest = int(self.accelerator.gather(torch.tensor([len(clips)], device=self.args.device)).min())
        if fewest < FEWEST_EVAL_CLIPS:
            raise ValueError(f"A process has {fewest} evaluation clips; expected at least {FEWEST_EVAL_CLIPS}.")
        if fewest < batch:
            if not self._small_evaluation:
                logger.warning(
                    "%d evaluation clips in a process do not fill a batch of %d: evaluating in batches of %d. Their "
                    "losses compare with those of other runs only at the same batch size.",
                    *(fewest, batch, fewest),
                )
            self._small_evaluation, batch = True, fewest
        batches = clips[: fewest // batch * batch].unflatten(0, (-1, batch))  # (batches, B, ...)
        return DataLoader(batches, batch_size=None)

    def make_views(self, values: torch.Tensor, step: int, split: str, scales: torch.Tensor | None = None) -> TwoViews:
        """Two augmented views of this process's share of a batch, normalized, on the model's device.

        Args:
            values: (B, samples), or (B, 2, samples) with a crop for each view, not normalized: float waveforms, or
                int16 from the stream.
            step: Number of the batch. The seed, the step and the split decide the draws.
            split: `"train"` or `"eval"`.
            scales: (B,) or (B, 2) scales of int16 values.
        """
        extractor, batch = self.processing_class, len(values)
        offset, total = self.args.process_index * batch, self.args.world_size * batch

        def make(values: torch.Tensor) -> TwoViews:
            waveforms = values.to(self.args.device, non_blocking=True)
            if scales is not None:
                waveforms = dequantize_clips(waveforms, scales.to(self.args.device, non_blocking=True))
            waveforms = normalize_waveforms(waveforms, extractor.normalization, extractor.mean, extractor.std)
            return self.augmentation(waveforms, step=step, split=split, offset=offset, total=total)

        return self._side_stream.make(make, values)

    def _model_inputs(self, views: TwoViews) -> dict[str, torch.Tensor]:
        """Arguments of the model: views, labels and, if it predicts parameters, their differences (B, P)."""
        inputs = {"input_values": views.views, "augmentation_labels": views.labels}
        if self.model.config.parameter_targets:
            differences = views.parameters.differences(self.model.config.parameter_targets)
            inputs["parameter_differences"] = self._side_stream.make(
                lambda values: values.to(self.args.device, non_blocking=True), differences
            )
        return inputs

    def _new_averages(self, only_finite: bool = False) -> StepAverages:
        return StepAverages(self.model.config.parameter_targets, only_finite)

    def _add(self, averages: StepAverages, outputs: Any, inputs: dict[str, torch.Tensor]) -> None:
        """Adds a batch to averages."""
        labels, differences = inputs["augmentation_labels"], inputs.get("parameter_differences")
        averages.add(outputs, labels)
        if differences is not None:
            mask = self.model.parameter_mask(labels)
            averages.add_differences(outputs["predicted_differences"], differences, mask)

    # Precision

    def _set_precision(self, precision: str | None) -> None:
        """Has the forward passes of this run use a precision, "no" or "bf16"; None leaves the configured one."""
        self._precision = precision
        if precision is not None:
            self.accelerator.autocast_handler = AutocastKwargs(enabled=precision != "no")

    # Training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Training from the start or from a checkpoint: a folder, or True for the last complete one in `output_dir`.

        Raises:
            ValueError: If there is no complete checkpoint, another number of processes wrote it, there are too few
                evaluation clips, or a probe cannot work.
            NonFiniteError: If the losses of `max_nonfinite_steps` steps in a row are not finite.
            TooManyBadRowsError: If the share of unusable rows exceeds the stream's `max_bad_share`.
        """
        if self.eval_dataset is not None:  # raises the errors of the first evaluation before the first step
            for clips in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
                self.get_eval_dataloader(clips)
        for probe in self.probes:
            probe.check(self.args, self.model.config)
            if self.is_world_process_zero():
                probe.prepare(self.model.config)
        self._weights_step = None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._watch.stop()
        return output

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Adam with L2 weight decay on every parameter, as the paper's authors use; or a transformers optimizer."""
        if self.args.optim != ADAM or self.optimizer is not None:
            optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        else:
            self.optimizer = optimizer = torch.optim.Adam(
                [parameter for parameter in (model or self.model).parameters() if parameter.requires_grad],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
                fused=True,  # on a CPU too: three times faster, differs by 2e-8 from the unfused one after 5 steps
            )
        of_torch = getattr(optimizer, "optimizer", optimizer)  # of a second training, in accelerate's wrapper
        of_torch.register_load_state_dict_post_hook(_lay_out_state)
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trainer's step on one batch of the stream, whose record is stored."""
        self._watch.start()
        assert self.progress is not None  # get_train_dataloader set it
        self.progress.add(inputs["stream"])
        step, batch = self._micro_step
        self._micro_step = (step, batch + 1) if step == self.state.global_step else (self.state.global_step, 0)
        step, batch = self._micro_step
        self._names = [*(self._names if batch else ()), *inputs["stream"]["names"]]
        draw = step * self.args.gradient_accumulation_steps + batch
        views = inputs["views"] if inputs.get("draw") == draw else None
        if views is None:
            views = self.make_views(inputs["input_values"], draw, "train", inputs["scales"])
        # Trainer would move the batch to the device and wait for it, so the views are made first.
        return super().training_step(model, self._model_inputs(views), num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Loss of one batch of two views. Negatives come from this batch only, also with gradient accumulation."""
        outputs = model(**inputs)
        self._add(self._averages, outputs, inputs)
        self._clips += len(inputs["augmentation_labels"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: Trainer's estimate is for transformers and wrong for convolutions."""
        return 0

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Averages of the losses and other metrics over the batches and the processes; and the probes' metrics."""
        with self._watch.paused():
            self.model.eval()
            _share_buffers(self.model)
            self.callback_handler.eval_dataloader = dataloader
            averages, clips = self._new_averages(), 0
            for step, waveforms in enumerate(dataloader):
                inputs = self._model_inputs(self.make_views(waveforms, step, "eval"))
                with torch.no_grad(), self.accelerator.autocast():
                    outputs = self.model(**inputs)
                self._add(averages, outputs, inputs)
                clips += len(waveforms) * self.args.world_size
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            metrics = averages.compute(self.accelerator)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            if metric_key_prefix == self._first_prefix():
                step = self.state.global_step
                metrics.update(self._measure([p for p in self.probes if not self.is_in_train or p.is_due(step)]))
        return EvalLoopOutput(None, label_ids=None, metrics=metrics, num_samples=clips)  # type: ignore[arg-type]  # Trainer's loop returns None, too

    # Probes

    def _measure(self, probes: Sequence[Probe]) -> dict[str, float]:
        """Metrics and times of the probes, the same in every process; every process must call it."""
        metrics: dict[str, float] = {}
        if probes and self.is_world_process_zero():
            for probe in probes:
                probe.prepare(self.model.config)
                begin = time.perf_counter()
                with self.accelerator.autocast():
                    metrics.update(probe(self.model, self.processing_class, self.args.eval_batch_size))
                seconds = time.perf_counter() - begin
                self._probe_seconds[probe.name] = self._probe_seconds.get(probe.name, 0.0) + seconds
                metrics[f"eval_{probe.name}_seconds"] = seconds
                metrics[f"eval_{probe.name}_total_seconds"] = self._probe_seconds[probe.name]
        return broadcast_object_list([metrics])[0] if probes else {}

    def _probe_at_step_end(self) -> None:
        """Calls probes that have their own `steps`, and logs their metrics."""
        due = [probe for probe in self.probes if probe.steps and probe.is_due(self.state.global_step)]
        if due:
            with self._watch.paused():
                metrics = self._measure(due)
            should_log = self.control.should_log
            self.log(metrics)  # resets should_log
            self.control.should_log = should_log

    def _first_prefix(self) -> str:
        """Prefix of the first data set's metrics: with several data sets, the probes run with the first one only."""
        return f"eval_{next(iter(self.eval_dataset))}" if isinstance(self.eval_dataset, dict) else "eval"

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs; logs of training steps also hold averages since the last log and the stream's counts.

        Raises:
            TooManyBadRowsError: If the share of unusable rows of all processes exceeds the stream's `max_bad_share`.
        """
        if self.progress is None:
            return super().log(logs, start_time)
        self.state.epoch = float(self.progress.epoch)
        if "loss" not in logs or not self._averages.steps:
            return super().log(logs, start_time)
        averages = self._averages.compute(self.accelerator)
        clips = self._clips * self.args.world_size
        self._averages, self._clips = self._new_averages(only_finite=True), 0
        self.progress.merge_processes()
        logs = self.guard.corrected(logs)
        if "loss" in averages:  # Trainer's own lacks the steps before a resumed checkpoint
            logs["loss"] = averages["loss"]
        super().log(
            {**averages, **logs, "clips_per_second": clips / self._watch.lap(), **self.progress.logs()}, start_time
        )
        self.progress.check()

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._watch.paused():
            super()._save_checkpoint(model, trial)

    def run_state(self) -> dict[str, Any]:
        """Position of this process in the stream, and what it has counted."""
        assert self.progress is not None  # get_train_dataloader set it
        return {
            "training_seconds": self._watch.seconds,
            "logged_seconds": self._watch.last_lap,
            "stream": self.progress.state_dict(),
            "probe_seconds": self._probe_seconds,
            "clips": self._clips,
            "precision": self._precision,
        }

    def clip_names(self) -> Sequence[str]:
        """Names of the clips of the current step, for messages."""
        return self._names

    def _save_rng_state(self, output_dir: str) -> None:
        """Also writes the sums since the last log, so that a resumed run logs the same averages."""
        path = Path(output_dir) / LOG_WINDOW_NAME.format(rank=self.args.process_index)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._averages.state_dict(), path)
        super()._save_rng_state(output_dir)

    def _restore(self, checkpoint: str) -> TrainOutput:
        self.get_train_dataloader()  # for the counts and times of the run
        return super()._restore(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.create_model_card(folder=Path(output_dir or output_folder(self.args)))

    def _load_best_model(self) -> bool:  # type: ignore[override]  # as in ResumableTrainer
        loaded = super()._load_best_model()
        self._weights_step = self.state.best_global_step if loaded else None
        return loaded

    def create_model_card(  # type: ignore[override]  # other facts than Trainer's card
        self,
        model_name: str | None = None,
        license: str | None = None,
        tags: Sequence[str] = (),
        folder: str | Path | None = None,
    ) -> None:
        """Writes the model card README.md: the model, its training, and the run's metrics.

        Args:
            model_name: Title; default: the variant's name in the paper.
            license: License of the weights, as the Hub spells it; default: `args.license`.
            tags: Added to the tags of every MT-SLVR model.
            folder: Folder of the card; default: the output folder.
        """
        if not self.is_world_process_zero():
            return
        card = create_model_card(
            self.model.config,
            self._summary(),
            model_name=model_name,
            repo_id=getattr(self, "hub_model_id", None),
            license=license or self.args.license,
        )
        known = card.data["tags"]
        card.data["tags"] = [*known, *(tag for tag in tags if tag not in known)]
        save_card(card, Path(folder or output_folder(self.args)))

    def _summary(self) -> TrainingSummary:
        """Summary of the run for its card; with the best weights loaded, steps and metrics are those of their step."""
        args, steps = self.args, self._weights_step or self.state.global_step
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        stream, precision = self.train_dataset, self._precision or self.accelerator.mixed_precision
        on_gpu = args.device.type == "cuda"
        return replace(
            self.summary,
            steps=steps,
            batch_size=batch,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            optimizer="Adam" if args.optim == ADAM else str(args.optim),
            lr_scheduler=SchedulerType(args.lr_scheduler_type).value,
            clips_seen=steps * batch,
            clips_skipped=self.progress.all_skipped.skipped if self.progress else None,
            clip_seconds=stream.clip_seconds if stream is not None else None,
            normalization=self.processing_class.normalization,
            views=self._views_in_words(),
            num_processes=args.world_size,
            precision="float32" if precision == "no" else precision,
            device=torch.cuda.get_device_name(args.device) if on_gpu else f"CPU, {os.cpu_count()} cores",
            training_seconds=self._watch.seconds if steps == self.state.global_step else None,
            seed=args.seed,
            metrics=self._figures(steps),
        )

    def _views_in_words(self) -> str | None:
        """Crops and augmentations of the views, for the card; None if something else than the pipeline makes them."""
        pipeline, stream = self.augmentation, self.train_dataset
        if stream is None or not isinstance(pipeline, TwoViewAugmentation):
            return None
        crops = "one random crop" if stream.crops == 1 else "two random crops"
        count = f"{pipeline.min_augmentations} to {pipeline.max_augmentations} of {len(pipeline.names)}"
        return f"{crops} of a clip, {count} augmentations"

    def _figures(self, step: int) -> dict[str, float]:
        """Last value of each metric that was logged up to a step."""
        names = {f"{prefix}{name}" for prefix in ("", "eval_") for name in CARD_METRICS}
        names.update(name for probe in self.probes for name in probe.metric_names(self.model.config))
        figures: dict[str, float] = {}
        for entry in self.state.log_history:
            if entry["step"] <= step:
                figures.update({name: value for name, value in entry.items() if name in names})
        return figures


def _check_augmentation(augmentation: TwoViewAugmentation, config: MTSLVRConfig) -> None:
    """Raises a ValueError unless the pipeline has the augmentations and parameters that the model predicts."""
    if list(augmentation.names) != config.augmentations:
        raise ValueError(
            f"`augmentation` has {', '.join(augmentation.names)}; the model predicts "
            f"{', '.join(config.augmentations)}. Give both the same names in the same order."
        )
    if config.parameter_targets:
        augmentation.draw(1, step=0).differences(config.parameter_targets)


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives a loaded state the memory layout of its parameters: fused optimizers read both in the order of memory.

    Checkpoints of models whose parameters lay in another layout hold states in that layout.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _share_buffers(model: nn.Module) -> None:
    """Copies BatchNorm's statistics of process 0, which are saved, to all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


__all__ = ["MTSLVRTrainer", "SaveBestCallback", "SideStream"]
