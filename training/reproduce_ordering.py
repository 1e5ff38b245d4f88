"""Pre-trains every row of the paper's table on one data set and makes the tables of docs/results.md.

    mtslvr cache FOLDER --output data/pool
    python training/reproduce_ordering.py --output outputs/ordering --data-root FOLDER_OF_THE_LABELLED_SETS
    python training/reproduce_ordering.py --output outputs/quick --rows pred_only,mt_parallel_simclr --max_steps 100

Rows are the paper's configurations; common fields are in training/configs/ordering/base.yaml (two cores) or
gpu.yaml and can be given here, too. The same command, started again, keeps finished runs and embeddings and resumes
interrupted runs. The tables are in OUTPUT/results.md, all figures in OUTPUT/results.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from ordering_table import to_markdown
from repeated_runs import Run, script_parser, train_all

from mtslvr_hf.evaluation import FewShotProtocol, evaluate
from mtslvr_hf.runs.parser import CONFIGS

SHARED = Path(__file__).parent / "configs" / "ordering" / "base.yaml"
ROWS = (
    *("cont_only_simclr", "pred_only", "mt_simple_simclr", "mt_split_simclr", "mt_bn_simclr", "mt_series_simclr"),
    *("mt_parallel_simclr", "cont_only_simsiam", "mt_simple_simsiam", "mt_parallel_simsiam"),
)
REPEATED = ("cont_only_simclr", "mt_simple_simclr", "mt_parallel_simclr")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and compares all runs; raises SystemExit if a run failed."""
    options, fields = parse(argv)
    runs = list(choose_runs(options, fields))
    train_all(runs, options.output, options.parallel)
    if options.data_root is not None:
        compare(runs, options)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command line, and the fields of pretrain.py among them."""
    parser = script_parser(__doc__)
    parser.add_argument("--config", type=Path, default=SHARED, help="fields of all rows (default: %(default)s)")
    parser.add_argument("--rows", type=names, default=ROWS, help="rows to train (default: all ten of the table)")
    parser.add_argument(
        "--seeds", type=int, default=3, help=f"seeds of {', '.join(REPEATED)}; others have one (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=names_of_data, default=("labelled",), help="labelled data sets (default: all six)"
    )
    return parser.parse_known_args(argv)


def names(text: str) -> tuple[str, ...]:
    rows = tuple(row.strip() for row in text.split(",") if row.strip())
    unknown = [row for row in rows if not (CONFIGS / "paper" / f"{row}.yaml").is_file()]
    if unknown or not rows:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}.")
    return rows


def names_of_data(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def choose_runs(options: argparse.Namespace, fields: Sequence[str]) -> Iterator[Run]:
    """Runs of all rows from the first seed, then repetitions, so that the table is complete early."""
    for seed in range(options.seeds):
        for row in options.rows:
            if seed == 0 or row in REPEATED:
                yield Run(row, seed, (str(options.config), *fields_of(row), *fields))


def fields_of(row: str) -> Iterator[str]:
    """A row's own fields as options of `pretrain.py`."""
    own = yaml.safe_load((CONFIGS / "paper" / f"{row}.yaml").read_text(encoding="utf-8"))
    for name, value in own.items():
        if name != "base":
            yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def compare(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Evaluates few-shot episodes by logistic regression on the labelled data sets, and writes the tables."""
    in_order = sorted(runs, key=lambda run: (ROWS.index(run.row), run.seed))
    report = evaluate(
        [options.output / run.name for run in in_order],
        options.data,
        FewShotProtocol(episodes=options.episodes),
        classifier="logistic",
        cache=options.output / "embeddings",
        root=options.data_root,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    tables = to_markdown(report)
    (options.output / "results.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    (options.output / "results.md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
