"""Signals: the first one is a request, the second one ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from mtslvr_hf.resumable import RunStopped, StopSignals
from mtslvr_hf.resumable.signals import StopRequestedError


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_outside_of_training_a_signal_ends_the_program(number, code, capsys):
    before = signal.getsignal(number)
    with pytest.raises(RunStopped) as stopped, StopSignals():
        os.kill(os.getpid(), number)
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert f"Stopped by {signal.Signals(number).name}. Give the same command again" in capsys.readouterr().err


def test_in_training_a_signal_is_stored_and_ends_waiting():
    with StopSignals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested == signal.SIGTERM
        with pytest.raises(StopRequestedError), signals.interruptible():
            pytest.fail("an earlier signal is looked at first")
    with StopSignals() as signals, signals.deferred(), pytest.raises(StopRequestedError), signals.interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)


TWICE = """
import os, signal
from mtslvr_hf.resumable import StopSignals
with StopSignals() as signals, signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_a_second_signal_ends_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and "A second signal ends it at once" in done.stderr


WORKER = """
import os, signal
from mtslvr_hf.resumable import WorkerSignals
WorkerSignals()(0)
for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
print("alive", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


def test_a_worker_outlives_the_first_signal_to_its_group():
    done = subprocess.run([sys.executable, "-c", WORKER], timeout=120, capture_output=True, text=True)
    assert done.stdout == "alive\n" and done.returncode == -signal.SIGTERM


def test_a_worker_ends_at_once_when_its_run_does():
    ending = WORKER.replace("WorkerSignals()(0)", "init = WorkerSignals(print); init(7); init.end()")
    done = subprocess.run([sys.executable, "-c", ending], timeout=120, capture_output=True, text=True)
    assert "alive" not in done.stdout and done.returncode == 0
