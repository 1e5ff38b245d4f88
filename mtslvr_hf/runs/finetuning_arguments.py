"""Arguments of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from ..resumable.trainer import MOST_NONFINITE_STEPS
from ..trainer import MTSLVRTrainingArguments
from ..trainer.arguments import LICENSE_HELP, NONFINITE_HELP, check_license
from .parser import AudioArguments, RunParser

# Defaults of each method; the command line and the configuration override them.
METHODS: dict[str, dict[str, Any]] = {
    "linear_probe": {"learning_rate": 1e-3, "num_train_epochs": 100.0, "save_strategy": "no", "weight_decay": 0.1},
    "adapters": {"learning_rate": 2e-3, "num_train_epochs": 30.0},
    "everything": {"learning_rate": 1e-3, "num_train_epochs": 30.0},
}
CLASS_WEIGHTS = ("none", "balanced")


@dataclass
class ModelArguments:
    """Model and method."""

    _argument_group_name = "model"

    model: str = field(default="", metadata={"help": "Folder or Hub name of a pre-trained MT-SLVR model. Required."})
    method: str = field(
        default="linear_probe",
        metadata={
            "help": "Trained part. linear_probe: a linear classifier on the embeddings; adapters: the adapters of a "
            "new task and a classifier on its embedding; everything: all parameters."
        },
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": "Tasks whose embeddings linear_probe and everything use. Default: the active ones."},
    )
    adapter_name: str = field(default="finetuned", metadata={"help": "Name of the task that method adapters adds."})
    adapter_type: str | None = field(
        default=None, metadata={"help": "Adapters of that task: bn, series or parallel. Default: the model's."}
    )
    adapter_init: str | None = field(
        default=None, metadata={"help": "Task whose adapters are copied at the start. Default: the model's first."}
    )
    save_adapter: bool = field(
        default=False, metadata={"help": "With method adapters, also save the adapter alone, in the folder `adapter`."}
    )


@dataclass
class DataArguments(AudioArguments):
    """Data of training and evaluation."""

    _argument_group_name = "data"

    data: str = field(
        default="",
        metadata={
            "help": "A folder with a folder of audio files per class, a folder of parquet shards, or a data set on "
            "the Hub. Required."
        },
    )
    data_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    data_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    eval_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Without eval_split and folds: share of each class for evaluation. 0 trains on all clips without "
            "evaluation. Default: 0.2."
        },
    )
    fold: int | None = field(default=None, metadata={"help": "Cross-validation: fold for evaluation, 0 to folds - 1."})
    folds: int | None = field(default=None, metadata={"help": "Cross-validation: number of folds."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the choice of evaluation clips; not `seed`."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: label, labels, human_labels, target, ..."}
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column in the data set or the folder's manifest.csv of groups (speakers, recordings) that stay "
            "together. Default: the manifest's `group`, if it has one."
        },
    )
    max_seconds: float | None = field(
        default=10.0,
        metadata={
            "help": "Longest clip in seconds; longer ones are cropped, at random in training, in the middle for "
            "evaluation and linear_probe. null does not crop."
        },
    )
    class_weights: str = field(
        default="none", metadata={"help": "none, or balanced: rare classes count as much as frequent ones."}
    )


@dataclass
class FineTuningArguments(TrainingArguments):
    """TrainingArguments with other defaults, some of which depend on the method."""

    _argument_group_name = "training"

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate. Default: the method's."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the clips. Default: the method's."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Clips per batch and process."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Clips per evaluation batch and process."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1, a share of all steps."})
    logging_steps: float = field(default=0.1, metadata={"help": "Log every N steps; below 1, a share of all steps."})
    eval_strategy: IntervalStrategy | str = field(
        default="no",
        metadata={"help": "Evaluation during training: no, steps or epoch; always one at the end."},
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "Checkpoints: no, steps or epoch. Default of linear_probe: no."}
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep. null keeps all."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes per device that decode audio."})
    dataloader_persistent_workers: bool | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None, metadata={"help": "Keep these processes between epochs. Default: if there are any."}
    )
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None, metadata={"help": "Pin batches in memory. Default: if there is a GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave false: there are no columns."})
    max_nonfinite_steps: int = field(default=MOST_NONFINITE_STEPS, metadata={"help": NONFINITE_HELP})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave false: logs are means over the finite steps anyway."}
    )
    report_to: str | list[str] = field(default="none", metadata={"help": "Receivers of logs: tensorboard, ..."})
    license: str | None = field(default=None, metadata={"help": LICENSE_HELP})

    def __post_init__(self) -> None:
        check_license(self)
        if self.max_nonfinite_steps < 1:
            raise ValueError(f"`max_nonfinite_steps` must be at least 1, got {self.max_nonfinite_steps}.")
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()

    __getstate__ = MTSLVRTrainingArguments.__getstate__  # without the token


ARGUMENTS = (ModelArguments, DataArguments, FineTuningArguments)


def read_arguments(
    argv: Sequence[str],
) -> tuple[dict[str, Any], ModelArguments, DataArguments, FineTuningArguments]:
    """Values of the configuration file and the command line, and dataclasses of them; errors end the program.

    The values are by field name: all fields declared in this package, and the given ones of transformers.
    """
    parser = RunParser(ARGUMENTS, "mtslvr finetune", "Trains a classifier of sounds on a pre-trained MT-SLVR model.")
    given = parser.read(argv)
    method = given.get("method") or "linear_probe"
    if method not in METHODS:
        parser.error(f"--method must be one of {', '.join(METHODS)}; got {method!r}")
    values = {**parser.defaults(), **METHODS[method], **given}
    for name in ("model", "data", "output_dir"):
        if not values.get(name):
            parser.error(f"--{name} is missing")
    wrong = _contradiction(values)
    if wrong:
        parser.error(wrong)
    model, data, training = parser.parse_dict(values)
    return values, model, data, training


def _contradiction(values: dict[str, Any]) -> str | None:
    """Message about values that contradict each other or are out of range, or None."""
    fold, folds = values["fold"], values["folds"]
    if (fold is None) != (folds is None):
        return "--fold and --folds need each other: give both"
    if fold is not None and not 0 <= fold < folds:
        return f"--fold must lie in 0..{folds - 1}, got {fold}"
    if sum(values[name] is not None for name in ("eval_split", "eval_fraction", "folds")) > 1:
        return "--eval_split, --eval_fraction and --folds exclude each other: give one"
    if values["eval_fraction"] is not None and not 0 <= values["eval_fraction"] < 1:
        return f"--eval_fraction must lie in [0, 1), got {values['eval_fraction']}"
    if values["max_seconds"] is not None and not values["max_seconds"] > 0:
        return f"--max_seconds must be greater than 0, got {values['max_seconds']}"
    if values["class_weights"] not in CLASS_WEIGHTS:
        return f"--class_weights must be one of {', '.join(CLASS_WEIGHTS)}; got {values['class_weights']!r}"
    if values["method"] == "adapters" and values["tasks"]:
        return "--tasks is not for method adapters, whose classifier uses only the new task"
    if values["method"] != "adapters" and (values["adapter_type"] or values["adapter_init"] or values["save_adapter"]):
        return "--adapter_type, --adapter_init and --save_adapter need --method adapters"
    return None


__all__ = ["DataArguments", "FineTuningArguments", "ModelArguments", "read_arguments"]
