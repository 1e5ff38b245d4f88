"""Models and baselines side by side."""

import io
import json
import shutil
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, BertConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.data import decode_clip
from mtslvr_hf.evaluation import (
    EvaluationData,
    FewShotProtocol,
    LogMelStatistics,
    MTSLVREmbedder,
    average_ranks,
    evaluate,
    few_shot_accuracy,
    open_data,
    paired_differences,
    to_html,
    to_markdown,
)

MODULE = import_module("mtslvr_hf.evaluation.evaluate")  # the package's own name is the function's
PROTOCOL = FewShotProtocol(ways=3, shots=1, queries=4, episodes=200, seed=2)
THREE = ["anvil", "bell", "cello"]


@pytest.fixture(scope="module")
def model(save_model):
    return save_model()


@pytest.fixture(scope="module")
def report(sounds, model):
    return evaluate([model], [sounds], PROTOCOL, show_progress_bar=False)


@pytest.fixture(scope="module")
def rows(report):
    return report.results[0].rows


def rows_of(files):
    return [{"bytes": None, "path": str(path)} for path in files]


class Given:
    """Embeddings that were made before, by name."""

    def __init__(self, name, embeddings):
        self.name, self.fingerprint, self.embeddings = name, name, embeddings

    def embed(self, audio, show_progress_bar=False):
        return self.embeddings

    def embed_waveforms(self, waveforms):
        raise AssertionError("not asked for")


def test_rows(rows, model):
    assert [(row.model, row.embedding, row.size) for row in rows] == [
        ("log-mel statistics", "", 80),
        ("untrained network", "both", 12),
        (str(model), "contrastive", 6),
        (str(model), "predictive", 6),
        (str(model), "both", 12),
    ]
    assert [row.main for row in rows] == [True, True, False, False, True]


def test_rows_are_few_shot_accuracies_of_the_embeddings(rows, sounds, model):
    clips = open_data(sounds).only_classes(["anvil", "bell", "cello", "drum", "engine"])  # flute has two clips
    labels = clips.label_names()
    options = {"ways": 3, "queries": 4, "episodes": 200, "seed": 2}
    expected = few_shot_accuracy(LogMelStatistics().embed(clips.audio)[""], labels, **options)
    assert rows[0].accuracy == pytest.approx(expected.accuracy)
    assert rows[0].interval == pytest.approx(expected.interval)
    assert rows[0].accuracy > 0.95  # bands of their own are what log-mel statistics tell apart

    torch.manual_seed(PROTOCOL.seed)
    waveforms = [decode_clip(row) for row in clips.audio]
    inputs = MTSLVRFeatureExtractor()(waveforms, sampling_rate=16_000, return_tensors="pt")
    columns = {"contrastive": slice(0, 6), "predictive": slice(6, 12), "both": slice(0, 12)}
    untrained = AutoModel.from_config(MTSLVRConfig.from_pretrained(model))
    trained = AutoModel.from_pretrained(model)
    for network, name, row in (
        (untrained, "both", rows[1]),
        (trained, "contrastive", rows[2]),
        (trained, "predictive", rows[3]),
        (trained, "both", rows[4]),
    ):
        embeddings = network.eval()(**inputs).pooler_output.detach()[:, columns[name]]
        assert row.accuracy == pytest.approx(few_shot_accuracy(embeddings, labels, **options).accuracy)


def test_heads_keep_the_scales_of_the_configuration(sounds, save_model, report, rows):
    """With a tiny scale of one head, the other one decides; the untrained network has no scales."""
    scaled = save_model(embedding_scale={"predictive": 1e-6})
    found = evaluate([scaled], [sounds], PROTOCOL, show_progress_bar=False)
    _, untrained, contrastive, predictive, both = found.results[0].rows
    assert both.accuracy == contrastive.accuracy != predictive.accuracy
    assert untrained.accuracy == rows[1].accuracy
    assert [row.keeps_scales for row in found.results[0].rows] == [False, False, False, False, True]
    assert f"The heads of {scaled} keep the scales of the configuration." in to_markdown(found)
    assert "keep the scales" not in to_markdown(report)


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
    report = evaluate([save_model(**changes)], [sounds], PROTOCOL, classes=THREE, show_progress_bar=False)
    assert [row.embedding for row in report.results[0].rows[2:]] == names


