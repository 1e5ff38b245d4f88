"""Arguments of a run from a YAML file and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .saved_values import local_values

CONFIGS = Path(__file__).parents[1] / "configs"


def configurations() -> dict[str, Path]:
    """Files of the configurations in this package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.rglob("*.yaml")) if path.stem != "base"}


@dataclass
class AudioArguments:
    """Data arguments of all scripts."""

    train_split: str = field(default="train", metadata={"help": "Split for training."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split for evaluation. Default: clips held out from train_split."}
    )
    audio_column: str | None = field(default=None, metadata={"help": "Column of the audio. Default: the only one."})
    allow_row_paths: bool = field(
        default=False,
        metadata={
            "help": "Rows without bytes may name any file or URL. Default: only files below the data set's folder or "
            "in its repository."
        },
    )
    max_bad_share: float = field(default=0.05, metadata={"help": "Largest share of unusable rows; more stop the run."})
    on_truncated: Literal["error", "keep"] = field(
        default="error",
        metadata={
            "help": "A truncated file is a bad row (error), or is taken as far as it goes (keep).",
        },
    )
    data_changed: str = field(
        default="refuse",
        metadata={"help": "If the data changed since the run was started: refuse to resume, or go_on."},
    )


class RunParser(HfArgumentParser):
    """Parser of the fields of dataclasses from a YAML file, which may inherit from its `base`, and `--options`.

    Args:
        arguments: Dataclasses.
        prog, description: Command and purpose, for messages and `--help`.
        named: Configuration files that can be given by name.
    """

    def __init__(
        self, arguments: Sequence[type], prog: str, description: str, named: Mapping[str, Path] = MappingProxyType({})
    ):
        usage = "%(prog)s [CONFIG] [--field value ...]"
        super().__init__(cast(Any, arguments), prog=prog, usage=usage, description=description, allow_abbrev=False)
        self.fields = {o.name: o for kind in arguments for o in dataclasses.fields(kind) if o.init}
        self.named = named
        names = f", or one of this package: {', '.join(named)}" if named else ""
        self.add_argument("config", metavar="CONFIG", nargs="?", help=f"YAML file of the fields below{names}.")

    def defaults(self) -> dict[str, Any]:
        """Default values of the fields that transformers does not declare, by field name."""
        theirs, missing = TrainingArguments.__dataclass_fields__, dataclasses.MISSING
        own = [option for name, option in self.fields.items() if theirs.get(name) is not option]
        return {o.name: o.default if o.default_factory is missing else o.default_factory() for o in own}

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Given values by field name, from the command line, else from the file; errors end the program."""
        argv = list(argv)
        config = argv.pop(0) if argv and not argv[0].startswith("-") else None
        from_file = {} if config is None else self._read_file(self._file(config))
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

    def _file(self, config: str) -> Path:
        """File of a configuration: a path, else the name of one in this package."""
        path = Path(config)
        return path if path.is_file() else self.named.get(config, path)

    def _read_file(self, path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
        if not path.is_file():
            close = difflib.get_close_matches(path.stem, self.named, n=1)
            names = f"; this package has {', '.join(self.named)}" if self.named else ""
            self.error(f"there is no configuration file {path}{f'; did you mean {close[0]}?' if close else names}")
        if path.resolve() in seen:
            self.error(f"{path} is its own base")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            self.error(f"{path} is no YAML: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must hold `field: value` lines, not a {type(values).__name__}")
        values.update((name, value) for name, value in local_values(path).items() if name in values)
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


__all__ = ["CONFIGS", "AudioArguments", "RunParser", "configurations"]
