"""Comparison of models on several data sets: few-shot accuracy, ranks, paired differences, invariance.

Shapes: N clips, D embedding size, E episodes, S samples.
"""

from __future__ import annotations

import itertools
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from .. import __version__
from ..cards.parts import public_name
from ..configuration_mtslvr import MTSLVRConfig
from ..data import decode_clip
from ..data.folders import readable_name
from .data import DataNotReachableError, EvaluationData, cut_clips, open_data, without_bad_clips
from .embedders.base import Embedder, MTSLVREmbedder, load_config, load_embedder, pooling_words, untrained
from .embedders.cache import cached_embeddings
from .embedders.log_mel import LogMelStatistics
from .few_shot.accuracy import CLASSIFIERS, mean_and_interval, score_episodes
from .few_shot.episodes import Episodes, sample_episodes
from .few_shot.paper import PaperEpisodes, paper_episodes, score_paper_episodes
from .few_shot.weight_shares import WeightShares, paper_weight_shares, weight_shares
from .invariance import FEWEST_CLIPS, InvarianceReport, measure_invariance
from .pieces import Pieces
from .probes import KINDS, probe
from .projection import Projection, project
from .registry import expand
from .report.results import (
    DataResult,
    Difference,
    EvaluatedModel,
    EvaluationReport,
    FewShotProtocol,
    PaperProtocol,
    Row,
)

INVARIANCE_SECONDS = 2.0  # of each clip
GIVEN = "given embeddings"  # row of a data set of embeddings without audio
_SAMPLING_RATE = 16_000


@dataclass
class _Evaluated:
    """A data set with its episodes and results.

    Attributes:
        data: Clips of the classes in the episodes; other clips would change the standardization.
        episodes: None if clips have several classes.
        accuracies: Accuracies (E,) of each model's main embedding.
    """

    data: EvaluationData
    bad_clips: list[str]
    episodes: Episodes | PaperEpisodes | None
    group_disjoint: bool
    sha256: str
    rows: list[Row] = field(default_factory=list)
    accuracies: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, WeightShares] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)

    @cached_property
    def pieces(self) -> Pieces | None:
        """Pieces of the clips, or None for whole clips."""
        return None if self.data.cuts is None else Pieces(self.data.audio, self.data.cuts)

    @property
    def groups(self) -> list[str] | None:
        """Groups that must not be in both parts, or None."""
        return self.data.groups if self.group_disjoint else None

    def of_clips(self, embeddings: Tensor) -> Tensor:
        """Embeddings of clips: the same, or the means of their pieces'."""
        return embeddings if self.pieces is None else self.pieces.clip_means(embeddings)

    def result(self) -> DataResult:
        return DataResult(
            data=self.data.name,
            source=self.data.source,
            note=self.data.note,
            classes=sorted(name for name, clips in zip(self.data.classes, self.data.labels.sum(0)) if clips),
            clips=len(self.data),
            group_disjoint=self.group_disjoint,
            episodes_sha256=self.sha256,
            left_out=dict(self.episodes.left_out) if self.episodes else {},
            rows=self.rows,
            bad_clips=self.bad_clips,
            differences=paired_differences(self.accuracies),
            weight_shares=self.shares,
            projections=self.projections,
            pieces=0 if self.pieces is None else len(self.pieces),
            silent_pieces=0 if self.pieces is None else self.pieces.silent,
        )


