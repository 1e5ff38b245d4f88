"""Figures of an evaluation, by matplotlib (with pillow) without a display and without pyplot."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...installation import install_hint
from ..invariance import InvarianceReport
from ..projection import Projection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
_COLORS, _MARKERS = 10, "os^Dv"  # colors of matplotlib's "tab10"; neighbors have different markers, too
# Measures of a heat map: title, shade of a value from 0 (invariant) to 1, and values in the legend of the colors. The
# shades of distances, which have no largest value, do not reach 1.
_MEASURES: dict[str, tuple[str, Callable[[float], float], tuple[float, ...]]] = {
    "relative": ("distance\n(1: to another clip)", lambda value: value / (1 + value), (0.0, 0.5, 1.0, 3.0, 10.0)),
    "cosine": ("cosine similarity\n(1: the same)", lambda value: (1 - value) / (1.5 - value), (1.0, 0.5, 0.0, -1.0)),
    "presence": ("augmented or not is read\n(0.5: guessed)", lambda value: 2 * value - 1, (0.5, 0.75, 1.0)),
    "r2": ("parameter is read\n(R², 0: not at all)", lambda value: value, (0.0, 0.5, 1.0)),
}
_THEMES = {
    "light": {"page": "white", "text": "black", "line": "black"},
    "dark": {"page": "#17191c", "text": "#e4e6ea", "line": "#a2a8b2"},
}


def check_matplotlib() -> None:
    """Check for matplotlib before a long evaluation; ImportError with the pip command if it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {install_hint('evaluation')}.") from error


@contextmanager
def theme(name: str) -> Iterator[None]:
    """Context with the colors of figures on a page, "light" or "dark"; figures are drawn and written in it."""
    check_matplotlib()
    import matplotlib

    colors = _THEMES[name]
    settings: dict[Any, str] = dict.fromkeys(
        ("figure.facecolor", "axes.facecolor", "legend.facecolor"), colors["page"]
    )
    settings |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), colors["text"]
    )
    settings |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "legend.edgecolor"), colors["line"])
    with matplotlib.rc_context(settings):
        yield


def heat_map(report: InvarianceReport, title: str = "") -> Figure:
    """Heat map of invariance, with a row of panels per embedding; dark cells are not invariant.

    Panels: distance, cosine similarity and decodability of presence at each strength; decodability of the parameter
    over its whole range. Below are the colors of each measure, the same in all reports. ImportError if matplotlib is
    not installed.
    """
    embeddings = list(dict.fromkeys(reading.task for reading in report.readabilities))
    augmentations = list(dict.fromkeys(reading.augmentation for reading in report.readabilities))
    strengths = sorted({entry.strength for entry in report.displacements})
    figure = _figure(width=5.5 + 1.35 * len(strengths), height=1.6 + 2.6 * len(embeddings))
    ratios = [len(strengths)] * 3 + [1]
    panels = figure.subplots(len(embeddings), len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios})
    for embedding, row in zip(embeddings, panels):
        at = {(e.augmentation, e.strength): e for e in report.displacements if e.task == embedding}
        read = {reading.augmentation: reading for reading in report.readabilities if reading.task == embedding}
        for measure, axes in zip(_MEASURES, row):
            if measure == "r2":
                values = [[read[name].r2] for name in augmentations]
                _draw_cells(axes, values, measure, ["any"], [read[name].parameter for name in augmentations])
                axes.yaxis.tick_right()
            else:
                values = [[getattr(at[name, strength], measure) for strength in strengths] for name in augmentations]
                labels = augmentations if measure == "relative" else []
                _draw_cells(axes, values, measure, [f"{strength:g}" for strength in strengths], labels)
        row[0].set_ylabel(_plain(embedding or "embedding"), fontweight="bold")
    for axes, measure, column in zip(panels[-1], _MEASURES, panels.T):
        axes.set_xlabel("strength")
        _, shade, marked = _MEASURES[measure]
        bar = figure.colorbar(axes.images[0], ax=column, location="bottom", aspect=12)
        bar.set_ticks(
            [shade(value) for value in marked], labels=[f"{value:g}" for value in marked], fontsize="x-small"
        )
    figure.suptitle(_plain(title))
    return figure


def projection_plot(projections: Sequence[Projection]) -> Figure:
    """Embeddings of the same clips side by side, a color and marker per class; ImportError without matplotlib."""
    classes = sorted({label for projection in projections for label in projection.labels})
    figure = _figure(width=3.4 * len(projections) + 0.8 + _width(classes), height=3.9)
    panels = figure.subplots(1, len(projections), squeeze=False)[0]
    for projection, axes in zip(projections, panels):
        for place, name in enumerate(classes):
            points = [point for point, label in zip(projection.points, projection.labels) if label == name]
            x, y = zip(*points) if points else ((), ())
            marker = _MARKERS[(place + place // _COLORS) % len(_MARKERS)]
            axes.plot(x, y, marker, color=f"C{place % _COLORS}", markersize=3.5, alpha=0.75)
        title = projection.embedding or projection.model
        axes.set_title(f"{_plain(title)}\n{_plain(projection.method)}", fontsize="small")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("first dimension", fontsize="small")
        axes.set_ylabel("second dimension" if axes is panels[0] else "", fontsize="small")
        axes.set_aspect("equal", "datalim")
    legend = figure.legend(
        panels[0].lines, [f"class {place}" for place in range(len(classes))], loc="outside right center"
    )
    for text, name in zip(legend.get_texts(), classes):  # labels that begin with "_" would be left out
        text.set_text(_plain(name))
    return figure


def to_png(figure: Figure) -> bytes:
    """PNG file of a figure, small because of 64 colors; equal figures give equal bytes."""
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _width(texts: Sequence[str]) -> float:
    """Approximate width in inches of the longest text in matplotlib's default font."""
    return 0.09 * max(map(len, texts), default=0)


def _draw_cells(
    axes: Axes, values: list[list[float]], measure: str, columns: Sequence[str], rows: Sequence[str]
) -> None:
    """Panel of colored cells with their values."""
    title, shade, _ = _MEASURES[measure]
    shades = [[min(max(shade(value), 0), 1) for value in line] for line in values]
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            color = "white" if shades[y][x] > 0.6 else "black"
            shown = f"{round(value, 2) + 0.0:.2f}"  # not "-0.00"
            axes.text(x, y, shown, ha="center", va="center", fontsize="small", color=color)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize="small")


def _plain(text: str) -> str:
    """Text with escaped dollar signs, which start formulas in matplotlib."""
    return text.replace("$", r"\$")


__all__ = ["check_matplotlib", "heat_map", "projection_plot", "theme", "to_png"]
