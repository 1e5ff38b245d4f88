"""Staged copy of a folder: the files that are published, without local paths and tokens, and a licensed card."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError
from yaml import YAMLError

from ..cards.adapter import create_adapter_card
from ..cards.parts import save_card
from ..cards.results import check_results
from .kinds import ADAPTER, Kind, files_of

PLACEHOLDERS = ("NAME_OR_FOLDER_OF_THIS_MODEL", "PATH_OF_THIS_FOLDER")
VALUES = (".json", ".jsonl", ".yaml", ".yml")  # their local paths become the last part
TEXTS = (*VALUES, ".md", ".py", ".txt")
ROOTS = "home|Users|root|tmp|var|mnt|media|data|scratch|srv|opt|private|Volumes|work|workspace|gpfs|lustre|nfs|export"
LOCAL_PATH = re.compile(rf"(?<![\w.*/:~-])(?:/(?:{ROOTS})|~|[A-Za-z]:[\\/])[\\/][^\s\"'`,;()\[\]{{}}<>]+")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


def stage(
    folder: Path, kind: Kind, name: str, license: str | None, base_model: str | None, staged: Path
) -> list[Path]:
    """Writes the files of a folder that are published into a new folder; returns their relative paths.

    An adapter without a card gets one.

    Raises:
        FileNotFoundError: If there is no card.
        ValueError: If the card is not valid or has no license, or a file holds a local path or a token.
    """
    files, card = files_of(folder, kind), Path("README.md")
    if kind == ADAPTER and card not in files:
        create_adapter_card(folder, str(base_model), name, staged)
    elif card not in files:
        raise FileNotFoundError(f"{folder} has no card README.md: train, embed or cache writes one.")
    roots = {str(Path.home()), str(Path.cwd()), str(folder.resolve().parent)} - {os.sep}
    for file in files:
        (staged / file).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in VALUES:
            text = (folder / file).read_text(encoding="utf-8")
            (staged / file).write_text(_without_paths(text, roots), encoding="utf-8")
        else:
            shutil.copyfile(folder / file, staged / file)
    _stage_card(staged, kind, name, license)
    check_texts(staged, files, roots)
    return sorted({card, *files})


def _without_paths(text: str, roots: set[str]) -> str:
    """Text in which local paths are their last part."""

    def last(match: re.Match[str]) -> str:
        return re.split(r"[\\/]", match[0].rstrip("/\\"))[-1] or match[0]

    return LOCAL_PATH.sub(last, _under(roots).sub(last, text))


def _under(roots: set[str]) -> re.Pattern[str]:
    """Pattern of paths below given folders."""
    places = "|".join(re.escape(root.rstrip("/\\")) for root in sorted(roots, key=len, reverse=True))
    return re.compile(rf"(?:{places})[\\/][^\s\"'`,;()\[\]{{}}<>]+")


def _stage_card(staged: Path, kind: Kind, name: str, license: str | None) -> None:
    """Completes the card: the license, and the repository's name in its examples."""
    path = staged / "README.md"
    text = path.read_text(encoding="utf-8")
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, name)
    of_type: Callable[[str], RepoCard] = ModelCard if kind.repo_type == "model" else DatasetCard
    try:
        card = of_type(text)
    except (YAMLError, ValueError) as error:
        raise ValueError(
            f"The metadata of the card cannot be read: {error}. Correct the YAML in README.md."
        ) from error
    data: Any = card.data
    data.license = license or data.license
    if not data.license:
        raise ValueError(
            "the license is not known: give `--license` as the Hub spells it (cc-by-4.0, apache-2.0, ...), or "
            "`--license unknown`. It depends on the license of the audio."
        )
    save_card(card, staged)
    check_results(staged)


def check_texts(staged: Path, files: list[Path], roots: set[str]) -> None:
    """Raises a ValueError if a text file holds a token or a local path."""
    under = _under(roots)
    for file in files:
        if file.suffix not in TEXTS:
            continue
        for number, line in enumerate((staged / file).read_text(encoding="utf-8").splitlines(), 1):
            if TOKEN.search(line):
                raise ValueError(f"{file}, line {number} holds what looks like a token of the Hub: remove it.")
            found = LOCAL_PATH.search(line) or under.search(line)
            if found:
                raise ValueError(f"{file}, line {number} holds the local path {found[0]}: remove it.")


def validate_on_hub(staged: Path, kind: Kind) -> None:
    """Asks the Hub whether the card's metadata are valid.

    Raises:
        ValueError: If they are not; with the Hub's reasons.
    """
    of_type = ModelCard if kind.repo_type == "model" else DatasetCard
    try:
        of_type((staged / "README.md").read_text(encoding="utf-8")).validate(repo_type=kind.repo_type)
    except HfHubHTTPError:
        raise
    except ValueError as error:
        raise ValueError(f"the Hub refuses the card's metadata: {error}") from error


__all__ = ["check_texts", "stage", "validate_on_hub"]
