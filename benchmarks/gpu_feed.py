"""Sections of `gpu_pretraining.py` that read audio: feed, end to end, memory, and a real run with loss curves."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pretraining_memory
import torch
from feed import KINDS, RATE, SECONDS, encode, take, write_shards
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.data import AudioStream, decode_clip, load_audio

Say = Callable[[str], None]
datasets.disable_progress_bars()


@contextmanager
def shards_of(files: list[bytes], shards: int, rows: int) -> Iterator[Path]:
    """Folder of at least `shards` parquet shards, one for each worker; files repeat up to `rows`."""
    files = list(itertools.islice(itertools.cycle(files), rows))
    with tempfile.TemporaryDirectory() as folder:
        parts = -(-shards // 4)  # `write_shards` makes four each time
        for part in range(parts):
            (Path(folder) / f"{part}").mkdir()
            write_shards(files[part::parts], Path(folder) / f"{part}")
        yield Path(folder)


def feed(options: argparse.Namespace, say: Say) -> None:
    """Speed of decoding on one core, and of the stream with all workers."""
    workers = options.workers
    torch.set_num_threads(1)  # as in a DataLoader worker
    clips = 32 if options.quick else 128
    say(f"Clips of {SECONDS:g} s, {workers} workers\n")
    say(f"| clips/s | decoding, one core | stream, {workers} workers | of {workers} x decoding |\n{'| --- ' * 4}|")
    for kind in KINDS:
        files = encode(options.audio, kind, options.files)
        began = time.perf_counter()
        for number, file in enumerate(itertools.islice(itertools.cycle(files), clips)):
            decode_clip({"bytes": file}, SECONDS, RATE, crop_seed=number)
        alone = clips / (time.perf_counter() - began)
        with shards_of(files, workers, options.rows) as folder:
            stream = AudioStream(load_audio(folder), SECONDS, RATE, batch_size=16, shuffle_buffer=32)
            batches = iter(DataLoader(stream, batch_size=None, num_workers=workers))
            counts = (len(batch["input_values"]) for batch in batches)
            take(counts, 16 * 3 * workers)  # clips decoded in advance
            began = time.perf_counter()
            rate = take(counts, clips * workers) / (time.perf_counter() - began)
            del counts, batches  # ends the workers
        say(f"| {kind} | {alone:.0f} | {rate:.0f} | {rate / alone / workers:.0%} |")


class Until(TrainerCallback):
    """Callback that ends a run at a deadline, and keeps its logs with the seconds since its start."""

    def __init__(self, deadline: float):
        self.deadline, self.began, self.logs = deadline, time.monotonic(), []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or time.monotonic() > self.deadline

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "clips_per_second" in logs:
            self.logs.append({"step": state.global_step, "seconds": time.monotonic() - self.began, **logs})


def trained(
    folder: Path, options: argparse.Namespace, batch: int, seconds: float, log_every: int, rate: float = 5e-5
) -> Until:
    """Run of the real trainer for some seconds, in bf16 on a GPU."""
    run = argparse.Namespace(
        device=options.device, steps=6 if options.quick else 100_000, batch_size=batch, workers=options.workers
    )
    config = MTSLVRConfig(window_seconds=options.samples / RATE, base_width=options.base_width)
    until = Until(time.monotonic() + seconds)
    changes = {"bf16": options.device == "cuda", "logging_steps": log_every, "learning_rate": rate}
    pretraining_memory.train(folder, config, run, [until], **changes)
    return until


def end_to_end(options: argparse.Namespace, say: Say) -> None:
    """Clips per second of the real trainer, from each kind of shard."""
    batch, log_every = options.batch_sizes[-1], 2 if options.quick else 10
    say(f"Batches of {batch} clips of {options.samples / RATE:g} s, {options.workers} workers\n")
    say("| shards | clips/s, median of the logs but the first two | of how many logs |\n| --- | --- | --- |")
    for kind in list(KINDS)[::2]:  # mono: 48 kHz as AudioSet, 16 kHz as from `mtslvr cache`
        files = encode(options.audio, kind, options.files)
        with shards_of(files, options.workers, options.rows) as folder:
            logs = trained(folder, options, batch, options.seconds_left / 4, log_every).logs
        rates = sorted(log["clips_per_second"] for log in logs[2:] or logs)
        say(
            f"| {kind} | {rates[len(rates) // 2]:.0f} | {len(rates)} |"
            if rates
            else f"| {kind} | too slow to log | 0 |"
        )


def memory(options: argparse.Namespace, say: Say) -> None:
    """Memory in a long run of a small network."""
    run = argparse.Namespace(
        device=options.device, steps=40 if options.quick else 1000, batch_size=8, seconds=1.0, workers=1
    )
    with shards_of(encode(options.audio, pretraining_memory.CACHED, 32), 1, 64) as folder:
        pretraining_memory.report(pretraining_memory.watch_memory(folder, run), say)


def run(options: argparse.Namespace, say: Say) -> None:
    """Loss curves on real audio, each file once per epoch, in the remaining time."""
    files = list(dict.fromkeys(encode(options.audio, pretraining_memory.CACHED, options.files)))
    batch = min(64, len(files) // 2)  # a clip is not its own negative
    with shards_of(files, 1, len(files)) as folder:
        logs = trained(folder, options, batch, options.seconds_left - 25, 1 if options.quick else 20, 3e-4).logs
    names = (
        "loss",
        "contrastive_loss",
        "predictive_loss",
        "augmentation_map",
        "contrastive_spread",
        "clips_per_second",
    )
    say(f"{len(files)} files, batches of {batch} clips of {options.samples / RATE:g} s\n")
    say(f"| step | s | {' | '.join(names)} |\n{'| --- ' * (2 + len(names))}|")
    for log in logs[:: max(1, len(logs) // 20)]:
        say(f"| {log['step']} | {log['seconds']:.0f} | {' | '.join(f'{log[name]:.3f}' for name in names)} |")
