"""Cached audio of folders with odd names and metadata, and of data sets without rows."""

import os

import datasets
from embed_runs import make_dataset, sound_rows, write_sounds

from mtslvr_hf.caching import cache_audio
from mtslvr_hf.data import load_audio, load_labelled_audio


def test_a_data_set_without_rows(tmp_path):
    report = cache_audio(make_dataset(sound_rows(1)).select([]), tmp_path / "out", num_workers=1)
    assert (report.rows, report.seconds, report.clipped_rows, report.shards) == (0, 0, 0, 1)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert (list(loaded), sorted(loaded.column_names)) == ([], ["audio", "kind", "name", "tags"])


def test_names_that_are_not_utf8(tmp_path):
    sounds = write_sounds(tmp_path / "sounds", count=4)
    os.rename(os.fsencode(sounds / "odd/1.wav"), os.fsencode(sounds) + b"/odd/caf\xe9.wav")
    report = cache_audio(sounds, tmp_path / "out", num_workers=1)
    assert (report.rows, report.bad_rows) == (4, 0)
    paths = {row["audio"]["path"] for row in load_audio(tmp_path / "out")}
    assert paths == {"even/0.flac", "even/2.flac", "odd/3.flac", "odd/caf\\xe9.flac"}


def test_metadata_are_copied(tmp_path):
    sounds = write_sounds(tmp_path / "sounds", count=2)
    (sounds / "metadata.csv").write_text("file_name,label,take\neven/0.wav,a,1\nodd/1.wav,b,2\n../other.wav,b,3\n")
    report = cache_audio(sounds, tmp_path / "out", num_workers=1)
    assert (report.rows, report.reasons) == (2, {"unreadable": 1})
    data = load_labelled_audio(tmp_path / "out", group_column="take")
    assert sorted(zip(data.labels.argmax(1), data.groups)) == [(0, "1"), (1, "2")]


def test_a_manifest_of_another_split_that_is_none(tmp_path):
    sounds = write_sounds(tmp_path / "sounds", count=2)
    cache_audio(sounds, tmp_path / "new", num_workers=1)
    for place in ("default/test", ".hidden/train"):
        (tmp_path / "new" / place).mkdir(parents=True)
        (tmp_path / "new" / place / "manifest.json").write_text("[]")
    assert cache_audio(sounds, tmp_path / "new", num_workers=1).rows == 2
