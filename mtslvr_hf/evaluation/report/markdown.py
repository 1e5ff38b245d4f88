"""Markdown report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...markdown import escape_markdown, markdown_table
from . import tables
from .protocol import data_protocol, protocol, weight_shares_words
from .results import DataResult, EvaluationReport


def to_markdown(report: EvaluationReport) -> str:
    """Markdown tables of a report, with the protocol; names are shown as text, whatever they hold."""
    accuracies = tables.accuracies(report)
    blocks = [_lines(protocol(report)), markdown_table(accuracies.header, accuracies.cells)]
    if report.missing:
        lines = [f"- {name}: {reason}" for name, reason in report.missing.items()]
        blocks.append(_lines(["Data sets that could not be reached:", "", *lines]))
    for result in report.results:
        blocks += _data(result, weight_shares_words(report))
    for model, found in report.invariance.items():
        blocks.append(f"## Invariance of {escape_markdown(model)}")
        heard = escape_markdown(report.invariance_data)
        blocks.append(f"{found.clips} clips of {heard}, seed {found.seed}; distances by strength.")
        blocks.append(found.to_markdown())
    return "\n\n".join(blocks)


def _data(result: DataResult, shares_words: str) -> Iterator[str]:
    yield f"## {escape_markdown(result.data)}"
    yield _lines(data_protocol(result))
    for title, words, table in (
        ("Probes", _lines(tables.probe_protocols(result.rows)), tables.probes(result.rows)),
        ("Differences on the same episodes", "", tables.differences(result)),
        ("Heads that few-shot classifiers use", shares_words, tables.weight_shares(result.weight_shares)),
    ):
        if table is not None:
            yield f"### {title}"
            if words:
                yield words
            yield markdown_table(table.header, table.cells)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(escape_markdown, texts))


__all__ = ["to_markdown"]
