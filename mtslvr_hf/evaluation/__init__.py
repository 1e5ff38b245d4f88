"""How good embeddings are: few-shot tasks over folders of labelled audio, and what they are compared with."""

from .baselines import log_mel_statistics, read_audio
from .fewshot import (
    Episodes,
    FewShotResult,
    few_shot_accuracy,
    mean_and_interval,
    nearest_centroid,
    sample_episodes,
    score_episodes,
    standardized,
)
from .folders import LabelledClips, read_labelled_folder
from .report import EvaluationReport, EvaluationRow, FewShotTask, evaluate_few_shot

__all__ = [
    "Episodes",
    "EvaluationReport",
    "EvaluationRow",
    "FewShotResult",
    "FewShotTask",
    "LabelledClips",
    "evaluate_few_shot",
    "few_shot_accuracy",
    "log_mel_statistics",
    "mean_and_interval",
    "nearest_centroid",
    "read_audio",
    "read_labelled_folder",
    "sample_episodes",
    "score_episodes",
    "standardized",
]
