"""How good embeddings are: few-shot tasks over folders of labelled audio, and what they are compared with."""

from .baselines import log_mel_statistics, read_audio
from .class_lists import read_class_list
from .episodes import Episodes, sample_episodes
from .fewshot import CLASSIFIERS, FewShotResult, few_shot_accuracy, mean_and_interval, score_episodes, standardized
from .folders import LabelledClips, read_labelled_folder
from .labelled_embeddings import LabelledEmbeddings, read_labelled_embeddings
from .report import EvaluationReport, EvaluationRow, FewShotTask, evaluate_few_shot
from .solvers import logistic_regression, nearest_centroid

__all__ = [
    "CLASSIFIERS",
    "Episodes",
    "EvaluationReport",
    "EvaluationRow",
    "FewShotResult",
    "FewShotTask",
    "LabelledClips",
    "LabelledEmbeddings",
    "evaluate_few_shot",
    "few_shot_accuracy",
    "log_mel_statistics",
    "logistic_regression",
    "mean_and_interval",
    "nearest_centroid",
    "read_audio",
    "read_class_list",
    "read_labelled_embeddings",
    "read_labelled_folder",
    "sample_episodes",
    "score_episodes",
    "standardized",
]
