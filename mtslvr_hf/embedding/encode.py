"""Embeddings of audio of any kind and length: decoding in threads, windows, full batches.

On a CPU, threads run the network, too, each on one core. Within one batch, OpenMP's threads would wait for each other
in a loop that takes the cores from decoding threads and from other processes.

Shapes: W windows in a batch, S samples of a window, N frames of a window, D embedding size.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..audio.errors import BadClipError
from ..audio.prefetch import ReadAhead
from ..feature_extraction_mtslvr import AudioInput, MTSLVRFeatureExtractor
from ..modeling_mtslvr import MTSLVRModel, MTSLVRPreTrainedModel, feature_extractor_of
from ..workers import usable_cores, use_one_core
from .inputs import items_of
from .windows import Ending, WindowReader

logger = logging.getLogger(__name__)

PROGRESS_FROM = 11  # items
FEWEST_ROWS = 16  # of the table of embeddings, which doubles
CPU_BATCH_SECONDS = 80.0  # of audio at most in a batch on a CPU: feature maps of more leave the caches
MOST_MESSAGES = 4  # for each window of a round: of many bad items
SHORT_WINDOWS = 8  # in all channels, at any rate: an array that needs no thread of its own
DECODERS = 2  # default number of threads that decode for an accelerator
_process = os.getpid()  # that imported this module; a forked one has another


class TimedEmbeddings(NamedTuple):
    """Embeddings over time.

    Attributes:
        embeddings: (frames, D) float32.
        seconds: (frames,) float64: time of each frame's center in the item.
    """

    embeddings: np.ndarray | torch.Tensor
    seconds: np.ndarray | torch.Tensor


class Encoded(NamedTuple):
    """Result of one item: its embedding, or the error. Bad items have None and 0 in the other fields.

    Attributes:
        embedding: (D,) float32 on the CPU, the mean over the windows.
        frames: Embeddings over time on the CPU, with `return_timestamps`.
        seconds: Duration in seconds.
        windows: Number of windows.
    """

    index: int  # type: ignore[assignment]  # a field of this name hides the method of tuples
    embedding: torch.Tensor | None
    frames: TimedEmbeddings | None
    seconds: float
    windows: int
    error: BadClipError | None


def encode(
    model: MTSLVRPreTrainedModel,
    audio: AudioInput | Iterable[Any],
    sampling_rate: int | None = None,
    *,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    tasks: Sequence[str] | str | None = None,
    batch_size: int = 32,
    normalize: bool = False,
    return_timestamps: bool = False,
    convert_to: Literal["numpy", "torch"] = "numpy",
    on_error: Literal["raise", "skip"] = "raise",
    num_workers: int | None = None,
    compile: bool = False,
    show_progress_bar: bool | None = None,
    channels_first: bool = False,
    on_truncated: Literal["error", "keep"] = "error",
) -> Any:
    """Embeddings of audio of any kind, rate and length, in memory that does not grow with an item's length.

    The network is a merged copy (`inference_network`) on the model's device and in its dtype; the model does not
    change.

    Args:
        model: An MT-SLVR model of any class.
        audio and other arguments: As for `model.encode`, with the same results and errors.
    """
    _check_choice("convert_to", convert_to, ("numpy", "torch"))
    _check_choice("on_error", on_error, ("raise", "skip"))
    _check_choice("on_truncated", on_truncated, ("error", "keep"))
    items, single, total = items_of(audio, channels_first)
    results = encode_items(
        model,
        items,
        sampling_rate,
        feature_extractor=feature_extractor,
        tasks=tasks,
        batch_size=batch_size,
        normalize=normalize,
        return_timestamps=return_timestamps,
        num_workers=num_workers,
        compile=compile,
        channels_first=channels_first,
        on_truncated=on_truncated,
    )
    if show_progress_bar is None:
        show_progress_bar = (total is None or total >= PROGRESS_FROM) and sys.stderr.isatty()
    size = model.config.embedding_size_of(tasks)
    with closing(results), tqdm(results, "embedding", total, unit="item", disable=not show_progress_bar) as bar:
        if return_timestamps:
            rows = [_timed_row(result, size, convert_to, on_error) for result in bar]
            return rows[0] if single else rows
        table = _table(bar, size, on_error)
    embeddings = table[0] if single else table
    return embeddings if convert_to == "numpy" else torch.from_numpy(embeddings)


def encode_items(
    model: MTSLVRPreTrainedModel,
    items: Iterable[Any],
    sampling_rate: int | None = None,
    *,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    tasks: Sequence[str] | str | None = None,
    batch_size: int = 32,
    normalize: bool = False,
    return_timestamps: bool = False,
    num_workers: int | None = None,
    compile: bool = False,
    channels_first: bool = False,
    on_truncated: Literal["error", "keep"] = "error",
) -> Generator[Encoded, None, None]:
    """Iterator of `Encoded`, one for each item in their order, as soon as its last window has been embedded.

    Bad items have an `error`; they raise nothing. About three times `batch_size` windows wait decoded; on a CPU, as
    many for each thread. The last windows of a list are divided evenly among these; the batches of an iterator, and so
    the last bits of its embeddings, do not depend on the number of threads.

    Args:
        items: Iterable of items, read a little ahead, in other threads unless `num_workers` is 0 or the only item is a
            short array. A list of numbers is one of these items.
        model, sampling_rate and other options: As for `model.encode`.

    Raises:
        TypeError: If `items` is a single item.
        ValueError: If an option is out of range, or the extractor does not fit the model.
        OSError: If there is no feature extractor with the model's weights.
    """
    if isinstance(items, (str, os.PathLike, bytes, Mapping)):
        raise TypeError(
            f"`items` is a single {type(items).__name__}; expected an iterable of items: put it in a list."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    on_cpu = model.device.type == "cpu"
    if num_workers is None:
        num_workers = usable_cores() if on_cpu else DECODERS
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; expected at least 0.")
    _use_one_thread_if_forked()
    config = model.config
    if on_cpu:
        batch_size = min(batch_size, max(1, int(CPU_BATCH_SECONDS / config.window_seconds)))
    if tasks is not None:
        tasks = config.resolve_tasks(tasks)
    feature_extractor = feature_extractor_of(model, feature_extractor)
    reader = WindowReader(feature_extractor, sampling_rate, config.window_samples, channels_first, on_truncated)
    inference_network = model.base_model.inference_network(tasks, compile)
    network = _Network(inference_network, tasks, return_timestamps, batch_size, compile)
    threads = num_workers if on_cpu else 0  # that run the network; 0: the caller's
    is_list = isinstance(items, Sized)
    decoders = min(num_workers, len(items)) if isinstance(items, Sized) else num_workers
    if isinstance(items, Sequence) and len(items) == 1 and _is_short_array(items[0], config.window_samples):
        decoders = 0  # nothing to decode: a thread would only wait for a core that OpenMP's idle threads hold
    messages = ReadAhead(items, reader.read, decoders, limit=batch_size * max(2, threads))
    return _embed(messages, network, threads, threads if is_list and not compile else 1, normalize)


class _Embedded(NamedTuple):
    """Embedding of a window (D,) and, `with_frames`, of its frames (N, D)."""

    embedding: np.ndarray
    frames: np.ndarray | None


_Messages = list[tuple[int, np.ndarray | Ending]]  # index of an item, and its next window or its end
_Results = list[tuple[int, _Embedded | Ending]]  # the same, with embeddings of the windows


class _Network:
    """Network from windows (W, S) to embeddings (W, D) and, `with_frames`, to embeddings over time (W, N, D).

    If it is `compiled`, batches of fewer than `batch_size` windows are filled up with silence: it would be compiled
    again for another shape.
    """

    def __init__(
        self, network: MTSLVRModel, tasks: list[str] | None, with_frames: bool, batch_size: int, compiled: bool
    ):
        self.network = network
        self.tasks = tasks
        self.with_frames = with_frames
        self.batch_size = batch_size
        self.compiled = compiled
        self._compiling = threading.Lock()
        self._has_run = False

    def embed(self, messages: _Messages) -> _Results:
        """Messages of a batch, with embeddings in the place of windows."""
        windows = [message for _, message in messages if not isinstance(message, Ending)]
        if self.compiled:
            with self._compiling:  # in one thread for all
                if windows and not self._has_run:
                    self._run(windows)
                    self._has_run = True
        embedded = self._run(windows) if windows else iter(())
        return [(index, message if isinstance(message, Ending) else next(embedded)) for index, message in messages]

    def embed_batch(self, _: int, messages: _Messages) -> Iterator[_Results]:
        yield self.embed(messages)

    @torch.inference_mode()
    def _run(self, windows: Sequence[np.ndarray]) -> Iterator[_Embedded]:
        filling = [np.zeros_like(windows[0])] * (self.batch_size - len(windows) if self.compiled else 0)
        batch = torch.from_numpy(np.stack([*windows, *filling])).to(self.network.device)  # (W, S)
        output = self.network(batch, tasks=self.tasks)
        frames: Iterable[np.ndarray | None] = itertools.repeat(None)
        if self.with_frames:
            frames = self.network.frame_embeddings(output.last_hidden_state, self.tasks).float().cpu().numpy()
        # As arrays: tensors of inference mode could not be used in training.
        return map(_Embedded, output.pooler_output.float().cpu().numpy(), frames)

    def frame_seconds(self, windows: int, frames: int) -> np.ndarray:
        """Times of the centers of all frames of an item in seconds, (windows x frames,) float64."""
        centers = self.network.frame_centers(frames).double().cpu().numpy()  # (N,)
        starts = np.arange(windows) * (self.network.config.window_samples / self.network.config.sampling_rate)
        return (starts[:, None] + centers).ravel()


@dataclass
class _Pending:
    """Item whose windows are not all embedded."""

    index: int
    windows: int = 0
    total: np.ndarray | float = 0.0  # (D,) float64: sum of the embeddings
    frames: list[np.ndarray] = field(default_factory=list)

    def add(self, embedded: _Embedded) -> None:
        self.windows += 1
        self.total = self.total + embedded.embedding.astype(np.float64)
        if embedded.frames is not None:
            self.frames.append(embedded.frames)


def _embed(
    messages: ReadAhead, network: _Network, threads: int, shares: int, normalize: bool
) -> Generator[Encoded, None, None]:
    """Embeds windows of all items in batches, and yields items when they are complete."""
    item = _Pending(-1)
    with closing(_results(messages, network, threads, shares)) as results:
        for index, result in results:
            if index != item.index:
                item = _Pending(index)
            if isinstance(result, Ending):
                yield _encoded(item, result, network, normalize)
            else:
                item.add(result)


def _results(
    messages: ReadAhead, network: _Network, threads: int, shares: int
) -> Generator[tuple[int, _Embedded | Ending], None, None]:
    """Messages in order, with embeddings in the place of windows.

    `shares` batches at a time form a round, so that the last windows are divided evenly into as many.
    """
    size = network.batch_size * max(1, shares)
    rounds = _cut(messages, size)
    embedded: ReadAhead | None = None
    try:
        current = next(rounds, None)
        # Not even a window for each thread, and no more to come: the caller's thread alone uses all cores, by OpenMP.
        # (Torch would compile the network again for another number of cores.)
        few = 0 if network.compiled else min(threads, size)
        while current is not None and _count_windows(current) < few:
            yield from network.embed(current)
            current = next(rounds, None)
        if current is None:
            return
        batches = _batches(itertools.chain([current], rounds), max(1, shares))
        del current
        embedded = ReadAhead(batches, network.embed_batch, threads, limit=threads, prepare=_preparation())
        if threads:
            embedded.start()
            torch.set_num_threads(torch.get_num_threads())  # for threads that others start: the last setting counts
        for _, results in embedded:
            yield from results
    finally:
        ahead = [messages] if embedded is None else [embedded, messages]
        for each in ahead:  # all of them before the wait, since one waits for the other
            each.stop()
        for each in ahead:
            each.join()


def _preparation() -> Callable[[], None]:
    """Function that lets a thread compute on one core, with autocast as in the caller's thread."""
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def prepare() -> None:
        use_one_core()
        torch.set_autocast_enabled("cpu", enabled)
        torch.set_autocast_dtype("cpu", dtype)

    return prepare


