"""HTML report of an evaluation: one file with plots inside, without scripts."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from importlib.resources import files
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from ..invariance import InvarianceReport
from ..projection import Projection
from . import tables
from .headline import headline
from .plots import heat_map, projection_plot, theme, to_png
from .protocol import data_protocol, protocol, weight_shares_words
from .results import DataResult, EvaluationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "html_report.html"
TITLE = "Few-shot evaluation of audio embeddings"
FEW_CLIPS = 200  # below, probes of the invariance have wide intervals
_CSS_DPI = 96


def to_html(report: EvaluationReport) -> str:
    """HTML page of a report, with tables, plots and protocol; ImportError if matplotlib is not installed.

    The page begins with the best results, and adapts to narrow screens and to the dark mode of the browser.
    """
    # Names and reasons come from users and data sets: they are escaped.
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text("utf-8"))
    accuracies = tables.accuracies(report)
    return template.render(
        title=TITLE,
        headline=headline(report),
        facts=_facts(report),
        protocol=protocol(report),
        accuracies=accuracies,
        has_default=any(line.default for line in accuracies.rows),
        missing=report.missing,
        weight_shares_words=weight_shares_words(report),
        results=[_data(result, report.protocol.ways) for result in report.results],
        invariance=[_invariance(model, found) for model, found in report.invariance.items()],
        invariance_data=report.invariance_data,
        few_clips=FEW_CLIPS,
        command=report.command,
        versions=", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )


def _facts(report: EvaluationReport) -> str:
    """Line about date, protocol and size of an evaluation."""
    drawn = report.protocol
    models = {row.model for result in report.results for row in result.rows}
    facts = [
        *([report.date] if report.date else []),
        f"{drawn.ways}-way {drawn.shots}-shot",
        f"{len(models)} models and baselines",
        f"{len(report.results)} data {'set' if len(report.results) == 1 else 'sets'}",
    ]
    return " · ".join(facts)


def _data(result: DataResult, ways: int) -> dict[str, object]:
    return {
        "name": result.data,
        "protocol": data_protocol(result),
        "classes": result.classes,
        "bars": _bars(result, ways) if result.episodes_sha256 else None,
        "probes": tables.probes(result.rows),
        "probe_protocols": tables.probe_protocols(result.rows),
        "probe_choices": tables.probe_choices(result.rows),
        "differences": tables.differences(result),
        "weight_shares": tables.weight_shares(result.weight_shares),
        "projections": [
            _projections(list(shown), f"{result.data}: embeddings of {model}, colored by class")
            for model, shown in groupby(result.projections, attrgetter("model"))
        ],
    }


def _bars(result: DataResult, ways: int) -> dict[str, object]:
    """Accuracies with their intervals as bars, in percent of the width."""
    measured = [(row, row.accuracy) for row in result.rows if row.accuracy is not None]
    best = max((accuracy for _, accuracy in measured), default=0.0)
    bars: list[dict[str, Any]] = []
    for row, accuracy in measured:
        half = 0.0 if row.interval is None or math.isnan(row.interval) else row.interval
        low, high = max(accuracy - half, 0.0), min(accuracy + half, 1.0)
        bars.append(
            {
                "name": " · ".join(part for part in (row.model, row.embedding) if part),
                "default": row.main and tables.has_default(row.model, (each.model for each in result.rows)),
                "best": accuracy == best,
                "text": tables.percent(accuracy, row.interval),
                "value": f"{100 * accuracy:.2f}",
                "low": f"{100 * low:.2f}",
                "width": f"{100 * (high - low):.2f}",
            }
        )
    words = f"{result.data}: few-shot accuracy with 95 % intervals"
    return {"bars": bars, "chance": f"{100 / ways:.1f}", "words": words}


def _projections(projections: list[Projection], words: str) -> dict[str, object]:
    return _show(lambda: projection_plot(projections), words)


def _invariance(model: str, report: InvarianceReport) -> dict[str, object]:
    return {
        "model": model,
        "clips": report.clips,
        "seed": report.seed,
        "plot": _show(lambda: heat_map(report), f"{model}: invariance to augmentations; dark is not invariant"),
        "displacements": tables.displacements(report),
        "readabilities": tables.readabilities(report),
    }


def _show(draw: Callable[[], Figure], words: str) -> dict[str, object]:
    """Base64 of the PNGs of a figure on a light and on a dark page, its width in CSS pixels, and its description."""
    shown: dict[str, object] = {"words": words}
    for name in ("light", "dark"):
        with theme(name):
            figure = draw()
            shown[name] = base64.b64encode(to_png(figure)).decode("ascii")
        shown["width"] = round(_CSS_DPI * figure.get_figwidth())
    return shown


__all__ = ["to_html"]
