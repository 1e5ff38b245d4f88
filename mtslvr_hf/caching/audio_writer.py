"""Writer of the shards of `mtslvr cache`, which decodes rows and encodes them as FLAC."""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from ..audio.clips import SILENCE_DBFS
from ..audio.errors import BadClipError
from ..audio.files import describe
from ..audio.prefetch import ReadAhead
from ..audio.recording import OnTruncated, open_recording
from ..data.local import AUDIO_SUFFIXES
from ..data.metadata import AUDIO_COLUMN
from ..shards import ShardWriter, SourceRow

ROWS_PER_GROUP = 64  # held in memory by a reader; small data sets are divided into row groups
BYTES_PER_GROUP = 32 * 2**20  # limits the memory for rows of an hour each
MAX_BYTES = 2**30  # of a row; Arrow's arrays of bytes end at 2**31
FULL_SCALE = np.float32(2**15)  # of libsndfile for 16 bit


@dataclass(frozen=True)
class CachedClip:
    """FLAC file of a row, or the error."""

    index: int  # among the rows of the shard
    error: BadClipError | None = None
    data: bytes = b""  # 16 bit mono FLAC
    seconds: float = 0.0
    clipped: int = 0  # samples beyond full scale


class AudioWriter(ShardWriter[CachedClip]):
    """Writer of cached audio that decodes in threads: libsndfile and soxr release Python's lock.

    Args:
        *options: As for `ShardWriter`; the features are `audio` and the copied columns.
        sampling_rate: In Hz.
        num_workers: Number of threads; 0 works in the caller's thread.
        on_truncated: See `open_recording`.
    """

    def __init__(self, *options: Any, sampling_rate: int, num_workers: int, on_truncated: OnTruncated = "error"):
        super().__init__(*options)
        self.sampling_rate = sampling_rate
        self.num_workers = num_workers
        self.on_truncated = on_truncated

    def results(self, audio: Iterator[Any]) -> Generator[CachedClip, None, None]:
        ahead = ReadAhead(audio, self._work, self.num_workers, limit=max(1, self.num_workers))
        with closing(iter(ahead)) as clips:
            for _, clip in clips:
                yield clip

    def _work(self, number: int, audio: Mapping[str, Any] | None) -> Iterator[CachedClip]:
        try:
            data, samples, clipped = encode_flac(audio or {}, self.sampling_rate, self.on_truncated)
            yield CachedClip(number, None, data, samples / self.sampling_rate, clipped)
        except BadClipError as error:
            yield CachedClip(number, error)

    def totals(self, results: Sequence[CachedClip]) -> dict[str, float]:
        return {
            "seconds": sum(clip.seconds for clip in results),
            "clipped_rows": sum(clip.clipped > 0 for clip in results),
            "clipped_samples": sum(clip.clipped for clip in results),
        }

    def group_is_full(self, good: Sequence[tuple[SourceRow, CachedClip]]) -> bool:
        return len(good) == ROWS_PER_GROUP or sum(len(clip.data) for _, clip in good) >= BYTES_PER_GROUP

    def table(self, good: Sequence[tuple[SourceRow, CachedClip]]) -> pa.Table:
        schema = self.features.arrow_schema
        values = {name: [row.columns[name] for row, _ in good] for name in self.features if name != AUDIO_COLUMN}
        values[AUDIO_COLUMN] = [{"bytes": clip.data, "path": _flac_name(row.id)} for row, clip in good]
        return pa.Table.from_arrays([pa.array(values[field.name], field.type) for field in schema], schema=schema)


def encode_flac(
    audio: Mapping[str, Any], sampling_rate: int, on_truncated: OnTruncated = "error"
) -> tuple[bytes, int, int]:
    """16 bit mono FLAC file of a whole audio file, its number of samples, and how many of these were clipped.

    The samples are those of `decode_clip` without cropping, within a 16 bit step; those beyond full scale are clipped.

    Args:
        audio: `{"bytes", "path"}`, as for `decode_clip`.
        sampling_rate: In Hz.
        on_truncated: See `open_recording`.

    Raises:
        BadClipError: If it cannot be decoded to its end, is silent at this rate, or takes more than 1 GiB as FLAC.
    """
    file, samples, clipped, total, squares = io.BytesIO(), 0, 0, 0.0, 0.0
    with (
        open_recording(audio, None, on_truncated) as recording,
        soundfile.SoundFile(file, "w", sampling_rate, 1, "PCM_16", format="FLAC") as flac,
    ):
        for block in recording.blocks(sampling_rate):  # (samples,) float32
            wide = block.astype(np.float64)  # keeps a small deviation beside a large offset
            total, squares, samples = total + float(wide.sum()), squares + float(wide @ wide), samples + len(block)
            clipped += int(np.count_nonzero(np.abs(block) > 1))
            steps = np.rint(block * FULL_SCALE)
            flac.write(np.clip(steps, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16))
            if file.tell() > MAX_BYTES:
                raise BadClipError(
                    "unreadable",
                    f"{describe(audio)}: longer than {samples / sampling_rate / 3600:.1f} hours, too much for a row "
                    "of a parquet file; cut it into parts.",
                )
    deviation = math.sqrt(max(0.0, squares / samples - (total / samples) ** 2))
    if deviation < 10 ** (SILENCE_DBFS / 20):
        raise BadClipError("silent", f"{describe(audio)}: under {SILENCE_DBFS:.0f} dBFS from beginning to end.")
    return file.getvalue(), samples, clipped


def _flac_name(row_id: str) -> str:
    """Name of a row's FLAC file; only relative paths keep their folders, because others belong to one machine."""
    path = PurePath(row_id)
    name = path.name if path.is_absolute() or "://" in row_id else path.as_posix()
    suffix = path.suffix.lower()
    return (name[: -len(suffix)] if suffix in AUDIO_SUFFIXES else name) + ".flac"


__all__ = ["AudioWriter", "encode_flac"]
