"""Views of the next batches, made in threads while the network runs on the other cores of a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch

from ..audio.prefetch import ReadAhead
from ..augmentations import TwoViews
from ..configuration_mtslvr import MTSLVRConfig
from ..workers import use_one_core

# Time of forward and backward of a ResNet-18 of this width, relative to that of the views, both on one core; it grows
# a little slower than the number of operations. Printed by benchmarks/training_step.py.
NETWORK_OVER_VIEWS, MEASURED_WIDTH, GROWTH = 1.4, 16, 1.5


class ViewsAhead:
    """Iterable of batches with their views and the number of their draw, as `views` and `draw`.

    Args:
        batches: Batches of the stream, which are read in the threads.
        make: Makes the views of a batch for a draw.
        first: Draw of the first batch.
        threads: Threads, each on one core with a batch of its own. The caller's thread, and threads that others start,
            use the cores that are left.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        make: Callable[[Mapping[str, Any], int], TwoViews],
        first: int,
        threads: int,
    ):
        self.batches = batches
        self.make = make
        self.first = first
        self.threads = threads

    def __iter__(self) -> Iterator[dict[str, Any]]:
        def work(number: int, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            draw = self.first + number
            yield {**batch, "views": self.make(batch, draw), "draw": draw}

        batches = iter(self.batches)
        first = list(itertools.islice(batches, 1))  # here, since a DataLoader should start its workers in this thread
        cores = torch.get_num_threads()
        ahead = ReadAhead(
            itertools.chain(first, batches), work, self.threads, limit=self.threads, prepare=use_one_core
        )
        try:
            ahead.start()
            torch.set_num_threads(cores - self.threads)  # the last setting also counts for threads that others start
            with closing(iter(ahead)) as made:
                for _, batch in made:
                    yield batch
        finally:
            torch.set_num_threads(cores)


def threads_for_views(config: MTSLVRConfig, cores: int) -> int:
    """Number of cores that make the views as fast as the others train the network; 0: all take turns.

    It depends on nothing else, so that a run can be repeated: the number of threads changes the last bits of sums.

    Args:
        config: Configuration of the model.
        cores: Threads of torch in this process.
    """
    network = NETWORK_OVER_VIEWS * (config.base_width / MEASURED_WIDTH) ** GROWTH * config.depth / 18
    return min(round(cores / (1 + network)), cores - 1)


__all__ = ["ViewsAhead", "threads_for_views"]
