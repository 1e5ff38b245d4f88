"""Measured results of an evaluation in a model's card."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...cards.parts import is_hub_name
from ...cards.results import (
    RESULTS,
    MeasuredInvariance,
    MeasuredResult,
    Score,
    read_pretrained_card,
    write_results,
)
from ..embedders.base import READ_AS, MTSLVREmbedder, load_config, load_embedder, pooling_words
from ..embedders.log_mel import LogMelStatistics
from .protocol import GROUPS_APART, clips_and_source, few_shot_protocol, queries, untrained_network
from .results import DataResult, EvaluatedModel, EvaluationReport, Row

UNTRAINED = "untrained network"
CLASSIFIERS = {
    "centroid": "nearest centroid",
    "logistic": "logistic regression",
    "sgd": "the paper's protocol (5 s pieces, SGD on raw embeddings)",
}
PROBES = {"linear": "Linear probe", "knn": "Nearest neighbors"}
PROBE_WORDS = {
    "linear": "Logistic regression on 70 % of the clips of each class, tested on the others",
    "knn": "Votes of the most similar of 70 % of the clips of each class, tested on the others",
}
CHOICES = {"linear": "regularization C", "knn": "number of neighbors"}


def update_card(report: EvaluationReport, folder: str | Path, model: str | None = None) -> int:
    """Writes what a report has measured of one model into its card; returns the number of results.

    The card gets tables of accuracies and probes beside the baselines of the report, the invariance, and metadata.
    Each result has its data, protocol, command and date. See `mtslvr_hf.cards.results.write_results` for earlier
    results. `results.json` holds the same, and publishing compares it.

    Args:
        report: Report of `evaluate`, or of `read_report`.
        folder: Folder of a pre-trained model, with its card.
        model: The model's name in the report; default: the folder.

    Raises:
        FileNotFoundError: If there is no card.
        ValueError: If the report does not have the model, was made with other weights, or has nothing to write; or if
            the card is not that of a pre-trained model of this package.
    """
    read_pretrained_card(folder)
    name = _name_in(report, str(folder) if model is None else model)
    read_as = _read_as(report.models[name], folder)
    common: dict[str, Any] = {"read_as": read_as, "date": report.date or None, "command": report.command or None}
    results = [
        replace(result, **common)
        for data in report.results
        for row in data.rows
        if row.model == name
        for result in _results_of(report, data, row)
    ]
    found = report.invariance.get(name)
    invariance = []
    if found is not None:
        header, rows = found.to_table()
        invariance.append(
            MeasuredInvariance(
                dataset=report.invariance_data, clips=found.clips, seed=found.seed, header=header, rows=rows, **common
            )
        )
    if not results and not invariance:
        raise ValueError(f"the report has neither accuracy nor probe of {name}: evaluate it with `--probe linear`.")
    write_results(folder, results, invariance)
    return len(results)


def _name_in(report: EvaluationReport, model: str) -> str:
    """Name of a model in a report's rows."""
    if model in report.models:
        return model
    place = Path(model).resolve()
    names = [
        name
        for name, facts in report.models.items()
        if facts.source == model or place in (Path(facts.source).resolve(), Path(name).resolve())
    ]
    if len(names) != 1:
        which = f"calls {model} by several names" if names else f"has no model {model}"
        raise ValueError(f"the report {which}; choose one of these: {', '.join(names or report.models)}.")
    return names[0]


def _read_as(facts: EvaluatedModel, folder: str | Path) -> str:
    """Words about the evaluated embedding if it is not that of the folder; ValueError if it has other weights."""
    if not facts.weights:
        raise ValueError(f"{facts.source} was not evaluated as an MT-SLVR model: only its card can be updated.")
    overrides = {name: facts.settings[name] for name in READ_AS}
    saved, asked = load_config(folder), load_config(folder, overrides=overrides)
    other = {name for name in READ_AS if getattr(saved, name) != getattr(asked, name)}
    embedder = load_embedder(folder, overrides=overrides if other else {})
    if not isinstance(embedder, MTSLVREmbedder) or embedder.weights != facts.weights:
        raise ValueError(f"the report is of other weights than those in {folder}: evaluate this folder.")
    if embedder.settings["embedding_scale"] != facts.settings["embedding_scale"]:
        raise ValueError(
            f"the report is of heads with the scales {facts.settings['embedding_scale']}, and {folder} has "
            f"{embedder.settings['embedding_scale']}: evaluate this folder."
        )
    return pooling_words(embedder.model.config) if other else ""


