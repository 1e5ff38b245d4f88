"""Output folder of a run: logs, checkpoints, saved arguments and weights."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers import logging as transformers_logging

from ..files import output_folder
from ..resumable import ResumableTrainer, StopSignals, fault_of, last_checkpoint
from ..resumable.checkpoints import UNFINISHED, checkpoints_of
from .lock import is_locked, locked
from .saved_values import mask_secrets, read_record, save_values, saved_values, shareable, update_record

logger = logging.getLogger(__name__)

# Arguments of training that cannot change within a run: they decide its weights and metrics.
FIXED = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim"),
    *("optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed"),
    *("bf16", "fp16", "sync_batch_norm", "label_smoothing_factor"),
)
# Data arguments that can.
FREE = ("max_bad_share", "stream_timeout", "data_changed", "scale_heads", "size_to_data")
SHARED_SECONDS = 60.0  # until a file of another machine is seen on a shared disk
DATA_CHANGED = ("refuse", "go_on")


@contextmanager
def run_of(args: TrainingArguments) -> Iterator[StopSignals]:
    """Context of a run: signals end it in good order, its output folder is locked.

    Raises:
        SystemExit: If the processes of a launcher do not work together or do not share the folder, or another run
            holds it.
    """
    _check_processes(args)
    with StopSignals() as signals, locked(output_folder(args)) if args.process_index == 0 else nullcontext():
        _check_shared(args)
        yield signals


def _check_processes(args: TrainingArguments) -> None:
    """Ends the program if a launcher started several processes, and each would train alone: without a GPU."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started != args.world_size:
        sys.exit(
            f"{started} processes were started, and this one works in a group of {args.world_size}. Give --use_cpu "
            "true if they are to train on CPUs; on GPUs, see whether torch.cuda.is_available()."
        )


def _check_shared(args: TrainingArguments) -> None:
    """Ends the program if this process does not see the output folder of the first one, which has just locked it."""
    if args.world_size == 1:
        return
    assert args.distributed_state is not None
    args.distributed_state.wait_for_everyone()
    deadline = time.monotonic() + SHARED_SECONDS
    while not is_locked(output_folder(args)):
        if time.monotonic() > deadline:
            sys.exit(
                f"{output_folder(args).absolute()} is not the folder that the first process of this run has locked. "
                "Each process writes its part of a checkpoint: give an --output_dir on a disk that all machines share."
            )
        time.sleep(1)


