"""Distributed helpers of embed and cache: processes, shares, names of sources."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .partitions import Source

SLOWEST_PROCESS = timedelta(weeks=4)  # how long the others wait for it at the end; torch's own limit is half an hour


def process_state(cpu: bool = False) -> PartialState:
    """State of the process: its index, the number of processes, its device.

    Args:
        cpu: Whether to keep to the CPU where there is an accelerator.

    Raises:
        ValueError: If the launcher started several processes that would not know of each other.
    """
    # accelerate finds several processes on the CPU only if it is told of the CPU.
    cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=SLOWEST_PROCESS)
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, and accelerate found {state.num_processes}: choose the CPU "
            "(ACCELERATE_USE_CPU=true), or launch one process"
        )
    return state


def share_of(rows: int | None, state: PartialState) -> int | None:
    """Number of rows of one process."""
    return None if rows is None else math.ceil(rows / state.num_processes)


def source_name(source: Any, opened: Source, output: Path) -> str:
    """Name of the source in the output: a path relative to it, without the folders of this machine."""
    if isinstance(source, (str, Path)) and Path(source).expanduser().exists():
        return Path(os.path.relpath(Path(source).expanduser().resolve(), output.resolve())).as_posix()
    return opened.name


def check_agreement(units: Sequence[int]) -> None:
    """Fails if processes find different numbers of units of work."""
    if len(set(units)) > 1:
        raise ValueError(
            f"the processes find the source divided into {', '.join(map(str, units))} units of work: give all of them "
            "the same files, or run it again if one could not be read for a moment"
        )


def check_apart(source: Any, output: Path) -> None:
    """Output among the audio would be part of the source when it is read again."""
    if not isinstance(source, (str, Path)) or not Path(source).expanduser().is_dir():
        return
    folder, output = Path(source).expanduser().resolve(), output.resolve()
    if folder == output or folder in output.parents:
        raise ValueError(f"the output folder {output} lies in the source {folder}: choose one outside of it")


__all__ = ["check_agreement", "check_apart", "process_state", "share_of", "source_name"]
