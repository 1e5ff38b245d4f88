"""Parts of all cards: templates, tables, README.md, versions of libraries, names on the Hub."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CardData, EvalResult, RepoCard

from ..files import write_whole
from ..markdown import escape_markdown, markdown_table

CARD_LIBRARIES = ("mtslvr-hf", "torch", "transformers", "accelerate", "datasets")
Card = TypeVar("Card", bound=RepoCard)


def fill_template(kind: type[Card], name: str, data: CardData, /, **values: Any) -> Card:
    """Card of a kind from the template `templates/NAME.md` and metadata; templates may call `table` and `text`."""
    template = (files(__package__) / "templates" / f"{name}.md").read_text(encoding="utf-8")
    return kind.from_template(data, template_str=template, table=markdown_table, text=escape_markdown, **values)


def save_card(card: RepoCard, folder: Path) -> None:
    """Writes a folder's README.md, completely or not at all."""
    write_whole(folder / "README.md", f"{str(card).rstrip()}\n".encode("utf-8", "backslashreplace"))


def eval_result(dataset: str, split: str | None, metric: str, value: float, **details: Any) -> EvalResult:
    """Metadata of one measured number."""
    return EvalResult(
        task_type="audio-classification",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=split,
        metric_type=metric,
        metric_value=value,
        **details,
    )


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that a checkpoint depends on, by name."""
    found = {}
    for name in CARD_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_hub_name(name: str) -> bool:
    """True if a name has the form `owner/name` of the Hub and is no existing folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """Name that can be published: a name on the Hub unchanged, the last part of a local path."""
    return name if is_hub_name(name) else Path(name).resolve().name


__all__ = [
    "eval_result",
    "fill_template",
    "is_hub_name",
    "library_versions",
    "public_name",
    "save_card",
]