def _batches(rounds: Iterable[_Messages], shares: int) -> Iterator[_Messages]:
    """Batches of rounds, each divided evenly into `shares`."""
    for messages in rounds:
        yield from _cut(messages, max(1, math.ceil(_count_windows(messages) / shares)))


def _cut(messages: Iterable[tuple[int, Any]], windows: int) -> Iterator[_Messages]:
    """Parts of a number of windows each, with the ends of items that follow; the last part, or many ends, with fewer.

    An error of the messages comes behind the part before it.
    """
    part: _Messages = []
    count, error = 0, None
    try:
        for message in messages:
            is_window = not isinstance(message[1], Ending)
            if is_window and count == windows:
                yield part
                part, count = [], 0
            part.append(message)
            count += is_window
            if not is_window and (count == windows or len(part) > MOST_MESSAGES * windows):
                yield part
                part, count = [], 0
    except Exception as failure:
        error = failure
    if part:
        yield part
    if error is not None:
        raise error


def _count_windows(messages: _Messages) -> int:
    return sum(not isinstance(message, Ending) for _, message in messages)


def _encoded(item: _Pending, ending: Ending, network: _Network, normalize: bool) -> Encoded:
    error = ending.error
    if error is None and not np.isfinite(item.total).all():
        error = BadClipError(
            "non_finite",
            f"Clip {item.index}: its embedding is not finite; samples should lie within -1 to 1, and the model's "
            "weights should be finite.",
        )
    if error is not None:
        return Encoded(item.index, None, None, 0.0, 0, error)
    config = network.network.config
    seconds = ending.samples / config.sampling_rate
    embedding = torch.from_numpy(np.asarray(item.total / item.windows, dtype=np.float32))  # (D,)
    if normalize:
        embedding = torch.nn.functional.normalize(embedding, dim=-1)
    frames = None
    if network.with_frames:
        centers = network.frame_seconds(item.windows, len(item.frames[0]))
        kept = max(1, int(np.searchsorted(centers, seconds)))
        values = torch.from_numpy(np.concatenate(item.frames)[:kept].copy())  # (frames, D)
        values = torch.nn.functional.normalize(values, dim=-1) if normalize else values
        frames = TimedEmbeddings(values, torch.from_numpy(centers[:kept].copy()))
    return Encoded(item.index, embedding, frames, seconds, item.windows, None)


