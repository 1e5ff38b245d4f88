"""Run that writes a source to shards, in one or several processes, and its report."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from tqdm.auto import tqdm

from ..data.local import local_path
from .partitions import Source, open_source
from .writer import ShardWriter

SLOWEST_PROCESS = timedelta(weeks=4)  # longest wait of the other processes at the end; torch's default is half an hour


def process_state(cpu: bool = False) -> PartialState:
    """State of the process: its index, the number of processes, its device; `cpu` ignores accelerators.

    Raises:
        ValueError: If accelerate does not find all processes that the launcher started.
    """
    # accelerate finds several processes on the CPU only with cpu=True.
    cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=SLOWEST_PROCESS)
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, and accelerate found {state.num_processes}: use the CPU "
            "(ACCELERATE_USE_CPU=true), or launch one process."
        )
    return state


def write_shards(
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    output: Path,
    make_writer: Callable[[Source], ShardWriter],
    *,
    cpu: bool,
    description: str,
    show_progress_bar: bool | None,
    **options: Any,
) -> tuple[dict[str, Any], int]:
    """Writes the missing shards of a source; process p of P takes every P-th partition.

    Args:
        source, **options: As for `open_source`.
        output: The folder to write, outside the source.
        make_writer: Claims the folder of the shards and returns their writer. `Source.name` of a local source is a
            path relative to `output`, without folders of this machine.
        cpu: Ignore accelerators.
        description: Text of the progress bar.
        show_progress_bar: Default: on a terminal.

    Returns:
        The folder's manifest, and the number of shards that all processes made in this run.

    Raises:
        ValueError: If the output lies in the source, or processes find different numbers of partitions.
    """
    local = local_path(source) if isinstance(source, (str, Path)) else None
    if local is not None:
        _check_apart(local.resolve(), output.resolve())
    opened = open_source(source, **options)
    if local is not None:
        opened = replace(opened, name=Path(os.path.relpath(local.resolve(), output.resolve())).as_posix())
    writer = make_writer(opened)
    state = process_state(cpu)
    counts = gather_object([len(opened.partitions)])
    if len(set(counts)) > 1:
        raise ValueError(
            f"The processes find the source divided into {', '.join(map(str, counts))} partitions. Give all of them "
            "the same files, or run the command again if a file could not be read for a short time."
        )
    show = (sys.stderr.isatty() if show_progress_bar is None else show_progress_bar) and state.is_main_process
    rows = None if opened.rows is None else math.ceil(opened.rows / state.num_processes)
    with tqdm(desc=description, total=rows, unit="row", disable=not show) as bar:
        mine = range(state.process_index, len(opened.partitions), state.num_processes)
        computed = sum(writer.write(number, opened.partitions[number], bar) for number in mine)
    if not state.is_main_process:
        writer.folder.release()
    computed = sum(gather_object([computed]))  # waits for all
    if state.is_main_process:
        writer.finish(writer.folder.finish(len(opened.partitions), writer.totals([])))
        writer.folder.release()
    state.wait_for_everyone()
    return writer.folder.read_manifest(), computed


def _check_apart(folder: Path, output: Path) -> None:
    """Raises ValueError if the output would be part of the source in the next run."""
    if folder.is_dir() and (folder == output or folder in output.parents):
        raise ValueError(f"The output folder {output} lies in the source {folder}: choose one outside of it.")


@dataclass(frozen=True)
class ShardReport:
    """Report of a folder of shards."""

    folder: Path
    rows: int
    bad_rows: int  # rows of the source that are left out
    reasons: dict[str, int]  # number of bad rows for each reason
    failures: list[str]  # partitions that could not be read to their end; another run tries them again
    shards: int
    computed: int  # shards that this run made
    seconds: float  # duration of the audio

    def bad(self, errors: str) -> str:
        """Text of the counts of bad rows, with the file that lists them."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f"{self.bad_rows} bad rows ({reasons}; see {errors})" if self.bad_rows else "no bad rows"


Report = TypeVar("Report", bound=ShardReport)


def report_of(kind: type[Report], folder: Path, manifest: Mapping[str, Any], computed: int) -> Report:
    """Report of a manifest, which also holds the fields that a kind adds."""
    given: dict[str, Any] = {"folder": folder, "computed": computed, "shards": len(manifest["shards"])}
    return kind(**given, **{f.name: manifest[f.name] for f in fields(kind) if f.name not in given})


__all__ = ["ShardReport", "process_state", "report_of", "write_shards"]
