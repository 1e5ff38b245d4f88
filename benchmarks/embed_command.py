"""Clips per second of `mtslvr embed` on a folder of FLAC files on a CPU, compared with a script and with its stages.

python benchmarks/embed_command.py                                   # 600 files of 10 s at 44.1 kHz, full width
python benchmarks/embed_command.py --model models/mtslvr-small       # another model
python benchmarks/embed_command.py --cores 0,1 --busy 2              # on two cores that two other processes use
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from as_published import machine
from torch.utils.data import DataLoader

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.audio.recording import open_recording
from mtslvr_hf.workers import usable_cores

RATE, SECONDS, BATCH = 44_100, 10, 8
COMMAND = "import sys, mtslvr_cli; sys.exit(mtslvr_cli.main())"
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--model", type=Path, help="a model's folder (default: random weights at full width)")
    parser.add_argument("--dtype", help="data type of `mtslvr embed` (default: the model's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", help="cores to use, as 0,1 (default: all)")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute on the same cores all the time")
    parser.add_argument("--staged", type=int, default=64, help="files whose stages are timed")
    parser.add_argument("--script", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.script:
        return script(*map(Path, options.script))
    if options.cores:
        os.sched_setaffinity(0, map(int, options.cores.split(",")))
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "sounds", options.model
        write_sounds(folder, options.files)
        if model is None:
            model = Path(temporary) / "model"
            torch.manual_seed(0)
            MTSLVRModel(MTSLVRConfig(window_seconds=float(SECONDS))).save_pretrained(model)
            MTSLVRFeatureExtractor().save_pretrained(model)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        try:
            commands: dict[str, Callable[[], float]] = {
                f"`mtslvr embed`, {name}": lambda given=given: embed(model, folder, options.dtype, given)
                for name, given in ENVIRONMENTS.items()
            }
            commands["soundfile, soxr, DataLoader, forward"] = lambda: timed(
                [sys.executable, __file__, "--script", str(model), str(folder)], {}
            )
            seconds: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, command in commands.items():
                    seconds[name].append(command())
            in_turns = stages(MTSLVRModel.from_pretrained(model).eval(), sorted(folder.glob("*"))[: options.staged])
        finally:
            for process in busy:
                process.kill()
    report(options, {name: float(np.median(values)) for name, values in seconds.items()}, in_turns)


def write_sounds(folder: Path, count: int) -> None:
    """Tones in noise: FLAC stores them in about half of their 16 bits, as music."""
    folder.mkdir()
    generator, time = np.random.default_rng(0), np.arange(RATE * SECONDS) / RATE
    for number in range(count):
        tones = np.sin(2 * np.pi * generator.uniform(80, 6000, (6, 1)) * time).sum(0)
        sound = 0.1 * tones + 0.02 * generator.standard_normal(len(time))
        soundfile.write(folder / f"{number:05d}.flac", sound.astype(np.float32), RATE, subtype="PCM_16")


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a command."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    started = time.perf_counter()
    subprocess.run(command, env={**inherited, **environment}, check=True, capture_output=True)
    return time.perf_counter() - started


def embed(model: Path, folder: Path, dtype: str | None, environment: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as output:
        options = [str(folder), "--model", str(model), "--output", f"{output}/embeddings", "--device", "cpu"]
        options += ["--dtype", dtype] if dtype else []
        return timed([sys.executable, "-c", COMMAND, "embed", *options], environment)


def script(model: Path, folder: Path) -> None:
    """Script as a careful user writes it: a DataLoader decodes and resamples, the model embeds batches."""
    extractor, network = MTSLVRFeatureExtractor.from_pretrained(model), MTSLVRModel.from_pretrained(model).eval()
    files = sorted(folder.glob("*"))

    def load(paths: list[Path]) -> torch.Tensor:
        clips = []
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32")
            clips.append(soxr.resample(samples, rate, extractor.sampling_rate))
        return extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]

    loader = DataLoader(files, batch_size=BATCH, collate_fn=load, num_workers=min(2, usable_cores()))
    with torch.inference_mode():
        embeddings = torch.cat([network(batch).pooler_output for batch in loader])
    assert len(embeddings) == len(files)


@torch.inference_mode()
def stages(model: MTSLVRModel, files: list[Path]) -> dict[str, float]:
    """Milliseconds a clip of each stage by itself; torch uses all cores, decoding one."""
    network, rate = model.inference_network(), model.config.sampling_rate
    samples = model.config.window_samples
    windows = -(-RATE * SECONDS * rate // RATE // samples)  # of a clip
    ms = dict.fromkeys(("decode", "resample", "frontend", "network"), float("inf"))
    for begin in range(0, len(files), BATCH):
        clock = [time.perf_counter()]
        decoded = []
        for file in files[begin : begin + BATCH]:
            with open_recording({"path": str(file)}) as recording:
                decoded.append(np.concatenate(list(recording.read())))
        clock.append(time.perf_counter())
        clips = [soxr.resample(clip, RATE, rate) for clip in decoded]
        clock.append(time.perf_counter())
        batch = torch.from_numpy(np.stack([np.resize(clip, windows * samples) for clip in clips])).view(-1, samples)
        features = network.frontend(batch)
        clock.append(time.perf_counter())
        network(input_features=features)
        clock.append(time.perf_counter())
        for name, value in zip(ms, np.diff(clock)):
            ms[name] = min(ms[name], 1e3 * value / len(clips))
    return ms


def report(options: argparse.Namespace, seconds: dict[str, float], in_turns: dict[str, float]) -> None:
    limit = 1e3 / sum(in_turns.values())
    careful = list(seconds.values())[-1]
    print(
        f"{options.files} FLAC files of {SECONDS} s at {RATE} Hz, {options.model or 'random weights at full width'}, "
        f"{options.dtype or 'the dtype of the model'}, {options.busy} busy processes; {usable_cores()} cores, "
        f"{machine()}\n\n| whole command | s | clips/s | % of the stages in turns | x the script |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, value in seconds.items():
        speed = options.files / value
        print(f"| {name} | {value:.1f} | {speed:.1f} | {100 * speed / limit:.0f} | {careful / value:.2f} |")
    parts = ", ".join(f"{name} {value:.2f}" for name, value in in_turns.items())
    print(f"\nStages in turns, without overlap, each in its fastest batch: {limit:.1f} clips/s (ms a clip: {parts}).")


if __name__ == "__main__":
    main()
