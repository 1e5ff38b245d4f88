"""What a Trainer can be given to read."""

from __future__ import annotations

from typing import Any

from ..data import AudioStream
from .arguments import MTSLVRTrainingArguments


def check_stream(stream: Any, args: MTSLVRTrainingArguments) -> None:
    """Raises unless a run with these arguments can be trained on the stream; None always can be left out.

    Raises:
        TypeError: If it is no AudioStream.
        ValueError: If it was made for another batch size, or number of processes, or has an end; or `max_steps` is
            missing.
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
            raise ValueError(f"The stream was made for {name} = {ours}, the training arguments say {theirs}.")
    if args.auto_find_batch_size:
        raise ValueError("`auto_find_batch_size` cannot work: the stream makes batches of one size.")
    if not stream.endless:
        raise ValueError("The stream must be endless: processes that run out of clips at different times would hang.")
    if args.max_steps <= 0:
        raise ValueError(
            "`max_steps` is missing: the stream of clips has no end, so the run needs one (and the schedule)."
        )


def kind_of(value: Any) -> str:
    """A value's type, and its shape if it has one, for messages."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")


__all__ = ["check_stream", "kind_of"]
