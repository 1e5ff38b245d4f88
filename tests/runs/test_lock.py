"""Lock of an output folder: refused while a run holds it, taken over once that has ended."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from mtslvr_hf.runs.lock import DEAD_SECONDS, LOCK, end_with_launcher, locked


def hold(folder, **changes):
    """Leaves the lock of this process, or a changed one."""
    with locked(folder):
        content = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps({**content, **changes}))
    return folder / LOCK


def test_a_folder_is_locked_once(tmp_path):
    with locked(tmp_path / "out"):
        with (
            pytest.raises(SystemExit, match=rf"out is in use by process {os.getpid()} on \S+, which started \d{{4}}-"),
            locked(tmp_path / "out"),
        ):
            pass
        assert (tmp_path / "out" / LOCK).exists()
    assert not list((tmp_path / "out").iterdir())
    with locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    "changes",
    [{"process": 2**22 + 1}, {"created": 1.0}],
    ids=["no such process", "another process has its number"],
)
def test_a_process_that_has_ended_holds_nothing(tmp_path, changes):
    assert not psutil.pid_exists(2**22 + 1)
    hold(tmp_path, **changes)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_process_on_another_machine_holds_as_long_as_it_beats(tmp_path):
    path = hold(tmp_path, host="elsewhere", process=1)
    with pytest.raises(SystemExit, match="in use by process 1 on elsewhere"), locked(tmp_path):
        pass
    past = path.stat().st_mtime - DEAD_SECONDS - 5
    os.utime(path, (past, past))
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_cut_is_taken_over_when_it_is_old(tmp_path):
    path = tmp_path / LOCK
    path.write_text("{")
    with pytest.raises(SystemExit, match=re.escape("in use by process None")), locked(tmp_path):
        pass
    os.utime(path, (1, 1))
    with locked(tmp_path):
        pass


ORPHAN = """
import os, signal, subprocess, sys
child = "import signal; from mtslvr_hf.runs.lock import end_with_launcher; end_with_launcher(); print(1, flush=True);"
subprocess.Popen([sys.executable, "-c", child + "signal.pause()"], env={**os.environ, "LOCAL_RANK": "0"})
signal.pause()
"""


def test_a_process_ends_with_its_launcher():
    launcher = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE)
    assert launcher.stdout.readline() == b"1\n"
    launcher.kill()
    assert launcher.stdout.read() == b""  # until the child, which has the other end, is gone, too
    launcher.wait()


LATE = """
import os, signal, sys, time
from mtslvr_hf.runs.lock import end_with_launcher
print(1, flush=True)
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.05)
if os.getppid() == 1:
    end_with_launcher()
    signal.pause()
"""


def test_a_process_whose_launcher_went_before_it_looked_ends():
    child = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {LATE!r}, str(os.getpid())])"
    env = {**os.environ, "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", f"{child}; import signal; signal.pause()"], stdout=subprocess.PIPE, env=env
    )
    assert launcher.stdout.readline() == b"1\n"
    launcher.kill()
    assert launcher.stdout.read() == b""  # until the child is gone
    launcher.wait()


def test_a_process_without_launcher_is_not_watched(monkeypatch):
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("threading.Thread.start", lambda self: pytest.fail("a thread was started"))
    end_with_launcher()
