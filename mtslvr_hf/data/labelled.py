"""Labelled audio from a folder per class or from a data set with a label column.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.arrow_dataset import Column

from .sources import AUDIO_COLUMN, AUDIO_SUFFIXES, SPLITS, audio_rows, find_audio_files, is_dataset, local_path

MANIFEST = "manifest.csv"
GROUP = "group"
LABEL_COLUMNS = ("label", "labels", "human_labels", "target", "category", "class")

Labelled = TypeVar("Labelled", bound="LabelledAudio")


@dataclass(frozen=True)
class LabelledAudio:
    """Encoded audio with its classes.

    Attributes:
        audio: Undecoded rows `{"bytes", "path"}`; a data set reads each row on access.
        classes: Class names, in the order of the columns of `labels`.
        labels: (N, C) bool.
        multi_label: True if a row may have any number of classes; otherwise each row has exactly one.
        groups: Group (speaker, recording) of each row, or None.
    """

    audio: Sequence[Mapping[str, Any]]
    classes: list[str]
    labels: np.ndarray
    multi_label: bool
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> np.ndarray:
        """Target of a row: the class index (), or float32 (C,) if `multi_label`."""
        return self.labels[index].astype(np.float32) if self.multi_label else self.labels[index].argmax()

    def select(self: Labelled, indices: Sequence[int] | np.ndarray) -> Labelled:
        """Rows of these indices, in this order."""
        indices, audio = [int(index) for index in indices], self.audio
        if isinstance(audio, Column):
            audio = audio.source.select(indices)[AUDIO_COLUMN]
        elif audio is not None:
            audio = [audio[index] for index in indices]
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        return replace(self, audio=audio, labels=self.labels[indices], groups=groups)

    def with_classes(self, classes: Sequence[str]) -> LabelledAudio:
        """The same rows with the class columns of another data set; ValueError if a row has a class not among them."""
        unknown = [name for name, clips in zip(self.classes, self.labels.sum(0)) if clips and name not in classes]
        if unknown:
            raise ValueError(f"there are no training clips of {_some(unknown)}; the classes are {_some(classes)}.")
        labels = np.zeros((len(self), len(classes)), dtype=bool)
        for column, name in enumerate(self.classes):
            if name in classes:
                labels[:, list(classes).index(name)] = self.labels[:, column]
        return replace(self, classes=list(classes), labels=labels)


def load_labelled_audio(
    name: str | Path,
    config: str | None = None,
    split: str = "train",
    audio_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    revision: str | None = None,
) -> LabelledAudio:
    """Opens labelled audio. A data set on the Hub is downloaded whole.

    Args:
        name: A folder with a folder of audio files per class (or a folder per split that holds these) and an optional
            `manifest.csv` with the columns `file` and `group`; parquet shards or one parquet file; or a data set on
            the Hub.
        config: Configuration of the data set.
        split: Its split. A folder without splits has only "train".
        audio_column: Needed if several columns hold audio.
        label_column: Class labels, texts or integers, or lists of them for several classes per clip. By default the
            first of label, labels, human_labels, target, category, class.
        group_column: Groups, in the data set or the manifest. By default the column `group` of a manifest, if any.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If no such folder or data set exists.
        ValueError: If labels, the column, the configuration or the split are missing. The message lists those present.
    """
    path = local_path(name)
    if path is not None and path.is_dir() and not is_dataset(path):
        return _from_folder(path, split, group_column)
    if path is not None and path.is_file():
        dataset = datasets.load_dataset("parquet", data_files={split: str(path)}, split=split)
    else:
        dataset = datasets.load_dataset(str(path or name), config, split=split, revision=revision)
    return from_dataset(dataset, audio_column, label_column, group_column)


def _from_folder(folder: Path, split: str, group_column: str | None) -> LabelledAudio:
    """Audio of a folder per class, or of one per split that holds these."""
    found = _files_of_classes(folder)
    if found and set(found) <= SPLITS:
        if split not in found:
            raise ValueError(f"{folder} has no split {split!r}; it has: {', '.join(found)}.")
        folder = folder / split
        found = _files_of_classes(folder)
    elif split != "train":
        raise ValueError(f"{folder} is not divided into splits, so there is no {split!r}; all of it is 'train'.")
    if not found:
        raise ValueError(
            f"{folder} has no folder with audio files in it; expected one folder per class, "
            f"with files ending in {', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    files = [path for paths in found.values() for path in paths]
    audio = [{"bytes": None, "path": str(path)} for path in files]
    labels = np.eye(len(found), dtype=bool).repeat([len(paths) for paths in found.values()], axis=0)
    return LabelledAudio(audio, list(found), labels, False, _read_groups(folder, files, group_column))


def _files_of_classes(folder: Path) -> dict[str, list[Path]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: find_audio_files(path) for path in folders}
    return {name: files for name, files in found.items() if files}


def _read_groups(folder: Path, files: Sequence[Path], column: str | None) -> list[str] | None:
    """Groups from the manifest; None if it has none and `column` is None."""
    manifest = folder / MANIFEST
    wanted = column or GROUP
    rows, columns = [], []
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            rows, columns = list(reader), list(reader.fieldnames or [])
    if not {"file", wanted} <= set(columns):
        if column is None:
            return None
        raise ValueError(f"groups need {manifest} with the columns file and {column}; it has: {_some(columns)}.")
    groups = {row["file"]: row[wanted] for row in rows}
    names = [path.relative_to(folder).as_posix() for path in files]
    unlisted = [name for name in names if not groups.get(name)]
    if unlisted:
        raise ValueError(f"{manifest} has no {wanted} for {len(unlisted)} of {len(names)} files: {_some(unlisted)}.")
    return [groups[name] for name in names]


def from_dataset(
    dataset: datasets.Dataset,
    audio_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> LabelledAudio:
    """Labelled audio of an open data set; arguments and errors as in `load_labelled_audio`."""
    columns = read_columns(dataset, label_column, group_column)
    return LabelledAudio(audio_rows(dataset, audio_column)[AUDIO_COLUMN], *columns)


def read_columns(
    dataset: datasets.Dataset, label_column: str | None, group_column: str | None
) -> tuple[list[str], np.ndarray, bool, list[str] | None]:
    """`classes`, `labels`, `multi_label` and `groups` of a `LabelledAudio`; errors as in `load_labelled_audio`."""
    if len(dataset) == 0:
        raise ValueError("the data set has no rows.")
    column = label_column or next((name for name in LABEL_COLUMNS if name in dataset.features), "label")
    for wanted in (column, group_column):
        if wanted is not None and wanted not in dataset.features:
            raise ValueError(
                f"the data set has no column {wanted!r}; it has: {_some(list(dataset.features))}. "
                "Set label_column and group_column; `mtslvr embed --columns` copies columns into its output."
            )
    labels = _read_labels(dataset.features[column], dataset.with_format(None)[column], column)
    return *labels, None if group_column is None else _read_group_column(dataset, group_column)


def _read_group_column(dataset: datasets.Dataset, column: str) -> list[str]:
    values = dataset.with_format(None)[column]
    empty = [number for number, value in enumerate(values) if value is None or value == ""]
    if empty:
        raise ValueError(f"column {column!r} has no group in {len(empty)} of {len(values)} rows, first in {empty[0]}.")
    return [str(value) for value in values]


def _read_labels(feature: Any, values: Sequence[Any], column: str) -> tuple[list[str], np.ndarray, bool]:
    """Class names, (N, C) labels, and `multi_label`."""
    multi_label = isinstance(feature, (list, datasets.List, datasets.LargeList))
    feature = getattr(feature, "feature", feature)
    rows = [value if multi_label and value is not None else [value] for value in values]
    empty = [number for number, row in enumerate(rows) if None in row or "" in row]
    if empty:
        raise ValueError(f"column {column!r} has no label in {len(empty)} of {len(rows)} rows, first in {empty[0]}.")
    if isinstance(feature, datasets.ClassLabel):
        classes = list(feature.names)
        places = {number: number for number in range(len(classes))}
    else:
        found = {label for row in rows for label in row}
        if not found or not all(isinstance(label, (str, int)) for label in found):
            raise ValueError(f"column {column!r} must hold class labels, texts or integers, or lists of them.")
        ordered = sorted(found)
        classes, places = [str(label) for label in ordered], {label: n for n, label in enumerate(ordered)}
    labels = np.zeros((len(rows), len(classes)), dtype=bool)
    for number, row in enumerate(rows):
        if not set(row) <= places.keys():
            raise ValueError(f"row {number} of column {column!r} is {row}; there are {len(classes)} classes.")
        labels[number, [places[label] for label in row]] = True
    return classes, labels, multi_label


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


__all__ = ["LabelledAudio", "from_dataset", "load_labelled_audio", "read_columns"]
