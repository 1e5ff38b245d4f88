"""Runs of `pretrain.py` with several configurations and seeds, several at a time; finished runs are kept."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

SCRIPT = Path(__file__).parent / "pretrain.py"
FINISHED = "eval_results.json"  # pretrain.py writes it just before the weights


class Run(NamedTuple):
    """Run of a configuration from one seed.

    Attributes:
        row: Name of the configuration in tables.
        seed: Seed of weights, order and augmentations.
        arguments: Arguments of `pretrain.py`, without output folder and seed.
    """

    row: str
    seed: int
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row}_{self.seed}"


def script_parser(documentation: str) -> argparse.ArgumentParser:
    """Parser with the options of all scripts that train and evaluate repeated runs.

    Args:
        documentation: Docstring of the script: description, examples, explanation.
    """
    description, examples, explanation = documentation.split("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}\n\n{explanation}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, one folder each")
    parser.add_argument(
        "--data-root", type=Path, help="folder of the labelled data sets; without it, runs are only trained"
    )
    parser.add_argument(
        "--episodes", type=int, default=10_000, help="few-shot episodes on each data set (default: %(default)s)"
    )
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, which share the cores (default: 2)")
    return parser


def train_all(runs: Sequence[Run], output: Path, parallel: int) -> None:
    """Trains all unfinished runs into `output/NAME`, with a log `output/NAME.log` each.

    Raises:
        SystemExit: If a run failed; the message names all that did.
    """
    failed = []
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=len(runs), desc="runs", unit="run") as progress:
        for run, status in pool.map(lambda run: (run, train(run, output, parallel)), runs):
            progress.update()
            if status:
                failed.append(run.name)
                tqdm.write(f"{run.name} ended with {status}; see {output / run.name}.log", file=sys.stderr)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")


def train(run: Run, output: Path, parallel: int) -> int:
    """Exit status of `pretrain.py` for a run; 0 for a finished one. `parallel` runs share the cores."""
    folder = output / run.name
    if (folder / FINISHED).is_file() and (folder / "model.safetensors").is_file():
        return 0
    output.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // parallel)
    command = [sys.executable, SCRIPT, *run.arguments, "--output_dir", folder, "--seed", run.seed]
    with open(output / f"{run.name}.log", "a", encoding="utf-8") as log:
        return subprocess.run(
            [str(part) for part in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode


__all__ = ["FINISHED", "Run", "script_parser", "train_all"]
