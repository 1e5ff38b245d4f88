"""What `pretrain.py` can be told, and how it reads, checks and saves that."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from mtslvr_hf.configuration_mtslvr import AUGMENTATIONS, TASKS
from mtslvr_hf.trainer import MTSLVRTrainingArguments

SAVED_CONFIG = "pretrain.yaml"
NOT_SAVED = ("resume_from_checkpoint", "hub_token")  # what belongs to one start of a run, or to nobody else


@dataclass
class ModelArguments:
    """The fields of MTSLVRConfig."""

    _argument_group_name = "model"

    frontend: str = field(default="mel_stft", metadata={"help": "What the network sees: mel_stft, mel or waveform."})
    sampling_rate: int = field(default=16000, metadata={"help": "Sampling rate in Hz."})
    n_fft: int = field(default=1024, metadata={"help": "Length of the STFT in samples."})
    hop_length: int = field(default=512, metadata={"help": "Distance of two STFT frames in samples."})
    num_mel_bins: int = field(default=128, metadata={"help": "Mel bands."})
    window_seconds: float = field(default=5.0, metadata={"help": "Audio the network sees at once."})
    depth: int = field(default=18, metadata={"help": "Layers of the ResNet: 18, 34, 50, 101 or 152."})
    base_width: int = field(default=64, metadata={"help": "Channels of the stem; layer4 has eight times as many."})
    adapter_type: str = field(default="parallel", metadata={"help": "Task adapters: none, bn, series or parallel."})
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "contrastive and predictive, or one of them."}
    )
    shared_head: bool = field(default=False, metadata={"help": "One head for all tasks instead of one each."})
    embedding_size: int = field(default=1000, metadata={"help": "Size of all heads together."})
    contrastive_method: str = field(default="simclr", metadata={"help": "simclr or simsiam."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of NT-Xent."})
    predictive_weight: float = field(default=1.0, metadata={"help": "Weight of the predictive loss."})
    augmentations: list[str] = field(
        default_factory=lambda: list(AUGMENTATIONS), metadata={"help": "Augmentations, in the order of the labels."}
    )


@dataclass
class DataArguments:
    """What to train on."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub, or a folder of parquet shards, audio files or tar shards. Required."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    data_files: list[str] | None = field(default=None, metadata={"help": "Only these files of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on. Default: held-out clips."})
    held_out_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training split's clips that is evaluated on instead."}
    )
    eval_clips: int = field(default=1000, metadata={"help": "Clips to evaluate on, at most."})
    audio_column: str | None = field(default=None, metadata={"help": "Column of the audio. Default: the only one."})
    streaming: bool = field(default=True, metadata={"help": "Stream, instead of downloading everything first."})
    shuffle_buffer: int = field(
        default=256, metadata={"help": "Undecoded clips each worker holds and shuffles at a time; 1 does not shuffle."}
    )
    clip_seconds: float | None = field(default=None, metadata={"help": "Length of a clip. Default: window_seconds."})
    normalization: str = field(
        default="global", metadata={"help": "Waveforms: global (AudioSet's mean and deviation), sample or none."}
    )
    max_bad_share: float = field(default=0.05, metadata={"help": "Stop if more of the rows than this are unusable."})


ARGUMENTS = (ModelArguments, DataArguments, MTSLVRTrainingArguments)


def read_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Reads the configuration file and the command line; what is wrong with them ends the program with a message.

    Returns:
        Values by field name: of all fields declared in this package, and of those of transformers that were given.
        Those of the command line, else of the file, else the defaults, before any dataclass derives others from them.
    """
    parser = HfArgumentParser(
        ARGUMENTS,
        prog="pretrain.py",
        usage="%(prog)s CONFIG.yaml [--field value ...]",
        description="Pre-trains MT-SLVR on streamed audio.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="Values of the fields below, as YAML.")
    config, argv = (argv[:1], argv[1:]) if argv and not argv[0].startswith("-") else ([], argv)
    from_file = {} if not config else _read_config(parser, Path(config[0]))
    parser.set_defaults(**{name: None for name, value in from_file.items() if value is None})
    options = [*_as_options(from_file), *argv]
    namespace, unknown = parser.parse_known_args([*config, *options])
    if unknown:
        parser.error(f"unknown argument {unknown[0]}{_did_you_mean(_field_of(unknown[0]))}")
    names = {*_own_fields(), *from_file, *map(_field_of, options)}
    values = {name: value for name, value in vars(namespace).items() if name in names}
    values.setdefault("output_dir", str(Path("outputs") / namespace.config.stem))
    return values


def _read_config(parser: argparse.ArgumentParser, path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's values, upon those of the file that its `base` names."""
    if not path.is_file():
        parser.error(f"there is no configuration file {path}")
    if path.resolve() in seen:
        parser.error(f"{path} is its own base")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        parser.error(f"{path} is no YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold `field: value` lines, not a {type(values).__name__}")
    base = values.pop("base", None)
    for name in values:
        if name not in _fields():
            parser.error(f"{path}: unknown field {name!r}{_did_you_mean(str(name))}")
    inherited = {} if base is None else _read_config(parser, path.parent / base, (*seen, path.resolve()))
    return {**inherited, **values}


def _as_options(values: dict[str, Any]) -> list[str]:
    """A file's values as command-line options, so that both are checked alike."""
    options: list[str] = []
    for name, value in values.items():
        if value is False and not isinstance(_fields()[name].default, bool):
            value = "no"  # as which YAML reads `eval_strategy: no`
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        elif value is not None:
            options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return options


def _fields() -> dict[str, dataclasses.Field]:
    return {option.name: option for arguments in ARGUMENTS for option in dataclasses.fields(arguments) if option.init}


def _own_fields() -> list[str]:
    own = [option.name for arguments in ARGUMENTS[:2] for option in dataclasses.fields(arguments)]
    return own + list(MTSLVRTrainingArguments.__annotations__)


def _field_of(option: str) -> str:
    """`--no-shared-head` and `--shared_head=false` both set `shared_head`."""
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    return name if name in _fields() else name.removeprefix("no_")


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, _fields(), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; --help lists all"


def make_arguments(values: dict[str, Any]) -> tuple[ModelArguments, DataArguments, MTSLVRTrainingArguments]:
    """The three dataclasses, which check and complete the values."""
    made = []
    for arguments in ARGUMENTS:
        names = [option.name for option in dataclasses.fields(arguments) if option.init and option.name in values]
        made.append(arguments(**{name: values[name] for name in names}))
    return tuple(made)


def save_arguments(values: dict[str, Any], args: MTSLVRTrainingArguments) -> None:
    """Writes the values into the output folder, as the one file that repeats the run."""
    if not args.should_save:
        return
    to_save = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if name not in NOT_SAVED
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_save, sort_keys=False, allow_unicode=True)
    (folder / SAVED_CONFIG).write_text(f"# Repeats this run: pretrain.py {SAVED_CONFIG}\n{text}", encoding="utf-8")


__all__ = ["SAVED_CONFIG", "DataArguments", "ModelArguments", "make_arguments", "read_arguments", "save_arguments"]
