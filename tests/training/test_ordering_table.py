"""The tables of docs/results.md from an evaluation whose figures are known."""

import sys
from pathlib import Path

import pytest
from markdown_rows import unpadded

from mtslvr_hf.evaluation import (
    DataResult,
    Difference,
    EvaluationReport,
    FewShotProtocol,
    Row,
    WeightShares,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import ordering_table

UNTRAINED = "untrained network of runs/mt_parallel_simclr_0"


def row(model, accuracy, embedding="contrastive", main=True):
    return Row(model, embedding, 10, accuracy, 0.01, main)


def result(name, values, **more):
    rows = [row("log-mel statistics", 0.3, ""), row(UNTRAINED, 0.2, "both"), row("untrained network", 0.1)]
    rows += [row(f"runs/{run}", value) for run, value in values.items()]
    rows += [row("runs/mt_parallel_simclr_0", 0.35, "predictive", main=False)]
    return DataResult(name, f"the folder {name}", "", ["a", "b"], 20, False, "ab" * 32, {}, rows, **more)


@pytest.fixture
def report():
    first = {"pred_only_0": 0.4, "cont_only_simclr_0": 0.5, "cont_only_simclr_1": 0.6}
    drums = result(
        "drums",
        first | {"mt_parallel_simclr_0": 0.7, "mt_parallel_simclr_1": 0.9, "mt_simple_simsiam_0": 0.1},
        differences=[
            Difference("runs/mt_parallel_simclr_0", "runs/cont_only_simclr_0", 0.2, 0.004),
            Difference("runs/cont_only_simclr_1", "runs/mt_parallel_simclr_1", -0.3, 0.005),
            Difference("runs/mt_parallel_simclr_0", "runs/cont_only_simclr_1", 0.1, 0.004),  # of another seed
            Difference("runs/mt_parallel_simclr_0", UNTRAINED, 0.5, 0.004),
        ],
        weight_shares={
            "runs/mt_parallel_simclr_0": WeightShares(
                {"contrastive": 0.6, "predictive": 0.4}, {"contrastive": 0.002, "predictive": 0.002}, {}, 100
            )
        },
    )
    birds = result(
        "birds", first | {"mt_parallel_simclr_0": 0.5, "mt_parallel_simclr_1": 0.5, "mt_simple_simsiam_0": 0.2}
    )
    return EvaluationReport(FewShotProtocol(), "logistic", [drums, birds], {})


def cells(report):
    """The first table's rows by name."""
    text = ordering_table.to_markdown(report)
    table = next(block for block in text.split("\n\n") if block.startswith("|"))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["", "embedding", "networks", "drums", "birds", "mean", "average rank"]
    return {line[0]: line[1:] for line in lines[2:]}


def test_seeds_are_averaged_and_their_range_is_shown(report):
    found = cells(report)
    assert found["Cont Only, SimCLR"][1:4] == ["2", "55.0 ± 1.0 (50.0 to 60.0)", "55.0 ± 1.0 (50.0 to 60.0)"]
    assert found["Pred Only"] == ["contrastive", "1", "40.0 ± 1.0", "40.0 ± 1.0", "40.0", "3.00"]
    assert found["MT-Parallel, SimCLR"][4] == "65.0"


def test_ranks_are_among_the_papers_rows(report):
    found = cells(report)
    ranks = {name: line[-1] for name, line in found.items()}
    assert ranks == {
        "log-mel statistics": "",
        "untrained networks": "",
        "Pred Only": "3.00",
        "Cont Only, SimCLR": "1.50",
        "MT-Parallel, SimCLR": "1.50",
        "MT-Simple, SimSiam": "4.00",
    }
    assert list(found)[:2] == ["log-mel statistics", "untrained networks"]


def test_untrained_networks_are_one_row_and_no_runs(report):
    assert cells(report)["untrained networks"][1:3] == ["2", "15.0 ± 1.0 (10.0 to 20.0)"]
    assert ordering_table.split_name("outputs/mt_simple_simclr_2") == ("mt_simple_simclr", 2)
    assert ordering_table.split_name("outputs/pred_only_0") == ("pred_only", 0)
    for name in (
        UNTRAINED,
        "untrained network",
        "log-mel statistics",
        "outputs/my-model",
        "outputs/mt_parallel_simclr",
    ):
        assert ordering_table.split_name(name) is None


def test_heads_differences_and_shares(report):
    text = unpadded(ordering_table.to_markdown(report))
    heads = text.split("### Each head alone")[1].split("###")[0]
    assert "| MT-Parallel, SimCLR | predictive | 1 | 35.0 ± 1.0 |" in heads
    assert "Cont Only" not in heads
    assert "| MT-Parallel, SimCLR less Cont Only, SimCLR | drums | +20.0 ± 0.4; +30.0 ± 0.5 |" in text
    assert text.count(" less Cont Only") == 1
    assert "| MT-Parallel, SimCLR | 0 | 60.0 ± 0.2 | |" in text
