"""Normalized windows of recordings, the network's input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..audio.errors import BadClipError
from ..audio.recording import OnTruncated, Recording
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from .inputs import open_item

SMALLEST_STD = 1e-7  # as in MTSLVRFeatureExtractor: silence stays silence


class Ending(NamedTuple):
    """End of an item's windows."""

    samples: int = 0  # at the network's rate
    error: BadClipError | None = None


class WindowReader:
    """Reader of an item's windows, (S,) float32 and normalized; the last one is repeated to full length."""

    def __init__(
        self,
        extractor: MTSLVRFeatureExtractor,
        sampling_rate: int | None,
        window_samples: int,
        channels_first: bool = False,
        on_truncated: OnTruncated = "error",
    ):
        self.extractor = extractor
        self.sampling_rate = sampling_rate
        self.window_samples = window_samples
        self.channels_first = channels_first
        self.on_truncated = on_truncated

    def read(self, number: int, item: Any) -> Iterator[np.ndarray | Ending]:
        samples = 0
        try:
            with open_item(item, self.sampling_rate, number, self.channels_first, self.on_truncated) as recording:
                self._check_rate(recording)
                mean, std = self._statistics(recording)
                for window in self._windows(recording):
                    samples += len(window)
                    window = (window - mean) / std
                    yield window if len(window) == self.window_samples else np.resize(window, self.window_samples)
        except BadClipError as error:
            yield Ending(error=error)
        else:
            yield Ending(samples)

    def _check_rate(self, recording: Recording) -> None:
        if recording.rate != self.extractor.sampling_rate and not self.extractor.do_resample:
            raise BadClipError(
                "unreadable",
                f"{recording.name} is at {recording.rate} Hz and the model takes {self.extractor.sampling_rate} Hz: "
                "resample it, or set the feature extractor's `do_resample=True`.",
            )

    def _statistics(self, recording: Recording) -> tuple[np.float32, np.float32]:
        """Mean and standard deviation of the normalization; those of the item itself take a pass over it."""
        if self.extractor.normalization == "global":
            return np.float32(self.extractor.mean), np.float32(self.extractor.std)
        if self.extractor.normalization == "none":
            return np.float32(0), np.float32(1)
        count, mean, squares = 0, 0.0, 0.0
        for block in recording.blocks(self.extractor.sampling_rate):
            # Merges blocks by their means: sums of squares would lose a small deviation beside a large offset.
            block = block.astype(np.float64)
            own = float(block.mean())
            distance, total = own - mean, count + len(block)
            squares += float(np.square(block - own).sum()) + distance**2 * count * len(block) / total
            mean += distance * len(block) / total
            count = total
        return np.float32(mean), np.float32(max((squares / count) ** 0.5, SMALLEST_STD))

    def _windows(self, recording: Recording) -> Iterator[np.ndarray]:
        """Yields windows of a recording; the last one may be shorter."""
        window, filled = np.empty(self.window_samples, dtype=np.float32), 0
        for block in recording.blocks(self.extractor.sampling_rate):
            while len(block):
                taken = min(len(block), self.window_samples - filled)
                window[filled : filled + taken] = block[:taken]
                block, filled = block[taken:], filled + taken
                if filled == self.window_samples:
                    yield window
                    filled = 0
        if filled:
            yield window[:filled]


__all__ = ["Ending", "WindowReader"]
