"""Soak of pre-training: a run with random kills and resumes beside an undisturbed twin, compared bit for bit.

python benchmarks/soak.py --output soak
python benchmarks/soak.py --output soak --minutes 5 --seconds-between-signals 40 --processes 2

Both runs train a small network on the same looping audio, at the same time, for the same number of steps. One of them
gets signals at random times, to all of its processes or to one (launcher, trainer or DataLoader worker), and the same
command again when it has ended. soak.json and soak.png in the output folder show memory, open files, speed and losses
over time. Exit status 1 if weights, optimizer, random state, position in the stream or logs differ, or if memory or
open files grow from the second to the last quarter of the time by more than `BOUNDS`. (Linux only.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from as_published import machine
from feed import DEMO
from safetensors.torch import load_file

from mtslvr_hf.resumable import last_checkpoint
from mtslvr_hf.runs.saved_values import read_record

ROOT = Path(__file__).resolve().parents[1]
CPU = ROOT / "training/configs/accelerate/cpu.yaml"
# Two runs at once: threads of one would wait for those of the other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
RUN = {
    **{"base_width": 8, "window_seconds": 1.0, "embedding_size": 32, "per_device_train_batch_size": 8},
    **{"held_out_fraction": 0.2, "eval_clips": 32, "early_stopping_patience": 0, "shuffle_buffer": 32},
    **{"use_cpu": True, "disable_tqdm": True, "logging_steps": 7},  # 7: kills cut windows of logs
}
# Largest growth, as a share. A worker that replaces a dead one holds the few files that its trainer has open by then.
BOUNDS = {"memory_mb": 0.10, "open_files": 0.25}
HIGH = 90  # percentile that stands for a quarter: a run that starts again has fewer processes for a while
TRIAL_STEPS = 70  # that measure the speed
SAVE_SECONDS = 10.0  # between two checkpoints, about
SAMPLE_SECONDS = 2.0
LONGEST_END = 180.0  # seconds until the processes of a run that got a signal are gone
OF_TIME = ("runtime", "seconds", "per_second")  # in the names of logged values that no two runs have in common
NOT_COMPARED = ("training_seconds", "logged_seconds", "probe_seconds")  # in the states of processes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of results and runs, which is emptied")
    parser.add_argument("--audio", default=str(DEMO), help="folder of audio, or of the shards of `mtslvr cache`")
    parser.add_argument("--minutes", type=float, default=60.0, help="time that decides the number of steps")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--seconds-between-signals", type=float, default=60.0, help="mean; times are exponential")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs and of the signals")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of a process")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    trial = Run("trial", options, steps=TRIAL_STEPS, save_steps=TRIAL_STEPS)
    watch([trial], None)
    speed = measured_speed(trial)
    steps = options.steps or max(TRIAL_STEPS, round(options.minutes * 60 * speed))
    save_steps = max(1, round(SAVE_SECONDS * speed))
    twin = Run("undisturbed", options, steps, save_steps)
    disturbed = Run("disturbed", options, steps, save_steps)
    watch([twin, disturbed], Signals(disturbed, options))
    table = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "steps": steps,
        "save_steps": save_steps,
        "runs": {run.name: run.summary() for run in (twin, disturbed)},
        "differences": differences(twin.folder, disturbed.folder),
        "bounds": BOUNDS,
        "samples": {run.name: run.samples for run in (twin, disturbed)},
    }
    faults = [f"differs: {name}" for name in table["differences"]] + growths(table["runs"])
    table["faults"] = faults
    (options.output / "soak.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    draw(options.output / "soak.png", twin, disturbed)
    report(table)
    return 1 if faults else 0


class Run:
    """A run of `mtslvr_hf.pretrain` that can be started several times, with its samples."""

    def __init__(self, name: str, options: argparse.Namespace, steps: int, save_steps: int):
        self.name = name
        self.folder = options.output / name
        self.starts, self.samples, self.signals = 0, [], []
        values = {**RUN, "dataset_name": options.audio, "seed": options.seed, "max_steps": steps}
        values |= {"eval_steps": save_steps, "dataloader_num_workers": options.workers}
        config = options.output / f"{name}.yaml"
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        self.command = ["-m", "mtslvr_hf.pretrain", str(config), "--output_dir", str(self.folder)]
        if options.processes == 2:
            launch = ["-m", "accelerate.commands.launch", "--config_file", str(CPU), "--main_process_port", "0"]
            self.command = [*launch, *self.command]
        self.log = options.output / f"{name}.log"
        self.start_time = 0.0
        self.seconds = 0.0  # until its end
        self.process: subprocess.Popen | None = None
        self._signaled: list[psutil.Process] = []  # its processes when it last got a signal, since its last start

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_finished(self) -> bool:
        return self.process is not None and not self.is_running and "finished" in read_record(self.folder)

    def go_on(self, now: float) -> None:
        """Starts the run if it has ended with all of its processes.

        Raises:
            SystemExit: If it ended by itself, or some of its processes do not end.
        """
        if self.is_running:
            return
        if self.process is not None and not self._signaled:
            raise SystemExit(f"{self.name} ended by itself with status {self.process.returncode}; see {self.log}.")
        alive = [process for process in self._signaled if process.is_running()]
        if alive and now - self.signals[-1]["seconds"] > LONGEST_END:
            raise SystemExit(f"{self.name} ended, but some of its processes did not: {alive}.")
        if alive:
            return
        self.starts, self._signaled = self.starts + 1, []
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT
            )

    def processes(self) -> list[psutil.Process]:
        """Processes of the run, the launcher or trainer first."""
        with suppress(psutil.NoSuchProcess):
            if self.process is not None and self.is_running:
                first = psutil.Process(self.process.pid)
                return [first, *first.children(recursive=True)]
        return []

    def sample(self, now: float) -> None:
        """Adds memory and open files of all processes of the run."""
        memory, files, alive = 0.0, 0, 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                memory += process.memory_info().rss / 2**20
                files += process.num_fds()
                alive += 1
        values = {"memory_mb": round(memory, 1), "open_files": files, "processes": alive}
        self.samples.append({"seconds": round(now, 1), **values})

    def send(self, number: int, targets: list[psutil.Process], now: float) -> None:
        """Sends a signal to some of the run's processes."""
        self._signaled = self.processes()
        place = self._signaled.index(targets[0])
        which = "all" if len(targets) > 1 else f"process {place} of {len(self._signaled)}"
        for process in targets:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        self.signals.append({"seconds": round(now, 1), "signal": signal.Signals(number).name, "to": which})
        print(f"{now / 60:.1f} min: {signal.Signals(number).name} to {which}", flush=True)

    def history(self) -> list[dict[str, Any]]:
        """Logged values."""
        return json.loads((self.folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]

    def logged(self, name: str) -> dict[int, float]:
        """Logged values of a name, by step."""
        return {entry["step"]: entry[name] for entry in self.history() if name in entry}

    def summary(self) -> dict[str, Any]:
        """Counts, and a high percentile of memory and open files in each quarter of the time."""
        quarters = np.array_split(np.array([[sample[name] for name in BOUNDS] for sample in self.samples]), 4)
        high = np.array([np.percentile(quarter, HIGH, axis=0) for quarter in quarters])  # (4, values)
        speeds = list(self.logged("clips_per_second").values())
        return {
            "starts": self.starts,
            "signals": self.signals,
            "seconds": round(self.seconds, 1),
            "clips_per_second": float(np.median(speeds)),
            **{name: high[:, n].tolist() for n, name in enumerate(BOUNDS)},
        }


class Signals:
    """Signals to a run at random times: SIGKILL and SIGTERM, to all of its processes or to one of them."""

    def __init__(self, run: Run, options: argparse.Namespace):
        self.run, self.mean = run, options.seconds_between_signals
        self.random = random.Random(options.seed)
        self.next = self.random.expovariate(1 / self.mean)

    def send_if_due(self, now: float) -> None:
        processes = self.run.processes()
        if now < self.next or not processes:
            return
        number = self.random.choice((signal.SIGKILL, signal.SIGTERM))
        targets = processes if self.random.random() < 0.5 else [self.random.choice(processes)]
        self.run.send(number, targets, now)
        self.next = now + self.random.expovariate(1 / self.mean)


def watch(runs: list[Run], signals: Signals | None) -> None:
    """Starts runs and samples them until all are finished."""
    began = time.monotonic()
    left = list(runs)
    try:
        while left:
            for run in left:
                run.go_on(time.monotonic() - began)
            time.sleep(SAMPLE_SECONDS)
            now = time.monotonic() - began
            for run in left:
                run.sample(now)
                run.seconds = now
            if signals is not None:
                signals.send_if_due(now)
            left = [run for run in left if not run.is_finished]
    finally:
        for run in left:
            for process in run.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def measured_speed(trial: Run) -> float:
    """Steps per second of a run alone, halved for two runs at once."""
    clips = float(np.median(list(trial.logged("clips_per_second").values())))
    rows = trial.logged("rows_read")
    return clips * max(rows) / max(rows.values()) / 2


def differences(twin: Path, disturbed: Path) -> list[str]:
    """Names of all values in which two runs differ: final weights and logs, and all of their last checkpoints."""
    checkpoints = [Path(last_checkpoint(folder) or folder / "no checkpoint") for folder in (twin, disturbed)]
    names = [{path.name for path in checkpoint.glob("*")} for checkpoint in checkpoints]
    first, second = (
        dict(flat({"final": contents(folder, ["model.safetensors", "trainer_state.json"])}))
        | dict(flat({"last": contents(checkpoint, sorted(set.union(*names)))}))
        for folder, checkpoint in zip((twin, disturbed), checkpoints)
    )
    return [name for name in sorted({*first, *second}) if name not in first or not same(first[name], second.get(name))]


def contents(folder: Path, names: list[str]) -> dict[str, Any]:
    """Values of weights, states and logs by file name; a file that is missing has none."""
    values: dict[str, Any] = {}
    for path in (folder / name for name in names if (folder / name).exists()):
        if path.suffix == ".safetensors":
            values[path.name] = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            values[path.name] = torch.load(path, weights_only=False)  # random states of NumPy; made by this run
        elif path.name == "trainer_state.json":
            history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
            logs = [{k: v for k, v in entry.items() if not any(word in k for word in OF_TIME)} for entry in history]
            values[path.name] = logs
        elif path.name.startswith("run_state_"):
            state = json.loads(path.read_text(encoding="utf-8"))["state"]
            values[path.name] = {name: value for name, value in state.items() if name not in NOT_COMPARED}
    return values


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested values with their paths; an empty one counts as a leaf."""
    items: Any = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)) and len(value) < 10_000:
        items = enumerate(value)
    if not items:
        yield name, value
        return
    for key, item in items:
        yield from flat(item, f"{name}/{key}")


def same(a: Any, b: Any) -> bool:
    """True for equal values, to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b


def growths(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Growths of memory and open files above their bounds, in words."""
    faults = []
    for run, summary in summaries.items():
        for name, bound in BOUNDS.items():
            _, early, _, late = summary[name]
            if late > early * (1 + bound):
                faults.append(f"{name} of {run} grows from {early:.0f} to {late:.0f}, by more than {bound:.0%}")
    return faults


def draw(path: Path, twin: Run, disturbed: Run) -> None:
    """Curves of both runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = list(figure.subplots(2, 2).flat)
    titles = {"memory_mb": "memory of all processes, MB", "open_files": "open files of all processes"}
    for axis, (name, title) in zip(axes[:2], titles.items()):
        for run in (twin, disturbed):
            minutes = [sample["seconds"] / 60 for sample in run.samples]
            axis.plot(minutes, [sample[name] for sample in run.samples], label=run.name, linewidth=1)
        for sent in disturbed.signals:
            color = "tab:red" if sent["signal"] == "SIGKILL" else "tab:gray"
            axis.axvline(sent["seconds"] / 60, color=color, linewidth=0.5)
        axis.set(title=f"{title}; lines: SIGKILL red, SIGTERM gray", xlabel="minutes", ylim=(0, None))
    for axis, name in zip(axes[2:], ("clips_per_second", "loss")):
        for run, style in ((twin, "-"), (disturbed, "--")):
            axis.plot(*zip(*run.logged(name).items()), style, label=run.name, linewidth=1)
        axis.set(title=name.replace("_", " "), xlabel="step")
    for axis in axes:
        axis.legend()
    figure.savefig(path, dpi=120)


def report(table: Mapping[str, Any]) -> None:
    """Prints the results."""
    print(f"{table['steps']} steps, a checkpoint every {table['save_steps']}; {table['machine']}\n")
    print("| run | starts | signals | minutes | clips/s | memory of each quarter, MB | open files |")
    print("| --- " * 7 + "|")
    for name, run in table["runs"].items():
        cells = [name, run["starts"], len(run["signals"]), f"{run['seconds'] / 60:.1f}"]
        cells += [f"{run['clips_per_second']:.0f}"]
        cells += [" ".join(f"{value:.0f}" for value in run[name]) for name in BOUNDS]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\n" + ("\n".join(table["faults"]) or "Weights, states and logs are the same, bit for bit."))


if __name__ == "__main__":
    sys.exit(main())
