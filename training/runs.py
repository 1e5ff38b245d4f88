"""Runs of the training scripts: arguments from YAML files and command lines, logs, checkpoints, saving."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers import logging as transformers_logging

from mtslvr_hf.files import output_folder
from mtslvr_hf.trainer import is_complete, last_checkpoint

logger = logging.getLogger("runs")

NOT_SAVED = ("resume_from_checkpoint", "hub_token")  # only for one start of a run, or secret


@dataclass
class AudioArguments:
    """Data arguments of all scripts."""

    train_split: str = field(default="train", metadata={"help": "Split for training."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split for evaluation. Default: clips held out from train_split."}
    )
    audio_column: str | None = field(default=None, metadata={"help": "Column of the audio. Default: the only one."})
    max_bad_share: float = field(default=0.05, metadata={"help": "Largest share of unusable rows; more stop the run."})


class RunParser(HfArgumentParser):
    """Parser of the fields of dataclasses from a YAML file, which may inherit from its `base`, and `--options`."""

    def __init__(self, arguments: Sequence[type], prog: str, description: str):
        usage = "%(prog)s [CONFIG.yaml] [--field value ...]"
        super().__init__(cast(Any, arguments), prog=prog, usage=usage, description=description, allow_abbrev=False)
        self.fields = {o.name: o for kind in arguments for o in dataclasses.fields(kind) if o.init}
        self.add_argument(
            "config", metavar="CONFIG.yaml", nargs="?", type=Path, help="Values of the fields below, as YAML."
        )

    def defaults(self) -> dict[str, Any]:
        """Default values of the fields that transformers does not declare, by field name."""
        theirs, missing = TrainingArguments.__dataclass_fields__, dataclasses.MISSING
        own = [option for name, option in self.fields.items() if theirs.get(name) is not option]
        return {o.name: o.default if o.default_factory is missing else o.default_factory() for o in own}

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Given values by field name, from the command line, else from the file; errors end the program."""
        argv = list(argv)
        config = argv.pop(0) if argv and not argv[0].startswith("-") else None
        from_file = {} if config is None else self._read_file(Path(config))
        self.set_defaults(**{name: None for name, value in from_file.items() if value is None})
        options = [*self._as_options(from_file), *argv]
        namespace, unknown = self.parse_known_args(options)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{self._did_you_mean(self._field_of(unknown[0]))}")
        given = {*from_file, *(self._field_of(option) for option in options if option.startswith("--"))}
        values = {name: value for name, value in vars(namespace).items() if name in given and name in self.fields}
        if config is not None:
            values.setdefault("output_dir", str(Path("outputs") / Path(config).stem))
        return values

    def _read_file(self, path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
        if not path.is_file():
            self.error(f"there is no configuration file {path}")
        if path.resolve() in seen:
            self.error(f"{path} is its own base")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            self.error(f"{path} is no YAML: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must hold `field: value` lines, not a {type(values).__name__}")
        base = values.pop("base", None)
        for name in values:
            if name not in self.fields:
                self.error(f"{path}: unknown field {name!r}{self._did_you_mean(str(name))}")
        inherited = {} if base is None else self._read_file(path.parent / base, (*seen, path.resolve()))
        return {**inherited, **values}

    def _as_options(self, values: dict[str, Any]) -> list[str]:
        """Options for a file's values, so that both are checked in the same way."""
        options: list[str] = []
        for name, value in values.items():
            if value is False and not isinstance(self.fields[name].default, bool):
                value = "no"  # YAML reads `eval_strategy: no` as False
            if isinstance(value, list):
                options += [f"--{name}", *map(str, value)]
            elif value is not None:
                options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        return options

    def _field_of(self, option: str) -> str:
        """Field of an option: `--no-some-flag` and `--some_flag=false` both set `some_flag`."""
        name = option.lstrip("-").partition("=")[0].replace("-", "_")
        return name if name in self.fields else name.removeprefix("no_")

    def _did_you_mean(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.fields, n=1)
        return f"; did you mean {close[0]!r}?" if close else "; --help lists all"


def set_up_logging(args: TrainingArguments) -> None:
    """Sets up logging: everything on the first process, only warnings on the others."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger().setLevel(logging.WARNING)
    for name in ("runs", "pretrain", "finetune", "mtslvr_hf"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log else logging.WARNING)
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
        path.write_text(f"# Repeats this run: {path.stem}.py {path.name}\n{text}", encoding="utf-8")


def save(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Saves the model, its card, the run's state and metrics; publishes them with `push_to_hub`."""
    trainer.save_state()
    if metrics:
        trainer.save_metrics("eval", metrics)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.save_model()
        trainer.create_model_card()


def finish(trainer: Trainer) -> None:
    """Ends the run in all processes together, because one that ends earlier could stop the others."""
    logger.info("Saved in %s", trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


__all__ = ["AudioArguments", "RunParser", "find_checkpoint", "finish", "save", "save_arguments", "set_up_logging"]
