"""Audio stream: endless batches of decoded clips, resumable at any batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ..audio.clips import decode_clip
from ..audio.errors import BadClipError
from ..audio.files import fetch, is_url
from ..audio.hashing import hash_integers, row_key
from ..audio.recording import OnTruncated
from .shuffling import Cursor, Retries, Row, ShuffledReader, as_iterable
from .skipped import SkippedRows
from .sources import audio_rows

logger = logging.getLogger(__name__)

STATE_VERSION = 1
ROW_RETRY_SECONDS = 7.0  # three tries more for a row that is a URL
READ_AHEAD_ROWS = 64  # 36 MB of AudioSet's mono clips
INT16_MAX = 32767
TINY_PEAK = 1e-30  # smaller than any clip's peak, so that no scale is zero
HELD_OUT_SALT = 0x68656C64  # makes the choice of held-out rows independent of the crops


class _Progress(NamedTuple):
    """Position of a worker: epoch, number of rows read in it, and the reader's cursor."""

    epoch: int = 0
    rows: int = 0
    cursor: Cursor = Cursor()


class AudioStream(IterableDataset):
    """Stream of batches of clips from a data set, for a `DataLoader(stream, batch_size=None, num_workers=...)`.

    A batch is a dictionary of `input_values`, int16 (batch, samples), and `scales`, float32 (batch,); with several
    crops (batch, crops, samples) and (batch, crops). `dequantize_clips` turns them into float32 clips, not normalized.
    `stream` is the batch's record for `state_after` (plain Python): `worker`, `num_workers`; `batches`, `epoch`,
    `rows`, counts of this worker; `place`, `index`, `used`, the reader's `Cursor`; `names` of the batch's rows; and
    `skipped`, the `SkippedRows.state_dict()` of the rows since its last batch.

    A row's crops depend only on seed, epoch and a checksum of the row's encoded bytes. The order depends on the seed
    and on the numbers of processes and workers.

    Args:
        dataset: Data set from `load_audio`, or any one with an audio column, streamed or not.
        clip_seconds: Length of a clip in seconds.
        sampling_rate: Sampling rate of the clips in Hz.
        batch_size: Rows in a batch.
        seed: Seed of order and crops.
        shuffle_buffer: Undecoded rows that each worker shuffles in memory; it reads up to 64 more ahead.
        rank, world_size: Index of this process and number of processes; each reads its own share of the rows.
        endless: True for epoch after epoch of full batches; False for one epoch, whose last batches may be smaller.
        max_bad_share: Largest share of a worker's rows that may give no clip.
        bad_share_after: Number of rows from which on that share is checked.
        held_out_fraction: Share of the rows, chosen by their checksum, that is held out.
        held_out: True yields the held-out rows, False the others.
        crops: Random crops of each row, at positions that do not depend on each other.
        retry_seconds: Time for which a shard that cannot be read is tried again, for data sets that are read over a
            network; a lost shard counts as all of its rows.
        state: State to resume from, made by `state_after` of a stream with the same seed, shuffle buffer, data set,
            processes and workers.
        on_truncated: "error" skips a truncated file if the crop may lie behind its end, "keep" takes what it has.

    Raises:
        ValueError: If an argument is out of range, or the state belongs to another stream.
        TooManyBadRowsError: During iteration, if too many rows or all rows give no clip. Single bad rows are skipped.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset | datasets.Dataset,
        clip_seconds: float,
        sampling_rate: int = 16_000,
        batch_size: int = 32,
        seed: int = 0,
        shuffle_buffer: int = 256,
        rank: int = 0,
        world_size: int = 1,
        endless: bool = True,
        max_bad_share: float = 0.05,
        bad_share_after: int = 1000,
        held_out_fraction: float = 0.0,
        held_out: bool = False,
        crops: int = 1,
        retry_seconds: float = 0.0,
        state: Mapping[str, Any] | None = None,
        on_truncated: OnTruncated = "error",
    ):
        super().__init__()
        self.dataset = as_iterable(audio_rows(dataset), seed)
        self.clip_seconds = clip_seconds
        self.sampling_rate = sampling_rate
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.rank = rank
        self.world_size = world_size
        self.endless = endless
        self.max_bad_share = max_bad_share
        self.bad_share_after = bad_share_after
        self.held_out_fraction = held_out_fraction
        self.held_out = held_out
        self.crops = crops
        self.retry_seconds = retry_seconds
        self.state = state
        self.on_truncated = on_truncated
        self._check_arguments()

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return round(self.clip_seconds * self.sampling_rate)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        slot, workers = (info.id, info.num_workers) if info else (0, 1)
        worker, batches, start = self._resume(slot, workers)
        total, recent = SkippedRows(), SkippedRows()
        values, scales = self._empty_batch()
        filled, names = 0, []
        for row, progress in self._rows(start, self.rank * workers + worker, self.world_size * workers, total):
            crops = self._crops(row, progress.epoch, (total, recent))
            if crops is None:
                continue
            for crop, out, scale in zip(crops, values[filled].view(-1, self.samples), scales[filled].view(-1)):
                scale.fill_(_quantize(crop, out=out.numpy()))
            filled += 1
            names.append(_name(row))
            if filled == self.batch_size:
                batches += 1
                record = self._record(worker, workers, batches, progress, recent, names)
                yield {"input_values": values, "scales": scales, "stream": record}
                (values, scales), filled, names, recent = self._empty_batch(), 0, [], SkippedRows()
        if filled:
            record = self._record(worker, workers, batches + 1, progress, recent, names)
            yield {"input_values": values[:filled], "scales": scales[:filled], "stream": record}

    def state_after(self, records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
        """State for a new stream that continues after some batches; this stream's own `state` if there are none.

        Args:
            records: The `stream` records of these batches, in any order: all of them, or the last of each worker.
                The batches must be the first ones that a DataLoader returned.

        Raises:
            ValueError: If the stream is not endless.
        """
        if not self.endless:
            raise ValueError("Only an endless stream can be resumed; this one was made with endless=False.")
        state = None if self.state is None else {**self.state, "workers": dict(self.state["workers"])}
        for record in records:
            if state is None:
                state = {**self._identity(), "num_workers": record["num_workers"], "workers": {}}
            place = {key: record[key] for key in ("batches", "epoch", "rows", *Cursor._fields)}
            known = state["workers"].get(str(record["worker"]))
            if known is None or known["batches"] < place["batches"]:
                state["workers"][str(record["worker"])] = place
        return state

    def _resume(self, slot: int, workers: int) -> tuple[int, int, _Progress]:
        """Worker that a DataLoader's slot continues, its number of batches and its progress.

        DataLoader takes the first batch from slot 0, so slot 0 continues the worker of the next batch.
        """
        if self.state is None:
            return slot, 0, _Progress()
        if self.state["num_workers"] != workers:
            raise ValueError(
                f"The state is that of a stream with {self.state['num_workers']} DataLoader workers, this one has "
                f"{workers}. Use the same number again (0 counts as 1)."
            )
        known = self.state["workers"]
        worker = (slot + sum(place["batches"] for place in known.values())) % workers
        place = known.get(str(worker))
        if place is None:
            return worker, 0, _Progress()
        cursor = Cursor(*(place[key] for key in Cursor._fields))
        return worker, place["batches"], _Progress(place["epoch"], place["rows"], cursor)

    def _rows(
        self, start: _Progress, consumer: int, consumers: int, total: SkippedRows
    ) -> Iterator[tuple[Row, _Progress]]:
        """Yields undecoded rows, epoch after epoch, each with the progress after it."""
        # Reads ahead only in a worker, whose process ends without waiting for threads.
        ahead = READ_AHEAD_ROWS if get_worker_info() is not None else 0
        reader = ShuffledReader(
            self.dataset, self.seed, self.shuffle_buffer, consumer, consumers, ahead, self.retry_seconds
        )
        epoch, rows, begin = start
        good = -1 if rows else 0  # a resumed epoch has had a good clip
        passes_without_clips = 0
        while True:
            for row, cursor in reader.read(epoch, begin):
                rows += 1
                yield row, _Progress(epoch, rows, cursor)
            passes_without_clips = passes_without_clips + 1 if total.good == good else 0
            if passes_without_clips == 2 * consumers - 1:  # this worker has read every row of the data set
                total.fail("A pass over the data set gave no clip.")
            if not self.endless:
                return
            epoch, rows, begin, good = epoch + 1, 0, Cursor(), total.good

    def _crops(self, row: Row, epoch: int, counts: tuple[SkippedRows, SkippedRows]) -> list[np.ndarray] | None:
        """Crops (samples,) of a row, which is counted; None if the row is bad or in the other part of the data set."""
        try:
            crops = self._decode(row, epoch)
        except BadClipError as error:
            for count in counts:
                count.add(error.reason, str(error), row.lost)
            counts[0].check(self.max_bad_share, self.bad_share_after)
            return None
        if crops is not None:
            for count in counts:
                count.add()
        return crops

    def _decode(self, row: Row, epoch: int) -> list[np.ndarray] | None:
        if row.error is not None:
            raise BadClipError("unreadable_shard", row.error)
        if row.audio is None:
            raise BadClipError("empty", f"row {row.index} of a shard: no audio.")
        audio = self._fetch(row.audio)
        key = row_key(audio)
        if (hash_integers(HELD_OUT_SALT, key) < self.held_out_fraction * 2**64) != self.held_out:
            return None
        numbers = [()] + [(number,) for number in range(1, self.crops)]
        seeds = [hash_integers(self.seed, epoch, key, *number) for number in numbers]
        return [decode_clip(audio, self.clip_seconds, self.sampling_rate, seed, self.on_truncated) for seed in seeds]

    def _fetch(self, audio: Mapping[str, Any]) -> Mapping[str, Any]:
        """Row whose URL is read into bytes; other rows are returned unchanged."""
        retries = Retries(min(self.retry_seconds, ROW_RETRY_SECONDS))
        while True:
            try:
                return fetch(audio)
            except BadClipError as error:
                if not is_url(audio) or not retries.wait(error.__cause__ or error, str(error)):
                    raise

    def _empty_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for `input_values` and `scales`; a worker's is shared, so that DataLoader need not copy it."""
        rows = (self.batch_size,) if self.crops == 1 else (self.batch_size, self.crops)
        values = torch.empty(*rows, self.samples, dtype=torch.int16)
        if get_worker_info() is not None:
            values.share_memory_()
        return values, torch.empty(rows)

    def _record(
        self,
        worker: int,
        workers: int,
        batches: int,
        progress: _Progress,
        recent: SkippedRows,
        names: list[str],
    ) -> dict[str, Any]:
        place = {"epoch": progress.epoch, "rows": progress.rows, **progress.cursor._asdict()}
        counts = {"worker": worker, "num_workers": workers, "batches": batches, **place}
        return {**counts, "names": names, "skipped": recent.state_dict()}

    def _identity(self) -> dict[str, int]:
        """Settings that a state depends on."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "rank": self.rank,
            "world_size": self.world_size,
            "num_shards": self.dataset.num_shards,
        }

    def _check_arguments(self) -> None:
        if self.samples < 1 or self.batch_size < 1 or self.shuffle_buffer < 1 or self.crops < 1:
            raise ValueError(
                "`clip_seconds`, `batch_size`, `shuffle_buffer` and `crops` must be positive, got "
                f"{self.clip_seconds}, {self.batch_size}, {self.shuffle_buffer} and {self.crops}."
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"`rank` must lie in 0..{self.world_size - 1}, got {self.rank}.")
        if not self.retry_seconds >= 0:
            raise ValueError(f"`retry_seconds` must not be negative, got {self.retry_seconds}.")
        if not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"`held_out_fraction` must lie in [0, 1), got {self.held_out_fraction}.")
        if self.held_out and not self.held_out_fraction:
            raise ValueError("`held_out=True` needs a `held_out_fraction` above 0.")
        if self.state is None:
            return
        if not self.endless:
            raise ValueError("Only an endless stream can have a `state`.")
        state = self.state
        different = [f"{k} {state.get(k)} -> {v}" for k, v in self._identity().items() if state.get(k) != v]
        if different:
            raise ValueError(
                f"The state is that of another stream: {', '.join(different)}. Repeat its settings, or omit the state."
            )


def dequantize_clips(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Float32 clips (..., samples) of an `AudioStream` batch: `input_values` (..., samples), `scales` (...).

    They are not normalized; each sample has an error of at most half a step, 2**-16 of its clip's peak.
    """
    return values * scales[..., None]