def test_an_added_task_has_its_row(sounds, tmp_path):
    model = MTSLVRModel(MTSLVRConfig(base_width=4, embedding_size=12, window_seconds=0.5, num_mel_bins=32))
    model.add_adapter("birds")
    model.set_adapter(["contrastive", "predictive", "birds"])
    model.save_pretrained(tmp_path)
    MTSLVRFeatureExtractor().save_pretrained(tmp_path)
    report = evaluate([tmp_path], [sounds], PROTOCOL, classes=THREE, show_progress_bar=False)
    rows = [(row.embedding, row.size) for row in report.results[0].rows[2:]]
    assert rows == [("contrastive", 6), ("predictive", 6), ("birds", 6), ("all", 18)]


def test_another_pooling_has_other_rows_and_cached_embeddings(sounds, save_model, tmp_path):
    folder = save_model(num_mel_bins=128)
    options = {"classes": THREE, "cache": tmp_path, "show_progress_bar": False}
    entries, rows = [], []
    for changes in ({}, {"pooling": "bands"}, {"pooling": "bands", "num_bands": 2}, {"use_heads": False}, {}):
        report = evaluate([folder], [sounds], PROTOCOL, **options, **changes)
        rows.append([(row.model, row.embedding, row.size) for row in report.results[0].rows])
        entries.append(len(list(tmp_path.glob("*.safetensors"))))
    assert entries == [3, 5, 7, 9, 9]  # one of log-mel statistics, then two for each pooling
    names = ["", " (pooling bands 4, no heads)", " (pooling bands 2, no heads)", " (pooling mean, no heads)"]
    for found, name, size in zip(rows, names, (6, 128, 64, 32)):
        assert found == [
            ("log-mel statistics", "", 80),
            (f"untrained network{name}", "both", 2 * size),
            *((f"{folder}{name}", task, size) for task in ("contrastive", "predictive")),
            (f"{folder}{name}", "both", 2 * size),
        ]
    assert rows[4] == rows[0]


def test_a_pooling_that_no_model_can_have_is_refused(sounds, save_model):
    options = {"classes": THREE, "show_progress_bar": False}
    with pytest.raises(ValueError, match="choose one of 1"):
        evaluate([save_model()], [sounds], PROTOCOL, pooling="bands", **options)
    with pytest.raises(ValueError, match="pooling, num_bands apply to MT-SLVR models, and none is among the models"):
        evaluate([], [sounds], PROTOCOL, pooling="bands", num_bands=2, **options)


def test_markdown(report, rows, sounds):
    text = to_markdown(report)
    assert "3-way 1-shot accuracy: 200 episodes of 4 queries a class, seed 2" in text
    assert "chance is 33.3 %" in text and "standardized" in text and "nearest centroid" in text
    assert "40 clips of 5 classes" in text
    assert "Left out: flute (2 clips, 5 needed)." in text
    assert f"Episode list {report.results[0].episodes_sha256[:12]}." in text
    row = rows[0]
    line = next(line for line in text.splitlines() if line.startswith("| log-mel statistics "))
    assert f"{100 * row.accuracy:.1f} ± {100 * row.interval:.1f}" in line
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables[0]) == 2 + len(rows)
    assert len({line.count("|") for line in tables[0]}) == 1


