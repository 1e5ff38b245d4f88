"""Work for a GPU that shall not wait for what was queued before it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..augmentations import TwoViews


class SideStream:
    """Makes a batch's views on a CUDA stream of their own, beside the steps that the host has queued before.

    The host is up to a step ahead of the GPU, as nothing in a step waits for it: when it asks for a batch's views, the
    GPU is still at the step before, of which the views need nothing. On other devices there is no such stream, and
    nothing is done beside anything else.

    Args:
        device: The model's.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make(self, function: Callable[[torch.Tensor], TwoViews], values: torch.Tensor) -> TwoViews:
        """Calls `function(values)` on the side stream; the current one waits for the views, the host for nothing.

        All views are made here, those of evaluations too: the filters and windows that augmentations keep are then
        written and read on one stream.

        Args:
            function: From clips to views.
            values: (batch, samples), on the CPU or on the device.
        """
        if self._stream is None:
            return function(values)
        current = torch.cuda.current_stream(self._stream.device)
        if values.is_cuda:
            self._stream.wait_stream(current)  # there it may not have been written yet
            values.record_stream(self._stream)  # and its memory must not be used again before it was read here
        with torch.cuda.stream(self._stream):
            views = function(values)
        current.wait_stream(self._stream)  # an event behind the last kernel of the views
        # The memory of the views belongs to the side stream: without this, the next views could be written there as
        # soon as Python has dropped these, which is before the GPU's current stream has read them.
        views.views.record_stream(current)
        views.labels.record_stream(current)
        return views


__all__ = ["SideStream"]
