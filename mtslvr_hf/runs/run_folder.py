"""Output folder of a run: logs, checkpoints, saved arguments and weights."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import yaml
from transformers import Trainer, TrainingArguments
from transformers import logging as transformers_logging

from ..files import output_folder
from ..trainer import is_complete, last_checkpoint

logger = logging.getLogger(__name__)

NOT_SAVED = ("resume_from_checkpoint", "hub_token")  # only for one start of a run, or secret


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
        fixed: Dataclasses whose values cannot change within a run.

    Raises:
        SystemExit: If the requested checkpoint does not exist, or the folder holds a run with other values.
    """
    wanted = args.resume_from_checkpoint
    if wanted is not None and wanted.lower() in ("false", "no"):
        return None
    if wanted is None or wanted.lower() in ("true", "yes"):
        place, checkpoint = args.output_dir, last_checkpoint(output_folder(args))
    else:
        place, checkpoint = wanted, wanted if is_complete(wanted) else None
    if checkpoint is None:
        return None if wanted is None else sys.exit(f"There is no complete checkpoint in {place} to resume from.")
    saved = output_folder(args) / saved_config
    before = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    names = [option.name for kind in fixed for option in dataclasses.fields(kind)]
    changed = [f"{n} ({before[n]}, now {values[n]})" for n in names if n in before and before[n] != values[n]]
    if changed:
        sys.exit(
            f"{saved.parent} holds another run: {', '.join(changed)}. Choose another --output_dir, remove that "
            "folder, or start again with --resume_from_checkpoint false."
        )
    logger.info("Last complete checkpoint: %s", checkpoint)
    return checkpoint


def save_arguments(values: Mapping[str, Any], args: TrainingArguments, saved_config: str) -> None:
    """Writes the values into the output folder, as a YAML file that repeats the run."""
    if args.should_save:
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        plain = {name: value for name, value in plain.items() if name not in NOT_SAVED}
        path = output_folder(args) / saved_config
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        path.write_text(f"# Repeats this run: mtslvr {path.stem} {path.name}\n{text}", encoding="utf-8")


def save(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Saves the model, its card, the run's state and metrics; publishes them with `push_to_hub`, and logs the URL."""
    trainer.save_state()
    if metrics:
        trainer.save_metrics("eval", metrics)
    if trainer.args.push_to_hub:
        commit = trainer.push_to_hub()
        if commit is not None:  # on the first process
            logger.info("Published at %s", commit.repo_url)
    else:
        trainer.save_model()
        trainer.create_model_card()


def finish(trainer: Trainer) -> None:
    """Ends the run in all processes together, because one that ends earlier could stop the others."""
    logger.info("Saved in %s", trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


__all__ = ["find_checkpoint", "finish", "save", "save_arguments", "set_up_logging"]
