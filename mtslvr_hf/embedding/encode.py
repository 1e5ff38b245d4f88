"""Audio of any kind and length to embeddings: decoded ahead in threads, cut into windows, embedded in full batches.

Shapes: W windows in a batch, S samples of a window, N frames of a window, D embedding.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor

from ..audio.errors import BadClipError
from ..audio.prefetch import ReadAhead
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..modeling_mtslvr import MTSLVRModel, MTSLVRPreTrainedModel
from .inputs import items_of
from .windows import Ending, WindowReader

logger = logging.getLogger(__name__)

PROGRESS_FROM = 11  # items

_extractors: weakref.WeakKeyDictionary[MTSLVRModel, tuple[Any, MTSLVRFeatureExtractor]] = weakref.WeakKeyDictionary()


class TimedEmbeddings(NamedTuple):
    """Embeddings over time.

    Attributes:
        embeddings: (frames, D) float32.
        seconds: (frames,) float64: the center of each frame, from the item's beginning.
    """

    embeddings: np.ndarray | torch.Tensor
    seconds: np.ndarray | torch.Tensor


class Encoded(NamedTuple):
    """Result of one item: its embedding, or the error.

    Attributes:
        index: Its place among the items.
        embedding: (D,) float32 on the CPU, the mean over its windows; None if the item is bad.
        frames: Embeddings over time, tensors on the CPU, if they were asked for; None if the item is bad.
        seconds: Its duration; 0 if the item is bad.
        windows: Number of windows it was cut into; 0 if the item is bad.
        error: Why the item is bad, or None.
    """

    index: int  # type: ignore[assignment]  # a field of this name hides the method of tuples
    embedding: torch.Tensor | None
    frames: TimedEmbeddings | None
    seconds: float
    windows: int
    error: BadClipError | None


def encode(
    model: MTSLVRPreTrainedModel,
    audio: Any,
    sampling_rate: int | None = None,
    *,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    tasks: Sequence[str] | str | None = None,
    batch_size: int = 32,
    normalize: bool = False,
    return_timestamps: bool = False,
    convert_to: str = "numpy",
    on_error: str = "raise",
    num_workers: int = 2,
    compile: bool = False,
    show_progress_bar: bool | None = None,
) -> Any:
    """Embeds audio of any kind, rate and length; what is in memory at once does not grow with an item's length.

    The network is the model's folded copy (`inference_network`), on the model's device and in its dtype; the model
    itself and its mode stay as they are. Audio is resampled by soxr, as in pre-training. Silence has an embedding.

    Args:
        model: An MT-SLVR model of any class.
        audio: One item or several (list, tuple, iterator, `datasets.Dataset` or `IterableDataset`, 3-D array). An item
            is a path; a URL that fsspec opens; an array, tensor or list of numbers, (samples,) or (channels, samples);
            a dictionary with `array` and `sampling_rate`, or with `bytes` or `path` of an encoded file; an encoded
            file's bytes; a data set's row with an audio column; or a decoder as datasets and torchcodec have. Integers
            and channels mean what they mean for `MTSLVRFeatureExtractor`.
        sampling_rate: Rate of arrays that carry none, in Hz. Files have their own.
        feature_extractor: Its normalization, sampling rate and `do_resample` apply. Unless given, the one beside the
            model's weights, or the default one for a model that was not loaded.
        tasks: Tasks to embed for, in the embedding's order; the model's own choice unless given.
        batch_size: Windows that go through the network at once.
        normalize: Whether embeddings get L2 norm 1.
        return_timestamps: Whether to return embeddings over time.
        convert_to: `"numpy"`, or `"torch"` for tensors on the CPU.
        on_error: `"raise"`, or `"skip"`: a bad item's row is NaN (with timestamps: no frames), with a warning.
        num_workers: Threads that decode ahead; 0 decodes between batches.
        compile: Whether to compile the network with `torch.compile`, once and for this `batch_size`: some ten seconds
            that pay off over thousands of windows. Needs a C++ compiler on a CPU.
        show_progress_bar: Unless given: if there are more than 10 items or nobody knows how many, on a terminal.

    Returns:
        (D,) float32 for one item, (items, D) for several; with timestamps one `TimedEmbeddings`, or a list of them.

    Raises:
        BadClipError: A ValueError that says which item is bad, why, and what to do about it.
        TypeError: If `audio` is neither one item nor several.
        ValueError: If an option is out of its range, or the extractor does not fit the model.
        OSError: If there is no feature extractor beside the model's weights.
    """
    _check_choice("convert_to", convert_to, ("numpy", "torch"))
    _check_choice("on_error", on_error, ("raise", "skip"))
    items, single, total = items_of(audio)
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
    )
    if show_progress_bar is None:
        show_progress_bar = (total is None or total >= PROGRESS_FROM) and sys.stderr.isatty()
    size = model.config.embedding_size_of(tasks)
    with closing(results), tqdm(results, "embedding", total, unit="item", disable=not show_progress_bar) as bar:
        rows = [_row(result, size, return_timestamps, convert_to, on_error) for result in bar]
    if single:
        return rows[0]
    if return_timestamps:
        return rows
    if convert_to == "numpy":
        return np.stack(rows) if rows else np.zeros((0, size), dtype=np.float32)
    return torch.stack(rows) if rows else torch.zeros(0, size)


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
    num_workers: int = 2,
    compile: bool = False,
) -> Generator[Encoded, None, None]:
    """Embeds items as they come, in their order, and yields each as soon as its last window is through the network.

    Args:
        model: See `encode`, as for all that follow.
        items: Items, read a little ahead (in other threads, unless `num_workers` is 0). Lists of numbers are items
            here, not numbers.
        sampling_rate: Rate of arrays that carry none, in Hz.
        feature_extractor: The model's own unless given.
        tasks: Tasks to embed for.
        batch_size: Windows that go through the network at once. About three times as many wait decoded.
        normalize: Whether embeddings get L2 norm 1.
        return_timestamps: Whether to compute embeddings over time, too.
        num_workers: Threads that decode ahead.
        compile: Whether to compile the network.

    Returns:
        An iterator of `Encoded`, one for each item. Bad items come with their `error`; they raise nothing.

    Raises:
        TypeError: If `items` is a single item.
        ValueError: If an option is out of its range, or the extractor does not fit the model.
        OSError: If there is no feature extractor beside the model's weights.
    """
    if isinstance(items, (str, os.PathLike, bytes, Mapping)):
        raise TypeError(
            f"`items` is a single {type(items).__name__}; expected an iterable of items: put it in a list."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; expected at least 0.")
    config = model.config
    if tasks is not None:
        tasks = config.resolve_tasks(tasks)
    if feature_extractor is None:
        feature_extractor = feature_extractor_of(model)
    if feature_extractor.sampling_rate != config.sampling_rate:
        raise ValueError(
            f"The feature extractor gives {feature_extractor.sampling_rate} Hz and the model takes "
            f"{config.sampling_rate} Hz: pass the extractor that belongs to the model."
        )
    reader = WindowReader(feature_extractor, sampling_rate, config.window_samples)
    inference_network = model.base_model.inference_network(tasks, compile)
    network = _Network(inference_network, tasks, return_timestamps, batch_size if compile else 1)
    messages = ReadAhead(items, reader.read, num_workers, limit=2 * batch_size)
    return _embed(messages, network, batch_size, normalize)


class _Network:
    """Windows (W, S) to embeddings (W, D), and to embeddings over time (W, N, D) if they are asked for.

    Args:
        network: The merged network.
        tasks: Tasks of the embedding.
        with_frames: Whether embeddings over time are asked for.
        least: Fewer windows than these are filled up with silence: another shape would be compiled anew.
    """

    def __init__(self, network: MTSLVRModel, tasks: list[str] | None, with_frames: bool, least: int):
        self.network = network
        self.tasks = tasks
        self.with_frames = with_frames
        self.least = least

    @torch.inference_mode()
    def embed(self, windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        filling = [np.zeros_like(windows[0])] * (self.least - len(windows))
        batch = torch.from_numpy(np.stack([*windows, *filling])).to(self.network.device)  # (W, S)
        output = self.network(batch, tasks=self.tasks)
        frames = None
        if self.with_frames:
            frames = self.network.frame_embeddings(output.last_hidden_state, self.tasks).float().cpu().numpy()
        # As arrays: tensors made in inference mode would be of no use for training.
        return output.pooler_output.float().cpu().numpy(), frames

    def frame_seconds(self, windows: int, frames: int) -> np.ndarray:
        """Centers of all frames of an item, (windows x frames,) float64."""
        centers = self.network.frame_centers(frames).double().cpu().numpy()  # (N,)
        starts = np.arange(windows) * (self.network.config.window_samples / self.network.config.sampling_rate)
        return (starts[:, None] + centers).ravel()


@dataclass
class _Pending:
    """An item whose windows are on their way."""

    index: int
    ending: Ending | None = None
    windows: int = 0  # that were cut
    embedded: int = 0  # that came back
    total: np.ndarray | float = 0.0  # (D,) float64: their sum
    frames: list[np.ndarray] = field(default_factory=list)

    def add(self, embedding: np.ndarray, frames: np.ndarray | None) -> None:
        self.embedded += 1
        self.total = self.total + embedding.astype(np.float64)
        if frames is not None:
            self.frames.append(frames)

    @property
    def finished(self) -> bool:
        return self.ending is not None and (self.ending.error is not None or self.embedded == self.windows)


def _embed(messages: ReadAhead, network: _Network, batch_size: int, normalize: bool) -> Generator[Encoded, None, None]:
    """Embeds windows in full batches, whichever items they are from, and yields items when they are complete."""
    pending: deque[_Pending] = deque()
    batch: list[tuple[_Pending, np.ndarray]] = []
    with closing(iter(messages)) as results:
        for index, message in results:
            if not pending or pending[-1].index != index:
                pending.append(_Pending(index))
            if isinstance(message, Ending):
                pending[-1].ending = message
            else:
                pending[-1].windows += 1
                batch.append((pending[-1], message))
            if len(batch) == batch_size:
                _embed_batch(network, batch)
                batch = []
            while pending and pending[0].finished:
                yield _encoded(pending.popleft(), network, normalize)
    if batch:
        _embed_batch(network, batch)
    for item in pending:
        yield _encoded(item, network, normalize)


def _embed_batch(network: _Network, batch: list[tuple[_Pending, np.ndarray]]) -> None:
    embeddings, frames = network.embed([window for _, window in batch])
    for number, (item, _) in enumerate(batch):
        item.add(embeddings[number], None if frames is None else frames[number])


def _encoded(item: _Pending, network: _Network, normalize: bool) -> Encoded:
    assert item.ending is not None  # the item is finished, or no messages are left
    error = item.ending.error
    if error is None and not np.isfinite(item.total).all():
        error = BadClipError(
            "non_finite",
            f"Clip {item.index}: its embedding is not finite; samples should lie within -1 to 1 and the model's "
            "weights be finite",
        )
    if error is not None:
        return Encoded(item.index, None, None, 0.0, 0, error)
    config = network.network.config
    seconds = item.ending.samples / config.sampling_rate
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


def _row(result: Encoded, size: int, timed: bool, convert_to: str, on_error: str) -> Any:
    """One item's part of what `encode` returns."""
    if result.error is not None:
        if on_error == "raise":
            raise result.error
        logger.warning("skipped: %s", result.error)
    if timed:
        frames = result.frames or TimedEmbeddings(torch.zeros(0, size), torch.zeros(0, dtype=torch.float64))
        return TimedEmbeddings(*map(np.asarray, frames)) if convert_to == "numpy" else frames
    embedding = torch.full((size,), torch.nan) if result.embedding is None else result.embedding
    return embedding.numpy() if convert_to == "numpy" else embedding


def feature_extractor_of(model: MTSLVRPreTrainedModel) -> MTSLVRFeatureExtractor:
    """Feature extractor saved beside the model's weights; the default one for a model that was not loaded.

    It is loaded once: the Hub may have another one by the time of the next call.
    """
    source = (model.config.name_or_path, getattr(model.config, "_commit_hash", None))
    if not source[0]:
        return MTSLVRFeatureExtractor(sampling_rate=model.config.sampling_rate)
    known = _extractors.get(model.base_model)
    if known is not None and known[0] == source:
        return known[1]
    try:
        extractor = AutoFeatureExtractor.from_pretrained(source[0], revision=source[1])
    except OSError as error:
        raise OSError(
            f"{source[0]} has no feature extractor that could be loaded: pass `feature_extractor`, or save one there "
            f"with `MTSLVRFeatureExtractor().save_pretrained(...)`: {error}"
        ) from error
    _extractors[model.base_model] = (source, extractor)
    return extractor


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


__all__ = ["Encoded", "TimedEmbeddings", "encode", "encode_items", "feature_extractor_of"]
