"""Memory of a pre-training run: real trainer, feed and augmentations, and a small network, for 2,000 steps.

python benchmarks/pretraining_memory.py
python benchmarks/pretraining_memory.py --device cpu --steps 300

Prints the resident memory of the trainer's process and of its workers (from /proc: Linux only) and the memory used on
a GPU, as averages over a twentieth of the run, and their growth over the second half.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from as_published import machine
from feed import DEMO, KINDS, encode, write_shards
from transformers import PrinterCallback, TrainerCallback

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.data import AudioStream, load_audio
from mtslvr_hf.trainer import MTSLVRTrainer, MTSLVRTrainingArguments

MEGABYTE = 2**20
CACHED = next(kind for kind, (rate, _, _) in KINDS.items() if rate == 16_000)


class Sample(NamedTuple):
    """Memory after a step in MB."""

    step: int
    trainer: float
    workers: float
    allocated: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=DEMO, help="folder of audio files, at any depth")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.steps} steps of {options.batch_size} clips of {options.seconds} s; {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        write_shards(encode(options.audio, CACHED, rows=64), Path(folder))
        report(watch_memory(Path(folder), options))


def watch_memory(shards: Path, options: argparse.Namespace) -> list[Sample]:
    """Memory after each step of training a small network on a folder of shards."""
    config = MTSLVRConfig(base_width=8, window_seconds=options.seconds, embedding_size=32)
    watch = Watch()
    train(shards, config, options, callbacks=[watch], logging_steps=50)
    return watch.samples


def train(
    shards: Path,
    config: MTSLVRConfig,
    options: argparse.Namespace,
    callbacks: list[TrainerCallback],
    **changes: Any,
) -> MTSLVRTrainer:
    """Trains on a folder of shards without evaluations or checkpoints.

    Args:
        shards: Folder for `load_audio`.
        config: Network; clips are as long as its windows.
        options: With `device`, `steps`, `batch_size` and `workers`.
        callbacks: Callbacks of the trainer.
        changes: Other training arguments.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as output:
        args = MTSLVRTrainingArguments(
            output_dir=output,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            dataloader_num_workers=options.workers,
            use_cpu=options.device == "cpu",
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            **changes,
        )
        stream = AudioStream(
            load_audio(shards), config.window_seconds, batch_size=options.batch_size, shuffle_buffer=32
        )
        trainer = MTSLVRTrainer(MTSLVRForPreTraining(config), args, stream, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


class Watch(TrainerCallback):
    """Callback that records memory after each step."""

    def __init__(self):
        self.samples = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_gpu = args.device.type == "cuda"
        self.samples.append(
            Sample(
                state.global_step,
                resident("self"),
                sum(resident(child.pid) for child in multiprocessing.active_children()),
                torch.cuda.memory_allocated() / MEGABYTE if on_gpu else 0.0,
                torch.cuda.max_memory_allocated() / MEGABYTE if on_gpu else 0.0,
            )
        )


def resident(process: int | str) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def growth(samples: list[Sample], name: str) -> float:
    """Growth in MB per 1,000 steps: slope of a line fitted to the second half of the samples."""
    half = samples[len(samples) // 2 :]
    return 1000 * np.polyfit([s.step for s in half], [getattr(s, name) for s in half], 1)[0]


def report(samples: list[Sample], say: Callable[[str], None] = print) -> None:
    """Prints a table of the samples and their growth."""
    say("| to step | trainer, MB | workers, MB | GPU allocated, MB | GPU peak, MB |\n| --- | --- | --- | --- | --- |")
    for part in np.array_split(np.array(samples), min(20, len(samples))):  # (steps, fields)
        say(f"| {part[-1, 0]:.0f} | {' | '.join(f'{value:.1f}' for value in part[:, 1:].mean(axis=0))} |")
    slopes = " | ".join(f"{growth(samples, name):+.2f}" for name in Sample._fields[1:])
    say(f"| MB per 1,000 steps, second half | {slopes} |")


if __name__ == "__main__":
    main()
