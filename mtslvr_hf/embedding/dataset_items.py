"""Items of `encode` in the data sets of `datasets`, and in their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from datasets.arrow_dataset import Column

from ..data.sources import audio_rows, check_dataset

NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float16", "float32", "float64")
ARRAY_FEATURES = (datasets.List, datasets.LargeList, datasets.Array2D)


def items_of_dataset(audio: Any) -> Iterable[Any] | None:
    """Items of a data set or of its column of arrays; None for anything else.

    Raises:
        TypeError: If it is a dictionary of splits.
        ValueError: If it is a data set with several audio columns or none.
    """
    if isinstance(audio, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        check_dataset(audio)
    if isinstance(audio, (datasets.Dataset, datasets.IterableDataset)):
        return _rows(audio)
    if isinstance(audio, Column) and isinstance(audio.source, datasets.Dataset):
        feature = audio.source.features[audio.column_name]
        if _is_array(feature):
            column = audio.source.with_format(None)[audio.column_name]
            return (_typed_clip(clip, feature) for clip in column)
    return None


def _rows(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterator[Any]:
    """Undecoded audio of a data set, or its arrays in the column's type; unchanged rows if its columns are unknown."""
    features = dataset.features
    transformed = isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
    if features is None or (transformed and "array" in features):
        return iter(dataset)
    dataset = dataset.with_format(None)
    if "array" in features:
        return ({**row, "array": _typed(row["array"], features["array"])} for row in dataset)
    of_files = any(isinstance(feature, datasets.Audio) for feature in features.values())
    of_arrays = [name for name, feature in features.items() if _is_array(feature)]
    of_arrays = [name for name in of_arrays if name == "audio"] or [
        name for name in of_arrays if isinstance(features[name], dict)
    ]
    if len(of_arrays) == 1 and not of_files:
        (name,) = of_arrays
        return (_typed_clip(row[name], features[name]) for row in dataset.select_columns(of_arrays))
    return (row["audio"] for row in audio_rows(dataset, hint="choose one with `dataset.select_columns`"))


def _is_array(feature: Any) -> bool:
    """True for a column of arrays, or of dictionaries with `array`."""
    return "array" in feature if isinstance(feature, dict) else isinstance(feature, ARRAY_FEATURES)


def _typed_clip(clip: Any, feature: Any) -> Any:
    """Array of a clip, or dictionary with it, in the type of the column."""
    if not isinstance(feature, dict):
        return _typed(clip, feature)
    return clip if clip is None else {**clip, "array": _typed(clip["array"], feature["array"])}


def _typed(samples: Any, feature: Any) -> Any:
    """Array of a list of samples, in the type of its column: `datasets` returns lists of Python numbers."""
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    dtype = getattr(feature, "dtype", None)
    return samples if samples is None or dtype not in NUMBERS else np.asarray(samples, dtype=dtype)


__all__ = ["items_of_dataset"]
