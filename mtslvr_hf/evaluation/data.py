"""Evaluation data: labelled audio, or precomputed embeddings of it.

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

from ..audio.errors import READ_ERRORS
from ..data import BadClipError, LabelledAudio, decode_clip, load_labelled_audio
from ..data.labelled import read_columns
from .registry import BENCHMARKS, SUITES, Benchmark

ROOT_VARIABLE = "MTSLVR_EVALUATION_DATA"


class DataNotReachableError(OSError):
    """A data set of the registry that is not here: no network, no folder, or not what it was."""


@dataclass(frozen=True, kw_only=True)
class EvaluationData(LabelledAudio):
    """A labelled data set.

    Attributes:
        audio: undecoded rows `{"bytes", "path"}`, or None where there are embeddings.
        embeddings: float32 (N, D), or None where there is audio.
        name: what tables call it.
        source: where it came from, in a phrase.
        note: how it differs from the paper's set of that name; empty if it does not, or is no set of the paper's.
        group_disjoint: whether its few-shot episodes keep groups apart unless the user says otherwise.
    """

    audio: Any
    embeddings: torch.Tensor | None = None
    name: str
    source: str
    note: str = ""
    group_disjoint: bool = False

    def label_names(self) -> list[str]:
        """The class of each clip.

        Raises:
            ValueError: If clips have several classes or none.
        """
        if self.multi_label:
            raise ValueError(
                f"{self.name}: clips have several classes or none, which few-shot episodes cannot be drawn from; "
                "measure a probe, or name a label column with one class a clip."
            )
        return [self.classes[column] for column in self.labels.argmax(1)]

    def select(self, indices: Sequence[int] | np.ndarray) -> EvaluationData:
        """Only these clips, in this order."""
        embeddings = None if self.embeddings is None else self.embeddings[list(indices)]
        return replace(super().select(indices), embeddings=embeddings)

    def only_classes(self, names: Sequence[str]) -> EvaluationData:
        """Only the clips of these classes.

        Raises:
            ValueError: If there is no such class.
        """
        absent = [name for name in names if name not in self.classes]
        if absent:
            raise ValueError(f"{self.name} has no class {', '.join(absent)}; it has: {', '.join(self.classes)}.")
        kept = [column for column, name in enumerate(self.classes) if name in set(names)]
        labels = self.labels[:, kept]
        chosen = replace(self, classes=[self.classes[column] for column in kept], labels=labels)
        return chosen.select(np.flatnonzero(labels.any(1)))


def without_bad_clips(data: EvaluationData, show_progress: bool = False) -> tuple[EvaluationData, list[str]]:
    """Decodes every clip once, so that one that is broken, empty or silent does not end hours of work.

    Returns:
        The data set without them, and what is wrong with each.

    Raises:
        ValueError: If there is no other clip.
    """
    if data.audio is None:
        return data, []
    good, bad = [], []
    for index in tqdm(range(len(data)), f"reading {data.name}", disable=not show_progress):
        try:
            decode_clip(data.audio[index])
            good.append(index)
        except BadClipError as error:
            bad.append(str(error))
    if not good:
        raise ValueError(f"{data.name}: none of its {len(data)} clips can be decoded; the first one: {bad[0]}")
    return (data.select(good) if bad else data), bad


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
) -> EvaluationData:
    """Opens labelled audio, or embeddings that `mtslvr embed --columns label` wrote.

    Args:
        spec: a name of the registry; a folder or parquet file; or a data set on the Hub, see `load_labelled_audio`. A
            folder of that name comes before the registry.
        config: configuration, like what follows not for names of the registry, which bring their own.
        split: "train" unless given.
        audio_column: needed where several could be meant.
        label_column: see `load_labelled_audio`.
        group_column: column of the data set or of the folder's manifest.csv.
        revision: branch, tag or commit on the Hub.
        root: folder of the registry's local sets; the environment's MTSLVR_EVALUATION_DATA unless given.

    Raises:
        DataNotReachableError: If a set of the registry cannot be had here. The message says why.
        FileNotFoundError: If there is neither such a folder nor such a data set, or no Hub that could be asked for it.
            The message names the registry's.
        ValueError: If there are no labels, or no such column, configuration or split.
    """
    path = Path(spec).expanduser()
    if str(spec) in BENCHMARKS and not path.exists():
        return _open_benchmark(BENCHMARKS[str(spec)], root)
    if path.is_dir() and _holds_embeddings(path):
        return read_labelled_embeddings(path, label_column, group_column)
    try:
        audio = load_labelled_audio(spec, config, split or "train", audio_column, label_column, group_column, revision)
    except (FileNotFoundError, ConnectionError) as error:
        names = ", ".join((*BENCHMARKS, *SUITES))
        raise FileNotFoundError(f"{error}; nor is it one of the registry: {names}") from error
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        return _of_audio(audio, path.resolve().name, f"the {kind} {path.resolve().name}")
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
    except (*READ_ERRORS, ValueError, DatasetsError) as error:  # no network, or not what it was
        raise DataNotReachableError(f"{benchmark.name}: {place} cannot be opened: {error}") from error
    return _of_audio(audio, benchmark.name, place, benchmark)


def _open_local(benchmark: Benchmark, root: str | Path | None) -> EvaluationData:
    root = root or os.environ.get(ROOT_VARIABLE)
    if root is None:
        raise DataNotReachableError(
            f"{benchmark.name} is a folder on disk: say where with --data-root (root=...) or the environment's "
            f"{ROOT_VARIABLE}."
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
    """True if the first shard of a folder has a column `embedding`."""
    shard = min(folder.rglob("*.parquet"), default=None)
    return shard is not None and "embedding" in pq.read_schema(shard).names


def read_labelled_embeddings(
    data: str | Path | datasets.Dataset, label_column: str | None = None, group_column: str | None = None
) -> EvaluationData:
    """Embeddings and classes from a folder that `mtslvr embed --columns label` wrote, or a data set like it.

    Args:
        data: the folder, or a data set with a column `embedding` (D numbers a row).
        label_column: see `load_labelled_audio`.
        group_column: column of the groups, for group-disjoint episodes.

    Raises:
        FileNotFoundError: when there is no parquet file in the folder, or no folder.
        ValueError: when a column is missing, or a row has no class or no group.
    """
    name, source = "embeddings", "embeddings in memory"
    if not isinstance(data, datasets.Dataset):
        name = Path(data).resolve().name
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
    """All rows in memory, without the copy that `datasets.load_dataset` would leave in the user's cache."""
    shards = sorted(folder.rglob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"no parquet file in {folder}; expected a folder that mtslvr embed wrote.")
    return datasets.Dataset(pa.concat_tables([pq.read_table(path) for path in shards]))


__all__ = ["DataNotReachableError", "EvaluationData", "open_data", "read_labelled_embeddings", "without_bad_clips"]
