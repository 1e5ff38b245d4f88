"""Time and memory to embed one long file with `encode`, compared with the size of the decoded file.

python benchmarks/long_file.py --hours 3
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from as_published import machine
from tqdm.auto import tqdm

from mtslvr_hf import MTSLVRConfig, MTSLVRModel

RATE, CHANNELS, BLOCK_SECONDS = 44_100, 2, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32, help="windows at once")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # runs in a separate process
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        write(path, options.hours)
        command = [sys.executable, __file__, "--measure", str(path), *map(str, sys.argv[1:])]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        size = path.stat().st_size
    samples = options.hours * 3600 * RATE * CHANNELS
    print(f"{options.hours:g} h, {RATE} Hz, {CHANNELS} channels, FLAC of {size / 1e6:.0f} MB; {machine()}\n")
    print("| | |\n| --- | --- |")
    print(f"| time | {result['seconds']:.1f} s, {options.hours * 3600 / result['seconds']:.0f} x real time |")
    print(f"| peak memory of the process | {result['peak'] / 1e9:.2f} GB |")
    print(f"| of which before the file was opened | {result['before'] / 1e9:.2f} GB |")
    print(f"| the decoded file as float32 | {4 * samples / 1e9:.2f} GB |")


def write(path: Path, hours: float) -> None:
    """Writes a minute of sweeps in noise, repeated."""
    generator = np.random.default_rng(0)
    seconds = np.arange(BLOCK_SECONDS * RATE) / RATE
    block = 0.01 * generator.standard_normal((len(seconds), CHANNELS)) + 0.3 * np.sin(800 * seconds**1.3)[:, None]
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, subtype="PCM_16") as file:
        for _ in tqdm(range(round(hours * 3600 / BLOCK_SECONDS)), "writing", unit="min"):
            file.write(block.astype(np.float32))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one embedding; `before` is the peak after a short array."""
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=options.base_width))
    model.encode(np.zeros(16_000, dtype=np.float32), 16_000)
    before = peak()
    started = time.perf_counter()
    embedding = model.encode(options.measure, batch_size=options.batch_size)
    assert np.isfinite(embedding).all()
    return {"seconds": time.perf_counter() - started, "before": before, "peak": peak()}


def peak() -> int:
    """Peak resident size of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
