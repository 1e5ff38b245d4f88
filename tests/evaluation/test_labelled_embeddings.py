"""Few-shot episodes over embeddings that were made before."""

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel

from mtslvr_hf.embedding import embed_dataset
from mtslvr_hf.evaluation import FewShotProtocol, evaluate, few_shot_accuracy, read_labelled_embeddings


@pytest.fixture
def table():
    features = datasets.Features(
        embedding=datasets.List(datasets.Value("float16"), length=2),
        label=datasets.ClassLabel(names=["bark", "siren"]),
        speaker=datasets.Value("int64"),
    )
    rows = {"embedding": [[0, 1], [2, 3], [4, 5]], "label": [1, 0, 1], "speaker": [7, 8, 7]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_names_of_class_labels_and_groups(table):
    clips = read_labelled_embeddings(table, group_column="speaker")
    assert torch.equal(clips.embeddings, torch.arange(6.0).reshape(3, 2))
    assert clips.label_names() == ["siren", "bark", "siren"]
    assert clips.groups == ["7", "8", "7"]


def test_classes_asked_for(table):
    clips = read_labelled_embeddings(table).only_classes(["siren"])
    assert clips.embeddings.tolist() == [[0, 1], [4, 5]]
    assert clips.label_names() == ["siren", "siren"]
    assert clips.groups is None


def test_what_mtslvr_embed_wrote(sounds, save_model, tmp_path):
    model = AutoModel.from_pretrained(save_model()).eval()
    embed_dataset(model, str(sounds), tmp_path / "embeddings", columns=["file", "label"])
    clips = read_labelled_embeddings(tmp_path / "embeddings")
    assert clips.embeddings.shape == (42, 12)
    assert dict(zip(*np.unique(clips.label_names(), return_counts=True)))["flute"] == 2
    result = few_shot_accuracy(clips.embeddings, clips.label_names(), queries=3, episodes=50)
    assert list(result.left_out) == ["flute"]
    assert result.accuracy > 0.3  # chance is 0.2


def test_mistakes(table, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no parquet file in .*absent"):
        read_labelled_embeddings(tmp_path / "absent")
    with pytest.raises(ValueError, match="no column 'class'; it has: embedding, label, speaker"):
        read_labelled_embeddings(table, label_column="class")
    with pytest.raises(ValueError, match="no class dog; it has: bark, siren"):
        read_labelled_embeddings(table).only_classes(["dog"])
    with pytest.raises(ValueError, match="no column 'embedding'; it has: label, speaker"):
        read_labelled_embeddings(table.remove_columns("embedding"))
    gap = datasets.Dataset.from_dict({"embedding": [[0.0]], "label": [None]})
    with pytest.raises(ValueError, match="no label in 1 of 1 rows, first in 0"):
        read_labelled_embeddings(gap)


def test_folders_of_one_name_are_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    for place in ("esc/audio", "us8k/audio"):
        rows = {"embedding": rng.standard_normal((20, 4)).tolist(), "label": ["<b>a</b>", "b, c"] * 10}
        (tmp_path / place / "data").mkdir(parents=True)
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / place / "data/0.parquet")
        (tmp_path / place / "data/._0.parquet").write_bytes(b"\0\5\x16\7")
    few_shot = FewShotProtocol(ways=2, queries=2, episodes=5)
    report = evaluate([], [tmp_path / "esc/audio", tmp_path / "us8k/audio"], few_shot, show_progress_bar=False)
    assert [result.data for result in report.results] == ["esc/audio", "us8k/audio"]
    with pytest.raises(ValueError, match="two data sets are called audio; name each one once"):
        evaluate([], [tmp_path / "esc/audio"] * 2, few_shot, show_progress_bar=False)
    with pytest.raises(ValueError, match=r"no class c; it has: <b>a</b>, b, c. Names with commas .*--class-list"):
        evaluate([], [tmp_path / "esc/audio"], few_shot, classes=["c"], show_progress_bar=False)
