"""Labelled sets that ask for content: files, labels and groups, with a synthesizer and voices that the test makes."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from mtslvr_hf.evaluation import open_data

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import content_sets
from content_sets import ESPEAK_VOICES, FLITE_VOICES, RATE, WORDS, Clip


def note(_, program, key):
    """Sine of the key, louder for higher programs, with silence at both ends."""
    tone = np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * np.arange(RATE // 4) / RATE)
    return np.concatenate([np.zeros(500), tone * (program + 1) / 200, np.zeros(900)]).astype(np.float32)


@pytest.fixture
def sources(monkeypatch):
    voices = FLITE_VOICES + ESPEAK_VOICES
    monkeypatch.setattr(content_sets, "check_requirements", lambda: None)
    monkeypatch.setattr(content_sets.Synthesizer, "__init__", lambda self, path: None)
    monkeypatch.setattr(content_sets.Synthesizer, "note", note)
    monkeypatch.setattr(
        content_sets, "spoken", lambda text, voice: note(None, WORDS.index(text), 60 + voices.index(voice))
    )


def test_every_pitch_of_every_instrument(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["content_sets.py", "--output", str(tmp_path / "sets")])
    content_sets.main()
    made = ["note_pitches: 504 clips", "note_instruments: 504 clips", "spoken_words: 288 clips"]
    assert capsys.readouterr().out.splitlines() == made
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == sorted(line.split(":")[0] for line in made)
    with (tmp_path / "sets/note_pitches/manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["label"], row["group"]) for row in rows} == {
        (f"key{key}", name) for key in content_sets.PITCHES for name in content_sets.PROGRAMS.values()
    }
    data = open_data(str(tmp_path / "sets/note_instruments"))
    assert len(data) == 504 and set(data.label_names()) == set(content_sets.PROGRAMS.values())
    assert set(data.groups) == {f"key{key}" for key in content_sets.PITCHES}
    content_sets.main()
    assert capsys.readouterr().out.count("already there, not made again") == 3


def test_a_voice_that_is_replaced_by_another_is_an_error(tmp_path):
    """espeak-ng speaks with its default voice if it does not know one."""
    clips = (Clip("house", voice, note(None, 1, 60)) for voice in ("en-gb+m2", "en-gb+f3"))
    with pytest.raises(SystemExit, match=r"house of en-gb\+f3 is the same as that of en-gb\+m2: choose other voices"):
        content_sets.write_set(clips, tmp_path / "spoken_words")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(content_sets.shutil, "which", lambda name: None if name == "flite" else name)
    monkeypatch.setattr(content_sets, "SOUND_FONT", Path("nowhere.sf2"))
    with pytest.raises(SystemExit, match="`apt-get install flite timgm6mb-soundfont`"):
        content_sets.check_requirements()


def test_silence_is_trimmed():
    found = content_sets.trimmed(note(None, 40, 69))
    assert RATE // 4 - 5 < len(found) <= RATE // 4 and np.abs(found).max() == pytest.approx(0.9)
