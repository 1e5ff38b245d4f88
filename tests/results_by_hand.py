"""An evaluation's results, made without an evaluation."""

from mtslvr_hf.evaluation.few_shot.weight_shares import WeightShares
from mtslvr_hf.evaluation.invariance import Displacement, InvarianceReport, Readability
from mtslvr_hf.evaluation.probes import ProbeResult
from mtslvr_hf.evaluation.projection import Projection
from mtslvr_hf.evaluation.report.results import DataResult, Difference, EvaluationReport, FewShotProtocol, Row

STRENGTHS = (0.5, 1.0)


def invariance(embeddings: tuple[str, ...] = ("contrastive", "predictive")) -> InvarianceReport:
    """Two augmentations; what is measured falls with the place of the embedding."""
    displacements, readabilities = [], []
    for name, parameter in (("pitch_shift", "semitones"), ("white_noise", "snr_db")):
        for place, embedding in enumerate(embeddings):
            values = (0.8 - 0.3 * place, 0.4 + 0.3 * place, 0.9 - 0.2 * place)
            displacements += [Displacement(name, strength, embedding, 12.5, *values) for strength in STRENGTHS]
            readabilities.append(Readability(name, embedding, 0.75, parameter, 0.5 - 0.2 * place))
    return InvarianceReport(tuple(displacements), tuple(readabilities), clips=40, seed=3)


def data_result(
    data: str = "drums", model: str = "a model", classes: tuple[str, ...] = ("kick", "snare")
) -> DataResult:
    """A baseline and a model of two heads."""
    probe = ProbeResult("linear", "accuracy", 0.8, (0.7, 0.9), "C = 1, the best of 0.1, 1", 70, 30)
    heads = ("contrastive", "predictive", "both")
    shares = {"contrastive": 0.7, "predictive": 0.3}
    points = [(0.1 * place, (-1.0) ** place) for place in range(6)]
    labels = [classes[place % len(classes)] for place in range(6)]
    return DataResult(
        data=data,
        source=f"the folder {data}",
        note="a part of the paper's",
        classes=list(classes),
        clips=1234,
        group_disjoint=True,
        episodes_sha256="0123456789abcdef" * 4,
        left_out={"clap": "1 clip, expected 6"},
        rows=[
            Row("log-mel statistics", "", 20, 0.312, 0.004, True),
            *(Row(model, head, 50, 0.4 + 0.1 * n, 0.005, head == "both", [probe]) for n, head in enumerate(heads)),
        ],
        differences=[Difference(model, "log-mel statistics", 0.288, 0.006)],
        weight_shares={model: WeightShares(shares, dict.fromkeys(shares, 0.01), dict.fromkeys(shares, 25), 2000)},
        projections=[Projection(data, model, head, "two principal components", points, labels) for head in heads],
    )


def evaluation(
    *results: DataResult, model: str = "a model", missing: dict[str, str] | None = None
) -> EvaluationReport:
    """A report of these data sets, or of one."""
    return EvaluationReport(
        protocol=FewShotProtocol(episodes=2000, seed=7),
        classifier="logistic",
        results=list(results) or [data_result(model=model)],
        average_ranks={model: 1.0, "log-mel statistics": 2.0},
        missing=dict(missing or {}),
        invariance={model: invariance()},
        invariance_data="drums",
    )
