"""Precision of training on a CPU: bfloat16 only where it is faster than float32."""

from __future__ import annotations

import copy
import logging
import time

import torch
from accelerate import Accelerator

from ..modeling_mtslvr import MTSLVRForPreTraining

logger = logging.getLogger(__name__)

ROUNDS = 3  # of measurements, after one for warm-up
LARGEST_SHARE = 0.95  # of float32's time: bfloat16 must be faster by more than measurements vary


def bfloat16_is_faster(model: MTSLVRForPreTraining, accelerator: Accelerator, batch: int) -> bool:
    """True if forward and backward in bfloat16 take less time than in float32, for all processes together.

    It times a copy of the model on noise, in turns, in a process's own batch; the model does not change, and no random
    state does. Whether bfloat16 is faster depends on the processor's instructions, the network's width, and on what
    else runs on the cores: torch's kernels of two threads and more can take several times as long on shared cores.

    Args:
        model: Model to train, on the CPU.
        accelerator: Adds the times of the processes, so that all decide alike.
        batch: Clips of a step of one process.
    """
    times = accelerator.reduce(torch.tensor(_seconds_a_batch(model, batch)), reduction="sum")
    float32, bfloat16 = (times / accelerator.num_processes).tolist()
    faster = bfloat16 <= LARGEST_SHARE * float32
    logger.info(
        "Forward and backward of %d clips take %.3g s in bfloat16 and %.3g s in float32: training in %s.",
        *(batch, bfloat16, float32, "bfloat16" if faster else "float32"),
    )
    return faster


def _seconds_a_batch(model: MTSLVRForPreTraining, batch: int) -> tuple[float, float]:
    """Shortest time of forward and backward in float32 and in bfloat16, in seconds."""
    model = copy.deepcopy(model).train()
    config = model.config
    views = torch.randn(batch, 2, config.window_samples, generator=torch.Generator().manual_seed(0))
    inputs = {"input_values": views, "augmentation_labels": torch.ones(batch, len(config.augmentations))}
    if config.parameter_targets:
        inputs["parameter_differences"] = torch.zeros(batch, len(config.parameter_targets))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS + 1):
        for in_bfloat16, measured in times.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                loss = model(**inputs).loss
            loss.backward()
            measured.append(time.perf_counter() - begin)
            model.zero_grad()
    return min(times[False][1:]), min(times[True][1:])


__all__ = ["bfloat16_is_faster"]
