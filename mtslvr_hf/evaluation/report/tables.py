"""Tables of an evaluation, for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..few_shot.weight_shares import WeightShares
from ..invariance import InvarianceReport
from .results import DataResult, EvaluationReport, Row


@dataclass(frozen=True)
class Line:
    """Row of a table.

    Attributes:
        bold: Places of the cells that are highlighted: the best ones.
        default: True for the default one of several embeddings of a model.
    """

    cells: Sequence[str]
    bold: Collection[int] = ()
    default: bool = False


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Line]

    @property
    def cells(self) -> list[Sequence[str]]:
        return [line.cells for line in self.rows]


def accuracies(report: EvaluationReport) -> Table:
    """Table with a row per embedding and a column per data set; of several data sets, main embeddings have ranks.

    The best accuracy of each data set is bold.
    """
    names = [result.data for result in report.results]
    keys = list(dict.fromkeys((row.model, row.embedding) for result in report.results for row in result.rows))
    found = {(row.model, row.embedding, result.data): row for result in report.results for row in result.rows}
    best = [max((row.accuracy or 0 for row in result.rows), default=0) for result in report.results]
    several = len(names) > 1
    lines = []
    for model, embedding in keys:
        rows = [found.get((model, embedding, name)) for name in names]
        main = any(row.main for row in rows if row)
        rank = f"{report.average_ranks[model]:.2f}" if main and model in report.average_ranks else ""
        accuracies = [_accuracy(row) for row in rows]
        bold = [place for place, row in enumerate(rows, 2) if row and row.accuracy == best[place - 2]]
        default = main and has_default(model, (model for model, _ in keys))
        lines.append(Line([model, embedding, *accuracies, *([rank] if several else [])], bold, default))
    header = ["model", "embedding", *(f"{name}, %" for name in names), *(["average rank"] if several else [])]
    return Table(header, lines)


def has_default(model: str, models: Iterable[str]) -> bool:
    """True for a model with several rows, given by the model of each row: one of them is its default embedding."""
    return list(models).count(model) > 1


def probes(rows: Sequence[Row]) -> Table | None:
    """Table with a row per embedding and a column per probe; the best value of each is bold."""
    kinds = _probe_kinds(rows)
    if not kinds:
        return None
    found = [{(probe.name, probe.metric): probe for probe in row.probes} for row in rows]
    best = {kind: max(probes[kind].value for probes in found if kind in probes) for kind in kinds}
    lines = []
    for row, probes in zip(rows, found):
        cells = [str(probes[kind]) if kind in probes else "" for kind in kinds]
        bold = [place for place, kind in enumerate(kinds, 2) if kind in probes and probes[kind].value == best[kind]]
        default = row.main and has_default(row.model, (each.model for each in rows))
        lines.append(Line([row.model, row.embedding, *cells], bold, default))
    return Table(["model", "embedding", *(f"{name}, {metric}" for name, metric in kinds)], lines)


def probe_protocols(rows: Sequence[Row]) -> list[str]:
    """Protocol of each probe: a sentence with what is the same for all embeddings."""
    sentences = []
    for kind in _probe_kinds(rows):
        protocols = [p.protocol.split("; ") for row in rows for p in row.probes if (p.name, p.metric) == kind]
        shared = [part for part in protocols[0] if all(part in protocol for protocol in protocols)]
        sentences.append(f"{kind[0]}, {kind[1]}: {'; '.join(shared)}.")
    return sentences


def probe_choices(rows: Sequence[Row]) -> Table | None:
    """Table of what differs between embeddings in the protocols of the probes: the chosen C or k."""
    lines = []
    for kind in _probe_kinds(rows):
        of_kind = [(row, p.protocol.split("; ")) for row in rows for p in row.probes if (p.name, p.metric) == kind]
        for row, protocol in of_kind:
            own = [part for part in protocol if not all(part in other for _, other in of_kind)]
            if own:
                lines.append(Line([row.model, row.embedding, kind[0], "; ".join(own)]))
    return Table(["model", "embedding", "probe", "choice"], lines) if lines else None


def _probe_kinds(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Names and metrics of the probes."""
    return list(dict.fromkeys((probe.name, probe.metric) for row in rows for probe in row.probes))


def differences(result: DataResult) -> Table | None:
    """Table of differences; those with an interval without 0 are highlighted."""
    lines = [
        Line(
            [entry.model, entry.other, percent(entry.difference, entry.interval, sign="+")],
            [2] if abs(entry.difference) > entry.interval else [],
        )
        for entry in result.differences
    ]
    return Table(["model", "less that of", "difference, percentage points"], lines) if lines else None


def weight_shares(found: Mapping[str, WeightShares]) -> Table | None:
    lines = [
        Line([model, head, str(shares.sizes[head]), percent(share, shares.intervals[head]), f"{shares.episodes:,}"])
        for model, shares in found.items()
        for head, share in shares.shares.items()
    ]
    return Table(["model", "head", "size", "share of the weights, %", "episodes"], lines) if lines else None


def displacements(report: InvarianceReport) -> Table:
    """Table with a row per augmentation, embedding and strength."""
    lines = [
        Line(
            [entry.augmentation, entry.task, f"{entry.strength:g}"]
            + [f"{value:.2f}" for value in (entry.mahalanobis, entry.relative, entry.cosine, entry.presence)]
        )
        for entry in report.displacements
    ]
    header = ["augmentation", "embedding", "strength", "Mahalanobis distance", "over that of two clips"]
    return Table([*header, "cosine", "presence"], lines)


def readabilities(report: InvarianceReport) -> Table:
    """Table with a row per augmentation and embedding, over the whole range of strengths."""
    lines = [
        Line([entry.augmentation, entry.task, f"{entry.presence:.2f}", entry.parameter, f"{entry.r2:.2f}"])
        for entry in report.readabilities
    ]
    return Table(["augmentation", "embedding", "presence", "parameter", "R²"], lines)


def _accuracy(row: Row | None) -> str:
    """Text of an accuracy; empty without episodes."""
    return "" if row is None or row.accuracy is None else percent(row.accuracy, row.interval)


def percent(value: float, interval: float | None, sign: str = "") -> str:
    """Text such as "31.2 ± 0.4"; without an interval if it is None or NaN (a single episode)."""
    shown = f"{100 * value:{sign}.1f}"
    return shown if interval is None or math.isnan(interval) else f"{shown} ± {100 * interval:.1f}"
