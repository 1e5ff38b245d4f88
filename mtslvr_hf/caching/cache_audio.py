"""A data set decoded once, as shards of 16 kHz mono FLAC: what `mtslvr cache` runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..cards.cached_audio import write_card
from ..data.sources import AUDIO_COLUMN
from ..files import write_json
from ..shards.folder import ERRORS, FORMAT_VERSION, MANIFEST, ShardFolder
from ..shards.partitions import Source, open_source
from ..shards.run import check_agreement, check_apart, process_state, share_of, source_name
from ..workers import usable_cores
from .audio_writer import AudioWriter

MAX_RATE = 65_535  # Hz that a FLAC frame can state one by one
COMMAND = "mtslvr cache"


@dataclass(frozen=True)
class CacheReport:
    """Report of one split in a folder of cached audio.

    Attributes:
        folder: The folder, which may hold other splits, too.
        config: Name of the configuration there.
        split: Name of the split there.
        rows: Clips.
        bad_rows: Rows of the source that could not be decoded and are left out.
        reasons: How many of them for each reason.
        failures: Parts of the source that could not be read to their end; another run tries again.
        shards: Number of parquet files.
        computed: How many of them were made in this run.
        seconds: Duration of the audio.
        bytes: Size of the files.
        clipped_rows: Clips with samples beyond full scale, which are now at it.
        clipped_samples: How many such samples.
    """

    folder: Path
    config: str
    split: str
    rows: int
    bad_rows: int
    reasons: dict[str, int]
    failures: list[str]
    shards: int
    computed: int
    seconds: float
    bytes: int
    clipped_rows: int
    clipped_samples: int

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        errors = f"{self.config}/{self.split}/{ERRORS}"
        bad = f"{self.bad_rows} bad rows ({reasons}; see {errors})" if self.bad_rows else "no bad rows"
        return (
            f"Wrote {self.folder}: {self.rows} clips, {self.seconds / 3600:.2f} hours, {self.bytes / 1e6:.1f} MB, "
            f"{bad}, {self.clipped_rows} clips clipped; {self.computed} of {self.shards} shards were made in this "
            f"run.\nOpen them with mtslvr_hf.data.load_audio({str(self.folder)!r}, {self.config!r}, {self.split!r})."
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
    show_progress_bar: bool | None = None,
) -> CacheReport:
    """Decodes all audio of a split once, into a folder that `load_audio` and `datasets.load_dataset` read.

    Whole files are kept, as mono FLAC of 16 bit in the column `audio`, beside the source's other columns. The folder
    gets `CONFIG/SPLIT/data/*.parquet`, in row groups of at most 64 rows; `errors.jsonl` beside it (rows left out and
    why); and a README.md and `manifest.json` (counts, settings, every shard with its checksum) of all splits: cache
    another split or configuration of the same source by another call. A run that was interrupted, however hard, goes
    on where it was when called again: finished shards are verified by size and checksum, and only what is missing,
    damaged or made from other input is made. Under `accelerate launch`, process p of P takes every P-th unit of work
    (see `open_source`). Memory holds a row group and, for each thread, a file.

    Args:
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub, which is streamed; or a data set object.
        output: The folder to write, new or of earlier runs from this source.
        config: Configuration of the data set.
        split: Its split; unless given, all files of a folder, or a data set's only split.
        audio_column: Needed where several columns could be meant.
        columns: Columns to keep beside the audio; unless given, all. A folder of audio files has `file` and `label`.
        sampling_rate: In Hz.
        rows_per_shard: Most rows of a parquet file. A stream's shards are not joined, so files may have less.
        num_workers: Threads that decode; unless given, one for each core that this process may use.
        show_progress_bar: Unless given, on a terminal.

    Returns:
        What the folder holds of this split now, the same in all processes.

    Raises:
        FileNotFoundError: If the source is not there, or processes do not share the output folder.
        FileExistsError: If the output folder holds something else.
        ValueError: If an option is out of its range, the source lacks what was asked for, or the folder's shards were
            made with other settings or from another source.
    """
    output = Path(output)
    num_workers = usable_cores() if num_workers is None else num_workers
    _check_arguments(sampling_rate, rows_per_shard, num_workers)
    check_apart(source, output)
    opened = open_source(source, config, split, audio_column, columns, None, rows_per_shard)
    names = (opened.config, opened.split)
    _check_names(names, opened)
    common = {
        "format_version": FORMAT_VERSION,
        "source": source_name(source, opened, output),
        "sampling_rate": sampling_rate,
    }
    own = {"audio_column": audio_column, "columns": list(opened.features), "rows_per_shard": rows_per_shard}
    root = ShardFolder(output, "audio", COMMAND)
    root.claim(common)
    folder = ShardFolder(output.joinpath(*names), "audio", COMMAND, summaries=[output / MANIFEST])
    folder.claim(own)
    state = process_state(cpu=True)
    check_agreement(gather_object([len(opened.units)]))
    features = datasets.Features({AUDIO_COLUMN: datasets.Audio(sampling_rate=sampling_rate), **opened.features})
    show = (sys.stderr.isatty() if show_progress_bar is None else show_progress_bar) and state.is_main_process
    with tqdm(desc="caching", total=share_of(opened.rows, state), unit="clip", disable=not show) as bar:
        writer = AudioWriter(folder, features, rows_per_shard, bar, sampling_rate, num_workers)
        for number in range(state.process_index, len(opened.units), state.num_processes):
            writer.write(number, opened.units[number])
    computed = sum(gather_object([writer.computed]))  # waits for all
    if state.is_main_process:
        facts = folder.finish(len(opened.units))
        manifest = {**common, "config": names[0], "split": names[1], **own, **facts}
        write_json(folder.path / MANIFEST, manifest)
        _summarise(output, common)
        root.tidy([])
    state.wait_for_everyone()
    return _report(output, folder.read_manifest(), computed)


def _summarise(output: Path, common: dict[str, Any]) -> None:
    """README and manifest of all splits that are complete."""
    files = sorted(output.glob(f"*/*/{MANIFEST}"))
    splits = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    write_card(output, splits)
    for split in splits:
        for key in common:
            del split[key]
        for shard in split["shards"]:
            shard["file"] = f"{split['config']}/{split['split']}/{shard['file']}"
    write_json(output / MANIFEST, {**common, "splits": splits})


def _report(output: Path, manifest: dict[str, Any], computed: int) -> CacheReport:
    names = "config split rows bad_rows reasons failures seconds clipped_rows clipped_samples"
    return CacheReport(
        folder=output,
        shards=len(manifest["shards"]),
        computed=computed,
        bytes=sum(shard["bytes"] for shard in manifest["shards"]),
        **{name: manifest[name] for name in names.split()},
    )


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
            raise ValueError(f"{name!r} cannot name a folder; expected letters, digits, '_', '.' and '-'")
    if AUDIO_COLUMN in opened.features:
        raise ValueError(
            f"the output's audio column is {AUDIO_COLUMN!r}, and the source has another column of that name: rename "
            "it, or leave it out by naming the columns to keep"
        )


__all__ = ["CacheReport", "cache_audio"]