def evaluate(
    models: Sequence[str | Path | Embedder],
    data: Sequence[str | Path | EvaluationData],
    protocol: FewShotProtocol | None = None,
    *,
    classifier: str | None = None,
    classes: Sequence[str] | None = None,
    probes: Sequence[str] = (),
    invariance_clips: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    cache: str | Path | None = None,
    pooling: str | None = None,
    num_bands: int | None = None,
    use_heads: bool | None = None,
    show_progress_bar: bool | None = None,
    trust_remote_code: bool = False,
    **columns: Any,
) -> EvaluationReport:
    """Report of models on data sets; every model gets the same few-shot episodes.

    The baselines are log-mel statistics and an untrained network (weights of `protocol.seed`) of each MT-SLVR model's
    architecture, or of the default one. The report lists clips that cannot be decoded or are silent, and leaves them
    out.

    Args:
        models: Folders or Hub names of MT-SLVR or other audio models, see `load_embedder`.
        data: Names of data sets or suites in the registry, folders or Hub names, see `open_data`.
        protocol: Few-shot protocol; `PaperProtocol()` is the paper's.
        classifier: "centroid" (default) or "logistic", see `score_episodes`. The paper's protocol has its own.
        classes: Classes to use in every data set; all if None.
        probes: "linear", "knn" or both, see `probe`.
        invariance_clips: Number of clips, divided over the data sets, for `measure_invariance`; or 0.
        batch_size: Windows per batch.
        cache: Folder of stored embeddings, see `cached_embeddings`.
        pooling, num_bands, use_heads: Replace those of all MT-SLVR models that are folders or Hub names, and of their
            untrained networks; the names of the rows say so. See `MTSLVRConfig`. Default: as saved.
        show_progress_bar: Default: on a terminal.
        trust_remote_code: Run code of the models' folders or repositories, if their type needs that.
        columns: Further arguments of `open_data`, for data sets outside the registry.

    Raises:
        FileNotFoundError: If a data set does not exist.
        ValueError: If an argument is unknown, the data are too small for the episodes, no clip is audio, or a pooling
            is asked for that a model cannot have.
        OSError: If a model cannot be loaded, or no data set of a suite can be reached.
    """
    protocol = protocol or FewShotProtocol()
    classifier = _classifier(classifier, protocol)
    show_progress_bar = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
    _check(models, probes, invariance_clips)
    opened, missing = _open_all(data, classes, columns)
    read = cut_clips if isinstance(protocol, PaperProtocol) else without_bad_clips
    readable = [read(each, show_progress_bar) for each in opened]
    evaluated = [_with_episodes(each, bad, protocol, bool(probes)) for each, bad in readable]
    waveforms, heard = _waveforms([each for each, _ in readable], invariance_clips)
    add = partial(_add, classifier=classifier, probes=probes, seed=protocol.seed)
    for each in evaluated:
        if each.data.embeddings is not None:
            add(each, GIVEN, {"": each.data.embeddings})
    to_embed = [each for each in evaluated if each.data.audio is not None]
    asked = {"pooling": pooling, "num_bands": num_bands, "use_heads": use_heads}
    overrides = {name: value for name, value in asked.items() if value is not None}
    to_load = _models(models, protocol.seed, device, batch_size, overrides, trust_remote_code) if to_embed else []
    found, invariance = _run(to_load, to_embed, add, waveforms, cache, show_progress_bar)
    return EvaluationReport(
        protocol=protocol,
        classifier=classifier,
        results=[each.result() for each in evaluated],
        average_ranks=average_ranks([each.accuracies for each in to_embed if each.accuracies]),
        missing=missing,
        invariance=invariance,
        invariance_data=heard,
        models=found,
        date=datetime.now(timezone.utc).date().isoformat(),
        versions=_versions(),
        command=_call(
            models,
            data,
            protocol,
            classifier=None if isinstance(protocol, PaperProtocol) else classifier,
            classes=classes and list(classes),
            probes=list(probes),
            invariance_clips=invariance_clips,
            trust_remote_code=trust_remote_code or None,
            **overrides,
            **{name: value for name, value in columns.items() if name != "root"},
        ),
    )


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that the results depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "scikit-learn")}
    return {"mtslvr-hf": __version__, **packages, "Python": platform.python_version()}


def _call(
    models: Sequence[str | Path | Embedder],
    data: Sequence[str | Path | EvaluationData],
    protocol: FewShotProtocol,
    **options: Any,
) -> str:
    """Call of `evaluate` that repeats an evaluation, with the last parts of local paths."""

    def names(given: Sequence[Any]) -> list[str]:
        return [public_name(str(each)) if isinstance(each, (str, Path)) else each.name for each in given]

    chosen = [f"{name}={value!r}" for name, value in options.items() if value or value is False]
    return f"evaluate({', '.join([repr(names(models)), repr(names(data)), repr(protocol), *chosen])})"


