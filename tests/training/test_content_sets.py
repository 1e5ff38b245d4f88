"""Labelled sets that ask for content: files, labels and groups, with a synthesizer and voices that the test makes."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from mtslvr_hf.evaluation import open_data

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import content_sets
from content_sets import RATE


def note(_, program, key):
    """Sine of the key, louder for higher programs, with silence at both ends."""
    tone = np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * np.arange(RATE // 4) / RATE)
    return np.concatenate([np.zeros(500), tone * (program + 1) / 200, np.zeros(900)]).astype(np.float32)


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.setattr(content_sets.Synthesizer, "__init__", lambda self, path: None)
    monkeypatch.setattr(content_sets.Synthesizer, "note", note)
    monkeypatch.setattr(content_sets, "spoken", lambda text, voice: note(None, len(text), 60 + len(voice)))


def test_every_pitch_of_every_instrument(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["content_sets.py", "--output", str(tmp_path)])
    content_sets.main()
    assert capsys.readouterr().out.splitlines() == [
        "note_pitches: 504 clips",
        "note_instruments: 504 clips",
        "spoken_words: 288 clips",
    ]
    with (tmp_path / "note_pitches" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["label"], row["group"]) for row in rows} == {
        (f"key{key}", name) for key in content_sets.PITCHES for name in content_sets.PROGRAMS.values()
    }
    data = open_data(str(tmp_path / "note_instruments"))
    assert len(data) == 504 and set(data.label_names()) == set(content_sets.PROGRAMS.values())
    assert set(data.groups) == {f"key{key}" for key in content_sets.PITCHES}


def test_silence_is_trimmed():
    found = content_sets.trimmed(note(None, 40, 69))
    assert RATE // 4 - 5 < len(found) <= RATE // 4 and np.abs(found).max() == pytest.approx(0.9)
