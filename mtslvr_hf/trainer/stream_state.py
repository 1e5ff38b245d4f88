"""Stream of a training run: check of its settings, and the position of each process, without prefetched batches."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from ..data import AudioStream, SkippedRows, usable_workers
from .arguments import MTSLVRTrainingArguments
from .stream_loader import StreamLoader, Then

logger = logging.getLogger(__name__)


class StreamProgress:
    """Position of this process in its stream, and counts of the rows that training has used.

    Args:
        stream: This process's stream.
        num_workers: Largest number of DataLoader workers; a stream of few shards uses fewer.
    """

    def __init__(self, stream: AudioStream, num_workers: int):
        self.stream = stream
        self.num_workers = usable_workers(stream.dataset, num_workers, stream.world_size)
        self.epoch = 0
        self.skipped = SkippedRows()  # of this process
        self.all_skipped = SkippedRows()  # of all processes, since `merge_processes`
        self._last_records: dict[int, Mapping[str, Any]] = {}  # by worker

    def dataloader(
        self, pin_memory: bool = False, prefetch_factor: int | None = None, then: Then | None = None
    ) -> DataLoader:
        """DataLoader of the batches from here on, with further work `then` on their iterator.

        Each worker decodes at most `prefetch_factor` batches ahead (default: 2; 256 clips of 10 s take 82 MB).
        """
        return StreamLoader(
            self.stream,
            self.num_workers,
            then,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if self.num_workers else None,
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Stores the `stream` record of a batch that training has used."""
        self._last_records[record["worker"]] = record
        self.epoch = record["epoch"]
        self.skipped.merge(record["skipped"])

    def merge_processes(self) -> None:
        """Adds the counts of all processes; every process must call it."""
        self.all_skipped = SkippedRows()
        for state in gather_object([self.skipped.state_dict()]):
            self.all_skipped.merge(state)

    def logs(self) -> dict[str, int]:
        """Counts of rows that all processes read and skipped since the run began; skipped rows also by reason."""
        reasons = {f"skipped_{reason}": count for reason, count in sorted(self.all_skipped.reasons.items())}
        return {"rows_read": self.all_skipped.rows, "skipped_rows": self.all_skipped.skipped, **reasons}

    def check(self) -> None:
        """Raises TooManyBadRowsError if all processes together skipped more rows than the stream allows."""
        self.all_skipped.check(self.stream.max_bad_share, self.stream.bad_share_after)

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream and counts of skipped rows, for JSON."""
        position = self.stream.state_after(self._last_records.values())
        return {"position": position, "epoch": self.epoch, "skipped": self.skipped.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict` and its number of workers.

        Raises:
            ValueError: If the state belongs to another data set, seed or shuffle buffer.
        """
        position = state["position"]
        arguments = {name: getattr(self.stream, name) for name in inspect.signature(AudioStream).parameters}
        self.stream = AudioStream(**{**arguments, "state": position})
        if position is not None and position["num_workers"] != max(1, self.num_workers):
            logger.warning(
                "Reading with the %d workers of the checkpoint instead of %d, so that no clip is lost or repeated.",
                position["num_workers"],
                self.num_workers,
            )
            self.num_workers = position["num_workers"]
        self.epoch = state["epoch"]
        self.skipped.load_state_dict(state["skipped"])


def check_stream(stream: Any, args: MTSLVRTrainingArguments) -> None:
    """Check that a run with these arguments can train on the stream, or that there is no stream.

    Raises:
        TypeError: If the stream is not an AudioStream.
        ValueError: If the stream was made for another batch size or number of processes, has more crops than views
            or is not endless, or `max_steps` is missing.
    """
    if stream is None:
        return
    if not isinstance(stream, AudioStream):
        raise TypeError(f"`train_dataset` must be an AudioStream, got {kind_of(stream)}.")
    for ours, theirs, name in (
        (stream.batch_size, args.per_device_train_batch_size, "per_device_train_batch_size"),
        (stream.world_size, args.world_size, "world_size"),
        (stream.rank, args.process_index, "process_index"),
    ):
        if ours != theirs:
            raise ValueError(
                f"The stream was made for {name} = {ours}, the training arguments say {theirs}. Set both alike."
            )
    if stream.crops > 2:
        raise ValueError(f"The stream has {stream.crops} crops of each row; two views need 1 or 2.")
    if args.auto_find_batch_size:
        raise ValueError("`auto_find_batch_size` cannot work: the stream's batches have one size. Set it to false.")
    if not stream.endless:
        raise ValueError("The stream must be endless, or processes without clips would block the others.")
    if args.max_steps <= 0:
        raise ValueError("`max_steps` is missing: the stream of clips has no end. Set the number of steps of the run.")


def kind_of(value: Any) -> str:
    """Type of a value, with its shape if it has one, for messages."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")


__all__ = ["StreamProgress", "check_stream", "kind_of"]
