"""Tables of an evaluation, for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..few_shot.weight_shares import WeightShares
from ..invariance import InvarianceReport
from .results import DataResult, EvaluationReport, Row


@dataclass(frozen=True)
class Line:
    """Row of a table; a strong one is highlighted."""

    cells: Sequence[str]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Line]

    @property
    def cells(self) -> list[Sequence[str]]:
        return [line.cells for line in self.rows]


def accuracies(report: EvaluationReport) -> Table:
    """Table with a row per embedding and a column per data set; main embeddings have ranks."""
    names = [result.data for result in report.results]
    keys = list(dict.fromkeys((row.model, row.embedding) for result in report.results for row in result.rows))
    found = {(row.model, row.embedding, result.data): row for result in report.results for row in result.rows}
    lines = []
    for model, embedding in keys:
        rows = [found.get((model, embedding, name)) for name in names]
        main = any(row.main for row in rows if row)
        rank = f"{report.average_ranks[model]:.2f}" if main and model in report.average_ranks else ""
        accuracies = [_accuracy(row) for row in rows]
        lines.append(Line([model, embedding, *accuracies, rank], main))
    return Table(["model", "embedding", *(f"{name}, %" for name in names), "average rank"], lines)


def rows(result: DataResult) -> Table:
    """Table with a row per embedding."""
    lines = [Line([row.model, row.embedding, str(row.size), _accuracy(row)], row.main) for row in result.rows]
    return Table(["model", "embedding", "size", "accuracy, %"], lines)


def probes(rows: Iterable[Row]) -> Table | None:
    lines = [
        Line([row.model, row.embedding, probe.name, probe.metric, str(probe), probe.protocol], row.main)
        for row in rows
        for probe in row.probes
    ]
    return Table(["model", "embedding", "probe", "metric", "value", "protocol"], lines) if lines else None


def differences(result: DataResult) -> Table | None:
    """Table of differences; those with an interval without 0 are highlighted."""
    lines = [
        Line(
            [entry.model, entry.other, percent(entry.difference, entry.interval, sign="+")],
            abs(entry.difference) > entry.interval,
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
    return "" if row is None or row.accuracy is None or row.interval is None else percent(row.accuracy, row.interval)


def percent(value: float, interval: float, sign: str = "") -> str:
    """Text such as "31.2 ± 0.4"; without an interval if it is NaN (a single episode)."""
    shown = f"{100 * value:{sign}.1f}"
    return shown if math.isnan(interval) else f"{shown} ± {100 * interval:.1f}"
