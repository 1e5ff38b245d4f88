"""Runs described by YAML files and command lines: reading, checking and saving their values."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


class RunReader:
    """Reads the fields of some dataclasses from a YAML file, which may build upon another by `base`, and `--options`.

    Args:
        arguments: The dataclasses.
        prog: Name of the script.
        description: What it does, for `--help`.
    """

    def __init__(self, arguments: Sequence[type], prog: str, description: str):
        self.arguments = tuple(arguments)
        self.fields = {o.name: o for kind in self.arguments for o in dataclasses.fields(kind) if o.init}
        self.parser = HfArgumentParser(
            self.arguments,
            prog=prog,
            usage="%(prog)s [CONFIG.yaml] [--field value ...]",
            description=description,
            allow_abbrev=False,
        )
        self.parser.add_argument(
            "config", metavar="CONFIG.yaml", nargs="?", type=Path, help="Values of the fields below, as YAML."
        )

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Values that were given, by field name: the command line's, else the file's. Wrong ones end the program."""
        argv = list(argv)
        config = argv.pop(0) if argv and not argv[0].startswith("-") else None
        from_file = {} if config is None else self._read_file(Path(config))
        self.parser.set_defaults(**{name: None for name, value in from_file.items() if value is None})
        options = [*self._as_options(from_file), *argv]
        namespace, unknown = self.parser.parse_known_args(options)
        if unknown:
            self.parser.error(f"unknown argument {unknown[0]}{self._did_you_mean(self._field_of(unknown[0]))}")
        given = {*from_file, *(self._field_of(option) for option in options if option.startswith("--"))}
        values = {name: value for name, value in vars(namespace).items() if name in given and name in self.fields}
        if config is not None:
            values.setdefault("output_dir", str(Path("outputs") / Path(config).stem))
        return values

    def make(self, values: dict[str, Any]) -> list[Any]:
        """The dataclasses, which check and complete the values."""
        names = [[o.name for o in dataclasses.fields(kind) if o.init and o.name in values] for kind in self.arguments]
        return [kind(**{name: values[name] for name in own}) for kind, own in zip(self.arguments, names)]

    def error(self, message: str) -> None:
        """Ends the program with a message."""
        self.parser.error(message)

    def _read_file(self, path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
        if not path.is_file():
            self.parser.error(f"there is no configuration file {path}")
        if path.resolve() in seen:
            self.parser.error(f"{path} is its own base")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            self.parser.error(f"{path} is no YAML: {error}")
        if not isinstance(values, dict):
            self.parser.error(f"{path} must hold `field: value` lines, not a {type(values).__name__}")
        base = values.pop("base", None)
        for name in values:
            if name not in self.fields:
                self.parser.error(f"{path}: unknown field {name!r}{self._did_you_mean(str(name))}")
        inherited = {} if base is None else self._read_file(path.parent / base, (*seen, path.resolve()))
        return {**inherited, **values}

    def _as_options(self, values: dict[str, Any]) -> list[str]:
        """A file's values as options, so that both are checked alike."""
        options: list[str] = []
        for name, value in values.items():
            if value is False and not isinstance(self.fields[name].default, bool):
                value = "no"  # as which YAML reads `eval_strategy: no`
            if isinstance(value, list):
                options += [f"--{name}", *map(str, value)]
            elif value is not None:
                options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        return options

    def _field_of(self, option: str) -> str:
        """`--no-some-flag` and `--some_flag=false` both set `some_flag`."""
        name = option.lstrip("-").partition("=")[0].replace("-", "_")
        return name if name in self.fields else name.removeprefix("no_")

    def _did_you_mean(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.fields, n=1)
        return f"; did you mean {close[0]!r}?" if close else "; --help lists all"


def save_values(values: dict[str, Any], path: Path, leave_out: Sequence[str], script: str) -> None:
    """Writes values as the YAML file that repeats the run.

    Args:
        values: By field name.
        path: The file; its folder is made if need be.
        leave_out: Fields that belong to one start of a run, or are nobody else's business.
        script: What reads the file.
    """
    plain = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if name not in leave_out
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    path.write_text(f"# Repeats this run: {script} {path.name}\n{text}", encoding="utf-8")


__all__ = ["RunReader", "save_values"]
