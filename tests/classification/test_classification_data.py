"""Labelled audio from folders and data sets, and clips of it."""

import csv

import datasets
import numpy as np
import pytest
import soundfile
import torch
from classifier_runs import HERTZ, RATE, make_rows, tone, write_folder
from small_models import assert_close
from transformers import TrainingArguments

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.classification import ClipCollator, ClipDataset, drop_bad_clips, embed_clips
from mtslvr_hf.data import BadClipError, TooManyBadRowsError, from_dataset, load_labelled_audio

NAMES = list(HERTZ)
CLASS_LABEL = datasets.ClassLabel(names=NAMES)


def write_manifest(folder, column, groups):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", column])
        writer.writerows(groups.items())


# Where it comes from


def test_a_folder_per_class(tmp_path):
    data = load_labelled_audio(write_folder(tmp_path / "set", clips=2))
    assert data.classes == NAMES and not data.multi_label and data.groups is None
    assert data.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert data.audio[2]["path"].endswith("low/0.wav")
    chosen = data.select([4, 1])
    assert chosen.audio[0] == data.audio[4] and [int(chosen.target(n)) for n in (0, 1)] == [2, 0]


def test_a_folder_of_splits_with_a_folder_per_class(tmp_path):
    write_folder(tmp_path / "set/train", clips=2)
    write_folder(tmp_path / "set/test", clips=1)
    assert len(load_labelled_audio(tmp_path / "set")) == 6
    assert len(load_labelled_audio(tmp_path / "set", split="test")) == 3
    with pytest.raises(ValueError, match="no split 'dev'; it has: test, train"):
        load_labelled_audio(tmp_path / "set", split="dev")
    with pytest.raises(ValueError, match="all of it is 'train'"):
        load_labelled_audio(tmp_path / "set/test", split="test")


def test_groups_come_from_the_manifest(tmp_path):
    folder = write_folder(tmp_path / "set", clips=2)
    groups = {f"{name}/{n}.wav": f"session {n}" for name in NAMES for n in (0, 1)}
    write_manifest(folder, "group", groups)
    assert load_labelled_audio(folder).groups == ["session 0", "session 1"] * 3
    write_manifest(folder, "room", groups)
    assert load_labelled_audio(folder).groups is None
    assert load_labelled_audio(folder, group_column="room").groups == ["session 0", "session 1"] * 3
    with pytest.raises(ValueError, match="it has: file, room"):
        load_labelled_audio(folder, group_column="group")
    write_manifest(folder, "group", {"high/0.wav": "a"})
    with pytest.raises(ValueError, match=r"no group for 5 of 6 files: high/1\.wav"):
        load_labelled_audio(folder)


@pytest.mark.parametrize(
    "feature, labels, classes, multi_label",
    [
        (CLASS_LABEL, lambda name, number: NAMES.index(name), NAMES, False),
        (datasets.Value("string"), lambda name, number: name, NAMES, False),
        (datasets.Value("int64"), lambda name, number: HERTZ[name], ["200", "900", "3000"], False),
        (datasets.List(datasets.Value("string")), lambda name, number: [name, "tone"], [*NAMES, "tone"], True),
        (datasets.List(CLASS_LABEL), lambda name, number: [NAMES.index(name)] * (number % 2), NAMES, True),
    ],
    ids=["class labels", "texts", "integers", "lists of texts", "lists of class labels"],
)
def test_columns_of_labels(tmp_path, feature, labels, classes, multi_label):
    rows = make_rows(tmp_path / "files", feature, labels, speaker=lambda name, number: f"{number}")
    rows.to_parquet(tmp_path / "set.parquet")
    data = load_labelled_audio(tmp_path / "set.parquet", group_column="speaker")
    assert data.classes == classes and data.multi_label is multi_label
    assert data.groups[:4] == ["0", "0", "0", "1"]
    for index, (name, number) in enumerate([(name, number) for number in range(4) for name in NAMES]):
        label = labels(name, number)
        wanted = {str(value) for value in (label if multi_label else [label])}
        if "ClassLabel" in str(feature):
            wanted = {NAMES[int(value)] for value in wanted}
        assert {classes[place] for place in np.flatnonzero(data.labels[index])} == wanted
    target = data.target(0)
    assert target.dtype == np.float32 if multi_label else int(target) == data.labels[0].argmax()
    assert data.audio[3]["bytes"][:4] == b"RIFF"
    assert data.select([3]).audio[0] == data.audio[3]


def test_other_classes(tmp_path):
    data = from_dataset(make_rows(tmp_path, datasets.Value("string"), lambda name, number: name))
    other = data.with_classes(["low", "siren", "middle", "high"])
    assert other.labels[:3].argmax(1).tolist() == [3, 0, 2]
    with pytest.raises(ValueError, match="no training clips of middle"):
        data.with_classes(["low", "high"])


def test_data_without_labels_say_what_they_have(tmp_path):
    rows = make_rows(tmp_path, datasets.Value("string"), lambda name, number: name if number else None)
    with pytest.raises(ValueError, match="no label in 3 of 12 rows, first in 0"):
        from_dataset(rows)
    with pytest.raises(ValueError, match="no column 'label'; it has: audio, what"):
        from_dataset(rows.rename_column("label", "what"))
    with pytest.raises(ValueError, match="no column 'speaker'"):
        from_dataset(rows, group_column="speaker")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_labelled_audio(tmp_path / "absent")


