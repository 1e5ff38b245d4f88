"""Figures show every value, under the name it has, and touch no state but their own."""

import builtins
import io
import sys
from dataclasses import replace

import pytest
from PIL import Image
from results_by_hand import STRENGTHS, data_result, invariance

from mtslvr_hf.evaluation.report.plots import heat_map, projection_plot, theme, to_png


def texts(figure):
    """All texts of a figure that are drawn."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def test_a_heat_map_has_a_cell_for_each_measure():
    figure = heat_map(invariance(), title="a model")
    cells = [[text.get_text() for text in axes.texts] for axes in figure.axes[:8]]
    assert len(figure.axes) == 2 * 4 + 4  # embeddings and measures, and the colors of each measure
    for place, row in enumerate((cells[:4], cells[4:])):
        values = (0.8 - 0.3 * place, 0.4 + 0.3 * place, 0.9 - 0.2 * place)
        for panel, value in zip(row, values):
            assert panel == [f"{value:.2f}"] * 2 * len(STRENGTHS)
        assert row[3] == [f"{0.5 - 0.2 * place:.2f}"] * 2
    assert {"a model", "contrastive", "predictive", "pitch_shift", "semitones", "snr_db", "0.5"} <= set(texts(figure))


def test_dark_is_not_invariant():
    """The contrastive embedding by hand moves further, has the smaller cosine, and tells more."""
    shades = [axes.images[0].get_array().mean() for axes in heat_map(invariance()).axes[:8]]
    assert all(contrastive > predictive for contrastive, predictive in zip(shades[:4], shades[4:]))
    assert all(0 <= shade <= 1 for shade in shades)


def test_values_beyond_the_colors_are_shown_as_they_are():
    report = invariance(("",))
    moved = tuple(replace(entry, relative=3.25, cosine=-0.001) for entry in report.displacements)
    figure = heat_map(replace(report, displacements=moved))
    assert figure.axes[0].texts[0].get_text() == "3.25" and figure.axes[1].texts[0].get_text() == "0.00"
    assert "embedding" in texts(figure)


def test_colors_tell_large_distances_apart():
    report = invariance(("",))
    moved = [replace(entry, relative=value) for entry, value in zip(report.displacements, (0.5, 1.0, 3.0, 5.2))]
    figure = heat_map(replace(report, displacements=tuple(moved)))
    shades = figure.axes[0].images[0].get_array().ravel().tolist()
    assert shades == pytest.approx([1 / 3, 0.5, 0.75, 5.2 / 6.2])
    ticks = [text.get_text() for text in figure.axes[4].get_xticklabels()]
    assert ticks == ["0", "0.5", "1", "3", "10"]
    assert figure.axes[4].get_xticks() == pytest.approx([0, 1 / 3, 0.5, 0.75, 10 / 11])


def test_themes():
    for name, low, high in (("light", 250, 255), ("dark", 0, 40)):
        with theme(name):
            image = Image.open(io.BytesIO(to_png(projection_plot(data_result().projections)))).convert("L")
        assert low <= image.getpixel((2, 2)) <= high


def test_a_projection_shows_each_clip_in_its_class():
    projections = data_result(classes=("kick", "snare", "tom")).projections
    figure = projection_plot(projections)
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    shown = [tuple(point) for line in figure.axes[0].lines for point in line.get_xydata()]
    assert sorted(shown) == sorted(projections[0].points)
    assert figure.axes[0].lines[1].get_xydata().tolist() == [list(projections[0].points[place]) for place in (1, 4)]
    assert {"kick", "snare", "tom", "contrastive\ntwo principal components"} <= set(texts(figure))


def test_projections_of_other_clips_keep_the_colors():
    first, second = data_result(classes=("kick", "snare", "tom")).projections[:2]
    second = replace(second, points=second.points[:1], labels=["tom"])
    panels = projection_plot([first, second]).axes
    assert [len(line.get_xdata()) for line in panels[1].lines] == [0, 0, 1]
    assert panels[0].lines[2].get_color() == panels[1].lines[2].get_color() != panels[0].lines[0].get_color()


@pytest.mark.filterwarnings("error")  # matplotlib warns of what finds no room, or is left out
@pytest.mark.parametrize("name", [r"$\frac$", "$", r"a\$b$", "_hidden", "<b> & 'c'", "x" * 150])
def test_names_are_shown_as_they_are(name):
    for figure in (
        heat_map(invariance((name, "other")), title=name),
        projection_plot(data_result(classes=(name, "other")).projections),
    ):
        assert any(name in text.replace(r"\$", "$") for text in texts(figure))
        assert to_png(figure)  # a formula that is none would be an error


def test_equal_figures_are_equal_files(tmp_path):
    (tmp_path / "map.png").write_bytes(to_png(heat_map(invariance())))
    assert (tmp_path / "map.png").read_bytes() == to_png(heat_map(invariance()))
    assert Image.open(tmp_path / "map.png").format == "PNG"


def test_no_display_and_no_pyplot(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib.pyplot")]:
        monkeypatch.delitem(sys.modules, name)
    to_png(heat_map(invariance()))
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    def refuse(name, *arguments, original=builtins.__import__, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[evaluation\]'"):
        heat_map(invariance())
