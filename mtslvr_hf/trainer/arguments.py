"""Training arguments of pre-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from ..resumable.trainer import MOST_NONFINITE_STEPS
from ..workers import default_workers

ADAM = "adam"

NONFINITE_HELP = (
    "Stop after this many steps in a row whose loss or gradients are not finite; such steps are skipped and counted."
)
LICENSE_HELP = "License of the weights for the model card, as the Hub spells it: cc-by-4.0, ... Default: none."


@dataclass
class MTSLVRTrainingArguments(TrainingArguments):
    """TrainingArguments with the defaults of MT-SLVR pre-training and some fields more.

    Every `eval_steps`, the model is evaluated and saved; it is also saved at each new minimum of `eval_loss`. Training
    stops after `early_stopping_patience` evaluations in a row without improvement and loads the best checkpoint.
    With `eval_strategy="no"` there is no early stopping and no best checkpoint. `optim="adam"` is Adam with L2 weight
    decay on every parameter; gradients are not clipped. Steps with a NaN are skipped, without waiting for the device.
    On a CPU, `bf16` is a wish: a run measures both precisions when it starts, keeps the faster one, and says so.

    Raises:
        ValueError: As TrainingArguments; also for `sync_batch_norm` on a CPU, a negative `early_stopping_patience`, or
            several GPUs in one process.
    """

    _argument_group_name = "training"  # in --help

    # Fields that TrainingArguments has, too, have another default here; None stands for the value of another field.
    optim: str = field(
        default=ADAM,
        metadata={
            "help": "Optimizer: 'adam' is Adam with L2 weight decay on every parameter, as the paper's authors use; "
            "or any of transformers' names (adamw_torch, sgd, ...), which decay no biases and norms."
        },
    )
    weight_decay: float = field(default=1e-6, metadata={"help": "Weight decay."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Learning-rate schedule over the whole run, one of transformers' names."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 does not clip."})
    max_steps: int = field(
        default=-1,
        metadata={"help": "Optimizer steps of the whole run. Required, because the stream of clips has no end."},
    )
    early_stopping_patience: int = field(
        default=50,
        metadata={"help": "Stop after this many evaluations in a row without a new best eval_loss; 0 never stops."},
    )
    max_nonfinite_steps: int = field(default=MOST_NONFINITE_STEPS, metadata={"help": NONFINITE_HELP})
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Forward passes in bfloat16; on a CPU only if that is faster, as measured when the run starts."
        },
    )
    sync_batch_norm: bool = field(
        default=False,
        metadata={"help": "Compute BatchNorm's statistics over the batches of all processes (GPUs only)."},
    )
    logging_steps: float = field(default=50, metadata={"help": "Log averages every N steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave false: logs are means over the finite steps anyway."}
    )
    eval_strategy: IntervalStrategy | str = field(default="steps", metadata={"help": "Evaluation by steps, or no."})
    eval_steps: float | None = field(
        default=500, metadata={"help": "Evaluate every N steps; below 1, a share of all steps."}
    )
    per_device_eval_batch_size: int | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={"help": "Clips per evaluation batch. Default: as in training, because NT-Xent depends on it."},
    )
    save_strategy: SaveStrategy | str = field(default="steps", metadata={"help": "When to save checkpoints."})
    save_steps: float | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={"help": "Save a checkpoint every N steps, and at each new best metric. Default: eval_steps."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; the best one is always kept. null keeps all."}
    )
    load_best_model_at_end: bool | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={"help": "Load the best checkpoint at the end. Default: if the run evaluates and saves checkpoints."},
    )
    metric_for_best_model: str | None = field(
        default="eval_loss", metadata={"help": "Metric of early stopping and of the best checkpoint."}
    )
    ignore_data_skip: bool = field(
        default=True,
        metadata={"help": "Leave true: the stream restores its position without decoding earlier clips."},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume the count of early stopping, too, when a run is resumed."}
    )
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={
            "help": "Processes per device that read and decode audio; at most one per shard. Default: the number of "
            "cores minus one; without a GPU, one for each 8 cores."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave false: there are no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Leave false: every parameter takes part in every step."}
    )
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Time and content of --push_to_hub."})
    license: str | None = field(default=None, metadata={"help": LICENSE_HELP})

    def __post_init__(self) -> None:
        check_license(self)
        if self.early_stopping_patience < 0:
            raise ValueError(f"`early_stopping_patience` must not be negative, got {self.early_stopping_patience}.")
        if self.max_nonfinite_steps < 1:
            raise ValueError(f"`max_nonfinite_steps` must be at least 1, got {self.max_nonfinite_steps}.")
        evaluates = IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = evaluates and SaveStrategy(self.save_strategy) != SaveStrategy.NO
        if self.save_steps is None:
            self.save_steps = self.eval_steps if evaluates and self.eval_steps else 500
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers(self.use_cpu or not torch.accelerator.is_available())
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        uses_adam = self.optim == ADAM
        if uses_adam:
            self.optim = OptimizerNames.ADAMW_TORCH  # TrainingArguments accepts only the names it knows
        super().__post_init__()
        if uses_adam:
            self.optim = ADAM
        if self.sync_batch_norm and self.device.type == "cpu":
            raise ValueError("`sync_batch_norm` needs GPUs: PyTorch has no SyncBatchNorm on CPUs. Set it to false.")
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} GPUs; expected one. Start a process per GPU with `accelerate launch`, "
                "or set CUDA_VISIBLE_DEVICES to one GPU."
            )

    def __getstate__(self) -> dict[str, Any]:
        """State without the Hub token: transformers publishes a pickle of the arguments."""
        return {**self.__dict__, "hub_token": None}


def check_license(args: TrainingArguments) -> None:
    """Raises a ValueError if the weights would be published without a license."""
    if args.push_to_hub and not args.license:  # type: ignore[attr-defined]  # a field of this package's arguments
        raise ValueError(
            "`push_to_hub` publishes the weights, and `license` is not given: name it as the Hub does (cc-by-4.0, "
            "apache-2.0, ...), or `unknown`."
        )


__all__ = ["LICENSE_HELP", "NONFINITE_HELP", "MTSLVRTrainingArguments", "check_license"]
