"""Sound classification: labelled clips, metrics, training, and the pipeline for predictions."""

from ..data.splits import divide, make_folds
from ..pipeline_mtslvr import MTSLVRAudioClassificationPipeline
from .clips import ClipCollator, ClipDataset, EmbeddedClips, SetEpoch, drop_bad_clips, embed_clips
from .metrics import WeightedLoss, balanced_weights, multi_label_metrics, single_label_metrics
from .trainers import ClassificationTrainer, LinearProbeTrainer

__all__ = [
    "ClassificationTrainer",
    "ClipCollator",
    "ClipDataset",
    "EmbeddedClips",
    "LinearProbeTrainer",
    "MTSLVRAudioClassificationPipeline",
    "SetEpoch",
    "WeightedLoss",
    "balanced_weights",
    "divide",
    "drop_bad_clips",
    "embed_clips",
    "make_folds",
    "multi_label_metrics",
    "single_label_metrics",
]
