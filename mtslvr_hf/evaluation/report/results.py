"""Results of an evaluation: plain data for Markdown, JSON and HTML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..few_shot.weight_shares import WeightShares
from ..invariance import InvarianceReport
from ..probes import ProbeResult
from ..projection import Projection


@dataclass(frozen=True)
class FewShotProtocol:
    """Protocol of few-shot episodes; see `sample_episodes`.

    Attributes:
        group_disjoint: None for what each data set asks for by itself.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 5
    episodes: int = 10_000
    seed: int = 0
    group_disjoint: bool | None = None


@dataclass(frozen=True)
class Row:
    """An embedding's accuracy over the episodes of one data set.

    Attributes:
        model: name of the model or of the baseline.
        embedding: "contrastive", "predictive" or "both"; empty for what has only one.
        size: the embedding's size D.
        accuracy: mean over episodes, 0 to 1; None where clips have several classes, so that there are no episodes.
        interval: half width of its 95 % interval, or None.
        main: whether this embedding stands for its model in ranks and differences.
        probes: what linear probe and nearest neighbors reach on a part of the data set, if they were asked for.
    """

    model: str
    embedding: str
    size: int
    accuracy: float | None
    interval: float | None
    main: bool
    probes: list[ProbeResult] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """Accuracy of `model` less that of `other`, episode by episode on the same episodes.

    Attributes:
        difference: mean over episodes, -1 to 1.
        interval: half width of its 95 % interval, from the deviation of the episodes' differences.
    """

    model: str
    other: str
    difference: float
    interval: float


@dataclass(frozen=True)
class DataResult:
    """Results on one data set.

    Attributes:
        data: its name.
        source: where it came from.
        note: how it differs from the paper's set of that name; empty if it does not.
        classes: the classes that episodes were drawn from.
        clips: number of clips of these classes.
        group_disjoint: whether support and query of an episode share no group.
        episodes_sha256: digest of the episode list; empty where there are no episodes.
        left_out: classes too small for the episodes, each with the reason.
        bad_clips: what is wrong with each clip that could not be decoded; no model was given those.
        rows: a result per embedding, the baselines first.
        differences: of each model from each one before it, by their main embeddings.
        weight_shares: of the heads of each model that has several, by its name.
        projections: of each embedding of each model.
    """

    data: str
    source: str
    note: str
    classes: list[str]
    clips: int
    group_disjoint: bool
    episodes_sha256: str
    left_out: dict[str, str]
    rows: list[Row]
    bad_clips: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    weight_shares: dict[str, WeightShares] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationReport:
    """All results of an evaluation.

    Attributes:
        protocol: how episodes were drawn.
        classifier: "centroid" or "logistic".
        results: one for each data set.
        average_ranks: mean over the data sets of each model's rank by its main embedding, 1 being the best; ties share
            the mean of their ranks. In ascending order.
        missing: data sets that could not be reached, each with the reason.
        invariance: what each augmentation does to each model's embeddings, by the model's name.
        invariance_data: the data sets whose clips that was measured on.
    """

    protocol: FewShotProtocol
    classifier: str
    results: list[DataResult]
    average_ranks: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    invariance: dict[str, InvarianceReport] = field(default_factory=dict)
    invariance_data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


__all__ = ["DataResult", "Difference", "EvaluationReport", "FewShotProtocol", "Row"]
