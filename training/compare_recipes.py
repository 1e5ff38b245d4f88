"""Compares configurations of pre-training from several seeds on labelled data sets, by the protocol of docs/recipe.md.

    python training/compare_recipes.py training/configs/recipe/{mt_parallel,small_data}.yaml --output outputs/recipe \\
        --data-root FOLDER_OF_THE_LABELLED_SETS
    python training/compare_recipes.py A.yaml B.yaml --output outputs/quick --seeds 1 --max_steps 100

The first configuration is the reference of the differences. Fields of pretrain.py at the end are for all of them. The
same command, started again, keeps finished runs and embeddings. The tables are in OUTPUT/NAME.md, all figures in
OUTPUT/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from repeated_runs import Run, script_parser, train_all
from scipy import stats

from mtslvr_hf.evaluation import EvaluationReport, FewShotProtocol, evaluate
from mtslvr_hf.markdown import markdown_table

SOURCES = ("drum_hits", "game_effects", "digit_speakers")
CONTENT = ("note_pitches", "note_instruments", "spoken_words")  # made by content_sets.py
DEVELOPMENT = SOURCES + CONTENT
SHOTS = {1: 5, 5: 3}  # queries per class, few enough for the smallest classes

OF = "untrained network of "  # start of the names of these baselines, before the model's
MEAN = "mean"  # column of the data sets' mean


@dataclass
class Entry:
    """Row of the tables: one embedding of a configuration's networks, or a baseline.

    Attributes:
        values: Accuracy in percent by measure, data set and seed.
    """

    name: str
    embedding: str
    main: bool
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)

    def add(self, measure: str, data: str, seed: int, accuracy: float) -> None:
        """Adds an accuracy, from 0 to 1."""
        self.values.setdefault(measure, {}).setdefault(data, {})[seed] = 100 * accuracy

    @property
    def seeds(self) -> int:
        return len(next(iter(next(iter(self.values.values())).values())))

    def by_seed(self, measure: str, data: str) -> list[float]:
        """Accuracy of each seed on a data set, or the mean over all data sets."""
        if data != MEAN:
            return list(self.values[measure][data].values())
        return [mean(values) for values in zip(*(seeds.values() for seeds in self.values[measure].values()))]

    def cell(self, measure: str, data: str) -> str:
        """Cell "50.2 ± 0.4" with the 95 % interval over seeds; "50.2" of one seed."""
        values = self.by_seed(measure, data)
        if len(values) < 2:
            return f"{values[0]:.1f}"
        interval = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return f"{mean(values):.1f} ± {interval:.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and compares all runs; raises SystemExit if a run failed."""
    options, fields = parse(argv)
    runs = [Run(path.stem, seed, (str(path), *fields)) for seed in range(options.seeds) for path in options.configs]
    train_all(runs, options.output, options.parallel)
    if options.data_root is None:
        return
    reports = {shots: score(runs, shots, options) for shots in SHOTS}
    tables = to_markdown(collect(reports), options.configs[0].stem)
    content = {str(shots): report.to_dict() for shots, report in reports.items()}
    (options.output / f"{options.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / f"{options.name}.md").write_text(tables, encoding="utf-8")
    print(tables)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command line, and the fields of pretrain.py among them."""
    parser = script_parser(__doc__)
    parser.add_argument("configs", type=config_file, nargs="+", metavar="CONFIG.yaml", help="configurations")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        default=DEVELOPMENT,
        help=f"labelled data sets (default: {','.join(DEVELOPMENT)})",
    )
    parser.add_argument("--name", default="comparison", help="name of the two files (default: %(default)s)")
    options, fields = parser.parse_known_args(argv)
    names = [path.stem for path in options.configs]
    if len(set(names)) < len(names):
        parser.error(f"two configurations have one name: {', '.join(names)}; rename a file.")
    return options, fields


def config_file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}.")
    return Path(text)


def score(runs: Iterable[Run], shots: int, options: argparse.Namespace) -> EvaluationReport:
    """Report of all runs on few-shot episodes of a number of shots; with linear probes in the first one."""
    return evaluate(
        [options.output / run.name for run in runs],
        options.data,
        FewShotProtocol(shots=shots, queries=SHOTS[shots], episodes=options.episodes),
        classifier="logistic",
        probes=["linear"] if shots == next(iter(SHOTS)) else [],
        cache=options.output / "embeddings",
        root=options.data_root,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def collect(reports: Mapping[int, EvaluationReport]) -> list[Entry]:
    """Entries of all rows and embeddings, baselines first."""
    entries: dict[tuple[str, str], Entry] = {}
    for shots, report in reports.items():
        for result in report.results:
            for row in result.rows:
                name, seed = row_and_seed(row.model)
                entry = entries.setdefault((name, row.embedding), Entry(name, row.embedding, row.main))
                assert row.accuracy is not None  # clips have one class each
                entry.add(f"{shots}-shot", result.data, seed, row.accuracy)
                for probed in row.probes:
                    entry.add(f"{probed.name} probe", result.data, seed, probed.value)
    return list(entries.values())


def row_and_seed(model: str) -> tuple[str, int]:
    """Row and seed of a run's folder; a baseline is a row with one seed."""
    if model.startswith(OF):
        return OF + Path(model.removeprefix(OF)).name, 0
    name, _, seed = Path(model).name.rpartition("_")
    return (name, int(seed)) if name and seed.isdigit() else (model, 0)


def to_markdown(entries: Sequence[Entry], reference: str) -> str:
    """Tables of all measures, and of the differences between each row's main embedding and the reference's."""
    measures = list(entries[0].values)
    (base,) = (entry for entry in entries if entry.name == reference and entry.main)
    parts = [
        "Accuracy in percent. Rows of several seeds show the mean and its 95 % interval over the seeds (Student's t). "
        "The mean of the data sets is taken for each seed first."
    ]
    for measure in measures:
        data = list(base.values[measure])
        lines = [
            [entry.name, entry.embedding, str(entry.seeds), *(entry.cell(measure, name) for name in (*data, MEAN))]
            for entry in entries
        ]
        parts += [f"### {measure}", markdown_table(["", "embedding", "seeds", *data, MEAN], lines)]
    lines = [
        [entry.name, measure, *(difference(entry, base, measure, name) for name in (*base.values[measure], MEAN))]
        for measure in measures
        for entry in entries
        if entry.main and entry.name != reference
    ]
    header = [f"less {reference}", "measure", *base.values[measures[0]], MEAN]
    parts += [
        "### Differences in percentage points",
        "With 95 % intervals over the seeds of both rows (Welch's t), where both have several seeds.",
        markdown_table(header, lines),
    ]
    return "\n\n".join(parts) + "\n"


def difference(entry: Entry, base: Entry, measure: str, data: str) -> str:
    """Cell "+4.1 ± 0.8", without an interval if a row has one seed."""
    ours, theirs = entry.by_seed(measure, data), base.by_seed(measure, data)
    shown = f"{mean(ours) - mean(theirs):+.1f}"
    if min(len(ours), len(theirs)) < 2:
        return shown
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return f"{shown} ± {(interval.high - interval.low) / 2:.1f}"


if __name__ == "__main__":
    main()
