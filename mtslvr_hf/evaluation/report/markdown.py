"""An evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from . import tables
from .protocol import data_protocol, protocol
from .results import DataResult, EvaluationReport
from .tables import Table


def to_markdown(report: EvaluationReport) -> str:
    """Tables of what was found, each with how it was measured."""
    blocks = ["\n".join(protocol(report)), markdown_table(tables.accuracies(report))]
    if report.missing:
        lines = [f"- {name}: {reason}" for name, reason in report.missing.items()]
        blocks.append("\n".join(["Data sets that could not be reached:", "", *lines]))
    for result in report.results:
        blocks += _data(result)
    for model, found in report.invariance.items():
        blocks.append(f"## Invariance of {model}")
        blocks.append(f"{found.clips} clips of {report.invariance_data}, seed {found.seed}; distances by strength.")
        blocks.append(found.to_markdown())
    return "\n\n".join(blocks)


def _data(result: DataResult) -> Iterator[str]:
    yield f"## {result.data}"
    yield "\n".join(data_protocol(result))
    for title, table in (
        ("Probes", tables.probes(result.rows)),
        ("Differences on the same episodes", tables.differences(result)),
        ("Heads that few-shot classifiers use", tables.weight_shares(result.weight_shares)),
    ):
        if table is not None:
            yield f"### {title}"
            yield markdown_table(table)


def markdown_table(table: Table) -> str:
    """Columns as wide as their widest cell; bars in names are escaped."""
    lines = [table.header, *(line.cells for line in table.rows)]
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([padded[0], "| " + " | ".join("-" * width for width in widths) + " |", *padded[1:]])


__all__ = ["markdown_table", "to_markdown"]
