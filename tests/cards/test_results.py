"""Results of an evaluation go from its report into the model's card."""

import json
import os
import re
import shutil
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from markdown_rows import unpadded
from small_models import make_model

from mtslvr_cli import main
from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.cards.pretraining import create_model_card
from mtslvr_hf.cards.results import MeasuredResult, check_results, write_results
from mtslvr_hf.evaluation import FewShotProtocol, evaluate, read_report, update_card

OPTIONS = ["--ways=2", "--queries=2", "--episodes=50", "--seed=3", "--probe=knn", "--invariance=10"]
COMMAND = (
    "mtslvr evaluate --model model --data sounds --ways 2 --queries 2 --episodes 50 --seed 3 --probe knn "
    "--invariance 10"
)


def save_model(folder, **changes):
    model = make_model(**changes)
    model.save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    create_model_card(model.config).save(folder / "README.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with its card, and the report of its evaluation, which has updated the card of a copy."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "model")
    shutil.copytree(folder / "model", folder / "updated/model")
    generator = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (folder / "sounds" / name).mkdir(parents=True)
        for clip in range(8):
            soundfile.write(folder / "sounds" / name / f"{clip}.wav", generator.uniform(-0.5, 0.5, 4000), 16_000)
    places = ["--model", folder / "updated/model", "--data", folder / "sounds", "--output", folder / "report"]
    assert main(["evaluate", *map(str, places), *OPTIONS, "--update-card", str(folder / "updated/model")]) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of the model and the report; commands run in it."""
    shutil.copytree(made / "model", tmp_path / "model")
    text = (made / "report/report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace(str(made / "updated/model"), "model"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(edit):
    report = json.loads(Path("report.json").read_text())
    edit(report)
    Path("report.json").write_text(json.dumps(report))


def rows_of(report, model="model"):
    return [row for row in report["results"][0]["rows"] if row["model"] == model]


def written(folder="model"):
    return json.loads(Path(folder, "results.json").read_text())


def failure(capsys, *arguments) -> str:
    assert main(["card", *arguments]) == 1
    return capsys.readouterr().err


def percent(value, interval):
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def test_an_evaluation_updates_the_card(made):
    card = ModelCard.load(made / "updated/model/README.md")
    text, report = unpadded(card.text), json.loads((made / "report/report.json").read_text())
    results = written(made / "updated/model")["results"]
    rows = report["results"][0]["rows"]
    by_name = {(row["model"], row["embedding"]): row for row in rows}
    log_mel, untrained = by_name["log-mel statistics", ""], by_name["untrained network", "both"]
    assert text.count("### 2-way 1-shot, nearest centroid, 50 episodes of 2 queries a class\n\n2-way 1-shot acc") == 1
    assert text.count("### Nearest neighbors, accuracy on 30 % of the clips\n") == 1
    header = "| data | embedding | accuracy, % | log-mel statistics, % | untrained network, % |\n"
    assert text.count(header) == 2
    for embedding in ("contrastive", "predictive", "both"):
        row = by_name[str(made / "updated/model"), embedding]
        few_shot = [
            percent(each["accuracy"], (each["accuracy"] - each["interval"], each["accuracy"] + each["interval"]))
            for each in (row, log_mel, untrained)
        ]
        assert f"| sounds | {embedding} | {' | '.join(few_shot)} |\n" in text
        probes = [each["probes"][0] for each in (row, log_mel, untrained)]
        shown = " | ".join(percent(each["value"], each["interval"]) for each in probes)
        assert f"| sounds | {embedding} | {shown} |\n" in text
        assert [each["details"] for each in results if each["embedding"] == embedding] == ["", probes[0]["protocol"]]
    run = f"Measured by this run on {report['date']}: `{COMMAND}`."
    data = "- sounds: 24 clips of 3 classes from the folder sounds."
    list_of_episodes = f"Episode list {report['results'][0]['episodes_sha256'][:12]}."
    assert f"{data} {list_of_episodes} {run}\n" in text and f"{data} {run}\n" in text
    assert date.fromisoformat(report["date"]) >= date.today() - timedelta(days=2)
    assert f"10 clips of sounds, seed 0. {run}\n\n## Limits\n" in text
    table = next(iter(read_report(made / "report/report.json").invariance.values())).to_markdown()
    assert table in card.text and "No result has been measured" not in text
    assert str(made) not in str(card) and str(made) not in json.dumps(written(made / "updated/model"))
    assert check_results(made / "updated/model")


def test_the_metadata_are_the_models_alone_each_with_its_protocol(made):
    card = ModelCard.load(made / "updated/model/README.md")
    found = {result.metric_name: result for result in card.data.eval_results}
    assert len(found) == 6  # three embeddings, accuracy and probe; no baseline
    name = "accuracy, both embeddings: 2-way 1-shot, nearest centroid, 50 episodes of 2 queries a class"
    result, report = found[name], json.loads((made / "report/report.json").read_text())
    row = next(row for row in report["results"][0]["rows"] if row["main"] and row["model"].endswith("model"))
    assert result.metric_value == pytest.approx(row["accuracy"], abs=1e-6)
    assert result.metric_args["command"] == COMMAND and result.metric_args["date"] == report["date"]
    assert result.metric_args["measured_by"] == "this run, with these weights" and result.metric_args["seed"] == 3
    assert (result.metric_args["interval_95"][1] - result.metric_value) == pytest.approx(row["interval"], abs=2e-6)
    assert found["accuracy, both embeddings: Nearest neighbors, accuracy on 30 % of the clips"].metric_args["details"]
    assert card.data.metrics == ["accuracy"]


def test_a_stored_report_gives_the_same_card(made, folder, capsys):
    before = ModelCard.load("model/README.md")
    assert main(["card", "model", "--report", "report.json"]) == 0
    assert capsys.readouterr().out == f"Wrote 6 results into {Path('model/README.md')}.\n"
    card = ModelCard.load("model/README.md")
    assert str(card) == str(ModelCard.load(made / "updated/model/README.md"))
    assert sorted(os.listdir("model")) == sorted(os.listdir(made / "updated/model"))
    section = re.search(r"## Results\n.*?(?=## Limits\n)", card.text, re.DOTALL)[0]
    no_result = "- No result has been measured with these weights.\n"
    assert no_result in before.text
    assert card.text.replace(section, "").rstrip() == before.text.replace(no_result, "").rstrip()


def test_again_is_the_same_and_other_text_stays(folder):
    assert main(["card", "model", "--report", "report.json"]) == 0
    once = Path("model/README.md").read_text()
    assert main(["card", str(folder / "model"), "--report", "report.json"]) == 0
    assert Path("model/README.md").read_text() == once
    Path("model/README.md").write_text(once.replace("## Limits", "## Mine\n\nKept.\n\n## Limits"))
    change(lambda report: [row.update(accuracy=0.123456) for row in rows_of(report)])
    assert main(["card", "model", "--report", "report.json"]) == 0
    card = ModelCard.load("model/README.md")
    values = [result.metric_value for result in card.data.eval_results]
    assert values.count(0.123456) == 3 and len(values) == 6 and card.text.count("| 12.3 (") == 3
    assert card.text.count("## Results") == 1 and "\n\n## Mine\n\nKept.\n\n## Limits\n" in card.text


def test_other_data_protocols_and_seeds_are_added(folder):
    assert main(["card", "model", "--report", "report.json"]) == 0
    first = written()["results"]

    def other(report, **protocol):
        report["results"][0].update(data="drums", source="the folder drums")
        report["protocol"].update(protocol)
        report["date"] = "2026-01-02"

    # The number of shots changes no probe.
    for count, changes in ((12, {}), (18, {"seed": 4}), (21, {"shots": 2}), (21, {"shots": 2})):
        change(partial(other, **changes))
        assert main(["card", "model", "--report", "report.json"]) == 0
        results = written()["results"]
        assert len(results) == count and results[:6] == first
        assert len(ModelCard.load("model/README.md").data.eval_results) == count
    text = Path("model/README.md").read_text()
    assert text.count("### 2-way 1-shot") == 2 and text.count("### 2-way 2-shot") == 1  # a seed each
    assert text.count("### Invariance") == 1
    assert check_results(folder / "model")


def test_other_classes_are_other_data_and_other_invariance_is_added(folder):
    assert main(["card", "model", "--report", "report.json"]) == 0

    def fewer(report):
        report["results"][0]["classes"] = ["one", "two"]
        report["invariance_data"] = "drums"

    change(fewer)
    assert main(["card", "model", "--report", "report.json"]) == 0
    assert len(written()["results"]) == 12 and len(written()["invariance"]) == 2


def test_a_data_set_on_the_hub_has_its_name_there(folder):
    change(lambda report: report["results"][0].update(source="mteb/esc50 (split train)"))
    assert main(["card", "model", "--report", "report.json"]) == 0
    assert {result.dataset_type for result in ModelCard.load("model/README.md").data.eval_results} == {"mteb/esc50"}


def test_where_there_is_no_accuracy_no_interval_or_no_baseline(folder):
    def edit(report):
        first, second, third = rows_of(report)
        first.update(accuracy=None, interval=None)
        second.update(interval=float("nan"))
        third.update(probes=[])
        report["results"][0]["rows"] = [first, second, third]
        report["invariance"] = {}

    change(edit)
    assert main(["card", "model", "--report", "report.json"]) == 0
    assert [(each["embedding"], each["interval"] is None) for each in written()["results"]] == [
        ("contrastive", False),
        ("predictive", True),
        ("predictive", False),
        ("both", False),
    ]
    text = unpadded(Path("model/README.md").read_text())
    assert "untrained network" not in text and "Invariance" not in text
    assert check_results(folder / "model")


def test_the_name_in_the_report(folder, capsys):
    def edit(report):
        report["models"]["me/model"] = {**report["models"].pop("model"), "source": "me/model"}
        for row in rows_of(report):
            row.update(model="me/model")

    change(edit)
    message = failure(capsys, "model", "--report", "report.json")
    assert "the report has no model model; choose one of these: me/model." in message
    assert main(["card", "model", "--report", "report.json", "--name", "me/model"]) == 0


def test_one_model_by_two_names(folder, capsys):
    def edit(report):
        facts = report["models"].pop("model")
        report["models"] = {f"./{number}/../model": facts for number in range(2)}

    change(edit)
    assert "calls model by several names" in failure(capsys, "model", "--report", "report.json")


def test_results_of_other_weights(folder, capsys, caplog):
    """A report of other weights is refused, and what was measured with earlier ones does not stay."""
    assert main(["card", "model", "--report", "report.json"]) == 0
    card = Path("model/README.md").read_bytes()
    make_model(seed=1).save_pretrained("model")
    message = failure(capsys, "model", "--report", "report.json")
    assert "the report is of other weights than those in model" in message
    assert Path("model/README.md").read_bytes() == card
    with pytest.raises(ValueError, match=r"the results in results\.json are of other weights"):
        check_results(Path("model"))
    write_results("model", [MeasuredResult(dataset="drums", protocol="5-way 1-shot", value=0.5)])
    assert "earlier results in model/results.json are of other weights and are removed" in caplog.text
    assert [result.dataset_type for result in ModelCard.load("model/README.md").data.eval_results] == ["drums"]
    assert check_results(Path("model"))


def test_other_scales_of_the_heads_are_refused(folder, capsys):
    def scaled(report):
        report["models"]["model"]["settings"]["embedding_scale"] = {"contrastive": 2.0, "predictive": 1.0}

    change(scaled)
    assert "the report is of heads with the scales" in failure(capsys, "model", "--report", "report.json")


def test_results_that_are_changed_by_hand_are_found(folder):
    assert main(["card", "model", "--report", "report.json"]) == 0
    text = Path("model/README.md").read_text()
    Path("model/README.md").write_text(text.replace("| sounds | both ", "| sounds | Both ", 1))
    with pytest.raises(ValueError, match=r"the results in the card differ from results\.json"):
        check_results(Path("model"))
    Path("model/README.md").write_text(re.sub(r"\bvalue: 0\.\d+", "value: 0.99", text, count=1))
    with pytest.raises(ValueError, match=r"the results in the card differ from results\.json"):
        check_results(Path("model"))
    Path("model/results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no results\.json of this version"):
        check_results(Path("model"))


def test_in_python_with_another_pooling_and_a_second_architecture(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "first")
    save_model(tmp_path / "second", seed=1, adapter_type="bn")
    protocol = FewShotProtocol(ways=2, queries=2, episodes=20)
    options = {"pooling": "mean_max", "show_progress_bar": False}
    report = evaluate(["first", tmp_path / "second"], [made / "sounds"], protocol, **options)
    assert update_card(report, "second") == 3
    (baseline,) = [row for row in report.results[0].rows if row.model.startswith("untrained network of")]
    for each in written("second")["results"]:
        assert each["read_as"] == "pooling mean_max, no heads"
        assert each["baselines"]["untrained network"]["value"] == pytest.approx(baseline.accuracy, abs=1e-6)
        assert each["command"].startswith("evaluate(['first', 'second'], ['sounds'], FewShotProtocol(ways=2, ")
        assert each["command"].endswith(", classifier='centroid', pooling='mean_max')")
    text = Path("second/README.md").read_text()
    assert "| both (pooling mean_max, no heads)" in text and str(tmp_path) not in text
    assert update_card(evaluate(["second"], [made / "sounds"], protocol, show_progress_bar=False), "second") == 3
    assert len(written("second")["results"]) == 6  # as saved is another embedding
    other = replace(report, models={"first": replace(report.models["first (pooling mean_max, no heads)"], weights="")})
    with pytest.raises(ValueError, match="was not evaluated as an MT-SLVR model"):
        update_card(other, "first")


def test_a_report_survives_json(made):
    report = read_report(made / "report/report.json")
    content = json.loads((made / "report/report.json").read_text())
    assert json.loads(json.dumps(report.to_dict())) == content
    assert type(report.results[0].rows[-1].probes[0].interval) is tuple


def test_what_is_wrong_is_said_and_nothing_written(folder, capsys):
    before = Path("model/README.md").read_bytes()
    report = ["--report", "report.json"]
    message = "There is no report none.json: `mtslvr evaluate --output FOLDER` writes report.json."
    assert message in failure(capsys, "model", "--report", "none.json")
    for content, error in (('{"task": {}}', "KeyError('protocol')"), ("[]", "TypeError"), ("{", "JSONDecodeError")):
        Path("other.json").write_text(content)
        message = failure(capsys, "model", "--report", "other.json")
        assert "other.json is no report of this version (" in message and error in message
    change(lambda report: report.update(invariance={}))
    change(lambda report: [row.update(accuracy=None, probes=[]) for row in rows_of(report)])
    assert "has neither accuracy nor probe of model" in failure(capsys, "model", *report)
    assert Path("model/README.md").read_bytes() == before
    assert not Path("model/results.json").exists()


def test_a_card_that_cannot_be_updated_is_refused_before_the_work(made, folder, capsys, monkeypatch):
    monkeypatch.setattr("mtslvr_hf.evaluation.evaluate", lambda *arguments, **options: pytest.fail("evaluated"))
    shutil.copytree("model", "other")
    assert main(["evaluate", "--model", "model", "--data", str(made / "sounds"), "--update-card", "other"]) == 1
    assert "--update-card other is not one of the models (model)" in capsys.readouterr().err
    Path("model/README.md").unlink()
    assert main(["evaluate", "--model", "model", "--data", str(made / "sounds"), "--update-card", "model"]) == 1
    assert "There is no model/README.md" in capsys.readouterr().err


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
