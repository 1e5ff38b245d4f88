"""Few-shot accuracy of models beside that of what they must beat, as one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig, PreTrainedModel

from ..encoding import encode
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from .baselines import log_mel_statistics
from .embedding_cache import cached_embeddings
from .episodes import Episodes, sample_episodes
from .fewshot import CLASSIFIERS, mean_and_interval, score_episodes
from .folders import LabelledClips, read_labelled_folder

_CLASSIFIER_WORDS = {
    "centroid": "nearest centroid by cosine similarity",
    "logistic": "multinomial logistic regression (L2, C = 1, free intercepts) on embeddings of length 1",
}
# What differs between configurations of one and the same network.
_NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class FewShotTask:
    """How few-shot tasks are drawn; the words are those of `sample_episodes`."""

    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 10_000
    seed: int = 0
    group_disjoint: bool = False


@dataclass(frozen=True)
class EvaluationRow:
    """One embedding's result.

    Attributes:
        model: where the model came from, or what the baseline is.
        embedding: "contrastive", "predictive" or "both"; empty for a baseline that has only one.
        size: the embedding's size D.
        accuracy: mean over tasks, 0 to 1.
        interval: half width of its 95 % interval.
    """

    model: str
    embedding: str
    size: int
    accuracy: float
    interval: float


@dataclass(frozen=True)
class EvaluationReport:
    """All rows of an evaluation, all of them scored on the same tasks.

    Attributes:
        data: the folder evaluated on.
        classes: the classes that tasks were drawn from.
        clips: number of clips of those classes.
        task: how the tasks were drawn.
        classifier: "centroid" or "logistic".
        episodes_sha256: digest of the task list, as indices of all clips of the classes asked for.
        left_out: classes too small for the tasks, each with the reason.
        rows: a result per embedding, the baselines first.
    """

    data: str
    classes: list[str]
    clips: int
    task: FewShotTask
    classifier: str
    episodes_sha256: str
    left_out: dict[str, str]
    rows: list[EvaluationRow]

    def to_markdown(self) -> str:
        """The table, with the protocol above it."""
        cells = [("model", "embedding", "size", "accuracy %")]
        for row in self.rows:
            accuracy = f"{100 * row.accuracy:.1f} ± {100 * row.interval:.1f}"
            cells.append((row.model, row.embedding, str(row.size), accuracy))
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
        lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
        return "\n".join([self.protocol(), "", *lines])

    def protocol(self) -> str:
        """What was measured, how and on what, in a few sentences."""
        task = self.task
        sentences = [
            f"{task.ways}-way {task.shots}-shot accuracy on {self.data}: {self.clips} clips of {len(self.classes)} "
            f"classes, {task.tasks:,} tasks of {task.queries} queries a class, seed {task.seed}, mean and 95 % "
            f"interval over tasks; chance is {100 / task.ways:.1f} %. Task list {self.episodes_sha256[:12]}.",
            "Every row: dimensions standardised over all these clips without their labels, then "
            f"{_CLASSIFIER_WORDS[self.classifier]}.",
            f"The untrained network has the weights of seed {task.seed}; another seed's may differ by more than the "
            "interval.",
        ]
        if task.group_disjoint:
            sentences.append("A task's queries come from other groups than its support.")
        if self.left_out:
            sentences.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in self.left_out.items()) + ".")
        return "\n".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def evaluate_few_shot(
    models: Sequence[str | Path],
    data: str | Path,
    classes: Sequence[str] | None = None,
    task: FewShotTask | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    show_progress: bool = True,
    classifier: str = "centroid",
    cache: str | Path | None = None,
) -> EvaluationReport:
    """Few-shot accuracy of log-mel statistics, of untrained networks and of each model, on the same tasks.

    The untrained network of a model's configuration has the weights that seed `task.seed` gives and BatchNorm
    statistics of 0 and 1; models of one architecture share that row.

    Args:
        models: folders or Hub names of MT-SLVR models.
        data: a folder with a folder of audio files per class.
        classes: the classes to use; all if None.
        task: how tasks are drawn.
        device: where the models run.
        batch_size: windows embedded at once.
        show_progress: whether to show progress bars on standard error.
        classifier: "centroid" or "logistic", see `score_episodes`.
        cache: a folder to keep the models' embeddings in, and to take them from, see `cached_embeddings`.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when the data do not allow such tasks, a file is not audio, or a model is not an MT-SLVR model.
        OSError: when a model cannot be found or loaded.
    """
    if classifier not in CLASSIFIERS:  # before anything is embedded
        raise ValueError(f"classifier is {classifier!r}; expected one of {', '.join(CLASSIFIERS)}")
    task = task or FewShotTask()
    clips = read_labelled_folder(data, classes, with_groups=task.group_disjoint)
    episodes = sample_episodes(clips.labels, task.ways, task.shots, task.queries, task.tasks, task.seed, clips.groups)
    configs = [_load_config(model) for model in models]
    digest = episodes.sha256
    clips, episodes = _without_unused(clips, episodes)

    row = partial(_row, episodes=episodes, classifier=classifier)
    rows = [row("log-mel statistics", "", log_mel_statistics(clips.files, show_progress))]
    embed = partial(_embeddings, files=clips.files, batch_size=batch_size, show_progress=show_progress, cache=cache)
    seen: list[dict[str, Any]] = []
    for source, config in zip(models, configs):
        extractor = AutoFeatureExtractor.from_pretrained(source)
        architecture = {name: value for name, value in config.to_dict().items() if name not in _NOT_ARCHITECTURE}
        if architecture not in seen:
            seen.append(architecture)
            name = "untrained network" if len(seen) == 1 else f"untrained network of {source}"
            embedding, values = list(embed(_untrained(config, task.seed).to(device), extractor).items())[-1]
            rows.append(row(name, embedding, values))
        embeddings = embed(AutoModel.from_pretrained(source).to(device), extractor)
        rows += [row(str(source), embedding, values) for embedding, values in embeddings.items()]
    used = sorted(set(clips.labels))
    return EvaluationReport(str(data), used, len(clips), task, classifier, digest, dict(episodes.left_out), rows)


def _embeddings(
    model: PreTrainedModel,
    extractor: MTSLVRFeatureExtractor,
    files: Sequence[str | Path],
    batch_size: int,
    show_progress: bool,
    cache: str | Path | None,
) -> dict[str, torch.Tensor]:
    """Each task's embeddings (files, head size), and all of them concatenated (files, D) as `both`, or `all` of three.

    Tasks that share head and adapters have one embedding between them, and one entry.
    """
    config = model.config
    compute = partial(
        encode,
        model,
        files,
        feature_extractor=extractor,
        batch_size=batch_size,
        convert_to="torch",
        show_progress_bar=show_progress,
    )
    embeddings = compute() if cache is None else cached_embeddings(cache, model, extractor, files, compute)
    parts: dict[str, list[str]] = {}  # in the embedding's order, with the tasks that each belongs to
    for task in config.embedding_tasks:
        parts.setdefault(config.embedding_parts[task], []).append(task)
    names = [tasks[0] if len(tasks) == 1 else "both" for tasks in parts.values()]
    named = dict(zip(names, embeddings.split(config.head_size, dim=1)))
    if len(parts) > 1:
        named["both" if len(config.embedding_tasks) == 2 else "all"] = embeddings
    return named


def _row(model: str, embedding: str, values: torch.Tensor, episodes: Episodes, classifier: str) -> EvaluationRow:
    accuracies = score_episodes(values, episodes, classifier=classifier)
    return EvaluationRow(model, embedding, values.shape[1], *mean_and_interval(accuracies))


def _without_unused(clips: LabelledClips, episodes: Episodes) -> tuple[LabelledClips, Episodes]:
    """Drops the clips of classes that no task is drawn from, so that they do not enter the standardisation."""
    kept = [index for index, label in enumerate(clips.labels) if label not in episodes.left_out]
    place = torch.full((len(clips),), -1)
    place[kept] = torch.arange(len(kept))
    groups = None if clips.groups is None else [clips.groups[index] for index in kept]
    remaining = LabelledClips([clips.files[index] for index in kept], [clips.labels[index] for index in kept], groups)
    return remaining, Episodes(place[episodes.support], place[episodes.query], episodes.left_out)


def _load_config(source: str | Path) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(source)
    if config.model_type != "mtslvr":
        raise ValueError(f"{source} is a model of type {config.model_type}; expected an MT-SLVR model (type mtslvr)")
    return config


def _untrained(config: PreTrainedConfig, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config).eval()


__all__ = ["EvaluationReport", "EvaluationRow", "FewShotTask", "evaluate_few_shot"]
