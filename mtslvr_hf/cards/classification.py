"""Model cards of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from .parts import eval_result, fill_template, is_hub_name, library_versions, public_name

if TYPE_CHECKING:
    from ..configuration_mtslvr import MTSLVRConfig

METHODS = {
    "linear_probe": "a linear classifier on the frozen embeddings",
    "adapters": "adapters of a new task, and a linear classifier on its embedding; the rest is frozen",
    "everything": "all parameters",
}
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "F1, averaged over classes",
    "map": "average precision, averaged over classes (mAP)",
}


@dataclass(frozen=True, kw_only=True)
class ClassifierSummary:
    """Summary of a classifier's training, for its card. Of folders, the card has only the last part."""

    base_model: str  # folder or name on the Hub
    method: str  # "linear_probe", "adapters" or "everything"
    dataset: str  # folder or name on the Hub
    train_clips: int
    eval_clips: int
    split: str  # choice of the evaluation clips, in words
    class_weights: str  # "none" or "balanced"
    epochs: float
    batch_size: int  # clips per step, over all processes
    learning_rate: float  # peak
    seed: int  # of initialization and order
    license: str | None = None  # of the weights, as the Hub spells it
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the evaluation clips, by name
    versions: Mapping[str, str] = field(default_factory=library_versions)  # of libraries, by name


def create_classifier_card(
    config: MTSLVRConfig, summary: ClassifierSummary | None = None, repo_id: str | None = None
) -> ModelCard:
    """Model card of a classifier; `card.save(path)` writes it.

    Args:
        config: The model's configuration, with its classes.
        summary: Summary of the training; None omits it.
        repo_id: Name of the model on the Hub, now or later.
    """
    title = f"{config.num_labels} classes of sounds"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["mtslvr", "audio", "audio-classification"],
    )
    measured: list[tuple[str, str]] = []
    if summary is not None:
        dataset, base_model = public_name(summary.dataset), public_name(summary.base_model)
        title = f"{dataset}: {title}"
        values = {name: value for name, value in summary.metrics.items() if name in METRICS}
        measured = [(METRICS[name], f"{value:.4f}") for name, value in values.items()]
        results = [eval_result(dataset, summary.split, name, value) for name, value in values.items()]
        data.license = summary.license
        data.base_model = base_model if is_hub_name(summary.base_model) else None
        data.datasets = [dataset] if is_hub_name(summary.dataset) else None
        data.model_name, data.eval_results = title, results or None
    return fill_template(
        ModelCard,
        "classification",
        data,
        title=title,
        repo=repo_id or "NAME_OR_FOLDER_OF_THIS_MODEL",
        classes=_shown([label for _, label in sorted((config.id2label or {}).items())]),
        several=config.problem_type == "multi_label_classification",
        rows=_training_rows(summary) if summary else [],
        measured=measured,
        summary=summary,
        sampling_rate=config.sampling_rate,
    )


def _training_rows(summary: ClassifierSummary) -> list[tuple[str, object]]:
    return [
        ("Pre-trained model", public_name(summary.base_model)),
        ("Trained part", METHODS[summary.method]),
        ("Data", f"{public_name(summary.dataset)}, {summary.train_clips:,} clips"),
        ("Class weights", summary.class_weights),
        ("Epochs", f"{summary.epochs:g}"),
        ("Batch", f"{summary.batch_size} clips"),
        ("Learning rate", f"{summary.learning_rate:g}"),
        ("Seed", summary.seed),
    ]


def _shown(classes: Sequence[str], limit: int = 50) -> str:
    rest = len(classes) - limit
    return ", ".join(classes[:limit]) + (f" and {rest} more (`id2label` in config.json)" if rest > 0 else "")


__all__ = ["ClassifierSummary", "create_classifier_card"]