@dataclass(frozen=True)
class _ToLoad:
    """Loader of a model or baseline.

    Attributes:
        source: Folder or name of a model; None for a baseline.
        untrained: Name of the untrained network of its architecture; "" without one.
    """

    load: Callable[[], Embedder]
    source: str | None = None
    untrained: str = ""

    def facts(self, embedder: Embedder) -> EvaluatedModel:
        if not isinstance(embedder, MTSLVREmbedder):
            return EvaluatedModel(str(self.source), self.untrained)
        return EvaluatedModel(str(self.source), self.untrained, embedder.weights, embedder.settings)


def _run(
    to_load: Sequence[_ToLoad],
    to_embed: Sequence[_Evaluated],
    add: Callable[..., None],
    waveforms: Tensor | None,
    cache: str | Path | None,
    show_progress_bar: bool,
) -> tuple[dict[str, EvaluatedModel], dict[str, InvarianceReport]]:
    """Adds the results of each model to the data sets; returns facts of each model, and its invariance."""
    models, invariance = {}, {}
    total = len(to_load) * len(to_embed)
    with tqdm(total=total, desc="models x data", disable=not (show_progress_bar and total)) as progress:
        for entry in to_load:
            embedder, is_baseline = entry.load(), entry.source is None
            if not is_baseline:
                models[embedder.name] = entry.facts(embedder)
            embed = embedder.embed if cache is None else partial(cached_embeddings, cache, embedder)
            for each in to_embed:
                progress.set_postfix_str(f"{embedder.name} on {each.data.name}")
                found = embed(each.pieces or each.data.audio, show_progress_bar=show_progress_bar)
                if is_baseline:
                    found = dict([list(found.items())[-1]])  # the main embedding
                heads = embedder.scaled_heads if isinstance(embedder, MTSLVREmbedder) else None
                add(each, embedder.name, found, head_sizes=heads)
                if not is_baseline and each.episodes is not None:
                    _look_closer(each, each.episodes, embedder.name, found)
                progress.update()
            if waveforms is not None and not is_baseline:
                progress.set_postfix_str(f"invariance of {embedder.name}")
                invariance[embedder.name] = measure_invariance(
                    embedder.embed_waveforms, waveforms, show_progress_bar=show_progress_bar
                )
    return models, invariance


def _classifier(given: str | None, protocol: FewShotProtocol) -> str:
    """Name of the classifier; ValueError if the given one is unknown or not the protocol's."""
    if isinstance(protocol, PaperProtocol):
        if given is not None:
            raise ValueError(
                f"the paper's protocol has its own classifier; got {given!r}: leave classifier out, or use another "
                "protocol."
            )
        return "sgd"
    classifier = "centroid" if given is None else given
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier is {classifier!r}; expected one of {', '.join(CLASSIFIERS)}.")
    return classifier


