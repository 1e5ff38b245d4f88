"""Tables of docs/results.md, from an evaluation of the runs of reproduce_ordering.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from scipy.stats import rankdata

from mtslvr_hf.evaluation import DataResult, EvaluationReport, Row
from mtslvr_hf.evaluation.report.protocol import data_protocol, protocol
from mtslvr_hf.markdown import markdown_table

NAMES = {
    "cont_only": "Cont Only",
    "pred_only": "Pred Only",
    "mt_simple": "MT-Simple",
    "mt_split": "MT-Split",
    "mt_bn": "MT-Bn",
    "mt_series": "MT-Series",
    "mt_parallel": "MT-Parallel",
}
METHODS = {"simclr": "SimCLR", "simsiam": "SimSiam"}
UNTRAINED = "untrained network"  # start of these baselines' names
PAIRS = (  # rows whose difference is the paper's claim
    ("mt_parallel_simclr", "cont_only_simclr"),
    ("mt_parallel_simclr", "mt_simple_simclr"),
    ("mt_simple_simclr", "cont_only_simclr"),
    ("cont_only_simclr", "pred_only"),
    ("mt_parallel_simsiam", "cont_only_simsiam"),
)


@dataclass(frozen=True)
class Entry:
    """Row of a table: one kind of network and objective, from one or several seeds."""

    name: str
    embedding: str
    rows: dict[str, list[Row]]  # results of all seeds by data set

    def accuracy(self, data: str) -> float:
        return mean(self._values(data, "accuracy"))

    def cell(self, data: str) -> str:
        """Cell "50.2 ± 0.2" of one seed, with "(49.1 to 51.0)" of several."""
        values = [100 * value for value in self._values(data, "accuracy")]
        # Seeds share episodes, so the interval of the mean is at most the mean of their intervals.
        shown = f"{mean(values):.1f} ± {100 * mean(self._values(data, 'interval')):.1f}"
        return shown if len(values) == 1 else f"{shown} ({min(values):.1f} to {max(values):.1f})"

    def _values(self, data: str, name: str) -> list[float]:
        """Values of a field for all seeds; none is None, as the paper's clips have one class each."""
        return [getattr(row, name) for row in self.rows[data]]

    @property
    def networks(self) -> int:
        return max(map(len, self.rows.values()))


def split_name(model: str) -> tuple[str, int] | None:
    """Row and seed from the name of a run's folder; None for a baseline."""
    row, _, seed = Path(model).name.rpartition("_")
    network = row
    for method in METHODS:
        network = network.removesuffix(f"_{method}")
    is_run = network in NAMES and seed.isdigit() and not model.startswith(UNTRAINED)
    return (row, int(seed)) if is_run else None


def title(row: str) -> str:
    """Title of a row: "MT-Parallel, SimCLR" for "mt_parallel_simclr"."""
    for method, shown in METHODS.items():
        if row.endswith(f"_{method}"):
            return f"{NAMES[row.removesuffix(f'_{method}')]}, {shown}"
    return NAMES[row]


def to_markdown(report: EvaluationReport) -> str:
    """All tables as Markdown, with the protocols."""
    parts = [
        "\n".join(protocol(report)),
        "\n".join(f"- {result.data}: {' '.join(data_protocol(result))}" for result in report.results),
        "### Each row by its whole embedding",
        table(entries(report, main=True), report.results, ranked=True),
        "### Each head alone",
        table(entries(report, main=False), report.results, ranked=False),
        "### Differences on the same episodes",
        differences(report.results),
        "### Share of the classifiers' weights on the contrastive head",
        shares(report.results),
    ]
    return "\n\n".join(parts) + "\n"


def entries(report: EvaluationReport, main: bool) -> list[Entry]:
    """Rows of the table in the order of evaluation; of the models' main embeddings, or of the others."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for result in report.results:
        for row in result.rows:
            run = split_name(row.model)
            if row.main != main or not (main or run):
                continue
            if run:
                key = (title(run[0]), row.embedding)
            else:  # networks of all architectures together
                key = (f"{UNTRAINED}s" if row.model.startswith(UNTRAINED) else row.model, "")
            found.setdefault(key, {}).setdefault(result.data, []).append(row)
    in_order = sorted(found.items(), key=lambda item: item[0][0].startswith(tuple(NAMES.values())))  # baselines first
    return [Entry(name, embedding, rows) for (name, embedding), rows in in_order]


def table(rows: Sequence[Entry], results: Sequence[DataResult], ranked: bool) -> str:
    """Table of accuracies in percent; average ranks are among the paper's rows, without the baselines."""
    data = [result.data for result in results]
    ranks = average_ranks([row for row in rows if row.name.startswith(tuple(NAMES.values()))], data) if ranked else {}
    header = ["", "embedding", "networks", *data, "mean", *(["average rank"] if ranked else [])]
    lines = []
    for row in rows:
        cells = [row.name, row.embedding, str(row.networks), *(row.cell(name) for name in data)]
        cells.append(f"{100 * mean(row.accuracy(name) for name in data):.1f}")
        if ranked:
            cells.append(f"{ranks[row.name]:.2f}" if row.name in ranks else "")
        lines.append(cells)
    return markdown_table(header, lines)


def average_ranks(rows: Sequence[Entry], data: Iterable[str]) -> dict[str, float]:
    """Mean rank of each row over the data sets; 1 is the best."""
    ranks = rankdata([[-row.accuracy(name) for row in rows] for name in data], axis=1).mean(0)
    return dict(zip((row.name for row in rows), ranks.tolist()))


def differences(results: Sequence[DataResult]) -> str:
    """Table of the differences of PAIRS in percentage points, for each seed."""
    lines = []
    for better, other in PAIRS:
        for result in results:
            seeds = dict(sorted(_paired(result, better, other)))
            if seeds:
                cells = [f"{100 * value:+.1f} ± {100 * interval:.1f}" for value, interval in seeds.values()]
                lines.append([f"{title(better)} less {title(other)}", result.data, "; ".join(cells)])
    return markdown_table(["rows", "data set", "percentage points, a seed each"], lines)


def _paired(result: DataResult, better: str, other: str) -> Iterator[tuple[int, tuple[float, float]]]:
    for entry in result.differences:
        first, second = split_name(entry.model), split_name(entry.other)
        if first is None or second is None or first[1] != second[1]:
            continue
        if (first[0], second[0]) == (better, other):
            yield first[1], (entry.difference, entry.interval)
        elif (second[0], first[0]) == (better, other):
            yield first[1], (-entry.difference, entry.interval)


def shares(results: Sequence[DataResult]) -> str:
    """Table of the shares of weights in percent, for models with two heads of the same size: 50 is balanced."""
    models = list(dict.fromkeys(model for result in results for model in result.weight_shares))
    lines = []
    for model in models:
        run = split_name(model)
        if run is None:
            continue
        found = [result.weight_shares.get(model) for result in results]
        cells = [
            f"{100 * shares.shares['contrastive']:.1f} ± {100 * shares.intervals['contrastive']:.1f}" if shares else ""
            for shares in found
        ]
        lines.append([title(run[0]), str(run[1]), *cells])
    return markdown_table(["", "seed", *(result.data for result in results)], lines)
