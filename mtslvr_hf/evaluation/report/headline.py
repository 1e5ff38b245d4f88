"""Headline of a report: the best results in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from ..embedders.log_mel import LogMelStatistics
from .results import DataResult, EvaluationReport, Row
from .tables import percent


def headline(report: EvaluationReport) -> list[str]:
    """Sentences about the best model over all data sets, and the best embedding of each data set."""
    sentences = []
    if len(report.results) > 1 and report.average_ranks:
        best, rank = next(iter(report.average_ranks.items()))
        sentences.append(
            f"{best} has the best average rank: {rank:.2f} among {len(report.average_ranks)} models and baselines on "
            f"{len(report.results)} data sets."
        )
    return [*sentences, *(sentence for result in report.results for sentence in _of_data(result))]


def _of_data(result: DataResult) -> Iterator[str]:
    measured = [row for row in result.rows if row.accuracy is not None]
    if not measured:
        yield from _of_probes(result)
        return
    best = max(measured, key=_accuracy)
    text = f"{result.data}: {_name(best)} is best, {_percent(best)}"
    baselines = [row for row in measured if _is_baseline(row)]
    models = [row for row in measured if not _is_baseline(row)]
    if _is_baseline(best) and models:
        text += f"; the best model, {_name(max(models, key=_accuracy))}, has {_percent(max(models, key=_accuracy))}"
    elif baselines and not _is_baseline(best):
        other = max(baselines, key=_accuracy)
        difference = 100 * (_accuracy(best) - _accuracy(other))
        text += f", {difference:.1f} points more than {other.model} ({_percent(other)})"
    default = next((row for row in measured if row.main and row.model == best.model), best)
    if default is not best:
        text += f". Its default embedding, {default.embedding}, has {_percent(default)}"
    yield f"{text}."


def _of_probes(result: DataResult) -> Iterator[str]:
    found = [(probe.value, row, probe) for row in result.rows for probe in row.probes]
    if found:
        _, row, probe = max(found, key=lambda entry: entry[0])
        yield f"{result.data}: {_name(row)} is best with the {probe.name} probe, {probe.metric} {probe}."


def _accuracy(row: Row) -> float:
    assert row.accuracy is not None
    return row.accuracy


def _percent(row: Row) -> str:
    return f"{percent(_accuracy(row), row.interval)} %"


def _name(row: Row) -> str:
    return f"{row.model} ({row.embedding})" if row.embedding else row.model


def _is_baseline(row: Row) -> bool:
    return row.model == LogMelStatistics.name or row.model.startswith("untrained network")


__all__ = ["headline"]
