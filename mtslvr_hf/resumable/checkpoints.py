"""Checkpoints of a run: transformers' files and the position of each process in its stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_json

RUN_STATE_NAME = "run_state_{rank}.json"


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest complete checkpoint of a run, or None. Checkpoints that were interrupted are ignored."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(number): folder for folder in folders if (number := folder.name.rpartition("-")[2]).isdigit()}
    for step in sorted(steps, reverse=True):
        if is_complete(steps[step]):
            return str(steps[step])
    return None


def is_complete(checkpoint: str | Path) -> bool:
    """Completeness of a checkpoint. transformers writes its state last, after the state of each process."""
    if _read_json(Path(checkpoint) / TRAINER_STATE_NAME) is None:
        return False
    processes = (_read_json(Path(checkpoint) / RUN_STATE_NAME.format(rank=0)) or {"processes": 0})["processes"]
    return all(_read_json(Path(checkpoint) / RUN_STATE_NAME.format(rank=rank)) for rank in range(processes))


def save_run_state(checkpoint: str | Path, rank: int, processes: int, state: dict[str, Any]) -> None:
    """Writes the state of process `rank` into a checkpoint, completely or not at all. `state` must suit JSON."""
    path = Path(checkpoint) / RUN_STATE_NAME.format(rank=rank)
    write_json(path, {"processes": processes, **state})


def load_run_state(checkpoint: str | Path, rank: int, processes: int) -> dict[str, Any]:
    """State that `save_run_state` wrote for process `rank`.

    Raises:
        ValueError: If the checkpoint has no such state, or another number of processes wrote it.
    """
    state = _read_json(Path(checkpoint) / RUN_STATE_NAME.format(rank=0))
    if state is not None and state["processes"] != processes:
        raise ValueError(
            f"{checkpoint} was written by {state['processes']} processes and cannot be resumed by {processes}. Start "
            "as many processes as before."
        )
    if state is not None and rank > 0:
        state = _read_json(Path(checkpoint) / RUN_STATE_NAME.format(rank=rank))
    if state is None:
        raise ValueError(
            f"{checkpoint} is no complete checkpoint of MT-SLVR pre-training: the stream's state is missing. Resume "
            "from another one."
        )
    return state


def _read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


__all__ = ["is_complete", "last_checkpoint", "load_run_state", "save_run_state"]
