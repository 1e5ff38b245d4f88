"""Labelled folders, reading of files and the log-mel baseline."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from results_by_hand import data_result, evaluation

from mtslvr_hf.data import load_labelled_audio
from mtslvr_hf.evaluation import LogMelStatistics, read_report, to_markdown, write_report
from mtslvr_hf.evaluation.report.files import heat_map_names

RATE = 16_000


def row_of(path) -> dict:
    return {"bytes": None, "path": str(path)}


def tone(hertz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    for name, hertz in (("low", 200), ("high", 2000)):
        (tmp_path / name / "more").mkdir(parents=True)
        soundfile.write(tmp_path / name / "a.wav", tone(hertz, 0.4), RATE)
        soundfile.write(tmp_path / name / "more" / "b.FLAC", tone(hertz * 1.1, 1.3), RATE, format="FLAC")
        (tmp_path / name / "notes.txt").write_text("not audio")
    (tmp_path / "empty").mkdir()
    return tmp_path


def write_manifest(folder, rows, columns=("file", "group")):
    with (folder / "manifest.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([columns, *rows])


class TestFolder:
    def test_lists_audio_of_every_class(self, folder):
        clips = load_labelled_audio(folder)
        assert [Path(row["path"]).relative_to(folder).as_posix() for row in clips.audio] == [
            "high/a.wav",
            "high/more/b.FLAC",
            "low/a.wav",
            "low/more/b.FLAC",
        ]
        assert [clips.classes[place] for place in clips.labels.argmax(1)] == ["high", "high", "low", "low"]
        assert clips.groups is None
        assert len(clips) == 4

    def test_groups_come_from_the_manifest(self, folder):
        rows = [(f"{name}/{file}", f"{name} {file}") for name in ("low", "high") for file in ("a.wav", "more/b.FLAC")]
        write_manifest(folder, rows)
        clips = load_labelled_audio(folder)
        assert clips.groups == ["high a.wav", "high more/b.FLAC", "low a.wav", "low more/b.FLAC"]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*absent"):
            load_labelled_audio(tmp_path / "absent")

    def test_no_class_with_audio(self, tmp_path):
        (tmp_path / "class").mkdir()
        with pytest.raises(ValueError, match="holds neither parquet shards nor tar shards nor audio files"):
            load_labelled_audio(tmp_path)

    def test_manifest_is_missing_or_incomplete(self, folder):
        with pytest.raises(ValueError, match=r"manifest\.csv with the columns file and group; it has: nothing"):
            load_labelled_audio(folder, group_column="group")
        write_manifest(folder, [("low/a.wav", "low")], columns=("file", "label"))
        with pytest.raises(ValueError, match="columns file and group; it has: file, label"):
            load_labelled_audio(folder, group_column="group")
        write_manifest(folder, [("low/a.wav", "x"), ("high/a.wav", "")])
        with pytest.raises(ValueError, match=r"no group for 3 of 4 files: high/a\.wav"):
            load_labelled_audio(folder)


class TestLogMelStatistics:
    def test_a_tone_is_loudest_in_its_band_and_does_not_vary(self, tmp_path):
        soundfile.write(tmp_path / "tone.wav", tone(1000, 2.0), RATE)
        statistics = LogMelStatistics().embed([row_of(tmp_path / "tone.wav")])[""]
        assert statistics.shape == (1, 80)
        # HTK mel of 1000 Hz is 1000.0 and of 8000 Hz 2840.0; band b is centered at (b + 1) / 41 of the latter.
        assert statistics[0, :40].argmax() == round(1000.0 / 2840.0 * 41) - 1
        assert statistics[0, 40 + 13] < 0.5

    def test_rate_matters_little_and_short_clips_work(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", tone(1000, 1.0), RATE, subtype="FLOAT")
        soundfile.write(tmp_path / "b.wav", tone(1000, 1.0, 44_100), 44_100, subtype="FLOAT")
        soundfile.write(tmp_path / "c.wav", tone(1000, 0.01), RATE)
        statistics = LogMelStatistics().embed([row_of(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")])[""]
        assert torch.allclose(statistics[0, 10:18], statistics[1, 10:18], atol=0.1)
        assert torch.isfinite(statistics).all()


MODELS = ("runs/a", "runs-a", "Runs-A", "犬", "猫", f"lr-0.0001/{'x' * 300}", "outputs/own")


def test_one_heat_map_for_each_model_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("mtslvr_hf.evaluation.report.plots.DPI", 8)
    names = heat_map_names(MODELS)
    assert list(names) == list(MODELS)
    assert len({name.lower() for name in names.values()}) == len(MODELS)
    assert all(name.isascii() and len(name) < 150 and "/" not in name for name in names.values())
    assert names["outputs/own"] == "invariance-outputs-own.png"
    report = replace(evaluation(), invariance={name: evaluation().invariance["a model"] for name in MODELS})
    written = write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(names.values())
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    """A single episode has no interval."""
    result = data_result()
    rows = [replace(row, interval=math.nan) for row in result.rows]
    differences = [replace(each, interval=math.nan) for each in result.differences]
    report = evaluation(replace(result, rows=rows, differences=differences))
    write_report(report, tmp_path)
    text = (tmp_path / "report.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["results"][0]["rows"][0]["interval"] is None
    again = read_report(tmp_path / "report.json")
    assert to_markdown(again) == to_markdown(report)
    assert "| 31.2 " in to_markdown(again) and "31.2 ±" not in to_markdown(again)
    assert math.isnan(again.results[0].differences[0].interval)
