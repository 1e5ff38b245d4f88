"""CPU cores and DataLoader workers of a process."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of Linux's control groups, version 2: "microseconds period"


def usable_cores() -> int:
    """Cores that this process may use, divided among the processes that torchrun or accelerate started beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _quota() -> int:
    """Cores that a container's quota of processor time comes to; its affinity is often that of the whole machine."""
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group; or "max", which is no quota
        return sys.maxsize


def default_workers(on_cpu: bool) -> int:
    """Chooses how many DataLoader workers a process of a training run has.

    Args:
        on_cpu: Whether the network runs on the CPU.

    Returns:
        Every core but one, which is for the process that drives the GPU. On a CPU one for eight cores, at least one:
        a clip costs the full network more than ten times what it costs to decode, and workers take cores from it.
    """
    cores = usable_cores()
    return max(1, cores // 8 if on_cpu else cores - 1)


__all__ = ["default_workers", "usable_cores"]