def _check(models: Sequence[Any], probes: Sequence[str], invariance_clips: int) -> None:
    for kind in probes:
        if kind not in KINDS:
            raise ValueError(f"there is no probe {kind!r}; expected some of {', '.join(KINDS)}.")
    if invariance_clips and invariance_clips < FEWEST_CLIPS:
        raise ValueError(f"invariance_clips is {invariance_clips}; expected 0 for none, or at least {FEWEST_CLIPS}.")
    names = [str(model) if isinstance(model, (str, Path)) else model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice; name each model once.")


# Data


def _open_all(
    data: Sequence[str | Path | EvaluationData], classes: Sequence[str] | None, columns: Mapping[str, Any]
) -> tuple[list[EvaluationData], dict[str, str]]:
    """Data sets, and the reasons why data sets of suites cannot be reached."""
    opened: list[EvaluationData] = []
    specs: list[str | Path | EvaluationData] = []
    missing = {}
    for asked in data:
        if isinstance(asked, EvaluationData):
            opened.append(asked)
            specs.append(asked)
            continue
        for spec in expand([asked]):
            try:
                opened.append(open_data(spec, **columns))
                specs.append(spec)
            except DataNotReachableError as error:
                if spec == asked:
                    raise
                missing[str(spec)] = str(error).removeprefix(f"{spec}: ")
    if not opened:
        raise OSError(
            "no data set could be reached: " + "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        )
    opened = _named_apart(opened)
    return [each if classes is None else each.only_classes(classes) for each in opened], missing


def _named_apart(data: list[EvaluationData]) -> list[EvaluationData]:
    """Data sets with names that differ: folders of one name get as many parent folders as tell them apart.

    Raises:
        ValueError: If a data set is given twice.
    """
    given = [(each.name, each.path) for each in data]
    twice = sorted({name for name, path in given if given.count((name, path)) > 1})
    if twice:
        raise ValueError(f"two data sets are called {', '.join(twice)}; name each one once.")
    names = [name for name, _ in given]
    for length in itertools.count(2):
        same = {name for name in names if names.count(name) > 1}
        if not same:
            break
        names = [
            "/".join(each.path.parts[-length:]) if name in same and each.path is not None else name
            for each, name in zip(data, names)
        ]
    return [replace(each, name=readable_name(name)) for each, name in zip(data, names)]


def _with_episodes(data: EvaluationData, bad_clips: list[str], protocol: FewShotProtocol, probed: bool) -> _Evaluated:
    """A data set with its episodes, without clips of other classes; with probes, multi-label data have no episodes."""
    group_disjoint = data.group_disjoint if protocol.group_disjoint is None else protocol.group_disjoint
    if group_disjoint and data.groups is None:
        raise ValueError(
            f"{data.name} has no groups, which group-disjoint episodes need: add a column group to the folder's "
            "manifest.csv, or set the group column of the data set."
        )
    if data.multi_label and probed:
        return _Evaluated(data, bad_clips, None, group_disjoint, "")
    labels = data.label_names()
    groups = data.groups if group_disjoint else None
    try:
        episodes = sample_episodes(
            labels, protocol.ways, protocol.shots, protocol.queries, protocol.episodes, protocol.seed, groups
        )
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    kept = [index for index, label in enumerate(labels) if label not in episodes.left_out]
    place = torch.full((len(labels),), -1)
    place[kept] = torch.arange(len(kept))
    moved = Episodes(place[episodes.support], place[episodes.query], episodes.left_out)
    evaluated = _Evaluated(data.select(kept), bad_clips, moved, group_disjoint, episodes.sha256)
    if evaluated.pieces is None:
        return evaluated
    of_pieces = paper_episodes(moved, evaluated.pieces.bounds, protocol.seed)
    return replace(evaluated, episodes=of_pieces, sha256=of_pieces.sha256)


def _waveforms(data: Sequence[EvaluationData], clips: int) -> tuple[Tensor | None, str]:
    """Starts (clips, S) of clips from all data sets in equal numbers, and the names of these data sets."""
    data = [each for each in data if each.audio is not None]
    if not clips or not data:
        return None, ""
    samples = int(INVARIANCE_SECONDS * _SAMPLING_RATE)
    waveforms = []
    for number, each in enumerate(data):
        count = min(len(each), clips // len(data) + (number < clips % len(data)))
        for place in range(count):
            clip = torch.from_numpy(decode_clip(each.audio[place * len(each) // count], sampling_rate=_SAMPLING_RATE))
            waveforms.append(clip.repeat(-(-samples // len(clip)))[:samples])  # short clips repeat
    if len(waveforms) < FEWEST_CLIPS:
        raise ValueError(f"{len(waveforms)} clips are too few to measure invariance; expected {FEWEST_CLIPS} or more.")
    return torch.stack(waveforms), ", ".join(each.name for each in data)


# Models


def _models(
    models: Sequence[str | Path | Embedder],
    seed: int,
    device: str | torch.device,
    batch_size: int,
    overrides: Mapping[str, Any],
    trust_remote_code: bool,
) -> list[_ToLoad]:
    """Loaders of the baselines, then of the models, one at a time to save memory."""
    baselines = [_ToLoad(LogMelStatistics)]
    to_load = []
    options: dict[str, Any] = {"device": device, "batch_size": batch_size, "overrides": overrides}
    seen: list[tuple[dict[str, Any], list[str]]] = []
    names: list[str] = []  # of the untrained networks
    for source in models:
        if not isinstance(source, (str, Path)):
            to_load.append(_ToLoad(partial(_given, source), source.name))
            continue
        config: Any = load_config(source, overrides=overrides, trust_remote_code=trust_remote_code)
        network = None
        if config.model_type == "mtslvr":  # an untrained network has no scales of its heads
            network = (config.architecture() | {"embedding_scale": None}, config.embedding_tasks)
        suffix = f" ({pooling_words(config)})" if network and overrides else ""
        if network and network not in seen:
            seen.append(network)
            names.append(("untrained network" if len(seen) == 1 else f"untrained network of {source}") + suffix)
            baselines.append(_ToLoad(partial(untrained, source, seed, name=names[-1], **options)))
        of_architecture = names[seen.index(network)] if network else ""
        name, trust = f"{source}{suffix}", trust_remote_code
        load = partial(load_embedder, source, name=name, trust_remote_code=trust, **options)
        to_load.append(_ToLoad(load, str(source), of_architecture))
    if overrides and not seen:
        raise ValueError(
            f"{', '.join(overrides)} apply to MT-SLVR models, and none is among the models: leave them out."
        )
    if not seen and any(isinstance(source, (str, Path)) for source in models):
        of_default = partial(untrained, MTSLVRConfig(), seed, device=device, batch_size=batch_size)
        baselines.append(_ToLoad(of_default))
    return baselines + to_load


def _given(embedder: Embedder) -> Embedder:
    return embedder


def _add(
    each: _Evaluated,
    model: str,
    found: Mapping[str, Tensor],
    classifier: str,
    probes: Sequence[str],
    seed: int,
    head_sizes: Sequence[int] | None = None,
) -> None:
    """Rows of a model's embeddings; the last is the main one, of heads of these sizes if their scales were chosen."""
    for number, (embedding, values) in enumerate(found.items(), 1):
        main = number == len(found)
        clips = each.of_clips(values)
        probed = [probe(clips, each.data.labels, each.data.multi_label, each.groups, kind, seed) for kind in probes]
        accuracy: tuple[float | None, float | None] = (None, None)
        if each.episodes is not None:
            accuracies = _accuracies(values, each.episodes, classifier, head_sizes if main else None)
            accuracy = mean_and_interval(accuracies)
            if main:
                each.accuracies[model] = accuracies
        keeps_scales = main and head_sizes is not None and isinstance(each.episodes, Episodes)
        each.rows.append(Row(model, embedding, values.shape[1], *accuracy, main, probed, keeps_scales))


def _accuracies(
    embeddings: Tensor, episodes: Episodes | PaperEpisodes, classifier: str, head_sizes: Sequence[int] | None
) -> Tensor:
    if isinstance(episodes, PaperEpisodes):
        return score_paper_episodes(embeddings, episodes)
    return score_episodes(embeddings, episodes, classifier=classifier, head_sizes=head_sizes)


def _shares(heads: Mapping[str, Tensor], episodes: Episodes | PaperEpisodes) -> WeightShares:
    if isinstance(episodes, PaperEpisodes):
        return paper_weight_shares(heads, episodes)
    return weight_shares(heads, episodes)


def _look_closer(
    each: _Evaluated, episodes: Episodes | PaperEpisodes, model: str, found: Mapping[str, Tensor]
) -> None:
    """Weight shares of the heads and projections of the embeddings."""
    heads = dict(list(found.items())[:-1])
    if len(heads) > 1:
        each.shares[model] = _shares(heads, episodes)
    names = each.data.label_names()
    for embedding, values in found.items():
        projection = project(each.of_clips(values), names, data=each.data.name, model=model, embedding=embedding)
        each.projections.append(projection)


# Comparison


def paired_differences(accuracies: Mapping[str, Tensor]) -> list[Difference]:
    """Difference in accuracy between each model and each one before it, over the same episodes.

    Args:
        accuracies: (E,) accuracies of each model, episodes in the same order.
    """
    names = list(accuracies)
    return [
        Difference(name, other, *mean_and_interval(accuracies[name].double() - accuracies[other].double()))
        for place, name in enumerate(names)
        for other in names[:place]
    ]


def average_ranks(accuracies: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean over data sets of each model's rank by accuracy, best first; ties share the mean of their ranks.

    Args:
        accuracies: For each data set, (E,) accuracies of each model. The models are the same.
    """
    if not accuracies:
        return {}
    names = list(accuracies[0])
    means = np.array([[float(found[name].double().mean()) for name in names] for found in accuracies], np.float32)
    ranks = rankdata(-means, axis=1).mean(0)  # (models,)
    return dict(sorted(zip(names, ranks.tolist()), key=lambda pair: pair[1]))


__all__ = ["average_ranks", "evaluate", "paired_differences"]
