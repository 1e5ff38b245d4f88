"""Lock of an output folder, and the watch of the launcher that started this process."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

logger = logging.getLogger(__name__)

LOCK = "_lock.json"  # transformers publishes no file that begins with _
BEAT_SECONDS = 10.0
DEAD_SECONDS = 120.0  # without a beat, a process on another machine counts as ended
LAUNCHERS = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and accelerate
LAUNCHER_SECONDS = 1.0  # between two looks at the launcher


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which no other run can lock the folder, which is made.

    The lock holds host and process, and a beat every 10 s. It is free if its process on this machine has ended, or if
    a process on another machine has not beaten for two minutes.

    Raises:
        SystemExit: If a run holds the lock; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / LOCK, _this_process()
    while not _create(path, mine):
        holder = _read(path)
        if _is_running(path, holder):
            sys.exit(
                f"{folder} is in use by process {holder.get('process')} on {holder.get('host')}, which started "
                f"{holder.get('started')}. Wait for its end, stop it, or choose another --output_dir."
            )
        _remove(path, holder)
    over = threading.Event()
    threading.Thread(target=_beat, args=(path, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if _read(path).get("id") == mine["id"]:
            path.unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """True if some process has locked the folder."""
    return (folder / LOCK).exists()


def end_with_launcher() -> None:
    """Has this process get SIGTERM once the launcher that started it (torchrun, accelerate) is gone.

    Without it, a process that is about to join the others would wait for them for 30 minutes.
    """
    if any(name in os.environ for name in LAUNCHERS):
        threading.Thread(target=_watch_launcher, args=(os.getppid(),), daemon=True).start()


def _watch_launcher(launcher: int) -> None:
    while os.getppid() == launcher and not _is_gone(launcher):
        time.sleep(LAUNCHER_SECONDS)
    logger.warning("The launcher, process %d, is gone.", launcher)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_gone(launcher: int) -> bool:
    """True if the parent is the first process of the system, which takes orphans, and not torchrun itself."""
    if launcher != 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        return "python" not in Path(psutil.Process(launcher).exe()).name.lower()
    except psutil.Error:  # of another user, so no launcher of ours
        return True


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": psutil.boot_time(),
        "process": process.pid,
        "created": process.create_time(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Creates the lock with its content; False if there is one."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(content, file)
    except FileExistsError:
        return False
    return True


def _remove(path: Path, holder: dict[str, Any]) -> None:
    """Removes the lock of a process that has ended, unless another process was faster."""
    moved = path.with_name(f".{LOCK}.{uuid.uuid4().hex}.tmp")
    with suppress(FileNotFoundError):
        os.replace(path, moved)
        if _read(moved) == holder:
            moved.unlink()
        else:  # it is the lock of the process that was faster
            os.replace(moved, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_running(path: Path, holder: dict[str, Any]) -> bool:
    """True if the process that holds a lock may still run."""
    mine = _this_process()
    if holder.get("host") == mine["host"] and abs(holder.get("boot", 0) - mine["boot"]) < 2:
        try:
            return abs(psutil.Process(holder["process"]).create_time() - holder["created"]) < 1
        except psutil.NoSuchProcess:
            return False
    clock = path.with_name(f".{LOCK}.{mine['id']}.tmp")  # the disk's clock, which may differ from this machine's
    clock.touch()
    try:
        return clock.stat().st_mtime - path.stat().st_mtime < DEAD_SECONDS
    except FileNotFoundError:
        return False
    finally:
        clock.unlink()


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


__all__ = ["end_with_launcher", "is_locked", "locked"]
