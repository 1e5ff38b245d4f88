"""Model cards of pre-trained models: architecture, training (`TrainingSummary`) and results (`MeasuredResult`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from .parts import fill_template, is_hub_name, library_versions, public_name
from .results import MeasuredResult, results_section

if TYPE_CHECKING:
    from ..configuration_mtslvr import MTSLVRConfig

TAGS = ("mtslvr", "audio", "audio-embeddings", "self-supervised-learning")
METHOD_NAMES = {"simclr": "SimCLR", "simsiam": "SimSiam"}
PREDICTIVE_OBJECTIVES = {  # by `predictive_target`: what the encoder learns
    "labels": "recognize the applied augmentations",
    "parameters": "predict how the augmentation parameters of two views differ",
    "both": "recognize the applied augmentations and to predict how their parameters differ between two views",
}
FRONTEND_NAMES = {
    "mel_stft": "log-mel, and magnitude and phase of a complex mel STFT (three channels)",
    "mel": "log-mel spectrogram (one channel)",
    "waveform": "raw waveform (1-D convolutions)",
}

POOLING_NAMES = {
    "mean_max": "mean and maximum over frequency and time",
    "bands": "mean over time within {} bands of frequency",
}


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """Summary of a pre-training run, for its card, which omits fields that are None or empty."""

    dataset: str | None = None  # name on the Hub, or a local path, of which only the last part is published
    dataset_config: str | None = None
    dataset_split: str | None = None
    steps: int | None = None
    batch_size: int | None = None  # clips per optimizer step, over all processes and accumulated batches
    learning_rate: float | None = None  # peak
    weight_decay: float | None = None
    optimizer: str | None = None
    lr_scheduler: str | None = None
    clips_seen: int | None = None  # repetitions counted
    clips_skipped: int | None = None  # clips that could not be used
    clip_seconds: float | None = None
    normalization: str | None = None  # "global", "sample" or "none"
    views: str | None = None  # in words: "two random crops of a clip, 1 to 3 of 7 augmentations"
    num_processes: int | None = None
    precision: str | None = None  # of the forward pass: "float32", "bf16"
    device: str | None = None  # "2 CPU cores"
    training_seconds: float | None = None
    seed: int | None = None  # of data order, augmentations and initialization
    metrics: Mapping[str, float] = field(default_factory=dict)  # last logged values: {"eval_loss": 3.21}
    versions: Mapping[str, str] = field(default_factory=library_versions)  # of libraries, by name


def create_model_card(
    config: MTSLVRConfig,
    training: TrainingSummary | None = None,
    results: Sequence[MeasuredResult] = (),
    *,
    model_name: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    command: str | None = None,
    paper: str = "",
) -> ModelCard:
    """Model card of a checkpoint; `card.save(path)` writes it, `card.push_to_hub(repo_id)` publishes it.

    Args:
        config: The checkpoint's configuration, for the architecture.
        training: Summary of the training run; None omits it.
        results: Measured results, also for the metadata.
        model_name: Title of the card; default: the variant's name in the paper.
        repo_id: Name of the checkpoint on the Hub, now or later, for the code that loads it.
        license: License of the weights, as the Hub spells it; None states none.
        command: Command that trains the model, if it is not trained yet: `training` then holds its settings.
        paper: Section of the paper's figures; they are no results of the checkpoint, so not in the metadata.
    """
    title = model_name or variant_name(config)
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, *config.tasks, *(["adapters"] if config.adapter_type != "none" else [])],
        datasets=[training.dataset] if training and training.dataset and is_hub_name(training.dataset) else None,
        metrics=sorted({result.metric for result in results}) or None,
        model_name=title,
        eval_results=[result.metadata() for result in results] or None,
    )
    return fill_template(
        ModelCard,
        "pretraining",
        data,
        title=title,
        repo=repo_id or "NAME_OR_FOLDER_OF_THIS_MODEL",
        architecture=_architecture(config),
        outputs=_outputs(config),
        tasks=config.tasks,
        predictive_objective=PREDICTIVE_OBJECTIVES[config.predictive_target],
        window_seconds=config.window_seconds,
        sampling_rate=config.sampling_rate,
        command=command,
        training=_training_rows(training),
        metrics=[(f"`{name}`", f"{value:.4g}") for name, value in training.metrics.items()] if training else [],
        versions=training.versions if training else {},
        results=results_section(results) if results else "",
        paper=paper,
    )


def variant_name(config: MTSLVRConfig) -> str:
    """Name of the variant in the paper's tables (`"MT-Parallel (SimCLR)"`), or the nearest description."""
    method = METHOD_NAMES[config.contrastive_method]
    adapter = config.adapter_type
    if len(config.tasks) == 1:
        name = "Cont Only" if config.tasks[0] == "contrastive" else "Pred Only"
        name += "" if adapter == "none" else f" with {adapter} adapters"
    elif adapter == "none":
        name = "MT-Simple" if config.shared_head else "MT-Split"
    else:
        name = f"MT-{adapter.capitalize()}"
    return f"{name} ({method})" if "contrastive" in config.tasks else name


