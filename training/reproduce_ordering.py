"""Pre-trains every row of the paper's table on one data set, for the comparison in docs/results.md.

    python training/pack_audio.py FOLDER data/pool
    python training/reproduce_ordering.py --output outputs/ordering
    python training/reproduce_ordering.py --output outputs/ordering --rows pred_only,mt_parallel_simclr --max_steps 100

Rows are the files of training/configs/paper; what they share is training/configs/ordering/base.yaml, whose fields can
be given here, too. Started again, it goes on: finished runs are kept, the one that was cut off is resumed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm.auto import tqdm

TRAINING = Path(__file__).parent
SHARED = TRAINING / "configs" / "ordering" / "base.yaml"
ROWS = (
    *("cont_only_simclr", "pred_only", "mt_simple_simclr", "mt_split_simclr", "mt_bn_simclr", "mt_series_simclr"),
    *("mt_parallel_simclr", "cont_only_simsiam", "mt_simple_simsiam", "mt_parallel_simsiam"),
)
REPEATED = ("cont_only_simclr", "mt_simple_simclr", "mt_parallel_simclr")
FINISHED = "eval_results.json"  # what pretrain.py writes last but one, just before the weights


class Run(NamedTuple):
    """A row of the table, trained from one seed."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}_{self.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what the command line says; exits with 1 if a run failed."""
    options, fields = parse(argv)
    runs = list(choose_runs(options.rows, options.seeds))
    with ThreadPoolExecutor(options.parallel) as pool, tqdm(total=len(runs), desc="runs", unit="run") as progress:
        failed = []
        for run, status in pool.map(lambda run: (run, train(run, options, fields)), runs):
            progress.update()
            if status:
                failed.append(run.name)
                tqdm.write(f"{run.name} ended with {status}; see {options.output / run.name}.log", file=sys.stderr)
    if failed:
        raise SystemExit(f"reproduce_ordering.py: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the fields of pretrain.py that follow them."""
    description, examples, explanation = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}\n\n{explanation}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, one folder each")
    parser.add_argument("--config", type=Path, default=SHARED, help="what all rows share (default: %(default)s)")
    parser.add_argument("--rows", type=names, default=ROWS, help="rows to train (default: all ten of the table)")
    parser.add_argument(
        "--seeds", type=int, default=3, help=f"seeds of {', '.join(REPEATED)}; others have one (default: %(default)s)"
    )
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, which share the cores (default: 2)")
    return parser.parse_known_args(argv)


def names(text: str) -> tuple[str, ...]:
    rows = tuple(row.strip() for row in text.split(",") if row.strip())
    unknown = [row for row in rows if not (TRAINING / "configs" / "paper" / f"{row}.yaml").is_file()]
    if unknown or not rows:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return rows


def choose_runs(rows: Sequence[str], seeds: int) -> Iterator[Run]:
    """All rows from the first seed, then those that are repeated: so the table is whole as early as it can be."""
    for seed in range(seeds):
        for row in rows:
            if seed == 0 or row in REPEATED:
                yield Run(row, seed)


def train(run: Run, options: argparse.Namespace, fields: Sequence[str]) -> int:
    """Runs pretrain.py unless it has; its exit status."""
    folder = options.output / run.name
    if (folder / FINISHED).is_file() and (folder / "model.safetensors").is_file():
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = yaml.safe_load((TRAINING / "configs" / "paper" / f"{run.row}.yaml").read_text(encoding="utf-8"))
    own = {name: value for name, value in own.items() if name != "base"}
    command = [sys.executable, TRAINING / "pretrain.py", options.config, "--output_dir", folder, "--seed", run.seed]
    for name, value in own.items():
        command += [f"--{name}", *(value if isinstance(value, list) else [value])]
    threads = max(1, (os.cpu_count() or 1) // options.parallel)
    with open(options.output / f"{run.name}.log", "a", encoding="utf-8") as log:
        return subprocess.run(
            [str(part) for part in (*command, *fields)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode


if __name__ == "__main__":
    main()