def test_dictionary_holds_everything_and_goes_through_json(report, rows, model):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["protocol"] == {
        "ways": 3,
        "shots": 1,
        "queries": 4,
        "episodes": 200,
        "seed": 2,
        "group_disjoint": None,
    }
    result = data["results"][0]
    assert result["classes"] == ["anvil", "bell", "cello", "drum", "engine"]
    assert (data["classifier"], result["episodes_sha256"]) == ("centroid", report.results[0].episodes_sha256)
    assert result["left_out"] == {"flute": "2 clips, 5 needed"}
    assert [row["accuracy"] for row in result["rows"]] == [row.accuracy for row in rows]
    assert set(result["weight_shares"]) == {str(model)}
    assert [entry["embedding"] for entry in result["projections"]] == ["contrastive", "predictive", "both"]


def test_repeats_itself_and_leaves_the_random_state_alone(report, sounds, model):
    state = torch.get_rng_state()
    again = evaluate([str(model)], [sounds], PROTOCOL, show_progress_bar=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert again == report


def test_cached_embeddings_are_not_computed_again(report, sounds, model, tmp_path, monkeypatch):
    first = evaluate([model], [sounds], PROTOCOL, cache=tmp_path, show_progress_bar=False)
    monkeypatch.setattr(MTSLVREmbedder, "embed", lambda *args, **options: pytest.fail("computed again"))
    monkeypatch.setattr(LogMelStatistics, "embed", lambda *args, **options: pytest.fail("computed again"))
    assert evaluate([model], [sounds], PROTOCOL, cache=tmp_path, show_progress_bar=False) == first == report


def test_models_of_one_architecture_share_the_untrained_row(sounds, save_model, model):
    other, wider = save_model(seed=2, embedding_scale={"predictive": 0.5}), save_model(base_width=8)
    report = evaluate([model, other, wider], [sounds], PROTOCOL, classes=THREE, show_progress_bar=False)
    rows = report.results[0].rows
    untrained = [row.model for row in rows if row.model.startswith("untrained")]
    assert untrained == ["untrained network", f"untrained network of {wider}"]
    assert len(rows) == 1 + 2 + 3 * 3
    assert len(report.results[0].differences) == 6 * 5 / 2


def labelled(name, labels, groups=None, audio=True):
    """A data set of one sound over and over."""
    classes = sorted(set(labels))
    one_hot = np.array([[label == entry for entry in classes] for label in labels])
    sound = io.BytesIO()
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 2000), 16_000, format="WAV")
    rows = [{"bytes": sound.getvalue(), "path": None}] * len(labels)
    return EvaluationData(
        name=name,
        source="memory",
        note="",
        audio=rows if audio else None,
        embeddings=None if audio else torch.eye(len(classes))[one_hot.argmax(1)],
        classes=classes,
        labels=one_hot,
        multi_label=False,
        groups=groups,
        group_disjoint=groups is not None,
    )


def test_models_are_compared_on_the_same_episodes(monkeypatch):
    """Of two embeddings that differ by a rotation, all episodes are told alike; of a shuffled one, chance is left."""
    monkeypatch.setattr(MODULE, "LogMelStatistics", lambda: Given("x", {"": torch.rand(60, 3)}))
    labels = [f"class {index % 6}" for index in range(60)]
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(6, 16, generator=generator)
    values = centers[torch.arange(60) % 6] + torch.randn(60, 16, generator=generator)
    shuffled = values[torch.randperm(60, generator=generator)]
    models = [Given("a", {"": values}), Given("b", {"": -values}), Given("c", {"": shuffled})]
    protocol = FewShotProtocol(ways=5, shots=1, queries=2, episodes=2000)
    report = evaluate(models, [labelled("six", labels)], protocol, show_progress_bar=False)
    found = {(entry.model, entry.other): entry for entry in report.results[0].differences}
    assert found["b", "a"].difference == pytest.approx(0, abs=1e-3)
    assert found["b", "a"].interval < 1e-3
    rows = {row.model: row for row in report.results[0].rows}
    difference = found["c", "a"]
    assert difference.difference == pytest.approx(rows["c"].accuracy - rows["a"].accuracy)
    assert rows["a"].accuracy > 0.6
    assert rows["c"].accuracy == pytest.approx(0.2, abs=0.08)  # one shuffle of sixty clips