def _architecture(config: MTSLVRConfig) -> list[tuple[str, str]]:
    """Rows of the card's table of the architecture: names and values."""
    heads = f"one per task, {config.head_size} each" if len(config.tasks) > 1 else f"one, {config.head_size}"
    if config.shared_head:
        heads = f"one for all tasks, {config.head_size}"
    if not config.use_heads:
        heads = f"none: the embedding of a task is its pooled feature map, {config.head_size}"
    adapters = config.adapter_type
    if adapters != "none":
        adapters += ", one set per task in layer2 to layer4"
    rows = [
        ("Variant", variant_name(config)),
        ("Encoder", f"ResNet-{config.depth}, base width {config.base_width}"),
        ("Adapters", adapters),
        ("Tasks", ", ".join(config.tasks)),
        *([] if config.pooling == "mean" else [("Pooling", POOLING_NAMES[config.pooling].format(config.num_bands))]),
        ("Heads", heads),
        ("Input", FRONTEND_NAMES[config.frontend]),
    ]
    if config.frontend != "waveform":
        spectrogram = f"{config.num_mel_bins} mel bands, n_fft {config.n_fft}, hop {config.hop_length} samples"
        rows.append(("Spectrogram", spectrogram + (", standardized" if config.normalize_spectrogram else "")))
    rows.append(("Audio", f"mono, {config.sampling_rate} Hz, windows of {config.window_seconds:g} s"))
    if "contrastive" in config.tasks:
        method = METHOD_NAMES[config.contrastive_method]
        if config.contrastive_method == "simclr":
            method += f", temperature {config.temperature:g}"
        rows.append(("Contrastive objective", method))
    if "predictive" in config.tasks:
        texts = []
        if config.predictive_target != "parameters":
            texts.append(f"recognition of the applied augmentations: {', '.join(config.augmentations)}")
        if config.parameter_targets:
            texts.append(f"differences of the two views' parameters: {', '.join(config.parameter_targets)}")
        rows.append(("Predictive objective", "; ".join(texts)))
    if len(config.tasks) > 1:
        rows.append(("Loss", f"contrastive + {config.predictive_weight:g} x predictive"))
    return rows


def _outputs(config: MTSLVRConfig) -> list[tuple[str, int]]:
    """Outputs of the model for a clip, with their sizes, for the card's example."""
    parts = [(f"{task}_embeds", config.head_size) for task in config.tasks]
    return [("pooler_output", config.embedding_size_of()), *parts]


def _training_rows(training: TrainingSummary | None) -> list[tuple[str, str]]:
    """Rows of the training table, without unknown values."""
    if training is None:
        return []
    rows = [
        ("Data", _dataset_text(training)),
        ("Waveform normalization", training.normalization),
        ("Clip length", _number(training.clip_seconds, " s")),
        ("Views", training.views),
        ("Steps", _number(training.steps)),
        ("Batch", _number(training.batch_size, " clips")),
        ("Clips seen", _clips_text(training)),
        ("Clips skipped", _number(training.clips_skipped)),
        ("Optimizer", training.optimizer),
        ("Learning rate", _number(training.learning_rate)),
        ("Learning-rate schedule", training.lr_scheduler),
        ("Weight decay", _number(training.weight_decay)),
        ("Precision", training.precision),
        ("Processes", _number(training.num_processes)),
        ("Device", training.device),
        ("Duration", _duration_text(training.training_seconds)),
        ("Seed", None if training.seed is None else str(training.seed)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _dataset_text(training: TrainingSummary) -> str | None:
    if training.dataset is None:
        return None
    name = public_name(training.dataset) + ("" if is_hub_name(training.dataset) else " (local)")
    parts = {"configuration": training.dataset_config, "split": training.dataset_split}
    return ", ".join([name, *(f"{part} `{value}`" for part, value in parts.items() if value)])


def _clips_text(training: TrainingSummary) -> str | None:
    if training.clips_seen is None or training.clip_seconds is None:
        return _number(training.clips_seen)
    hours = training.clips_seen * training.clip_seconds / 3600
    return f"{training.clips_seen:,} ({hours:,.1f} hours, repetitions counted)"


def _duration_text(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _number(value: float | None, unit: str = "") -> str | None:
    if value is None:
        return None
    return (f"{value:,}" if isinstance(value, int) else f"{value:g}") + unit


__all__ = ["TrainingSummary", "create_model_card", "variant_name"]
