"""Trainer whose runs can be stopped and resumed at any step, and end when their losses are not finite."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from huggingface_hub import run_as_future, upload_folder
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput
from transformers.training_args import TrainingArguments
from transformers.utils import PushInProgress

from ..files import output_folder
from .checkpoints import fault_of, last_checkpoint, load_run_state, save_run_state, seal, set_aside, unseal
from .signals import RunStopped, StopRequestedError, StopSignals
from .steps import NonFiniteError, StepGuard, check_weights, gradient_norm

logger = logging.getLogger(__name__)

MOST_NONFINITE_STEPS = 10
WAITING_SECONDS = 60.0  # between two lines while no batch comes
CHECKPOINT_STRATEGIES = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # in each process
ADAM_COPIES = 3  # weights and two moments in a checkpoint


class SaveError(OSError):
    """Error of a checkpoint or model that could not be written; its message says how much room there is."""


class _StepCallback(TrainerCallback):
    """Calls of a ResumableTrainer in each step."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.evaluate_if_due()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.guard.begin(self.trainer.model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.check_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.stop_if_asked()


class ResumableTrainer(Trainer):
    """transformers' Trainer with safe runs.

    A step whose loss or gradients are not finite is skipped; after `args.max_nonfinite_steps` in a row, training ends.
    Checkpoints hold checksums, and `last_checkpoint` passes over damaged ones. Weights that are not finite are never
    saved. With `signals`, the first signal saves a checkpoint and ends the program.

    Raises:
        NonFiniteError: From `train` and `save_model`, see above.
        SaveError: If a checkpoint or the model cannot be written.
    """

    model: PreTrainedModel
    signals: StopSignals | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.guard = self._new_guard()
        self._gradient_norm: torch.Tensor | None = None  # of this step, if it is known
        self.add_callback(_StepCallback(self))
        self._resumed_from: str | None = None
        self._first_step = 0  # of this start
        self._saved_step: int | None = None  # of the last checkpoint of this process
        self._evaluation_due = False
        self._stopping: int | None = None  # signal

    # What subclasses add

    def run_state(self) -> dict[str, Any]:
        """State of this process for its checkpoint, for JSON."""
        return {}

    def clip_names(self) -> Sequence[str]:
        """Names of the clips of the current step, for messages."""
        return ()

    # Training

    def _new_guard(self) -> StepGuard:
        return StepGuard(getattr(self.args, "max_nonfinite_steps", MOST_NONFINITE_STEPS))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Training from the start or from a checkpoint: a folder, or True for the last complete one in `output_dir`.

        Without a checkpoint, those of an earlier run in `output_dir` are moved to a folder of their own there.
        A checkpoint at the end of a run is loaded, with the best weights if asked for, and nothing is trained.

        Raises:
            ValueError: If there is no complete checkpoint, or another number of processes wrote it.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        self._resumed_from, self._saved_step, self._stopping = checkpoint, None, None
        self.guard = self._new_guard()
        if self.args.push_to_hub and HubStrategy(self.args.hub_strategy) in CHECKPOINT_STRATEGIES:
            logger.info(
                "hub_strategy %s also publishes optimizer, schedule and random states.",
                HubStrategy(self.args.hub_strategy).value,
            )
        if checkpoint is None:
            self._start_anew()
        else:
            state = load_run_state(checkpoint, self.args.process_index, self.args.world_size)
            self.guard.load_state_dict(state["steps"])
            self._evaluation_due = state["evaluation_due"]
            if is_over(checkpoint, self.args):
                return self._restore(checkpoint)
        self._first_step = 0 if checkpoint is None else trainer_state(checkpoint).global_step
        with nullcontext() if self.signals is None else self.signals.deferred():
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
            self.guard.finish()
        if self.signals is not None and self.signals.requested is not None:  # behind the last step
            raise RunStopped(self.signals.requested)
        return output

    def _checkpoint(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        checkpoint = last_checkpoint(output_folder(self.args)) if wanted is True else wanted
        if checkpoint is None:
            raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        fault = fault_of(checkpoint)
        if fault is not None:
            raise ValueError(f"{checkpoint} is no complete checkpoint: {fault}. Resume from another one.")
        return checkpoint

    def _start_anew(self) -> None:
        self._evaluation_due = False
        if self.is_world_process_zero():
            aside = set_aside(output_folder(self.args))
            if aside is not None:
                logger.info("The checkpoints of an earlier run are now in %s; remove it if you do not need it.", aside)
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: str) -> TrainOutput:
        """Loads the end of a run: its state, and the best weights if they are asked for."""
        self.state = trainer_state(checkpoint)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._load_from_checkpoint(checkpoint)
        logger.info("%s is the end of training; what follows it is done now.", checkpoint)
        if self.guard.mean_loss(self.state.global_step) is not None:
            self.log({"total_flos": self.state.total_flos, "train_loss": 0.0})  # `log` sets it
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            beside = Path(checkpoint).parent / Path(best).name  # also if the run's folder was moved
            self.state.best_model_checkpoint = str(beside)
            self._load_best_model()
        return TrainOutput(self.state.global_step, float("nan"), {})

    def _load_best_model(self) -> bool:  # type: ignore[override]  # True if the weights were loaded
        best = self.state.best_model_checkpoint
        assert best is not None
        fault = None if self.args.save_only_model else fault_of(best)
        if fault is None:
            super()._load_best_model()
        else:
            logger.warning("The best checkpoint %s is not used: %s. The last weights are kept.", best, fault)
        return fault is None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trainer's step; a loss that is not finite is returned as 0, and the step skipped."""
        return self.guard.add(super().training_step(model, inputs, num_items_in_batch))

    def check_step(self) -> None:
        """Skips the optimizer's step if it is not finite."""
        self.guard.check(
            self.model,
            self.optimizer,
            self.state.global_step + 1,
            self.clip_names(),
            stop=self.signals is not None and self.signals.requested is not None,
            scaled=self.accelerator.scaler is not None,
            norm=self._gradient_norm,
        )
        self._gradient_norm = None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Norm of the gradients for the logs, which `check_step` uses too.

        Trainer's own clips to an infinite norm: it multiplies all gradients by 1.
        """
        if self.accelerator.scaler is not None or self.accelerator.distributed_type not in WHOLE_GRADIENTS:
            return super()._get_grad_norm(model, grad_norm)
        self._gradient_norm = gradient_norm(model) if grad_norm is None else grad_norm
        return self._gradient_norm

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """Trainer's batches of a step; a line is logged each minute without a batch."""
        try:
            with _waiting_lines(self.args.should_log), self._interruptible():
                return super().get_batch_samples(epoch_iterator, num_batches, device)
        except StopRequestedError:
            return self._save_and_stop()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs; the mean loss is that of the finite steps, `skipped_steps` counts the others.

        `train_loss` is the mean over the whole run; Trainer's own lacks the steps before a resumed checkpoint.
        """
        if "train_loss" in logs:
            mean = self.guard.mean_loss(self.state.global_step)
            if mean is not None:
                means = self.accelerator.gather(torch.tensor([mean], device=self.args.device, dtype=torch.float32))
                logs = {**logs, "train_loss": means.mean().item()}
        super().log(self.guard.corrected(logs) if self.is_in_train and "loss" in logs else logs, start_time)

    # Stops

    def stop_if_asked(self) -> None:
        """At the end of a step, has a checkpoint saved and training ended if a signal came."""
        if self.signals is None:
            return
        if self.guard.stop if self.args.world_size > 1 else self.signals.requested is not None:
            self._stopping = self.signals.requested or signal.SIGTERM
            self._evaluation_due, self.control.should_evaluate = self.control.should_evaluate, False
            self.control.should_save = True

    def evaluate_if_due(self) -> None:
        """After a stop that left out an evaluation, runs it."""
        if self._evaluation_due and self._resumed_from is not None:
            self.control.should_evaluate, self._evaluation_due = True, False
            self._maybe_log_save_evaluate(torch.zeros(()), None, self.model, None, self.state.epoch, None, 0.0)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            with self._interruptible():
                return super()._evaluate(*args, **kwargs)
        except StopRequestedError:
            self._evaluation_due = True
            return self._save_and_stop()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Context in which a signal ends the run at once; several processes have to agree at the end of a step."""
        alone = self.signals is not None and self.is_in_train and self.args.world_size == 1
        with self.signals.interruptible() if self.signals is not None and alone else nullcontext():
            yield

    def _save_and_stop(self) -> Any:
        assert self.signals is not None and self.signals.requested is not None
        self._stopping = self.signals.requested
        if self.state.global_step > self._first_step:
            self._save_checkpoint(self.model, None)
        self._stop()

    def _stop(self) -> None:
        assert self._stopping is not None
        logger.info("Stopped at step %d. Give the same command again to go on.", self.state.global_step)
        raise RunStopped(self._stopping)

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        self.guard.resolve()
        if step == self._saved_step or (self.guard.in_a_row and self._stopping is None):
            return  # is saved; or hides the checkpoint before steps that are not finite
        check_weights(self.model, step)
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        with self.writing(folder):
            if self.args.should_save:
                unseal(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                seal(folder)
        self._saved_step = step
        if self._stopping is not None:
            self._stop()

    def _save_rng_state(self, output_dir: str) -> None:
        """Also writes the state of this process: behind all files but transformers' state, and before rotation."""
        super()._save_rng_state(output_dir)
        state = {**self.run_state(), "steps": self.guard.state_dict(), "evaluation_due": self._evaluation_due}
        save_run_state(output_dir, self.args.process_index, self.args.world_size, state)
        self.accelerator.wait_for_everyone()  # transformers' state must be written last: see `fault_of`

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        check_weights(self.model, self.state.global_step)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            pickle = Path(output_dir or output_folder(self.args)) / TRAINING_ARGS_NAME
            pickle.unlink(missing_ok=True)  # nothing here reads it

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the model during training; with `hub_strategy` checkpoint also what it takes to resume."""
        strategy, now = HubStrategy(self.args.hub_strategy), self.state.global_step
        pushing = cast(Any, self.push_in_progress)
        busy = pushing is not None and not pushing.is_done()
        if not self.is_world_process_zero() or strategy == HubStrategy.END or (busy and not self.args.hub_always_push):
            return
        message = f"Training in progress, step {now}"
        jobs: list[Any] = [self.push_to_hub(commit_message=message, blocking=False)]
        if strategy in CHECKPOINT_STRATEGIES:
            last = strategy == HubStrategy.CHECKPOINT
            upload = run_as_future(
                _upload_behind,
                jobs[0],
                repo_id=self.hub_model_id,
                token=self.args.hub_token,
                folder_path=checkpoint_folder,
                path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                commit_message=f"{message}, checkpoint",
                revision=self.args.hub_revision,
            )
            upload.add_done_callback(_report_upload)
            jobs.append(upload)
        self.push_in_progress = cast(Any, PushInProgress(cast(Any, jobs)))

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Context of writing a checkpoint, or the model: an error says how much room is missing.

        Raises:
            SaveError: Instead of the error; a checkpoint that is half-written is removed.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, (NonFiniteError, SaveError)) or fault_of(folder) is None:
                raise  # not of writing: the checkpoint is complete
            if folder != output_folder(self.args) and self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise SaveError(self._failure(folder, error)) from error

    def _failure(self, folder: Path, error: Exception) -> str:
        weights = sum(value.numel() * value.element_size() for value in self.model.state_dict().values())
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        whole = last_checkpoint(output_folder(self.args))
        kept = "There is no complete checkpoint yet" if whole is None else f"The last complete checkpoint is {whole}"
        return (
            f"{folder} could not be written ({' '.join(str(error).split())[:200]}). "
            f"{shutil.disk_usage(existing).free / 1e6:.1f} MB are free there; a checkpoint takes about "
            f"{ADAM_COPIES * weights / 1e6:.1f} MB. {kept}; make room and give the same command again."
        )


def _upload_behind(other: Future[Any], **folder: Any) -> None:
    """Uploads a folder once another upload has ended: two commits at once would refuse each other."""
    other.exception()
    upload_folder(**folder)


def _report_upload(upload: Future[Any]) -> None:
    error = upload.exception()
    if error is not None:
        logger.warning("A checkpoint was not published: %s", " ".join(str(error).split()))


def trainer_state(checkpoint: str | Path) -> TrainerState:
    """State of the Trainer in a checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))


