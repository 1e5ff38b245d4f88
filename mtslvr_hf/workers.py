"""Numbers of CPU cores and of DataLoader workers of a process; threads on one core."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of Linux's control groups, version 2: "microseconds period"


def usable_cores() -> int:
    """Number of cores that this process may use, its share among the processes of torchrun or accelerate."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _quota() -> int:
    """Number of cores in a container's CPU quota; its affinity often names all cores of the machine."""
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group; or "max", which is no quota
        return sys.maxsize


def use_one_core() -> None:
    """Lets torch compute on one core in this thread, whatever other threads do."""
    torch.get_num_threads()  # or the first computation of the thread would undo the setting
    torch.set_num_threads(1)


def default_workers(on_cpu: bool) -> int:
    """Number of DataLoader workers of a training process.

    With a GPU it is all cores but one. If the network runs on the CPU (`on_cpu`), it is one per eight cores, because
    the full network needs more than ten times as long for a clip as the decoder.
    """
    cores = usable_cores()
    return max(1, cores // 8 if on_cpu else cores - 1)


__all__ = ["default_workers", "usable_cores", "use_one_core"]
