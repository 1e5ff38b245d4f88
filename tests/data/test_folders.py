"""Layouts of folders: links, hidden files, splits, classes, metadata, odd paths; the same in every function."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from mtslvr_hf.data import EncodedAudio, audio_rows, decode_clip, from_dataset, load_audio, load_labelled_audio
from mtslvr_hf.data.encoded import confined_path
from mtslvr_hf.data.folders import FolderLayout, split_of, visible_files
from mtslvr_hf.shards.partitions import open_source


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(800) / 9), 16000)
    return path


def tree(root, *names):
    for name in names:
        sound(root / name)
    return root


def labels_of(data):
    """Class of each file, by its name."""
    names = [os.path.basename(row["path"]) for row in data.audio]
    return dict(zip(names, (data.classes[column] for column in data.labels.argmax(1))))


def source_rows(source, **options):
    """Rows of `mtslvr embed`: id to copied columns."""
    return {row.id: row.columns for part in open_source(source, **options).partitions for row in part.rows(0)}


def paths_of(folder, **options):
    return sorted(os.path.relpath(row["audio"]["path"], folder) for row in load_audio(folder, **options))


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path, caplog):
    store = tree(tmp_path / "store", "dog/0.wav", "dog/young/1.wav")
    view = tree(tmp_path / "view", "cat/2.wav")
    (view / "dog").symlink_to(store / "dog")
    (view / "a first link").symlink_to(view / "cat")
    (view / "cat" / "loop").symlink_to(view)
    assert paths_of(view) == ["cat/2.wav", "dog/0.wav", "dog/young/1.wav"]
    assert labels_of(load_labelled_audio(view)) == {"2.wav": "cat", "0.wav": "dog", "1.wav": "dog"}
    assert list(source_rows(view)) == ["cat/2.wav", "dog/0.wav", "dog/young/1.wav"]
    assert "2 links to folders that are read already are left out" in caplog.text


def test_files_that_are_not_regular_are_no_audio(tmp_path):
    sound(tmp_path / "a" / "0.wav")
    os.mkfifo(tmp_path / "a" / "1.wav")
    (tmp_path / "a" / "2.wav").symlink_to(tmp_path / "a" / "1.wav")
    (tmp_path / "a" / "3.wav").symlink_to(tmp_path / "nothing")
    assert visible_files(tmp_path) == [tmp_path / "a" / "0.wav"]


def test_hidden_files_do_not_count(tmp_path):
    folder = tree(tmp_path / "sounds", "cat/0.wav", "dog/1.wav", ".Trash/old/2.wav", "cat/.ipynb_checkpoints/3.wav")
    (folder / "cat" / "._0.wav").write_bytes(b"\0\5\x16\7")
    (folder / ".cache").mkdir()
    Dataset.from_dict({"embedding": [[1.0]]}).to_parquet(folder / ".cache" / "e.parquet")
    (folder / ".metadata.csv").write_text("file_name,label\n")
    assert paths_of(folder) == ["cat/0.wav", "dog/1.wav"]
    assert load_labelled_audio(folder).classes == ["cat", "dog"]


def test_hidden_tar_shards_and_members_do_not_count(tmp_path):
    data = sound(tmp_path / "a.wav").read_bytes()
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "clips-0.tar", "w") as tar:
        for name, content in (("./a.wav", data), ("./._a.wav", b"\0\5\x16\7"), (".cache/b.wav", data)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (shards / "._clips-0.tar").write_bytes(b"\0\5\x16\7")
    assert [row["audio"]["path"] for row in load_audio(shards)] == ["./a.wav"]


@pytest.mark.parametrize(
    ("splits", "asked"),
    [
        (("train", "test"), ("train", "test")),
        (("Train", "TEST"), ("train", "test")),
        (("training", "testing"), ("train", "test")),
        (("train-clean-100", "dev-clean", "test_other"), ("train", "validation", "test")),
        (("train", "valid"), ("train", "val")),
        (("train", "eval"), ("train", "test")),
    ],
)
@pytest.mark.parametrize("place", ["{split}/{kind}/{n}.wav", "data/{split}/{kind}/{n}.wav", "{kind}/{split}/{n}.wav"])
def test_splits_by_the_words_of_datasets(tmp_path, splits, asked, place):
    for number, split in enumerate(splits):
        for kind in ("cat", "dog"):
            sound(tmp_path / place.format(split=split, kind=kind, n=number))
    for number, split in enumerate(asked):
        data = load_labelled_audio(tmp_path, split=split)
        assert data.classes == ["cat", "dog"]
        assert {os.path.basename(row["path"]) for row in data.audio} == {f"{number}.wav"}
        assert len(paths_of(tmp_path, split=split)) == 2
        columns = source_rows(tmp_path, columns=["label"], split=split)
        assert sorted(row["label"] for row in columns.values()) == ["cat", "dog"]
    assert {row["label"] for row in source_rows(tmp_path, columns=["label"]).values()} == {"cat", "dog"}


def test_names_that_contain_no_split():
    assert [split_of(name) for name in ("Train", "my training 2", "2019-dev", "evaluation")] == [
        *("train", "train", "validation", "test")
    ]
    assert [split_of(name) for name in ("trains", "detest", "value", "steam_train_", "cat")] == [
        *(None, None, None, "train", None)
    ]


def test_a_class_called_train(tmp_path):
    folder = tree(tmp_path, "train/0.wav", "dog/1.wav")
    assert load_labelled_audio(folder).classes == ["dog", "train"]
    with pytest.raises(ValueError, match="not divided into splits"):
        load_audio(folder, split="test")


def test_splits_beside_other_folders_are_refused(tmp_path):
    folder = tree(tmp_path / "all", "train/cat/0.wav", "test/cat/1.wav", "extra/cat/2.wav")
    for way in (load_audio, load_labelled_audio):
        with pytest.raises(ValueError, match=r"folders of splits \(test, train\) beside others \(extra\)"):
            way(folder)
    (tmp_path / "classes").mkdir()
    folder.rename(tmp_path / "classes" / "train")
    assert load_labelled_audio(tmp_path / "classes").classes == ["extra", "test", "train"]


def test_a_label_is_the_same_in_every_command(tmp_path):
    folder = tree(tmp_path, "cat/monday/0.wav", "cat/1.wav", "dog/tuesday/late/2.wav")
    assert labels_of(load_labelled_audio(folder)) == {"0.wav": "cat", "1.wav": "cat", "2.wav": "dog"}
    rows = source_rows(folder, columns=["label"])
    assert {name: row["label"] for name, row in rows.items()} == {
        "cat/monday/0.wav": "cat",
        "cat/1.wav": "cat",
        "dog/tuesday/late/2.wav": "dog",
    }


def test_files_in_no_class_are_left_out_with_a_warning(tmp_path, caplog):
    assert len(load_labelled_audio(tree(tmp_path, "cat/0.wav", "dog/1.wav", "2.wav"))) == 2
    assert "1 of 3 audio files lie in no folder of a class" in caplog.text


METADATA = {
    "metadata.csv": "file_name,label,take\n{0},dog,01\n{1},cat,02\n",
    "metadata.jsonl": '{{"file_name": "{0}", "label": "dog", "take": "01"}}\n'
    '{{"file_name": "{1}", "label": "cat", "take": "02"}}\n',
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("files", [("0.wav", "1.wav"), ("data/0.wav", "data/1.wav"), ("bo/0.wav", "ann/1.wav")])
def test_metadata_of_audiofolder_give_the_labels(tmp_path, name, files):
    (tree(tmp_path, *files) / name).write_text(
        METADATA[name].format(*files), "utf-8-sig" if "csv" in name else "utf-8"
    )
    data = load_labelled_audio(tmp_path, group_column="take")
    assert labels_of(data) == {"0.wav": "dog", "1.wav": "cat"}
    assert (data.classes, data.groups) == (["cat", "dog"], ["01", "02"])
    assert paths_of(tmp_path) == sorted(files)
    rows = source_rows(tmp_path, columns=["label", "take"])
    assert rows == {files[0]: {"label": "dog", "take": "01"}, files[1]: {"label": "cat", "take": "02"}}
    assert all(len(decode_clip(row)) for row in data.audio)


@pytest.mark.parametrize("place", [".", "set", "../here/set"])
def test_metadata_of_a_relative_folder(tmp_path, place, monkeypatch):
    (tree(tmp_path / "here" / "set", "a/0.wav") / "metadata.csv").write_text("file_name,label\na/0.wav,x\n")
    monkeypatch.chdir(tmp_path / "here" / "set" if place == "." else tmp_path / "here")
    for row in (load_labelled_audio(place).audio[0], next(iter(load_audio(place)))["audio"]):
        assert len(decode_clip(row)) == 800
    assert list(source_rows(place)) == ["a/0.wav"]


def test_metadata_in_parquet_beside_audio_are_no_data_set(tmp_path):
    Dataset.from_dict({"file_name": ["a/0.wav"], "label": ["x"]}).to_parquet(
        tree(tmp_path, "a/0.wav") / "metadata.parquet"
    )
    assert load_labelled_audio(tmp_path).classes == ["x"]


@pytest.mark.parametrize("at_root", [True, False])
def test_metadata_with_splits(tmp_path, at_root):
    tree(tmp_path, "train/0.wav", "train/1.wav", "test/2.wav")
    if at_root:
        (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/0.wav,a\ntrain/1.wav,b\ntest/2.wav,b\n")
    else:
        (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.wav,a\n1.wav,b\n")
        (tmp_path / "test" / "metadata.csv").write_text("file_name,label\n2.wav,b\n")
    assert labels_of(load_labelled_audio(tmp_path)) == {"0.wav": "a", "1.wav": "b"}
    assert labels_of(load_labelled_audio(tmp_path, split="test")) == {"2.wav": "b"}
    assert paths_of(tmp_path, split="test") == ["test/2.wav"]


def test_several_labels_and_other_columns_of_metadata(tmp_path):
    tree(tmp_path, "0.wav", "1.wav")
    rows = [{"mic_file_name": "0.wav", "label": ["a", "b"]}, {"mic_file_name": "1.wav", "label": ["b"]}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_labelled_audio(tmp_path)
    assert (data.classes, data.labels.tolist()) == (["a", "b"], [[True, True], [False, True]])
    with pytest.raises(ValueError, match=r"metadata.jsonl: .* no column 'kind'; it has: mic, label, file"):
        load_labelled_audio(tmp_path, label_column="kind")


def test_files_without_a_row_of_metadata_are_counted(tmp_path, caplog):
    (tree(tmp_path, "0.wav", "1.wav", "2.wav") / "metadata.csv").write_text("file_name,label\n0.wav,a\n")
    assert paths_of(tmp_path) == ["0.wav"]
    assert "2 of 3 audio files" in caplog.text and "1.wav, 2.wav" in caplog.text


def test_a_file_that_is_only_called_metadata(tmp_path, caplog):
    folder = tree(tmp_path, "wavs/LJ001.wav")
    (folder / "metadata.csv").write_bytes("LJ001|Töne|Töne\n".encode("latin-1"))
    assert paths_of(folder) == ["wavs/LJ001.wav"]
    assert "no column file_name with paths of audio files" in caplog.text
    with pytest.raises(ValueError, match=r"metadata.csv: no column file_name"):
        load_labelled_audio(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n0.wav,a,b\n", "row 2 has 3 values; expected 2"),
        ("file_name,label\n0.wav,Geräusch\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_metadata_that_cannot_be_read(tmp_path, text, message):
    (tree(tmp_path, "0.wav") / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"metadata.csv.*{message}"):
        load_labelled_audio(tmp_path)


def test_multi_hot_labels():
    def read(values, kind):
        features = Features({"audio": EncodedAudio(), "label": kind})
        rows = [{"bytes": b"x", "path": None}] * len(values)
        data = from_dataset(Dataset.from_dict({"audio": rows, "label": values}, features=features))
        return data.classes, data.labels.astype(int).tolist()

    for kind in ("int64", "float32", "bool"):
        assert read([[0, 1, 1], [1, 0, 0]], List(Value(kind))) == (["0", "1", "2"], [[0, 1, 1], [1, 0, 0]])
    assert read([[1, 0], [0, 1]], List(Value("int64"))) == (["0", "1"], [[1, 0], [0, 1]])
    assert read([[0, 1], [2]], List(Value("int64"))) == (["0", "1", "2"], [[1, 1, 0], [0, 0, 1]])
    assert read([[0], [1]], List(Value("int64"))) == (["0", "1"], [[1, 0], [0, 1]])
    assert read([[0, 1], [1, 0]], List(ClassLabel(names=["a", "b"]))) == (["a", "b"], [[1, 1], [1, 1]])


NOTES = {
    "Latin-1": "# Geräusche\n".encode("latin-1"),
    "no YAML": b"---\nrecorder: [Zoom H4n\n---\n",
    "another field": b"---\nconfigs: none\n---\n# Notes\n",
    "a list": b"---\nconfigs:\n- hall\n- room\n---\n",
}


@pytest.mark.parametrize("notes", NOTES)
def test_a_readme_that_is_no_card(tmp_path, notes):
    (tree(tmp_path / "audio", "cat/0.wav", "dog/1.wav") / "README.md").write_bytes(NOTES[notes])
    assert paths_of(tmp_path / "audio") == ["cat/0.wav", "dog/1.wav"]
    assert load_labelled_audio(tmp_path / "audio").classes == ["cat", "dog"]
    table = write_table(tmp_path / "parquet" / "train.parquet")
    (table.parent / "README.md").write_bytes(NOTES[notes])
    if notes == "Latin-1" or notes == "no YAML":
        for way in (load_audio, load_labelled_audio):
            with pytest.raises(ValueError, match=r"parquet/README.md cannot be read as the card"):
                way(table.parent)


def write_table(path, paths=(None,), data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": data, "path": name} for name in paths]
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")})
    Dataset.from_dict({"audio": audio, "label": ["a"] * len(paths)}, features=features).to_parquet(path)
    return path


def test_paths_are_no_patterns(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        write_table(tmp_path / "take[1]" / "data" / f"{split}-00000-of-00001.parquet", [split])
    folder = tmp_path / "take[1]"
    for source, asked in ((folder, "train"), (folder, "test"), (folder / "data/test-00000-of-00001.parquet", "test")):
        assert [row["audio"]["path"] for row in load_audio(source, split=asked)] == [asked]
        assert len(load_labelled_audio(source, split=asked)) == 1
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: own\n  data_files:\n  - split: left\n    path: data/te*\n---\n"
    )
    assert [row["audio"]["path"] for row in load_audio(folder, "own", split="left")] == ["test"]
    with pytest.raises(ValueError, match=r"no configuration 'other'; it has: own"):
        load_audio(folder, "other")


def test_linked_folders_of_parquet(tmp_path):
    write_table(tmp_path / "store" / "1.parquet", ["one"])
    write_table(tmp_path / "view" / "0.parquet", ["zero"])
    (tmp_path / "view" / "more").symlink_to(tmp_path / "store")
    assert sorted(row["audio"]["path"] for row in load_audio(tmp_path / "view")) == ["one", "zero"]


def test_names_that_are_not_utf8(tmp_path):
    folder = tree(tmp_path, "cat/0.wav", "dog/1.wav")
    os.rename(os.fsencode(folder / "dog/1.wav"), os.fsencode(folder) + b"/dog/caf\xe9.wav")
    os.rename(folder / "dog", os.fsencode(folder) + b"/b\xe4r")
    data = load_labelled_audio(folder)
    assert data.classes == ["b\\xe4r", "cat"]
    assert all(len(decode_clip(row)) for row in data.audio)
    rows = source_rows(folder, columns=["file", "label"])
    assert rows["b\\xe4r/caf\\xe9.wav"] == {"file": "b\\xe4r/caf\\xe9.wav", "label": "b\\xe4r"}
    assert all(len(decode_clip(row["audio"])) for row in load_audio(folder))
    with pytest.raises(ValueError, match=r"caf\\xe9.wav: the name is not UTF-8.*streaming=True"):
        load_audio(folder, streaming=False)


def test_rows_name_only_files_of_their_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    inside, outside = sound(tmp_path / "set" / "clips" / "a b.wav"), sound(tmp_path / "other.wav")
    names = [
        "clips/a b.wav",
        str(inside),
        inside.as_uri(),
        str(outside),
        "../other.wav",
        f"file://{outside}",
        "http://127.0.0.1:9/x",
    ]
    names += [f"zip://x.wav::{outside}", "clips/../../other.wav", f"file://{inside.parent}/..%2F../other.wav"]
    table = write_table(tmp_path / "set" / "train.parquet", names, data=None)
    for source in (table, table.parent):
        options = {} if source == table else {"streaming": False}
        rows = {n: row["audio"] for n, row in enumerate(load_audio(source, **options))}
        assert [row.get("refused") is None for row in rows.values()] == 3 * [True] + 7 * [False]
        assert [len(decode_clip(rows[n])) for n in range(3)] == [800, 800, 800]
        for row in list(rows.values())[3:]:
            with pytest.raises(ValueError, match=r"unreadable: .*a file outside of its data set.*allow_row_paths"):
                decode_clip(row)
    rows = list(load_labelled_audio(table).select([0, 3]).audio)
    assert [row.get("refused") is None for row in rows] == [True, False]
    found = [row.audio for part in open_source(table).partitions for row in part.rows(0)]
    assert [row.get("refused") is None for row in found] == 3 * [True] + 7 * [False]
    allowed = [row["audio"] for row in load_audio(table, allow_row_paths=True)]
    assert len(decode_clip(allowed[3])) == len(decode_clip(load_labelled_audio(table, allow_row_paths=True).audio[3]))
    mine = Dataset.from_dict({"audio": [{"bytes": None, "path": str(outside)}]})
    assert len(decode_clip(audio_rows(mine)[0]["audio"])) == 800


def test_metadata_name_only_files_of_their_folder(tmp_path):
    outside = sound(tmp_path / "other.wav")
    (tree(tmp_path / "set", "0.wav") / "metadata.csv").write_text(
        f"file_name,label\n0.wav,a\n../other.wav,a\n{outside},a\nhttp://127.0.0.1:9/x.wav,a\n"
    )
    for rows in (
        [row["audio"] for row in load_audio(tmp_path / "set")],
        list(load_labelled_audio(tmp_path / "set").audio),
        [row.audio for part in open_source(tmp_path / "set").partitions for row in part.rows(0)],
    ):
        assert sorted("refused" in row for row in rows) == [False, True, True, True]
    allowed = [row["audio"]["path"] for row in load_audio(tmp_path / "set", allow_row_paths=True)]
    assert str(outside) in allowed


def test_files_of_a_repository():
    roots = ("/cache/datasets--a--b", "hf://datasets/a/b@", "hf://datasets/a/b/")
    for path in (
        "hf://datasets/a/b@main/x.wav",
        "zip://x.wav::hf://datasets/a/b@main/x.zip",
        "/cache/datasets--a--b/x",
    ):
        assert confined_path(path, roots) == path
    for path in (
        *("hf://datasets/a/other/x.wav", "hf://datasets/a/bc@main/x.wav", "hf://datasets/a/b@main/../../c/x.wav"),
        *("file:///etc/passwd::hf://datasets/a/b@main/x", "zip://x::http://evil/x.zip", "/cache/datasets--a--bc/x"),
    ):
        assert confined_path(path, roots) is None


def test_dictionaries_of_splits_are_named():
    rows = Dataset.from_dict({"audio": [{"bytes": b"x", "path": None}], "label": ["a"]})
    for way in (audio_rows, from_dataset, open_source):
        with pytest.raises(TypeError, match=r"DatasetDict of the splits train, test came.*dataset\['train'\]"):
            way(DatasetDict(train=rows, test=rows))


def test_layout_of_no_files(tmp_path):
    assert FolderLayout(tmp_path, []).split_depth is None