def is_over(checkpoint: str | Path, args: TrainingArguments) -> bool:
    """True if a checkpoint is the end of training: its last step, or the step at which it was stopped early."""
    state = trainer_state(checkpoint)
    patience = getattr(args, "early_stopping_patience", 0)
    return state.global_step >= args.max_steps > 0 or 0 < patience <= evaluations_without_improvement(state)


def evaluations_without_improvement(state: TrainerState) -> int:
    """Evaluations in a row before this state that early stopping counted."""
    stopped = cast(Any, state.stateful_callbacks).get("EarlyStoppingCallback", {})
    return stopped.get("attributes", {}).get("early_stopping_patience_counter", 0)


@contextmanager
def _waiting_lines(enabled: bool) -> Iterator[None]:
    """Context that logs a line each minute."""
    over = threading.Event()

    def report() -> None:
        seconds = WAITING_SECONDS
        while not over.wait(WAITING_SECONDS):
            logger.warning("Waiting for the next batch of clips since %.0f s.", seconds)
            seconds += WAITING_SECONDS

    thread = threading.Thread(target=report, daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        over.set()


__all__ = [
    "MOST_NONFINITE_STEPS",
    "ResumableTrainer",
    "SaveError",
    "evaluations_without_improvement",
    "is_over",
    "trainer_state",
]
