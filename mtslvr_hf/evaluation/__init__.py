"""Evaluation of embeddings on labelled audio: few-shot episodes, probes, invariance, and their report."""

from ..metrics import mean_average_precision
from .data import DataNotReachableError, EvaluationData, open_data, read_labelled_embeddings
from .embedders.base import MTSLVREmbedder
from .embedders.log_mel import LogMelStatistics
from .evaluate import average_ranks, evaluate, paired_differences
from .few_shot.accuracy import few_shot_accuracy, mean_and_interval, score_episodes, standardized
from .few_shot.episodes import Episodes, sample_episodes
from .few_shot.solvers import logistic_regression, nearest_centroid
from .few_shot.weight_shares import WeightShares
from .probes import probe, split
from .registry import BENCHMARKS, SUITES, read_class_list
from .report.card import update_card
from .report.files import read_report, write_report
from .report.html import to_html
from .report.markdown import to_markdown
from .report.results import DataResult, Difference, EvaluationReport, FewShotProtocol, PaperProtocol, Row

__all__ = [
    "BENCHMARKS",
    "SUITES",
    "DataNotReachableError",
    "DataResult",
    "Difference",
    "Episodes",
    "EvaluationData",
    "EvaluationReport",
    "FewShotProtocol",
    "LogMelStatistics",
    "MTSLVREmbedder",
    "PaperProtocol",
    "Row",
    "WeightShares",
    "average_ranks",
    "evaluate",
    "few_shot_accuracy",
    "logistic_regression",
    "mean_and_interval",
    "mean_average_precision",
    "nearest_centroid",
    "open_data",
    "paired_differences",
    "probe",
    "read_class_list",
    "read_labelled_embeddings",
    "read_report",
    "sample_episodes",
    "score_episodes",
    "split",
    "standardized",
    "to_html",
    "to_markdown",
    "update_card",
    "write_report",
]
