"""Results of an evaluation as plain data, for Markdown, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ..few_shot.weight_shares import WeightShares
from ..invariance import InvarianceReport
from ..probes import ProbeResult
from ..projection import Projection


@dataclass(frozen=True)
class FewShotProtocol:
    """Protocol of few-shot episodes, see `sample_episodes`; `group_disjoint=None` is the default of each data set."""

    ways: int = 5
    shots: int = 1
    queries: int = 5
    episodes: int = 10_000
    seed: int = 0
    group_disjoint: bool | None = None


@dataclass(frozen=True)
class PaperProtocol(FewShotProtocol):
    """Protocol of the paper: one query a class, pieces of clips, raw embeddings, SGD; see `score_paper_episodes`.

    `episodes`, `seed` and `group_disjoint` may differ from the paper's.

    Raises:
        ValueError: If `ways`, `shots` or `queries` differ from the paper's.

    Source: The authors' evaluation code, CHeggan/Few-Shot-Classification-for-Audio-Evaluation, of February 2023.
    """

    queries: int = 1
    group_disjoint: bool | None = False
    name: str = field(default="paper", init=False, repr=False)

    def __post_init__(self) -> None:
        for option, fixed in (("ways", 5), ("shots", 1), ("queries", 1)):
            if getattr(self, option) != fixed:
                raise ValueError(
                    f"the paper's protocol has {option} {fixed}; got {getattr(self, option)}: leave {option} out, or "
                    "use another protocol."
                )


@dataclass(frozen=True)
class Row:
    """Accuracy of an embedding of a model or baseline on one data set.

    Attributes:
        embedding: "contrastive", "predictive" or "both"; "" for a model with one embedding.
        size: Embedding size D.
        accuracy: Mean over episodes, 0 to 1; None without episodes (multi-label data).
        interval: Half width of its 95 % interval; None or NaN without episodes, or with a single one.
        main: True for the embedding in ranks and differences.
        keeps_scales: True if the model's configuration scales its heads, and standardization kept these scales.
    """

    model: str
    embedding: str
    size: int
    accuracy: float | None
    interval: float | None
    main: bool
    probes: list[ProbeResult] = field(default_factory=list)
    keeps_scales: bool = False


@dataclass(frozen=True)
class Difference:
    """Accuracy of `model` minus that of `other` on the same episodes.

    Attributes:
        difference: Mean over episodes, -1 to 1.
        interval: Half width of its 95 % interval, from the deviation of the differences.
    """

    model: str
    other: str
    difference: float
    interval: float


@dataclass(frozen=True)
class DataResult:
    """Results on one data set.

    Attributes:
        data, source, note: See `EvaluationData`.
        classes: Classes of the episodes.
        clips: Number of clips of these classes.
        group_disjoint: True if support and query of an episode share no group.
        episodes_sha256: Digest of the episodes; "" without episodes.
        left_out: Reason for each class without episodes.
        bad_clips: Error of each clip that was left out because it cannot be used.
        rows: One per embedding, baselines first.
        differences: Between the main embeddings of each model and each one before it.
        weight_shares: By model with several heads.
        pieces: Number of pieces of the clips in the paper's protocol, otherwise 0.
        silent_pieces: Number of their silent pieces, which are left out.
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
    pieces: int = 0
    silent_pieces: int = 0


@dataclass(frozen=True)
class EvaluatedModel:
    """Model of an evaluation: what a model card needs to know of it.

    Attributes:
        source: Folder or Hub name; the name of an embedder.
        untrained: Name of the untrained network of its architecture in the rows; "" without one.
        weights: Digest of the weights of an MT-SLVR model, see `MTSLVREmbedder.weights`; "" for other models.
        settings: Fields of an MT-SLVR model's configuration that its embedding depends on besides weights.
    """

    source: str
    untrained: str = ""
    weights: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationReport:
    """All results of an evaluation.

    Attributes:
        classifier: "centroid" or "logistic"; "sgd" in the paper's protocol.
        average_ranks: Mean over data sets of each model's rank by its main embedding, best (1) first; ties share the
            mean of their ranks.
        missing: Reason for each data set that could not be reached.
        invariance: By model, on clips of the data sets named in `invariance_data`.
        models: By name in the rows, without the baselines.
        date: Day of the evaluation (UTC), "2026-11-02".
        command: Command or call in Python that repeats the evaluation, with the last parts of local paths.
        versions: Versions of Python and of the packages that computed it.
    """

    protocol: FewShotProtocol
    classifier: str
    results: list[DataResult]
    average_ranks: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    invariance: dict[str, InvarianceReport] = field(default_factory=dict)
    invariance_data: str = ""
    models: dict[str, EvaluatedModel] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. (JSON has no NaN, the interval of a single episode: `write_report` writes null.)"""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvaluationReport:
        """Report of the plain values of `to_dict`; an AttributeError, KeyError or TypeError if they are others."""
        protocol = PaperProtocol if "name" in content["protocol"] else FewShotProtocol
        return _rebuilt(cls, {**content, "protocol": _rebuilt(protocol, content["protocol"])})


def _rebuilt(kind: Any, value: Any) -> Any:
    """Value of a type from its plain values; null is NaN where a number is expected."""
    if value is None and kind is float:
        return math.nan
    inner = get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and not is_dataclass(value):
        hints = get_type_hints(kind)
        derived = {each.name for each in fields(kind) if not each.init}
        return kind(**{name: _rebuilt(hints[name], each) for name, each in value.items() if name not in derived})
    if get_origin(kind) is list:
        return [_rebuilt(inner[0], each) for each in value]
    if get_origin(kind) is tuple:
        return tuple(_rebuilt(inner[0], each) for each in value)
    if get_origin(kind) is dict:
        return {name: _rebuilt(inner[1], each) for name, each in value.items()}
    return value


__all__ = [
    "DataResult",
    "Difference",
    "EvaluatedModel",
    "EvaluationReport",
    "FewShotProtocol",
    "PaperProtocol",
    "Row",
]
