"""Checkpoints of a run: transformers' files, the state of each process, and the checksums of all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import sha256_of, write_json, write_whole

logger = logging.getLogger(__name__)

RUN_STATE_NAME = "run_state_{rank}.json"
EARLIER_RUN = "_earlier_run_{number}"  # transformers publishes no file that begins with _
REQUIRED = (OPTIMIZER_NAME, SCHEDULER_NAME)
OF_ONE_PROCESS = re.compile(r"_(\d+)\.\w+$")  # rng_state_1.pth
UNUSED = (".md", ".py")  # card and code, which a user may change
SEAL_NAME = "trainer_state.sha256"
UNFINISHED = "it was not finished"


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest complete checkpoint of a run, or None; warns of each newer one that is passed over, and says why."""
    for folder in checkpoints_of(output_dir):
        fault = fault_of(folder)
        if fault is None:
            return str(folder)
        logger.warning("%s is not used: %s. Trying the one before.", folder, fault)
    return None


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """Checkpoints of a run, complete or not, the newest first."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step_of(path) is not None]
    return sorted(folders, key=lambda path: _step_of(path) or 0, reverse=True)


def is_complete(checkpoint: str | Path) -> bool:
    """Completeness of a checkpoint: every file is there, with its checksum."""
    return fault_of(checkpoint) is None


def fault_of(checkpoint: str | Path) -> str | None:
    """Fault of a checkpoint, in words, which does not allow to resume from it; None if it is complete.

    transformers writes its own state last, behind the state of each process, which holds the files' checksums.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE_NAME).exists():
        return UNFINISHED
    state = _read_json(folder / TRAINER_STATE_NAME)
    if state is None or not _is_trainer_state(state, _step_of(folder)) or not _is_sealed(folder):
        return f"{TRAINER_STATE_NAME} is damaged"
    first = folder / RUN_STATE_NAME.format(rank=0)
    if not first.exists():
        only_model = not any((folder / name).exists() for name in REQUIRED)
        return "it holds only a model (`save_only_model`)" if only_model else f"{first.name} is missing"
    content = _run_state(first)
    if content is None:
        return f"{first.name} is damaged"
    missing = [name for name in REQUIRED if name not in content["files"]]
    if missing:
        return f"{' and '.join(missing)} is missing"
    for rank in range(content["processes"]):
        fault = _fault_of_process(folder, rank)
        if fault is not None:
            return fault
    return None


def _fault_of_process(folder: Path, rank: int) -> str | None:
    path = folder / RUN_STATE_NAME.format(rank=rank)
    if not path.exists():
        return f"{path.name} is missing"
    content = _run_state(path)
    if content is None:
        return f"{path.name} is damaged"
    for name, checksum in content["files"].items():
        try:
            if sha256_of(folder / name) != checksum:
                return f"{name} is damaged, its checksum differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def save_run_state(checkpoint: str | Path, rank: int, processes: int, state: dict[str, Any]) -> None:
    """Writes the state of process `rank` into a checkpoint, with the checksums of the files it wrote before.

    The state must suit JSON. The files reach the disk first.
    """
    folder = Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _wrote(rank, path.name)]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    content = {"processes": processes, "files": {path.name: sha256_of(path) for path in files}, "state": state}
    write_json(folder / RUN_STATE_NAME.format(rank=rank), {**content, "sha256": _checksum(content)})


def load_run_state(checkpoint: str | Path, rank: int, processes: int) -> dict[str, Any]:
    """State that `save_run_state` wrote for process `rank`.

    Raises:
        ValueError: If the checkpoint has no such state, or another number of processes wrote it.
    """
    content = _run_state(Path(checkpoint) / RUN_STATE_NAME.format(rank=0))
    if content is not None and content["processes"] != processes:
        raise ValueError(
            f"{checkpoint} was written by {content['processes']} processes and cannot be resumed by {processes}. "
            "Start as many processes as before."
        )
    if content is not None and rank > 0:
        content = _run_state(Path(checkpoint) / RUN_STATE_NAME.format(rank=rank))
    if content is None:
        raise ValueError(f"{checkpoint} is no complete checkpoint: the state of process {rank} is missing.")
    return content["state"]


def seal(checkpoint: str | Path) -> None:
    """Adds the checksum of transformers' state, which is complete without it."""
    folder = Path(checkpoint)
    write_whole(folder / SEAL_NAME, sha256_of(folder / TRAINER_STATE_NAME).encode())


def unseal(checkpoint: str | Path) -> None:
    """Removes a checkpoint that is about to be written anew; if that fails, it counts as unfinished."""
    folder = Path(checkpoint)
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def set_aside(output_dir: str | Path) -> Path | None:
    """Moves the checkpoints of an earlier run to a folder of their own; removes unfinished ones.

    Returns:
        The folder, or None if there was nothing to move.
    """
    folder, number = Path(output_dir), 1
    while (aside := folder / EARLIER_RUN.format(number=number)).exists():
        number += 1
    for checkpoint in checkpoints_of(folder):
        if checkpoint.is_dir() and not (checkpoint / TRAINER_STATE_NAME).exists():
            shutil.rmtree(checkpoint)
        else:
            aside.mkdir(exist_ok=True)
            os.replace(checkpoint, aside / checkpoint.name)
    return aside if aside.exists() else None


def _step_of(checkpoint: Path) -> int | None:
    """Step in the name of a checkpoint."""
    prefix, _, number = checkpoint.name.rpartition("-")
    return int(number) if prefix == PREFIX_CHECKPOINT_DIR and number.isdigit() else None


def _is_sealed(folder: Path) -> bool:
    """True if the checksum of transformers' state is right, or a kill came before it was written."""
    try:
        return (folder / SEAL_NAME).read_text(encoding="utf-8") == sha256_of(folder / TRAINER_STATE_NAME)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _is_trainer_state(state: dict[str, Any], step: int | None) -> bool:
    known = state.get("global_step")
    return (
        isinstance(known, int)
        and step in (None, known)
        and isinstance(state.get("log_history"), list)
        and isinstance(state.get("stateful_callbacks"), dict)
    )


def _wrote(rank: int, name: str) -> bool:
    """True for the files that process `rank` writes: its own ones, and of the first process those of the model."""
    process = OF_ONE_PROCESS.search(name)
    if name in (TRAINER_STATE_NAME, SEAL_NAME) or name.startswith((".", "run_state_")) or name.endswith(UNUSED):
        return False
    return int(process[1]) == rank if process else rank == 0


def _run_state(path: Path) -> dict[str, Any] | None:
    """Content of a process's state; None if it is missing or damaged."""
    content = _read_json(path)
    if content is None:
        return None
    checksum = content.pop("sha256", None)
    return content if checksum == _checksum(content) else None


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    """Dictionary in a JSON file; None if it is missing, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


__all__ = [
    "UNFINISHED",
    "checkpoints_of",
    "fault_of",
    "is_complete",
    "last_checkpoint",
    "load_run_state",
    "save_run_state",
    "seal",
    "set_aside",
    "unseal",
]
