"""HTML report of an evaluation: one file with plots inside, without scripts."""

from __future__ import annotations

import base64
from importlib.resources import files
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from ..invariance import InvarianceReport
from . import tables
from .plots import accuracy_plot, heat_map, projection_plot, to_png
from .protocol import data_protocol, protocol, weight_shares_words
from .results import DataResult, EvaluationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "html_report.html"
TITLE = "Few-shot evaluation of audio embeddings"
_CSS_DPI = 96


def to_html(report: EvaluationReport) -> str:
    """HTML page of a report, with tables, plots and protocol; ImportError if matplotlib is not installed."""
    # Names and reasons come from users and data sets: they are escaped.
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        title=TITLE,
        protocol=protocol(report),
        accuracies=tables.accuracies(report),
        missing=report.missing,
        weight_shares_words=weight_shares_words(report),
        results=[_data(result, report.protocol.ways) for result in report.results],
        invariance=[_invariance(model, found) for model, found in report.invariance.items()],
        invariance_data=report.invariance_data,
    )


def _data(result: DataResult, ways: int) -> dict[str, object]:
    return {
        "name": result.data,
        "protocol": data_protocol(result),
        "classes": result.classes,
        "plot": _show(accuracy_plot(result, ways), f"{result.data}: few-shot accuracy with 95 % intervals")
        if result.episodes_sha256
        else None,
        "rows": tables.rows(result),
        "probes": tables.probes(result.rows),
        "differences": tables.differences(result),
        "weight_shares": tables.weight_shares(result.weight_shares),
        "projections": [
            _show(projection_plot(list(shown)), f"{result.data}: embeddings of {model}, colored by class")
            for model, shown in groupby(result.projections, attrgetter("model"))
        ],
    }


def _invariance(model: str, report: InvarianceReport) -> dict[str, object]:
    return {
        "model": model,
        "clips": report.clips,
        "seed": report.seed,
        "plot": _show(heat_map(report), f"{model}: invariance to augmentations; dark is not invariant"),
        "displacements": tables.displacements(report),
        "readabilities": tables.readabilities(report),
    }


def _show(figure: Figure, words: str) -> dict[str, object]:
    """Base64 of a PNG, its width in CSS pixels, and its description."""
    png = base64.b64encode(to_png(figure)).decode("ascii")
    return {"png": png, "width": round(_CSS_DPI * figure.get_figwidth()), "words": words}


__all__ = ["to_html"]