def _results_of(report: EvaluationReport, data: DataResult, row: Row) -> Iterator[MeasuredResult]:
    """Results in one row of a report: few-shot accuracy, if measured, and probes."""
    drawn, place = report.protocol, data.source.split()[0]
    common: dict[str, Any] = {
        "dataset": place if is_hub_name(place) else data.data,
        "embedding": row.embedding,
        "classes": len(data.classes),
        "seed": drawn.seed,
    }
    untrained = report.models[row.model].untrained
    baselines = {
        shown: baseline
        for shown, name in ((LogMelStatistics.name, LogMelStatistics.name), (UNTRAINED, untrained))
        for baseline in data.rows
        if baseline.main and baseline.model == name
    }
    apart = ", groups kept apart" if data.group_disjoint else ""
    words = [untrained_network(report)] if UNTRAINED in baselines else []
    if row.accuracy is not None:
        scales = ["The heads keep the scales of the configuration."] if row.keeps_scales else []
        episodes = f"{drawn.episodes:,} episodes of {queries(drawn)} a class{apart}"
        yield MeasuredResult(
            protocol=f"{drawn.ways}-way {drawn.shots}-shot, {CLASSIFIERS[report.classifier]}, {episodes}",
            words=" ".join(
                [*few_shot_protocol(report), *([GROUPS_APART] if data.group_disjoint else []), *scales, *words]
            ),
            data=f"{_data_words(data)} Episode list {data.episodes_sha256[:12]}.",
            baselines={name: _few_shot(each) for name, each in baselines.items() if each.accuracy is not None},
            **vars(_few_shot(row)),
            **common,
        )
    for probe in row.probes:
        of_baselines = {
            name: Score(value=round(each.value, 6), interval=_rounded(*each.interval))
            for name, baseline in baselines.items()
            for each in baseline.probes
            if (each.name, each.metric) == (probe.name, probe.metric)
        }
        probe_words = (
            f"{PROBE_WORDS[probe.name]}, seed {drawn.seed}. The {CHOICES[probe.name]} of each embedding, and how it "
            f"was chosen, is in `{RESULTS}`."
        )
        yield MeasuredResult(
            protocol=f"{PROBES[probe.name]}, {probe.metric} on 30 % of the clips{apart}",
            words=" ".join([probe_words, *words]),
            data=_data_words(data),
            details=probe.protocol,
            metric=probe.metric,
            value=round(probe.value, 6),
            interval=_rounded(*probe.interval),
            baselines=of_baselines,
            **common,
        )


def _few_shot(row: Row) -> Score:
    assert row.accuracy is not None  # it has episodes
    half = row.interval
    interval = None if half is None or math.isnan(half) else _rounded(row.accuracy - half, row.accuracy + half)
    return Score(value=round(row.accuracy, 6), interval=interval)


def _rounded(lower: float, upper: float) -> tuple[float, float]:
    return round(lower, 6), round(upper, 6)


def _data_words(data: DataResult) -> str:
    """Sentences about the data of a result, without names of files."""
    sentences = [clips_and_source(data)]
    if data.bad_clips:
        sentences.append(f"{len(data.bad_clips)} clips left out because they cannot be used.")
    if data.left_out:
        sentences.append(f"{len(data.left_out)} classes left out because they have too few clips.")
    if data.note:
        sentences.append(data.note.rstrip(".") + ".")
    return " ".join(sentences)


__all__ = ["update_card"]