def test_paired_interval_is_that_of_the_differences():
    generator = torch.Generator().manual_seed(1)
    hard = torch.rand(400, generator=generator)
    better = hard + 0.1 + 0.01 * torch.randn(400, generator=generator)
    (entry,) = paired_differences({"hard": hard, "better": better})
    assert (entry.model, entry.other) == ("better", "hard")
    assert entry.difference == pytest.approx(0.1, abs=0.002)
    assert entry.interval == pytest.approx(1.96 * 0.01 / 20, rel=0.1)


def test_average_ranks_share_ties():
    first = {"a": torch.tensor([0.9]), "b": torch.tensor([0.5]), "c": torch.tensor([0.5])}
    second = {"a": torch.tensor([0.1]), "b": torch.tensor([0.2]), "c": torch.tensor([0.3])}
    ranks = average_ranks([first, second])
    assert ranks == {"c": 1.75, "a": 2.0, "b": 2.25}
    assert all(one <= other for one, other in pairwise(ranks.values()))
    assert average_ranks([]) == {}


def test_given_embeddings_are_scored_without_a_model(model, sounds):
    given = labelled("given", [f"class {index % 4}" for index in range(24)], audio=False)
    report = evaluate([model], [given, sounds], PROTOCOL, show_progress_bar=False)
    assert [(row.model, row.accuracy) for row in report.results[0].rows] == [("given embeddings", 1.0)]
    assert list(report.average_ranks) and "given embeddings" not in report.average_ranks


def test_group_disjoint_is_what_the_data_set_asks_for_unless_told(monkeypatch):
    monkeypatch.setattr(MODULE, "LogMelStatistics", lambda: Given("x", {"": torch.rand(48, 3)}))
    data = labelled(
        "grouped", [f"{index % 4}" for index in range(48)], groups=[f"{index // 12}" for index in range(48)]
    )
    for asked, expected in ((None, True), (False, False), (True, True)):
        protocol = FewShotProtocol(ways=3, queries=2, episodes=20, group_disjoint=asked)
        assert evaluate([], [data], protocol, show_progress_bar=False).results[0].group_disjoint is expected


def test_group_disjoint_needs_groups(sounds, model):
    with pytest.raises(ValueError, match="has no groups, which group-disjoint episodes need"):
        evaluate([model], [sounds], FewShotProtocol(group_disjoint=True), show_progress_bar=False)


def test_probes_and_invariance(sounds, model):
    report = evaluate(
        [model],
        [sounds],
        PROTOCOL,
        classes=THREE,
        probes=["linear", "knn"],
        invariance_clips=12,
        show_progress_bar=False,
    )
    for row in report.results[0].rows:
        assert [probe.name for probe in row.probes] == ["linear", "knn"]
    assert set(report.invariance) == {str(model)}
    assert report.invariance[str(model)].clips == 12


