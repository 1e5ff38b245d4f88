"""The demo: its sounds and its configuration fit together, and it shows what it is there to show."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtslvr_hf.evaluation import open_data
from mtslvr_hf.runs.pretraining_arguments import read_arguments

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo():
    specification = importlib.util.spec_from_file_location("demo_run", ROOT / "demo/run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_unseen_classes_allow_the_tasks_and_leave_classes_to_train_on(demo):
    unseen = demo.UNSEEN.split(",")
    labels = open_data(ROOT / demo.AUDIO).label_names()
    assert set(unseen) <= set(labels)
    assert len(unseen) >= 6
    assert len(set(labels) - set(unseen)) >= 6
    assert min(labels.count(name) for name in unseen) >= 1 + 5  # shots and queries


def test_every_clip_has_a_licence(demo):
    with (ROOT / demo.AUDIO / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        licences = {row["file"]: row["licence"] for row in csv.DictReader(lines)}
    audio = open_data(ROOT / demo.AUDIO).audio
    files = [Path(row["path"]).relative_to(ROOT / demo.AUDIO).as_posix() for row in audio]
    assert set(files) == set(licences)
    assert set(licences.values()) == {"CC0-1.0", "MIT"}


def test_configuration_reads_and_writes_where_the_demo_does(demo):
    values, *_ = read_arguments([str(ROOT / "demo/demo.yaml")])
    assert values["dataset_name"] == str(demo.OUTPUT / "parquet")
    assert values["output_dir"] == str(demo.OUTPUT / "model")
    assert values["adapter_type"] == "parallel"


@pytest.mark.slow
def test_trained_embedding_beats_the_untrained_network(demo):
    subprocess.run([sys.executable, ROOT / "demo/run.py"], check=True, timeout=1800)
    report = json.loads((ROOT / demo.OUTPUT / "evaluation" / "report.json").read_text())
    rows = {(row["model"], row["embedding"]): row for row in report["results"][0]["rows"]}
    untrained = rows["untrained network", "both"]
    for embedding in ("contrastive", "predictive", "both"):
        trained = rows[str(demo.OUTPUT / "model"), embedding]
        gain = trained["accuracy"] - untrained["accuracy"]
        assert gain > trained["interval"] + untrained["interval"], embedding
