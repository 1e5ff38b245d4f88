"""The table of models and baselines."""

import json

import pytest
import torch
from transformers import AutoModel, BertConfig

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.evaluation import (
    FewShotTask,
    evaluate_few_shot,
    few_shot_accuracy,
    log_mel_statistics,
    read_audio,
    read_labelled_folder,
)

TASK = FewShotTask(ways=3, shots=1, queries=4, tasks=200, seed=2)


@pytest.fixture(scope="module")
def model(save_model):
    return save_model()


@pytest.fixture(scope="module")
def report(sounds, model):
    return evaluate_few_shot([model], sounds, task=TASK, show_progress=False)


def test_rows(report, model):
    rows = [(row.model, row.embedding, row.size) for row in report.rows]
    assert rows == [
        ("log-mel statistics", "", 80),
        ("untrained network", "both", 12),
        (str(model), "contrastive", 6),
        (str(model), "predictive", 6),
        (str(model), "both", 12),
    ]


def test_rows_are_few_shot_accuracies_of_the_embeddings(report, sounds, model):
    clips = read_labelled_folder(sounds, ["anvil", "bell", "cello", "drum", "engine"])
    options = {"ways": 3, "queries": 4, "tasks": 200, "seed": 2}
    expected = few_shot_accuracy(log_mel_statistics(clips.files, show_progress=False), clips.labels, **options)
    assert report.rows[0].accuracy == pytest.approx(expected.accuracy)
    assert report.rows[0].interval == pytest.approx(expected.interval)
    assert report.rows[0].accuracy > 0.95  # bands of their own are what log-mel statistics tell apart

    torch.manual_seed(TASK.seed)
    waveforms = [read_audio(path) for path in clips.files]
    inputs = MTSLVRFeatureExtractor()(waveforms, sampling_rate=16_000, return_tensors="pt")
    columns = {"contrastive": slice(0, 6), "predictive": slice(6, 12), "both": slice(0, 12)}
    untrained = AutoModel.from_config(MTSLVRConfig.from_pretrained(model))
    trained = AutoModel.from_pretrained(model)
    for network, name, row in (
        (untrained, "both", report.rows[1]),
        (trained, "contrastive", report.rows[2]),
        (trained, "predictive", report.rows[3]),
        (trained, "both", report.rows[4]),
    ):
        embeddings = network.eval()(**inputs).pooler_output.detach()[:, columns[name]]
        assert row.accuracy == pytest.approx(few_shot_accuracy(embeddings, clips.labels, **options).accuracy)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"tasks": ["predictive"]}, ["predictive"]),
        ({"tasks": ["contrastive"], "shared_head": True, "adapter_type": "none"}, ["contrastive"]),
        ({"shared_head": True, "adapter_type": "none"}, ["both"]),
        ({"shared_head": True, "adapter_type": "bn"}, ["contrastive", "predictive", "both"]),
    ],
)
def test_one_row_per_embedding(sounds, save_model, changes, names):
    report = evaluate_few_shot([save_model(**changes)], sounds, ["anvil", "bell", "cello"], TASK, show_progress=False)
    assert [row.embedding for row in report.rows[2:]] == names


def test_an_added_task_has_its_row(sounds, tmp_path):
    model = MTSLVRModel(MTSLVRConfig(base_width=4, embedding_size=12, window_seconds=0.5, num_mel_bins=32))
    model.add_adapter("birds")
    model.set_adapter(["contrastive", "predictive", "birds"])
    model.save_pretrained(tmp_path)
    MTSLVRFeatureExtractor().save_pretrained(tmp_path)
    report = evaluate_few_shot([tmp_path], sounds, ["anvil", "bell", "cello"], TASK, show_progress=False)
    rows = [(row.embedding, row.size) for row in report.rows[2:]]
    assert rows == [("contrastive", 6), ("predictive", 6), ("birds", 6), ("all", 18)]


def test_markdown(report):
    protocol, table = report.to_markdown().split("\n\n")
    assert protocol.startswith("3-way 1-shot accuracy on ")
    assert "40 clips of 5 classes, 200 tasks of 4 queries a class, seed 2" in protocol
    assert "chance is 33.3 %" in protocol
    assert "Left out: flute (2 clips, 5 needed)." in protocol
    assert "standardised" in protocol
    assert f"Task list {report.episodes_sha256[:12]}." in protocol
    assert "nearest centroid" in protocol
    lines = table.splitlines()
    assert lines[0].split() == ["|", "model", "|", "embedding", "|", "size", "|", "accuracy", "%", "|"]
    assert len(lines) == 2 + len(report.rows)
    assert len({len(line) for line in lines}) == 1
    row = report.rows[0]
    assert lines[2].startswith("| log-mel statistics ")
    assert f"{100 * row.accuracy:.1f} ± {100 * row.interval:.1f}" in lines[2]


def test_dictionary_holds_everything_and_goes_through_json(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["task"] == {"ways": 3, "shots": 1, "queries": 4, "tasks": 200, "seed": 2, "group_disjoint": False}
    assert data["classes"] == ["anvil", "bell", "cello", "drum", "engine"]
    assert (data["classifier"], data["episodes_sha256"]) == ("centroid", report.episodes_sha256)
    assert data["left_out"] == {"flute": "2 clips, 5 needed"}
    assert [row["accuracy"] for row in data["rows"]] == [row.accuracy for row in report.rows]


def test_repeats_itself_and_leaves_the_random_state_alone(report, sounds, model):
    state = torch.get_rng_state()
    again = evaluate_few_shot([str(model)], sounds, task=TASK, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert again == report


def test_models_of_one_architecture_share_the_untrained_row(sounds, save_model, model):
    other, wider = save_model(seed=2), save_model(base_width=8)
    report = evaluate_few_shot([model, other, wider], sounds, ["anvil", "bell", "cello"], TASK, show_progress=False)
    untrained = [row.model for row in report.rows if row.model.startswith("untrained")]
    assert untrained == ["untrained network", f"untrained network of {wider}"]
    assert len(report.rows) == 1 + 2 + 3 * 3


def test_group_disjoint_is_asked_of_the_manifest(sounds, model):
    with pytest.raises(ValueError, match="group-disjoint tasks need"):
        evaluate_few_shot([model], sounds, task=FewShotTask(group_disjoint=True), show_progress=False)


def test_another_kind_of_model_is_refused(sounds, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of type bert; expected an MT-SLVR model"):
        evaluate_few_shot([tmp_path], sounds, show_progress=False)
