"""Embeddings that were made before, with the classes of their clips: what `mtslvr embed` wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings with their classes.

    Attributes:
        embeddings: float32 (clips, D).
        labels: the class of each.
        groups: the group (speaker, recording session) of each, or None when none were asked for.
    """

    embeddings: torch.Tensor
    labels: list[str]
    groups: list[str] | None = None


def read_labelled_embeddings(
    data: str | Path | datasets.Dataset,
    label_column: str = "label",
    group_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledEmbeddings:
    """Reads embeddings and classes from a folder that `mtslvr embed --columns label` wrote, or a data set like it.

    Args:
        data: the folder, or a data set with a column `embedding` (D numbers a row).
        label_column: column of the classes: names, numbers, or a ClassLabel, whose names are taken.
        group_column: column of the groups, for group-disjoint episodes.
        classes: the classes to read; all if None.

    Raises:
        FileNotFoundError: when there is no parquet file in the folder, or no folder.
        ValueError: when a column is missing, a row has no class or no group, or a class asked for has no rows.
    """
    if not isinstance(data, datasets.Dataset):
        data = _read_shards(Path(data))
    columns = ["embedding", label_column] + ([group_column] if group_column else [])
    absent = [name for name in columns if name not in data.column_names]
    if absent:
        raise ValueError(
            f"the data set has no column {', '.join(absent)}; its columns are {', '.join(data.column_names)}. "
            "mtslvr embed copies those that --columns names"
        )
    labels = _names(data, label_column)
    if classes is not None:
        empty = [name for name in classes if name not in set(labels)]
        if empty:
            raise ValueError(f"there is no class {', '.join(empty)}; the classes are {', '.join(sorted(set(labels)))}")
        chosen = set(classes)
        kept = [row for row, name in enumerate(labels) if name in chosen]
        data, labels = data.select(kept), [labels[row] for row in kept]
    values = np.array(data.with_format("numpy")["embedding"][:], dtype=np.float32)  # (N, D)
    return LabelledEmbeddings(torch.from_numpy(values), labels, group_column and _names(data, group_column))


def _read_shards(folder: Path) -> datasets.Dataset:
    """All rows in memory, without the copy that `datasets.load_dataset` would leave in the user's cache."""
    shards = sorted(folder.rglob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"no parquet file in {folder}; expected a folder that mtslvr embed wrote")
    return datasets.Dataset(pa.concat_tables([pq.read_table(path) for path in shards]))


def _names(data: datasets.Dataset, column: str) -> list[str]:
    values = list(data[column])
    for row, value in enumerate(values):
        if value is None or value == "":
            raise ValueError(f"row {row} has no {column}; expected a value in every row")
    feature = data.features[column]
    return [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in values]


__all__ = ["LabelledEmbeddings", "read_labelled_embeddings"]
