"""Cached audio: a data set decoded once, as shards of 16 kHz mono FLAC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..audio.recording import OnTruncated
from ..cards.cached_audio import write_card
from ..data.sources import AUDIO_COLUMN
from ..files import write_json
from ..shards import ShardFolder, ShardReport, Source, report_of, write_shards
from ..shards.folder import ERRORS, FORMAT_VERSION, MANIFEST
from ..workers import usable_cores
from .audio_writer import AudioWriter

MAX_RATE = 65_535  # Hz; a FLAC frame can state every integer up to it
COMMAND = "mtslvr cache"


@dataclass(frozen=True)
class CacheReport(ShardReport):
    """Report of one split in a folder of cached audio, which may hold other splits, too."""

    config: str
    split: str
    bytes: int  # size of the files
    clipped_rows: int  # clips with samples beyond full scale, which were clipped
    clipped_samples: int

    def __str__(self) -> str:
        return (
            f"Wrote {self.folder}: {self.rows} clips, {self.seconds / 3600:.2f} hours, {self.bytes / 1e6:.1f} MB, "
            f"{self.bad(f'{self.config}/{self.split}/{ERRORS}')}, {self.clipped_rows} clips clipped; "
            f"{self.computed} of {self.shards} shards were made in this run.\n"
            f"Open them with mtslvr_hf.data.load_audio({str(self.folder)!r}, {self.config!r}, {self.split!r})."
        )


def cache_audio(
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    output: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    audio_column: str | None = None,
    columns: Sequence[str] | None = None,
    sampling_rate: int = 16_000,
    rows_per_shard: int = 1000,
    num_workers: int | None = None,
    shuffle: bool = True,
    verify: bool = False,
    allow_row_paths: bool = False,
    show_progress_bar: bool | None = None,
    on_truncated: OnTruncated = "error",
) -> CacheReport:
    """Cache of a split's decoded audio, in a folder that `load_audio` and `datasets.load_dataset` read.

    The column `audio` holds whole files as 16 bit mono FLAC; other columns are copied. The folder gets
    `CONFIG/SPLIT/data/*.parquet`, in row groups of at most 64 rows; `errors.jsonl` next to it (bad rows, reasons); and
    README.md and `manifest.json` (counts, settings, shards with checksums) of all splits. Another call adds another
    split or configuration of the same source. An interrupted run resumes when it is called again: only shards that are
    missing, incomplete or made from other input are written. Under `accelerate launch`, process p of P takes every
    P-th partition of the source (a shard of a stream, or `rows_per_shard` rows). The memory holds a row group, and a
    file for each thread.

    Args:
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub, which is streamed; or a data set object.
        output: The folder to write, new or of earlier runs from this source.
        config: Configuration of the data set.
        split: Split of the data set; default: all files of a folder, or the only split.
        audio_column: Name of the audio column; required if it is ambiguous.
        columns: Columns to copy; default: all. A folder of audio files has `file` and `label`, or the columns of its
            metadata.csv.
        sampling_rate: In Hz.
        rows_per_shard: Largest number of rows in a parquet file. A stream's shards are not joined.
        num_workers: Threads that decode; default: one for each core of this process.
        shuffle: Write audio files of a folder and rows of a `datasets.Dataset` in a fixed random order, since training
            reads a few neighboring rows at a time: files of one folder or recording would fill a batch. If files are
            added or removed, another run writes all shards anew. Streams keep their order.
        verify: Also compare the checksums of finished shards, which reads all of them, and rewrite damaged ones.
        allow_row_paths: Whether rows of a source without bytes may name any file or URL, see `load_audio`.
        show_progress_bar: Default: on a terminal.
        on_truncated: "error" makes a truncated file a bad row, "keep" caches what it has.

    Returns:
        The report of this split, the same in all processes.

    Raises:
        FileNotFoundError: If the source does not exist, or processes do not share the output folder.
        FileExistsError: If the output folder holds other files.
        ValueError: If an option is out of range, the source lacks the configuration, split or a column, or the
            folder's shards were made with other settings or from another source.
    """
    output = Path(output)
    num_workers = usable_cores() if num_workers is None else num_workers
    _check_arguments(sampling_rate, rows_per_shard, num_workers)

    def make_writer(opened: Source) -> AudioWriter:
        names = (opened.config, opened.split)
        _check_names(names, opened)
        common = {"format_version": FORMAT_VERSION, "source": opened.name, "sampling_rate": sampling_rate}
        own = {
            "audio_column": audio_column,
            "columns": list(opened.features),
            "rows_per_shard": rows_per_shard,
            "shuffle": shuffle,
            "on_truncated": on_truncated,
        }
        root = ShardFolder(output, "audio", COMMAND)
        root.claim(common)
        folder = ShardFolder(output.joinpath(*names), "audio", COMMAND, [output / MANIFEST], verify)
        folder.claim(own)

        def finish(facts: dict[str, Any]) -> None:
            manifest = {**common, "config": names[0], "split": names[1], **own, **facts}
            write_json(folder.path / MANIFEST, manifest)
            _summarize(output, common)
            root.tidy([])
            root.release()

        features = datasets.Features({AUDIO_COLUMN: datasets.Audio(sampling_rate=sampling_rate), **opened.features})
        options: dict[str, Any] = {
            "sampling_rate": sampling_rate,
            "num_workers": num_workers,
            "on_truncated": on_truncated,
        }
        return AudioWriter(folder, features, rows_per_shard, finish, **options)

    manifest, computed = write_shards(
        source,
        output,
        make_writer,
        cpu=True,
        description="caching",
        show_progress_bar=show_progress_bar,
        config=config,
        split=split,
        audio_column=audio_column,
        columns=columns,
        rows_per_partition=rows_per_shard,
        shuffle=shuffle,
        allow_row_paths=allow_row_paths,
    )
    return report_of(CacheReport, output, manifest, computed)


def _summarize(output: Path, common: dict[str, Any]) -> None:
    """Writes README.md and manifest of all complete splits."""
    folders = sorted(file.parent for file in output.glob(f"[!.]*/[!.]*/{MANIFEST}"))
    splits = [manifest for folder in folders if (manifest := ShardFolder(folder, "audio", COMMAND).read_manifest())]
    write_card(output, splits)
    for split in splits:
        for key in common:
            del split[key]
        for shard in split["shards"]:
            shard["file"] = f"{split['config']}/{split['split']}/{shard['file']}"
    write_json(output / MANIFEST, {**common, "splits": splits})


def _check_arguments(sampling_rate: int, rows_per_shard: int, num_workers: int) -> None:
    if not 1 <= sampling_rate <= MAX_RATE:
        raise ValueError(f"`sampling_rate` must lie in 1..{MAX_RATE} Hz, which FLAC can hold; got {sampling_rate}.")
    if rows_per_shard < 1:
        raise ValueError(f"`rows_per_shard` must be at least 1; got {rows_per_shard}.")
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be at least 0; got {num_workers}.")


def _check_names(names: Sequence[str], opened: Source) -> None:
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} cannot name a folder; expected letters, digits, '_', '.' and '-'.")
    if AUDIO_COLUMN in opened.features:
        raise ValueError(
            f"The output's audio column is {AUDIO_COLUMN!r}, and the source has another column of that name: rename "
            "it, or name the columns to keep without it."
        )


__all__ = ["CacheReport", "cache_audio"]