def test_clips_of_several_classes_are_for_probes():
    data = labelled("several", [f"{index % 3}" for index in range(48)])
    several = data.labels | np.roll(data.labels, 1, axis=1)
    data = replace(data, labels=several, multi_label=True)
    generator = torch.Generator().manual_seed(0)
    telling = torch.from_numpy(several).float() + 0.1 * torch.randn(48, 3, generator=generator)
    models = [Given("telling", {"": telling}), Given("noise", {"": torch.rand(48, 3, generator=generator)})]
    with pytest.raises(ValueError, match="measure a probe"):
        evaluate(models, [data], PROTOCOL, show_progress_bar=False)
    report = evaluate(models, [data], PROTOCOL, probes=["linear"], show_progress_bar=False)
    found = {row.model: row for row in report.results[0].rows}
    assert found["telling"].accuracy is None
    assert (found["telling"].probes[0].metric, found["telling"].probes[0].value) == ("mAP", pytest.approx(1, abs=0.02))
    assert found["noise"].probes[0].value < 0.95
    assert report.average_ranks == {}
    assert "there are no few-shot episodes" in to_markdown(report)
    assert "mAP" in to_html(report)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "forest"}, "classifier is 'forest'"),
        ({"probes": ["quadratic"]}, "no probe 'quadratic'"),
        ({"invariance_clips": 3}, "invariance_clips is 3; expected 0 for none, or at least 10"),
        ({"classes": ["anvil", "zither"]}, "zither"),
    ],
)
def test_mistakes(sounds, model, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate([model], [sounds], PROTOCOL, show_progress_bar=False, **options)


def test_bad_clips_are_left_out_and_listed(sounds, model, tmp_path):
    shutil.copytree(sounds, tmp_path / "set")
    whole = evaluate([model], [tmp_path / "set"], PROTOCOL, show_progress_bar=False).results[0]
    (tmp_path / "set/anvil/broken.wav").write_text("no audio")
    soundfile.write(tmp_path / "set/anvil/silent.wav", np.zeros(4000), 16_000)
    report = evaluate([model], [tmp_path / "set"], PROTOCOL, show_progress_bar=False)
    found = report.results[0]
    assert [row.accuracy for row in found.rows] == [row.accuracy for row in whole.rows]
    assert (whole.bad_clips, found.clips) == ([], whole.clips)
    assert sorted(reason.split(":")[0] for reason in found.bad_clips) == ["silent", "unreadable"]
    assert "Clips left out because they cannot be used: 2 (unreadable: " in to_markdown(report)


def test_one_name_for_each(sounds, model):
    with pytest.raises(ValueError, match="is given twice; name each model once"):
        evaluate([model, str(model)], [sounds], PROTOCOL, show_progress_bar=False)
    with pytest.raises(ValueError, match=r"two data sets are called sounds\d; name each one once"):
        evaluate([model], [sounds, sounds], PROTOCOL, show_progress_bar=False)


def test_folders_of_one_name_have_that_of_the_folder_above_too(sounds, model, tmp_path):
    for place in ("esc", "us8k"):
        shutil.copytree(sounds, tmp_path / place / "audio")
    folders = [tmp_path / "esc/audio", str(tmp_path / "us8k/audio"), sounds]
    report = evaluate([], folders, PROTOCOL, classes=THREE, show_progress_bar=False)
    assert [result.data for result in report.results] == ["esc/audio", "us8k/audio", sounds.name]


def test_a_class_whose_name_has_a_comma(sounds):
    data = replace(open_data(sounds), classes=["dog, barking", "bell", "cello", "drum", "engine", "flute"])
    with pytest.raises(
        ValueError, match=r"has no class barking, dog; .* Names with commas go into a file for --class-l"
    ):
        data.only_classes(["barking", "dog"])


def test_a_model_without_audio_input_is_refused_before_the_work(sounds, model, tmp_path, monkeypatch):
    BertConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(LogMelStatistics, "embed", lambda *args, **options: pytest.fail("began"))
    with pytest.raises(ValueError, match="is a model of type bert; expected an audio model of type mtslvr, "):
        evaluate([model, tmp_path], [sounds], PROTOCOL, show_progress_bar=False)


def test_another_model_has_both_baselines_beside_it(sounds, tmp_path, monkeypatch):
    default = MTSLVRConfig(base_width=4, embedding_size=6, window_seconds=0.5, num_mel_bins=32)
    monkeypatch.setattr(MODULE, "MTSLVRConfig", lambda: default)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    report = evaluate([tmp_path], [sounds], PROTOCOL, classes=THREE, show_progress_bar=False)
    rows = [(row.model, row.size) for row in report.results[0].rows]
    assert rows == [("log-mel statistics", 80), ("untrained network", 6), (str(tmp_path), 8)]