def set_up_logging(args: TrainingArguments) -> None:
    """Sets up logging: everything on the first process, only warnings on the others."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("mtslvr_hf").setLevel(logging.INFO if args.should_log else logging.WARNING)
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()  # of each saved file; Trainer's own stays


def find_checkpoint(
    args: TrainingArguments, values: Mapping[str, Any], saved_config: str, fixed: Sequence[type]
) -> str | None:
    """Checkpoint to resume: `resume_from_checkpoint`, else the last complete one of the output folder, else None.

    Args:
        args: Training arguments.
        values: All values, by field name.
        saved_config: Name of the file in the output folder that holds the values of its run.
        fixed: Dataclasses whose values cannot change within a run, apart from `FREE`; nor can `FIXED`.

    Raises:
        SystemExit: If the requested checkpoint cannot be used, no checkpoint of the folder can, or the folder holds a
            run with other values.
    """
    wanted, folder = args.resume_from_checkpoint, output_folder(args)
    if wanted is not None and wanted.lower() in ("false", "no"):
        return None
    if wanted is None or wanted.lower() in ("true", "yes"):
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            _check_nothing_lost(folder)
            return None if wanted is None else sys.exit(f"There is no complete checkpoint in {folder} to resume from.")
    else:
        fault, checkpoint = fault_of(wanted), wanted
        if fault is not None:
            sys.exit(f"There is no complete checkpoint in {wanted} to resume from: {fault}.")
    saved = Path(checkpoint).parent / saved_config
    options = [option for kind in fixed for option in dataclasses.fields(kind) if option.name not in FREE]
    options += [option for option in dataclasses.fields(args) if option.name in FIXED]
    changed = _changes(saved, values, options)
    if changed and saved.parent.resolve() == folder.resolve():
        sys.exit(
            f"{saved.parent} holds another run: {', '.join(changed)}. Choose another --output_dir, or start again "
            "with --resume_from_checkpoint false."
        )
    if changed:
        logger.warning("The run of %s goes on with other arguments: %s.", checkpoint, ", ".join(changed))
    logger.info("Last complete checkpoint: %s", checkpoint)
    return checkpoint


def _check_nothing_lost(folder: Path) -> None:
    """Ends the program if the folder has checkpoints and none can be used, apart from unfinished ones."""
    faults = {path.name: fault_of(path) for path in checkpoints_of(folder)}
    damaged = [f"{name}: {fault}" for name, fault in faults.items() if fault != UNFINISHED]
    if damaged:
        sys.exit(
            f"No checkpoint in {folder} can be used ({'; '.join(damaged)}). Restore one, or start again with "
            "--resume_from_checkpoint false."
        )


def _changes(saved: Path, values: Mapping[str, Any], options: Sequence[dataclasses.Field]) -> list[str]:
    """Values that differ from those of the run of a file, in words."""
    before = saved_values(saved)
    if not before:
        logger.warning("%s is missing or damaged, so the arguments cannot be compared with those of before.", saved)
        return []
    changed = []
    for option in options:
        if option.name not in before and option.name not in FIXED:
            continue  # the file is older than the field
        old, new = (_plain(given.get(option.name, option.default)) for given in (before, values))
        if old != new and shareable(new) != old:
            changed.append(f"{option.name} ({old}, now {new})")
    return changed


def _plain(value: Any) -> Any:
    """Value to compare: masked, and of paths that exist the real one."""
    value = mask_secrets(value.value if isinstance(value, Enum) else value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def check_data(folder: Path | None, fingerprint: str | None, data_changed: str) -> None:
    """Ends the program if the data of the run in a folder are others than before, and `data_changed` is not "go_on".

    Args:
        folder: Folder of the run that goes on; None for a new run.
        fingerprint: Fingerprint of the data; None if it is unknown.
        data_changed: "refuse" or "go_on".
    """
    if data_changed not in DATA_CHANGED:
        sys.exit(f"--data_changed must be one of {', '.join(DATA_CHANGED)}; got {data_changed!r}.")
    before = None if folder is None else read_record(folder).get("data")
    if None in (before, fingerprint) or before == fingerprint:
        return
    if data_changed == "go_on":
        logger.warning("The data changed since the last start; the run goes on with what is there now.")
        return
    sys.exit(
        f"The data changed since the run in {folder} was started: files came, went or have other contents. Restore "
        "them, go on with --data_changed go_on, or start again with --resume_from_checkpoint false."
    )


def save_arguments(
    values: Mapping[str, Any], args: TrainingArguments, saved_config: str, fingerprint: str | None = None
) -> None:
    """Writes the values into the output folder, as a YAML file that repeats the run; and its record."""
    if args.should_save:
        save_values(output_folder(args) / saved_config, values, data=fingerprint)


def save(trainer: ResumableTrainer, metrics: dict[str, float]) -> None:
    """Saves the model, its card, the run's state and metrics; publishes them with `push_to_hub`, and logs the URL."""
    with trainer.writing(output_folder(trainer.args)):
        best = trainer.state.best_model_checkpoint
        trainer.state.best_model_checkpoint = None if best is None else Path(best).name  # may be published
        trainer.save_state()
        if metrics:
            trainer.save_metrics("eval", metrics)
        trainer.save_model(_internal_call=True)  # or it would publish, too
        trainer.create_model_card()
    if trainer.args.push_to_hub:
        commit = trainer.push_to_hub()
        if commit is not None:  # on the first process
            logger.info("Published at %s", commit.repo_url)


def finish(trainer: ResumableTrainer) -> None:
    """Ends the run in all processes together, because one that ends earlier could stop the others."""
    if trainer.is_world_process_zero():
        update_record(output_folder(trainer.args), finished=trainer.state.global_step)
    logger.info("Saved in %s", trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def is_finished(args: TrainingArguments) -> bool:
    """True if the run in the output folder was evaluated, saved and published, too."""
    return read_record(output_folder(args)).get("finished") is not None


__all__ = [
    "check_data",
    "find_checkpoint",
    "finish",
    "is_finished",
    "run_of",
    "save",
    "save_arguments",
    "set_up_logging",
]
