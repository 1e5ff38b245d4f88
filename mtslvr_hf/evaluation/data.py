"""Evaluation data: labeled audio, or precomputed embeddings of it.

Shapes: N clips, C classes, D embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.exceptions import DatasetsError
from tqdm.auto import tqdm

from ..audio.errors import read_errors
from ..audio.pieces import Cuts, cut_clip
from ..data import BadClipError, LabelledAudio, decode_clip, find_audio_files, load_labelled_audio
from ..data.folders import readable_name
from ..data.labelled import read_columns
from .pieces import PIECE_SECONDS
from .registry import BENCHMARKS, SUITES, Benchmark

ROOT_VARIABLE = "MTSLVR_EVALUATION_DATA"


class DataNotReachableError(OSError):
    """Registry data set that cannot be opened: no network, no folder, or a change of its contents."""


@dataclass(frozen=True, kw_only=True)
class EvaluationData(LabelledAudio):
    """Labeled audio or embeddings with a name and a source.

    Attributes:
        audio: Undecoded rows `{"bytes", "path"}`, or None if there are embeddings.
        embeddings: float32 (N, D), or None if there is audio.
        name: Name in tables.
        source: Origin, in words.
        note: Difference from the paper's data set, or "".
        group_disjoint: Default of `FewShotProtocol.group_disjoint`.
        cuts: Cuts of each clip into pieces, or None for whole clips.
        path: Absolute path of a local folder or file, which is not published.
    """

    audio: Any
    embeddings: torch.Tensor | None = None
    name: str
    source: str
    note: str = ""
    group_disjoint: bool = False
    cuts: list[Cuts] | None = None
    path: Path | None = None

    def label_names(self) -> list[str]:
        """Class of each clip; ValueError if clips have several classes or none."""
        if self.multi_label:
            raise ValueError(
                f"{self.name}: few-shot episodes need one class per clip, but clips have several classes or none; "
                "measure a probe, or name a label column with one class per clip."
            )
        return [self.classes[column] for column in self.labels.argmax(1)]

    def select(self, indices: Sequence[int] | np.ndarray) -> EvaluationData:
        """Clips of these indices, in this order."""
        embeddings = None if self.embeddings is None else self.embeddings[list(indices)]
        cuts = None if self.cuts is None else [self.cuts[index] for index in indices]
        return replace(super().select(indices), embeddings=embeddings, cuts=cuts)

    def only_classes(self, names: Sequence[str]) -> EvaluationData:
        """Clips of these classes; ValueError if a class does not exist."""
        absent = [name for name in names if name not in self.classes]
        if absent:
            file = " Names with commas go into a file for --class-list." if any("," in c for c in self.classes) else ""
            raise ValueError(f"{self.name} has no class {', '.join(absent)}; it has: {', '.join(self.classes)}.{file}")
        kept = [column for column, name in enumerate(self.classes) if name in set(names)]
        labels = self.labels[:, kept]
        chosen = replace(self, classes=[self.classes[column] for column in kept], labels=labels)
        return chosen.select(np.flatnonzero(labels.any(1)))


def without_bad_clips(data: EvaluationData, show_progress_bar: bool = False) -> tuple[EvaluationData, list[str]]:
    """Data without clips that are damaged, empty or silent, and the error of each; ValueError if no clip remains."""
    if data.audio is None:
        return data, []
    good, bad = [], []
    for index in tqdm(range(len(data)), f"reading {data.name}", disable=not show_progress_bar):
        try:
            decode_clip(data.audio[index])
            good.append(index)
        except BadClipError as error:
            bad.append(readable_name(str(error)))
    _check_any(data, bad)
    return (data.select(good) if bad else data), bad


def cut_clips(data: EvaluationData, show_progress_bar: bool = False) -> tuple[EvaluationData, list[str]]:
    """Data with `cuts` into pieces, without clips that are damaged, empty or silent; and the error of each of these.

    Raises:
        ValueError: If the data are embeddings, or no clip remains.
    """
    if data.audio is None:
        raise ValueError(
            f"{data.name} holds embeddings of whole clips, and the paper's protocol embeds pieces of "
            f"{PIECE_SECONDS:g} s: evaluate the audio, or use another protocol."
        )
    cuts: list[Cuts] = []
    good, bad = [], []
    for index in tqdm(range(len(data)), f"reading {data.name}", disable=not show_progress_bar):
        try:
            cuts.append(cut_clip(data.audio[index], PIECE_SECONDS))
            good.append(index)
        except BadClipError as error:
            bad.append(readable_name(str(error)))
    _check_any(data, bad)
    return replace(data.select(good) if bad else data, cuts=cuts), bad


def _check_any(data: EvaluationData, bad: list[str]) -> None:
    if len(bad) == len(data):
        raise ValueError(f"{data.name}: none of its {len(data)} clips can be decoded; the first error: {bad[0]}")


def open_data(
    spec: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    audio_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    revision: str | None = None,
    root: str | Path | None = None,
    allow_row_paths: bool = False,
) -> EvaluationData:
    """Evaluation data from labeled audio, or from embeddings that `mtslvr embed --columns label` wrote.

    Args:
        spec: A name of the registry; or a folder, parquet file or data set on the Hub, see `load_labelled_audio`. An
            existing folder of that name is preferred to the registry.
        config, split, audio_column, label_column, group_column, revision: See `load_labelled_audio`; not used for
            names of the registry. The default split is "train".
        allow_row_paths: As for `load_audio`.
        root: Folder of the registry's local data sets. Default: environment variable MTSLVR_EVALUATION_DATA.

    Raises:
        DataNotReachableError: If a registry data set cannot be opened.
        FileNotFoundError: If no such folder or data set exists, or the Hub cannot be reached.
        ValueError: If labels, the column, the configuration or the split are missing.
    """
    path = Path(spec).expanduser()
    if str(spec) in BENCHMARKS and not path.exists():
        return _open_benchmark(BENCHMARKS[str(spec)], root)
    if path.is_dir() and _holds_embeddings(path):
        return replace(read_labelled_embeddings(path, label_column, group_column), path=path.resolve())
    try:
        columns = (audio_column, label_column, group_column)
        audio = load_labelled_audio(spec, config, split or "train", *columns, revision, allow_row_paths)
    except (FileNotFoundError, ConnectionError) as error:
        names = ", ".join((*BENCHMARKS, *SUITES))
        raise FileNotFoundError(f"{error} Names of the registry: {names}.") from error
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        name = readable_name(path.resolve().name)
        return replace(_of_audio(audio, name, f"the {kind} {name}"), path=path.resolve())
    details = [f"split {split or 'train'}", *([f"revision {revision}"] if revision else [])]
    return _of_audio(audio, str(spec), f"{spec} ({', '.join(details)})")


def _open_benchmark(benchmark: Benchmark, root: str | Path | None) -> EvaluationData:
    if not benchmark.repository:
        return _open_local(benchmark, root)
    place = f"{benchmark.repository} (revision {benchmark.revision}, split {benchmark.split})"
    try:
        audio = load_labelled_audio(
            benchmark.repository,
            split=benchmark.split,
            audio_column=benchmark.audio_column,
            label_column=benchmark.label_column,
            group_column=benchmark.group_column,
            revision=benchmark.revision,
        )
    except read_errors(ValueError, DatasetsError) as error:  # no network, or changed contents
        raise DataNotReachableError(f"{benchmark.name}: {place} cannot be opened: {error}") from error
    return _of_audio(audio, benchmark.name, place, benchmark)


def _open_local(benchmark: Benchmark, root: str | Path | None) -> EvaluationData:
    root = root or os.environ.get(ROOT_VARIABLE)
    if root is None:
        raise DataNotReachableError(
            f"{benchmark.name} is a local folder; set its parent with --data-root (root=...) or the environment "
            f"variable {ROOT_VARIABLE}."
        )
    folder = Path(root).expanduser() / benchmark.name
    if not folder.is_dir():
        raise DataNotReachableError(f"{benchmark.name}: there is no folder {folder}.")
    return _of_audio(load_labelled_audio(folder), benchmark.name, f"the folder {benchmark.name}", benchmark)


def _of_audio(audio: LabelledAudio, name: str, source: str, benchmark: Benchmark | None = None) -> EvaluationData:
    facts = benchmark or Benchmark(name)
    more = {"name": name, "source": source, "note": facts.note, "group_disjoint": facts.group_disjoint}
    return EvaluationData(**{**vars(audio), **more})


def _holds_embeddings(folder: Path) -> bool:
    shard = next(iter(_shards_of(folder)), None)
    return shard is not None and "embedding" in pq.read_schema(shard).names


def _shards_of(folder: Path) -> list[Path]:
    """Visible parquet files of a folder, which need not exist."""
    return find_audio_files(folder, frozenset((".parquet",))) if folder.is_dir() else []


def read_labelled_embeddings(
    data: str | Path | datasets.Dataset, label_column: str | None = None, group_column: str | None = None
) -> EvaluationData:
    """Embeddings and classes from a folder that `mtslvr embed --columns label` wrote, or from a similar data set.

    Args:
        data: The folder, or a data set with a column `embedding` (D numbers per row).
        label_column, group_column: See `load_labelled_audio`.

    Raises:
        FileNotFoundError: If the folder does not exist or has no parquet file.
        ValueError: If a column is missing, or a row has no class or no group.
    """
    name, source = "embeddings", "embeddings in memory"
    if not isinstance(data, datasets.Dataset):
        name = readable_name(Path(data).resolve().name)
        data, source = _read_shards(Path(data)), f"embeddings in the folder {name}"
    classes, labels, multi_label, groups = read_columns(data, label_column, group_column)
    if "embedding" not in data.features:
        raise ValueError(f"{name} has no column 'embedding'; it has: {', '.join(data.features)}.")
    return EvaluationData(
        audio=None,
        embeddings=torch.from_numpy(np.array(data.with_format("numpy")["embedding"][:], dtype=np.float32)),  # (N, D)
        name=name,
        source=source,
        classes=classes,
        labels=labels,
        multi_label=multi_label,
        groups=groups,
    )


def _read_shards(folder: Path) -> datasets.Dataset:
    """All rows in memory; `datasets.load_dataset` would leave a copy in the cache."""
    shards = _shards_of(folder)
    if not shards:
        raise FileNotFoundError(f"no parquet file in {folder}; expected a folder that mtslvr embed wrote.")
    table = pa.concat_tables([pq.read_table(path) for path in shards])
    return datasets.Dataset(table, fingerprint="embeddings")  # or datasets would pickle the whole table to make one


__all__ = [
    "DataNotReachableError",
    "EvaluationData",
    "cut_clips",
    "open_data",
    "read_labelled_embeddings",
    "without_bad_clips",
]