def _table(results: Iterable[Encoded], size: int, on_error: str) -> np.ndarray:
    """Embeddings (items, D) in one array: small arrays kept one by one would keep the memory between them, too."""
    table, filled = np.empty((FEWEST_ROWS, size), dtype=np.float32), 0
    for result in results:
        if filled == len(table):
            table.resize((2 * filled, size), refcheck=False)
        table[filled] = np.nan if _is_bad(result, on_error) else result.embedding
        filled += 1
    table.resize((filled, size), refcheck=False)
    return table


def _timed_row(result: Encoded, size: int, convert_to: str, on_error: str) -> TimedEmbeddings:
    """Embeddings over time of one item; a bad one has no frames."""
    frames = None if _is_bad(result, on_error) else result.frames
    frames = frames or TimedEmbeddings(torch.zeros(0, size), torch.zeros(0, dtype=torch.float64))
    return TimedEmbeddings(*map(np.asarray, frames)) if convert_to == "numpy" else frames


def _is_bad(result: Encoded, on_error: str) -> bool:
    """True for an item with an error, which is raised or logged."""
    if result.error is None:
        return False
    if on_error == "raise":
        raise result.error
    logger.warning("Skipped: %s", result.error)
    return True


def _is_short_array(item: Any, window_samples: int) -> bool:
    """True for an array, bare or in a dictionary, of a few windows."""
    array = item.get("array") if isinstance(item, Mapping) else item
    return isinstance(array, (np.ndarray, torch.Tensor)) and math.prod(array.shape) <= SHORT_WINDOWS * window_samples


def _use_one_thread_if_forked() -> None:
    """In a forked process, OpenMP would wait for ever for the threads of its parent: computes in one thread."""
    global _process
    if os.getpid() != _process:
        _process = os.getpid()
        torch.set_num_threads(1)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


__all__ = ["Encoded", "TimedEmbeddings", "encode", "encode_items"]
