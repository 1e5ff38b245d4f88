"""Markdown report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...markdown import markdown_table, plain_text
from . import tables
from .protocol import data_protocol, protocol, weight_shares_words
from .results import DataResult, EvaluationReport


def to_markdown(report: EvaluationReport) -> str:
    """Markdown tables of a report, with the protocol; names are shown as text, whatever they hold."""
    accuracies = tables.accuracies(report)
    blocks = [_lines(protocol(report)), _table(accuracies)]
    if report.missing:
        lines = [plain_text(f"- {name}: {reason}") for name, reason in report.missing.items()]
        blocks.append("\n".join(["Data sets that could not be reached:", "", *lines]))
    for result in report.results:
        blocks += _data(result, weight_shares_words(report))
    for model, found in report.invariance.items():
        blocks.append(f"## Invariance of {plain_text(model)}")
        clips = f"{found.clips} clips of {report.invariance_data}, seed {found.seed}; distances by strength."
        blocks.append(plain_text(clips))
        blocks.append(found.to_markdown())
    return "\n\n".join(blocks)


def _data(result: DataResult, shares_words: str) -> Iterator[str]:
    yield f"## {plain_text(result.data)}"
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
            yield _table(table)


def _lines(sentences: Sequence[str]) -> str:
    return "\n".join(map(plain_text, sentences))


def _table(table: tables.Table) -> str:
    return markdown_table(list(map(plain_text, table.header)), [list(map(plain_text, line)) for line in table.cells])


__all__ = ["to_markdown"]
