"""Results of an evaluation go from its report into the model's card."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from small_models import make_model

from mtslvr_cli import main
from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.cards.pretraining import create_model_card
from mtslvr_hf.cards.results import results_from


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with its card, and the report of its evaluation."""
    folder = tmp_path_factory.mktemp("made")
    model = make_model()
    model.save_pretrained(folder / "model")
    MTSLVRFeatureExtractor().save_pretrained(folder / "model")
    create_model_card(model.config).save(folder / "model/README.md")
    generator = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (folder / "sounds" / name).mkdir(parents=True)
        for clip in range(8):
            soundfile.write(folder / "sounds" / name / f"{clip}.wav", generator.uniform(-0.5, 0.5, 4000), 16_000)
    options = ["--ways=2", "--queries=2", "--episodes=50", "--seed=3", "--probe=knn"]
    places = ["--model", folder / "model", "--data", folder / "sounds", "--output", folder / "report"]
    assert main(["evaluate", *map(str, places), *options]) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of them; commands run in it."""
    shutil.copytree(made / "model", tmp_path / "model")
    text = (made / "report/report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace(str(made / "model"), "model"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder, edit):
    report = json.loads((folder / "report.json").read_text())
    edit(report)
    (folder / "report.json").write_text(json.dumps(report))


def rows_of(report, model="model"):
    return [row for row in report["results"][0]["rows"] if row["model"] == model]


def failure(capsys, *arguments) -> str:
    assert main(["card", *arguments]) == 1
    return capsys.readouterr().err


def test_results_of_a_report(folder):
    report = json.loads((folder / "report.json").read_text())
    results = results_from("report.json", folder / "model")
    assert [result.embedding for result in results] == [
        *("contrastive", "contrastive", "predictive", "predictive", "both", "both")
    ]
    for row, accuracy, probe in zip(rows_of(report), results[::2], results[1::2]):
        assert accuracy.value == pytest.approx(row["accuracy"], abs=1e-6)
        low, high = accuracy.interval
        assert (high - low) / 2 == pytest.approx(row["interval"], abs=1e-6)
        assert probe.value == pytest.approx(row["probes"][0]["value"], abs=1e-6)
        assert probe.interval == pytest.approx(row["probes"][0]["interval"], abs=1e-6)
        assert accuracy.protocol.startswith("2-way 1-shot, nearest centroid, 50 episodes of 2 queries a class (list ")
        assert accuracy.protocol.endswith("), 24 clips of 3 classes from the folder sounds")
        assert (accuracy.dataset, accuracy.seed) == ("sounds", 3)
        assert "nearest neighbors" in probe.protocol and "seed 3" in probe.protocol
        assert str(probe).count("seed 3") == 1


def test_a_data_set_on_the_hub_has_its_name_there(folder):
    change(folder, lambda report: report["results"][0].update(source="mteb/esc50 (split train)"))
    assert {result.dataset for result in results_from("report.json", "model")} == {"mteb/esc50"}


def test_where_there_is_no_accuracy_or_no_interval(folder):
    def edit(report):
        first, second, third = rows_of(report)
        first.update(accuracy=None, interval=None)
        second.update(interval=float("nan"))
        third.update(probes=[])

    change(folder, edit)
    assert [(r.embedding, r.interval is None) for r in results_from("report.json", "model")] == [
        ("contrastive", False),
        ("predictive", True),
        ("predictive", False),
        ("both", False),
    ]


def test_the_command_writes_section_and_metadata(folder, capsys):
    before = ModelCard.load("model/README.md")
    assert main(["card", "model", "--report", "report.json"]) == 0
    assert capsys.readouterr().out == f"Wrote 6 results into {Path('model/README.md')}.\n"
    assert sorted(os.listdir("model")) == sorted(os.listdir(folder / "model"))
    card = ModelCard.load("model/README.md")
    results = results_from("report.json", "model")
    section = "\n\n## Results\n\n" + "".join(f"- {result}\n" for result in results) + "\n## Limits\n"
    assert section in card.text
    no_result = "- No result has been measured with these weights.\n"
    assert no_result in before.text
    assert card.text.replace(section, "\n\n## Limits\n").rstrip() == before.text.replace(no_result, "").rstrip()
    expected = create_model_card(make_model().config, results=results)
    assert card.text.rstrip() == expected.text.rstrip()  # as if the results had been known when it was made
    assert card.data.to_dict() == expected.data.to_dict()


def test_again_is_the_same_and_later_results_replace_earlier_ones(folder):
    assert main(["card", "model", "--report", "report.json"]) == 0
    once = Path("model/README.md").read_text()
    assert main(["card", str(folder / "model"), "--report", "report.json"]) == 0
    assert Path("model/README.md").read_text() == once
    Path("model/README.md").write_text(once.replace("## Limits", "## Mine\n\nKept.\n\n## Limits"))
    change(folder, lambda report: [row.update(accuracy=0.123456, probes=[]) for row in rows_of(report)])
    assert main(["card", "model", "--report", "report.json"]) == 0
    card = ModelCard.load("model/README.md")
    assert [result.metric_value for result in card.data.eval_results] == [0.123456] * 3
    assert card.text.count("**accuracy") == card.text.count("**accuracy 0.1235**") == 3
    assert ".\n\n## Mine\n\nKept.\n\n## Limits\n" in card.text


def test_the_name_in_the_report(folder, capsys):
    change(folder, lambda report: [row.update(model="me/model") for row in rows_of(report)])
    message = failure(capsys, "model", "--report", "report.json")
    assert "has no model model; choose one of these: log-mel statistics, untrained network, me/model." in message
    assert main(["card", "model", "--report", "report.json", "--name", "me/model"]) == 0


def test_one_model_by_two_names(folder, capsys):
    change(folder, lambda report: [row.update(model=f"./{i}/../model") for i, row in enumerate(rows_of(report)[:2])])
    assert "calls other/../model by several names" in failure(capsys, "other/../model", "--report", "report.json")


def test_what_is_wrong_is_said_and_nothing_written(folder, capsys):
    before = Path("model/README.md").read_bytes()
    report = ["--report", "report.json"]
    message = "There is no report none.json: `mtslvr evaluate --output FOLDER` writes report.json."
    assert message in failure(capsys, "model", "--report", "none.json")
    Path("other.json").write_text('{"task": {}}')
    assert "other.json is no report of this version (KeyError('results'))" in failure(
        capsys, "model", "--report", "other.json"
    )
    assert "README.md is no report" in failure(capsys, "model", "--report", "model/README.md")
    change(folder, lambda report: [row.update(accuracy=None, probes=[]) for row in rows_of(report)])
    assert "has neither accuracy nor probe of model" in failure(capsys, "model", *report)
    assert Path("model/README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no model/README.md: training writes it"),
        ("---\ntags: [mtslvr\n---\n# A\n", "The metadata of model/README.md cannot be read"),
        ("# A\n", "is not the card of a pre-trained MT-SLVR model"),
        ("---\ntags: [mtslvr]\npipeline_tag: audio-classification\n---\n# A\n", "is not the card of a pre-trained"),
    ],
)
def test_other_readmes_stay(folder, capsys, text, message):
    Path("model/README.md").unlink()
    if text is not None:
        Path("model/README.md").write_text(text)
    assert message in failure(capsys, "model", "--report", "report.json")
    assert text is None or Path("model/README.md").read_text() == text
