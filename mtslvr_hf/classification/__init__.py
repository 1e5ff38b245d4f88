"""Classes of sounds: labelled audio, its division, measures, training on it, and the pipeline that predicts."""

from .clips import ClipCollator, ClipDataset, EmbeddedClips, SetEpoch, prepare
from .labelled_audio import LabelledAudio, from_dataset, load_labelled_audio
from .metrics import WeightedLoss, balanced_weights, multi_label_metrics, single_label_metrics
from .pipeline import MTSLVRAudioClassificationPipeline
from .splits import divide, make_folds
from .trainers import ClassificationTrainer, LinearProbeTrainer

__all__ = [
    "ClassificationTrainer",
    "ClipCollator",
    "ClipDataset",
    "EmbeddedClips",
    "LabelledAudio",
    "LinearProbeTrainer",
    "MTSLVRAudioClassificationPipeline",
    "SetEpoch",
    "WeightedLoss",
    "balanced_weights",
    "divide",
    "from_dataset",
    "load_labelled_audio",
    "make_folds",
    "multi_label_metrics",
    "prepare",
    "single_label_metrics",
]