def test_rows_without_a_group_are_no_group_of_their_own(tmp_path):
    speaker = {0: "a", 1: "", 2: None, 3: "b"}
    rows = make_rows(tmp_path, CLASS_LABEL, lambda name, number: 0, speaker=lambda name, number: speaker[number])
    with pytest.raises(ValueError, match="column 'speaker' has no group in 6 of 12 rows, first in 3"):
        from_dataset(rows, group_column="speaker")


# Clips


def test_long_clips_are_cropped_elsewhere_each_epoch_and_always_alike(tmp_path):
    data = load_labelled_audio(write_folder(tmp_path / "set", clips=1, seconds=2.0))
    whole = ClipDataset(data, RATE)[0]["waveform"]
    assert len(whole) == 2 * RATE
    middle = ClipDataset(data, RATE, max_seconds=0.5)[0]["waveform"]
    assert np.array_equal(middle, whole[12_000:20_000])
    clips = ClipDataset(data, RATE, max_seconds=0.5, random_crops=True, seed=1)
    crops = []
    for epoch in (0, 1, 0):
        clips.epoch = epoch
        crops.append(clips[0]["waveform"])
        assert len(crops[-1]) == 8_000 and crops[-1].tobytes() in whole.tobytes()
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])
    assert len(ClipDataset(data, RATE, max_seconds=3.0)[0]["waveform"]) == 2 * RATE


def test_truncated_clips_are_kept_if_asked(tmp_path):
    data = load_labelled_audio(write_folder(tmp_path / "set", clips=1, seconds=2.0))
    file = tmp_path / "set/high/0.wav"
    file.write_bytes(file.read_bytes()[: 44 + 3 * RATE])  # 1.5 s of 16 bits
    with pytest.raises(BadClipError, match=r"truncated"):
        ClipDataset(data, RATE)[0]
    assert len(ClipDataset(data, RATE, on_truncated="keep")[0]["waveform"]) == 1.5 * RATE


def test_a_worker_that_lives_on_sees_the_epoch(tmp_path):
    data = load_labelled_audio(write_folder(tmp_path / "set", clips=1, seconds=1.0))
    clips = ClipDataset(data, RATE, max_seconds=0.5, random_crops=True)
    loader = torch.utils.data.DataLoader(clips, None, num_workers=1, persistent_workers=True)
    epochs = []
    for clips.epoch in (0, 1):
        epochs.append([item["waveform"].numpy() for item in loader])
        assert all(np.array_equal(a, clips[n]["waveform"]) for n, a in enumerate(epochs[-1]))
    assert not np.array_equal(epochs[0][0], epochs[1][0])


def test_batches_are_what_the_model_takes(tmp_path):
    data = load_labelled_audio(write_folder(tmp_path / "set", clips=1))
    soundfile.write(tmp_path / "set/low/0.wav", np.stack([tone(200, 0, 1.5)] * 2, 1), 2 * RATE)  # 0.75 s
    batch = ClipCollator(MTSLVRFeatureExtractor())([ClipDataset(data, RATE)[n] for n in range(3)])
    assert batch["input_values"].shape == (3, RATE)
    assert batch["attention_mask"].sum(1).tolist() == [RATE, 12_000, RATE]
    assert batch["labels"].tolist() == [0, 1, 2] and batch["labels"].dtype == torch.int64


def test_bad_clips_are_left_out_and_counted(tmp_path, caplog):
    folder = write_folder(tmp_path / "set", clips=3)
    (folder / "low/1.wav").write_text("no audio")
    soundfile.write(folder / "low/2.wav", np.zeros(RATE), RATE)  # silence is a sound, too
    clips = ClipDataset(load_labelled_audio(folder), RATE)
    with pytest.raises(BadClipError, match=r"low/1\.wav"):
        clips[4]
    args = TrainingArguments(tmp_path / "out", use_cpu=True)
    usable = drop_bad_clips(clips, args, max_bad_share=0.2)
    assert list(usable.data.audio) == [clips.data.audio[n] for n in range(9) if n != 4]
    assert "1 of 9 rows skipped" in caplog.text and "low/1.wav" in caplog.text
    with pytest.raises(TooManyBadRowsError, match="1 unreadable"):
        drop_bad_clips(clips, args, max_bad_share=0.1)


def test_embeddings_of_all_clips_are_those_of_each(tmp_path):
    folder = write_folder(tmp_path / "set", clips=2)
    soundfile.write(folder / "low/1.wav", tone(200, 9, 2.3), RATE)
    clips = ClipDataset(load_labelled_audio(folder), RATE)
    extractor = MTSLVRFeatureExtractor()
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=8)).eval()
    args = TrainingArguments(tmp_path / "out", use_cpu=True, per_device_eval_batch_size=4)
    embedded = embed_clips(clips, model, extractor, args)
    assert len(embedded) == 6 and embedded.embeddings.shape == (6, 8)
    for index in range(6):
        inputs = extractor(clips[index]["waveform"], sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            assert_close(model(**inputs).pooler_output[0], embedded.embeddings[index])
