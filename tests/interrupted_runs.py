"""Interruption of runs that write shards, and what such a run leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]

KILLED = """
import os, signal, sys
from mtslvr_cli import main

replace, left = os.replace, [int(sys.argv[1])]

def replace_or_die(source, destination):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(source, destination)

os.replace = replace_or_die
main(sys.argv[2:])
"""


class Interrupted(BaseException):
    """Not an Exception, so that nothing catches it, as nothing catches a killed process."""


def interrupt(monkeypatch, files, run, *arguments, **options):
    """Runs until the file after the first `files` ones is about to get its name, and leaves that one half-written."""
    replace, left = os.replace, [files]

    def replace_or_stop(source, destination):
        if left[0] == 0:
            Path(source).write_bytes(Path(source).read_bytes()[:10])
            raise Interrupted
        left[0] -= 1
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_stop)
        try:
            run(*arguments, **options)
        except Interrupted:
            return
    raise AssertionError(f"a run of no more than {files} files is over")


def kill(files, command):
    """Runs an `mtslvr` command that is killed after so many files."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(files), *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def environment():
    """So that the process computes as this one does."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}


def contents(folder):
    """All files' bytes by their path in the folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }
