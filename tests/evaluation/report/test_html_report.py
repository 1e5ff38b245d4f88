"""The report as a page: all of it, by itself, with nothing that a name could break."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from results_by_hand import data_result, evaluation

from mtslvr_hf.evaluation.probes import ProbeResult
from mtslvr_hf.evaluation.report.headline import headline
from mtslvr_hf.evaluation.report.html import to_html
from mtslvr_hf.evaluation.report.markdown import to_markdown
from mtslvr_hf.evaluation.report.protocol import protocol

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Reads a page strictly: each element is closed, in order. Keeps texts, tables and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.tables = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        self.texts.append(data)

    @property
    def rows(self):
        return [row for table in self.tables for row in table]

    def values(self, tag, name):
        return [value for of, attribute, value in self.attributes if (of, attribute) == (tag, name)]


@pytest.fixture(scope="module")
def page():
    missing = {"VoxCeleb1": "not on the Hub"}
    return Page(to_html(evaluation(data_result(), data_result("birds"), missing=missing)))


def test_accuracies_are_a_table_over_the_data_sets(page):
    header, baseline, *_, both = page.tables[0]
    assert header == ["model", "embedding", "drums, %", "birds, %", "average rank"]
    assert baseline == ["log-mel statistics", "", "31.2 ± 0.4", "31.2 ± 0.4", "2.00"]
    assert both == ["a model", "both", "60.0 ± 0.5", "60.0 ± 0.5", "1.00"]
    assert ["a model", "predictive", "50.0 ± 0.5", "50.0 ± 0.5", ""] in page.tables[0]


def test_each_data_set_has_all_that_was_found(page):
    assert ["a model", "log-mel statistics", "+28.8 ± 0.6"] in page.rows
    assert ["a model", "contrastive", "25", "70.0 ± 1.0", "2,000"] in page.rows
    assert page.values("img", "alt") == [
        "drums: embeddings of a model, colored by class",
        "birds: embeddings of a model, colored by class",
        "a model: invariance to augmentations; dark is not invariant",
    ]
    assert page.values("figure", "aria-label") == [
        f"{name}: few-shot accuracy with 95 % intervals" for name in ("drums", "birds")
    ]
    assert page.values("i", "style")[:3] == ["left:20.0%", "width:31.20%", "left:30.80%;width:0.80%"]


def test_the_best_is_bold_and_the_default_embedding_marked():
    rows = [replace(row, accuracy=0.9) if row.embedding == "contrastive" else row for row in data_result().rows]
    found = to_html(evaluation(replace(data_result(), rows=rows)))
    assert re.findall(r'<td class="best">([^<]*)</td>', found) == [
        "90.0 ± 0.5",
        *["80.0 % (70.0 to 90.0)"] * 3,
        "+28.8 ± 0.6",
    ]
    assert re.findall(r'<td>(\w+)<small class="default"', found) == ["both", "both"]
    assert re.findall(r'<div class="bar best"><span class="name">([^<]*)<', found) == ["a model · contrastive"]


def test_probes_are_a_matrix_with_each_protocol_once():
    def probed(row, number):
        shared = "logistic regression on 70 clips; accuracy over 2 classes; seed 7"
        probes = [
            ProbeResult(kind, "accuracy", 0.5 + 0.1 * number, (0.4, 0.9), f"{shared}; {choice} = {number}", 70, 30)
            for kind, choice in (("linear", "C"), ("knn", "k"))
        ]
        return replace(row, probes=probes)

    rows = [probed(row, number) for number, row in enumerate(data_result().rows)]
    report = evaluation(replace(data_result(), rows=rows))
    page = Page(to_html(report))
    assert ["model", "embedding", "linear, accuracy", "knn, accuracy"] in page.rows
    assert ["a model", "both", "80.0 % (40.0 to 90.0)", "80.0 % (40.0 to 90.0)"] in page.rows
    assert ["a model", "both", "knn", "k = 3"] in page.rows
    for text in (" ".join(page.texts), to_markdown(report)):
        assert text.count("logistic regression on 70 clips") == 2  # once for each probe


def test_the_headline_says_what_is_best():
    several = headline(evaluation(data_result(), data_result("birds")))
    assert several[0] == "a model has the best average rank: 1.00 among 2 models and baselines on 2 data sets."
    assert several[1] == (
        "drums: a model (both) is best, 60.0 ± 0.5 %, 28.8 points more than log-mel statistics (31.2 ± 0.4 %)."
    )
    rows = [replace(row, accuracy=0.7) if row.embedding == "contrastive" else row for row in data_result().rows]
    (words,) = headline(evaluation(replace(data_result(), rows=rows)))
    assert words.endswith(" %). Its default embedding, both, has 60.0 ± 0.5 %.")
    rows = [replace(row, accuracy=0.7) if row.model != "a model" else row for row in data_result().rows]
    assert headline(evaluation(replace(data_result(), rows=rows))) == [
        "drums: log-mel statistics is best, 70.0 ± 0.4 %; the best model, a model (both), has 60.0 ± 0.5 %."
    ]
    rows = [replace(row, accuracy=None, interval=None) for row in data_result().rows]
    (words,) = headline(evaluation(replace(data_result(), rows=rows)))
    assert words == "drums: a model (contrastive) is best with the linear probe, accuracy 80.0 % (70.0 to 90.0)."


def test_date_versions_and_command():
    report = replace(
        evaluation(), date="2026-11-02", versions={"torch": "2.14"}, command="mtslvr evaluate --data drums"
    )
    text = " ".join(Page(to_html(report)).texts)
    for words in (
        "2026-11-02 · 5-way 1-shot · 2 models and baselines · 1 data set",
        "torch 2.14",
        "mtslvr evaluate --data",
    ):
        assert words in text


def test_plots_for_a_dark_page(page):
    sources = page.values("source", "srcset")
    assert len(sources) == len(page.values("img", "src")) and set(page.values("source", "media")) == {
        "(prefers-color-scheme: dark)"
    }
    for light, dark in zip(page.values("img", "src"), sources):
        levels = [
            Image.open(io.BytesIO(base64.b64decode(each.split(",")[1]))).convert("L").getpixel((2, 2))
            for each in (light, dark)
        ]
        assert levels[0] == 255 and levels[1] < 40


def test_invariance_is_a_table_too(page):
    assert ["pitch_shift", "contrastive", "0.5", "12.50", "0.80", "0.40", "0.90"] in page.rows
    assert ["white_noise", "predictive", "0.75", "snr_db", "0.30"] in page.rows


def test_the_protocol_is_told(page):
    text = " ".join(page.texts)
    for words in (
        "5-way 1-shot accuracy: 2,000 episodes of 5 queries a class, seed 7",
        "chance is 20.0 %",
        "multinomial logistic regression (L2, C = 1, free intercepts)",
        "1,234 clips of 2 classes from the folder birds. Episode list 0123456789ab.",
        "An episode's queries come from other groups than its support.",
        "a part of the paper's.",
        "Left out: clap (1 clip, expected 6).",
        "VoxCeleb1: not on the Hub",
        "40 clips, seed 3.",
    ):
        assert words in text


def test_the_untrained_network_s_seed_is_told():
    result = data_result(model="untrained network of a model")
    assert any("has the weights of seed 7" in text for text in protocol(evaluation(result)))
    assert not any("untrained" in text for text in protocol(evaluation()))


def test_it_needs_nothing_from_elsewhere(page):
    assert "script" not in page.tags and "link" not in page.tags
    assert all(re.fullmatch(r"#[\w-]+", target) for target in page.values("a", "href"))
    anchors = [value for _, attribute, value in page.attributes if attribute == "id"]
    assert sorted(target[1:] for target in page.values("a", "href")) == sorted(anchors)
    for source in page.values("img", "src") + page.values("source", "srcset"):
        kind, content = source.split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).format == "PNG"


def test_names_are_text_whatever_they_hold():
    name = '"><script>alert(1)</script>&amp;{{ 7 * 7 }}$x$'
    result = data_result(data=name, model=name, classes=(name, "other"))
    result = replace(result, note=name, left_out={name: name})
    found = Page(to_html(evaluation(result, model=name, missing={name: name})))
    assert "script" not in found.tags
    assert f"{name}: {name}" in found.texts
    assert found.tables[0][0][2] == f"{name}, %" and found.tables[0][2][0] == name
    assert f"{name}: few-shot accuracy with 95 % intervals" in found.values("figure", "aria-label")


def test_names_in_markdown_are_text_whatever_they_hold():
    name = "<script>alert(1)</script>\n\x1b[2J# title"
    result = replace(data_result(data=name, model=name), note=name, left_out={name: name})
    text = to_markdown(evaluation(result, model=name, missing={name: name}))
    assert "<script>" not in text and "\x1b" not in text and "\n# title" not in text
    assert text.count("&lt;script>alert(1)&lt;/script> [2J# title") > 5


def test_what_was_not_asked_for_is_not_mentioned():
    row = replace(data_result().rows[0], interval=float("nan"))
    result = replace(data_result(), rows=[row], differences=[], weight_shares={}, projections=[])
    result = replace(result, note="", left_out={}, group_disjoint=False)
    report = replace(evaluation(result), average_ranks={}, invariance={}, classifier="centroid")
    found = Page(to_html(report))
    assert found.tables[0][1] == ["log-mel statistics", "", "31.2"]
    assert not found.values("img", "src") and "default" not in found.texts
    text = " ".join(found.texts)
    for word in ("Probes", "Differences", "Heads", "by class", "Invariance", "Left out", "reached", "ranks", "nan"):
        assert word not in text
