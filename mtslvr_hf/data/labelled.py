"""Labelled audio from a folder per class or from a data set with a label column.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.arrow_dataset import Column

from .encoded import folder_roots
from .folders import FolderLayout, readable_name
from .local import AUDIO_SUFFIXES, LocalSource, local_path, look_into
from .metadata import read_csv
from .sources import AUDIO_COLUMN, audio_rows, check_dataset, load_whole

logger = logging.getLogger(__name__)

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
    allow_row_paths: bool = False,
) -> LabelledAudio:
    """Opens labelled audio. A data set on the Hub is downloaded whole.

    Args:
        name: A folder with a folder of audio files per class (or a folder per split that holds these, see
            `FolderLayout`) and an optional `manifest.csv` with the columns `file` and `group`; a folder of audio files
            with `metadata.csv` or `.jsonl` as for AudioFolder of `datasets`, whose columns give labels and groups;
            parquet shards or one parquet file; or a data set on the Hub.
        config: Configuration of the data set.
        split: Its split. A folder without splits has only "train".
        audio_column: Needed if several columns hold audio.
        label_column: Class labels, texts or integers, or lists of them for several classes per clip; or lists of 0
            and 1, one for each class. By default the first of label, labels, human_labels, target, category, class.
        group_column: Groups, in the data set or the manifest. By default the column `group` of a manifest, if any.
        revision: Branch, tag or commit on the Hub.
        allow_row_paths: As for `load_audio`.

    Raises:
        FileNotFoundError: If no such folder or data set exists.
        ValueError: If labels, the column, the configuration or the split are missing. The message lists those present.
    """
    path = local_path(name)
    source = None if path is None else look_into(path)
    if source is not None and source.kind == "audio files":
        return _from_folder(source, split, audio_column, label_column, group_column, allow_row_paths)
    if source is not None and source.kind == "tar shards":
        raise ValueError(f"{path} holds tar shards, which have no labels; expected a folder per class, or parquet.")
    dataset, roots = load_whole(name, config, split, revision, allow_row_paths=allow_row_paths)
    return from_dataset(dataset, audio_column, label_column, group_column, roots)


def _from_folder(
    source: LocalSource,
    split: str,
    audio_column: str | None,
    label_column: str | None,
    group_column: str | None,
    allow_row_paths: bool,
) -> LabelledAudio:
    """Audio of a folder with metadata, or of a folder per class."""
    metadata = source.read_metadata(audio_column, required=True)
    if metadata is not None:
        roots = None if allow_row_paths else folder_roots(source.path)
        dataset = metadata.rows_of(split).dataset(roots)
        try:
            return from_dataset(dataset, metadata.audio_column, label_column, group_column)
        except ValueError as error:
            names = ", ".join(map(str, metadata.sources))
            raise ValueError(f"{names}: {error} Without this file, folders are the classes.") from error
    if label_column is not None:
        logger.warning(
            "%s is a folder of audio files without metadata.csv: its folders are the classes, and label_column %r "
            "has no effect.",
            *(source.path, label_column),
        )
    layout = source.layout()
    return _from_classes(layout, layout.files_of(split), group_column)


def _from_classes(layout: FolderLayout, files: Sequence[Path], group_column: str | None) -> LabelledAudio:
    """Audio of a folder per class."""
    names = [layout.class_of(file) for file in files]
    classes = sorted({name for name in names if name is not None})
    if not classes:
        raise ValueError(
            f"{layout.root} has no folder with audio files in it; expected one folder per class, with files ending in "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}, or metadata.csv with the columns file_name and label."
        )
    loose = [file for file, name in zip(files, names) if name is None]
    if loose:
        logger.warning(
            "%d of %d audio files lie in no folder of a class and are left out: %s",
            *(len(loose), len(files), ", ".join(map(layout.name_of, loose[:3]))),
        )
    kept = sorted((name, file) for file, name in zip(files, names) if name is not None)
    audio = [{"bytes": None, "path": str(file)} for _, file in kept]
    labels = np.eye(len(classes), dtype=bool)[[classes.index(name) for name, _ in kept]]
    return LabelledAudio(audio, classes, labels, False, _read_groups(layout, [file for _, file in kept], group_column))


def _read_groups(layout: FolderLayout, files: Sequence[Path], column: str | None) -> list[str] | None:
    """Groups from the manifest of the split or the root; None if it has none and `column` is None."""
    split = layout.split_folder(files[0])
    folder = split if (split / MANIFEST).is_file() else layout.root
    manifest = folder / MANIFEST
    wanted = column or GROUP
    header, *rows = list(read_csv(manifest) if manifest.is_file() else ()) or [[]]
    if not {"file", wanted} <= set(header):
        if column is None:
            return None
        raise ValueError(f"groups need {manifest} with the columns file and {column}; it has: {_some(header)}.")
    groups = {row["file"]: row[wanted] for row in (dict(zip(header, values)) for values in rows)}
    names = [readable_name(path.relative_to(folder).as_posix()) for path in files]
    unlisted = [name for name in names if not groups.get(name)]
    if unlisted:
        raise ValueError(f"{manifest} has no {wanted} for {len(unlisted)} of {len(names)} files: {_some(unlisted)}.")
    return [groups[name] for name in names]


def from_dataset(
    dataset: datasets.Dataset,
    audio_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    roots: tuple[str, ...] | None = None,
) -> LabelledAudio:
    """Labelled audio of an open data set; arguments and errors as in `load_labelled_audio` and `audio_rows`."""
    check_dataset(dataset)
    columns = read_columns(dataset, label_column, group_column)
    return LabelledAudio(audio_rows(dataset, audio_column, roots)[AUDIO_COLUMN], *columns)


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
    if multi_label and not isinstance(feature, datasets.ClassLabel):
        values = _from_multi_hot(values)
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


def _from_multi_hot(values: Sequence[Any]) -> Sequence[Any]:
    """Lists of class indices for lists of 0 and 1 of one length, one for each class; others are unchanged."""
    lengths = {len(value) for value in values if value is not None}
    entries = {(type(entry), entry) for value in values if value is not None for entry in value}
    boolean = all(kind is bool for kind, _ in entries)
    if len(lengths) != 1 or not entries or not all(entry in (0, 1) for _, entry in entries):
        return values
    if lengths == {1} and not boolean:  # one class in each row: 0 or 1
        return values
    return [value if value is None else [n for n, entry in enumerate(value) if entry] for value in values]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


__all__ = ["LabelledAudio", "from_dataset", "load_labelled_audio", "read_columns"]
