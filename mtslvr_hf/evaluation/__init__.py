"""How good embeddings are: few-shot episodes over folders of labelled audio, and what they are compared with."""

from ..metrics import mean_average_precision
from .data import DataNotReachable, EvaluationData, open_data
from .embedders.base import Embedder, MTSLVREmbedder, load_embedder, untrained
from .embedders.log_mel import LogMelStatistics
from .evaluate import average_ranks, evaluate, paired_differences
from .few_shot.accuracy import (
    CLASSIFIERS,
    FewShotResult,
    few_shot_accuracy,
    mean_and_interval,
    score_episodes,
    standardized,
)
from .few_shot.episodes import Episodes, sample_episodes
from .few_shot.solvers import logistic_regression, logistic_regression_duals, nearest_centroid
from .few_shot.weight_shares import WeightShares, weight_shares
from .invariance import InvarianceReport, measure_invariance
from .labelled_embeddings import LabelledEmbeddings, read_labelled_embeddings
from .probes import ProbeResult, knn_probe, linear_probe, probe, split
from .projection import Projection, project
from .registry import BENCHMARKS, SUITES, Benchmark, read_class_list
from .report.files import write_report
from .report.html import to_html
from .report.markdown import to_markdown
from .report.plots import heat_map
from .report.results import DataResult, Difference, EvaluationReport, FewShotProtocol, Row

__all__ = [
    "BENCHMARKS",
    "CLASSIFIERS",
    "SUITES",
    "Benchmark",
    "DataNotReachable",
    "DataResult",
    "Difference",
    "Embedder",
    "Episodes",
    "EvaluationData",
    "EvaluationReport",
    "FewShotProtocol",
    "FewShotResult",
    "InvarianceReport",
    "LabelledEmbeddings",
    "LogMelStatistics",
    "MTSLVREmbedder",
    "ProbeResult",
    "Projection",
    "Row",
    "WeightShares",
    "average_ranks",
    "evaluate",
    "few_shot_accuracy",
    "heat_map",
    "knn_probe",
    "linear_probe",
    "load_embedder",
    "logistic_regression",
    "logistic_regression_duals",
    "mean_and_interval",
    "mean_average_precision",
    "measure_invariance",
    "nearest_centroid",
    "open_data",
    "paired_differences",
    "probe",
    "project",
    "read_class_list",
    "read_labelled_embeddings",
    "sample_episodes",
    "score_episodes",
    "split",
    "standardized",
    "to_html",
    "to_markdown",
    "untrained",
    "weight_shares",
    "write_report",
]
