"""Clips per second of a training step on a CPU by settings of OpenMP's idle threads, also beside busy processes.

python benchmarks/idle_threads.py              # at full width and for a laptop, on cores that nothing else uses
python benchmarks/idle_threads.py --busy 2     # beside two processes that compute all the time

Each setting has a process of its own. They train in turns: the others wait for their turn without a core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from as_published import machine
from training_step import Step, size_of

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import TwoViewAugmentation

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["64x2x16", "16x2x64"], help="width x seconds x clips of a batch"
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute all the time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(training_step(*size_of(options.sizes[0]), options.bf16), options.steps)
    print(f"{options.busy} busy processes, {options.steps} steps a round; {machine()}\n")
    print("| width x seconds x clips | setting | clips/s: median | least |\n| --- | --- | --- | --- |")
    for size in options.sizes:
        for name, rates in measure(size, options).items():
            print(f"| {size} | {name} | {np.median(rates):.1f} | {min(rates):.1f} |", flush=True)


def measure(size: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Clips per second of each round by setting."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--work", "--sizes", size, "--steps", str(options.steps)]
    command += ["--bf16"] if options.bf16 else []
    workers = {
        name: subprocess.Popen(
            command, env=inherited | given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for name, given in SETTINGS.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in workers}
    busy: list[subprocess.Popen] = []
    try:
        for worker in workers.values():
            ask(worker)  # warms up
        busy += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        for _ in range(options.rounds):
            for name, worker in workers.items():
                rates[name].append(size_of(size)[2] / ask(worker))
    finally:
        for process in [*workers.values(), *busy]:
            process.kill()
            process.wait()
    return rates


def ask(worker: subprocess.Popen) -> float:
    """Seconds of a step of the worker's next round."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("go\n")
    return float(worker.stdout.readline())


def training_step(width: int, length: float, clips: int, bf16: bool) -> Callable[[int], None]:
    """A step of a number: views, then the network on them."""
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(MTSLVRConfig(window_seconds=length, base_width=width))
    step = Step(model.to(memory_format=torch.channels_last), torch.bfloat16 if bf16 else None)
    pipeline, waveforms = TwoViewAugmentation(), torch.randn(clips, model.config.window_samples)
    return lambda number: step(*pipeline(waveforms, step=number)[:2])


def work(step: Callable[[int], None], steps: int) -> None:
    """Trains for a round at each line of standard input, and prints the seconds of a step."""
    number = 0
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(steps):
            step(number)
            number += 1
        print((time.perf_counter() - started) / steps, flush=True)


if __name__ == "__main__":
    main()