def _name(row: Row) -> str:
    """Name of a row: its path, else its place among the shards of its reader."""
    path = row.audio.get("path") if row.audio is not None else None
    return str(path or f"row {row.index} of shard {row.place}")


def _quantize(clip: np.ndarray, out: np.ndarray) -> float:
    """Writes a clip (samples,) as int16 with the peak 32767, and returns the size of one step."""
    scale = np.float32(max(clip.max(), -clip.min(), TINY_PEAK) / INT16_MAX)
    steps = clip / scale  # float32 (samples,)
    out[:] = np.rint(steps, out=steps)
    return float(scale)


def load_clips(
    dataset: datasets.IterableDataset | datasets.Dataset,
    clip_seconds: float,
    sampling_rate: int = 16_000,
    limit: int | None = None,
    seed: int = 0,
    held_out_fraction: float = 0.0,
    held_out: bool = False,
    rank: int = 0,
    world_size: int = 1,
    crops: int = 1,
    retry_seconds: float = 0.0,
    on_truncated: OnTruncated = "error",
) -> torch.Tensor:
    """Clips of an evaluation set, decoded once into memory; bad rows are skipped, with a warning.

    Args:
        dataset, clip_seconds, sampling_rate, held_out_fraction, held_out, rank, world_size, crops, retry_seconds,
            on_truncated: As for `AudioStream`.
        limit: Largest number of rows; None takes all.
        seed: Seed of order and crops: the same seed gives the same clips.

    Returns:
        Float32 (rows, samples), or (rows, crops, samples) if there are several crops, not normalized, rounded as a
        stream's batches are.

    Raises:
        TooManyBadRowsError: If no clip is good, or more than 5 % of at least 1,000 rows are bad.
    """
    stream = AudioStream(
        dataset,
        clip_seconds,
        sampling_rate,
        batch_size=1,
        seed=seed,
        rank=rank,
        world_size=world_size,
        endless=False,
        held_out_fraction=held_out_fraction,
        held_out=held_out,
        crops=crops,
        retry_seconds=retry_seconds,
        on_truncated=on_truncated,
    )
    clips, skipped = [], SkippedRows()
    for batch in tqdm(islice(stream, limit), total=limit, desc="decoding", unit="clip", disable=None):
        clips.append(dequantize_clips(batch["input_values"], batch["scales"]))
        skipped.merge(batch["stream"]["skipped"])
    if skipped.skipped:
        logger.warning("%s", skipped)
    return torch.cat(clips)


__all__ = ["AudioStream", "dequantize_clips", "load_clips"]
