"""Labelled folders, reading of files and the log-mel baseline."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from mtslvr_hf.evaluation import log_mel_statistics, read_audio, read_labelled_folder

RATE = 16_000


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
        clips = read_labelled_folder(folder)
        assert [path.relative_to(folder).as_posix() for path in clips.files] == [
            "high/a.wav",
            "high/more/b.FLAC",
            "low/a.wav",
            "low/more/b.FLAC",
        ]
        assert clips.labels == ["high", "high", "low", "low"]
        assert clips.groups is None
        assert len(clips) == 4

    def test_only_the_classes_asked_for(self, folder):
        assert set(read_labelled_folder(str(folder), classes=["low", "low"]).labels) == {"low"}
        assert len(read_labelled_folder(folder, classes=["low", "low"])) == 2

    def test_groups_come_from_the_manifest(self, folder):
        rows = [(f"{name}/{file}", f"{name} {file}") for name in ("low", "high") for file in ("a.wav", "more/b.FLAC")]
        write_manifest(folder, rows)
        clips = read_labelled_folder(folder, with_groups=True)
        assert clips.groups == ["high a.wav", "high more/b.FLAC", "low a.wav", "low more/b.FLAC"]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no folder .*absent; expected one with a folder of audio files"):
            read_labelled_folder(tmp_path / "absent")

    def test_no_class_with_audio(self, tmp_path):
        (tmp_path / "class").mkdir()
        with pytest.raises(ValueError, match=r"has no folder with audio files in it; .*\.flac"):
            read_labelled_folder(tmp_path)

    @pytest.mark.parametrize("name", ["middle", "empty"])
    def test_class_without_audio(self, folder, name):
        with pytest.raises(ValueError, match=f"has no class {name}; its classes are high, low"):
            read_labelled_folder(folder, classes=["low", name])

    def test_manifest_is_missing_or_incomplete(self, folder):
        with pytest.raises(ValueError, match="there is no such file"):
            read_labelled_folder(folder, with_groups=True)
        write_manifest(folder, [("low/a.wav", "low")], columns=("file", "label"))
        with pytest.raises(ValueError, match="has the columns file, label; expected file and group"):
            read_labelled_folder(folder, with_groups=True)
        write_manifest(folder, [("low/a.wav", "x"), ("high/a.wav", "")])
        with pytest.raises(ValueError, match=r"no group for 3 of 4 files, the first high/a\.wav"):
            read_labelled_folder(folder, with_groups=True)


class TestReadAudio:
    def test_mixes_down_and_resamples(self, tmp_path):
        left, right = tone(200, 0.1, 44_100), tone(300, 0.1, 44_100)
        soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
        waveform = read_audio(tmp_path / "stereo.wav", sampling_rate=44_100)
        assert (waveform.dtype, waveform.shape) == (np.float32, (4410,))
        assert np.allclose(waveform, (left + right) / 2, atol=1e-6)
        assert read_audio(tmp_path / "stereo.wav").shape == (1600,)

    def test_errors_name_the_file(self, tmp_path):
        (tmp_path / "text.wav").write_text("hello")
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
        with pytest.raises(ValueError, match=r"unreadable: .*text\.wav"):
            read_audio(tmp_path / "text.wav")
        with pytest.raises(ValueError, match=r"unreadable: .*absent\.wav"):
            read_audio(tmp_path / "absent.wav")
        with pytest.raises(ValueError, match=r"empty: .*empty\.wav"):
            read_audio(tmp_path / "empty.wav")


class TestLogMelStatistics:
    def test_a_tone_is_loudest_in_its_band_and_does_not_vary(self, tmp_path):
        soundfile.write(tmp_path / "tone.wav", tone(1000, 2.0), RATE)
        statistics = log_mel_statistics([tmp_path / "tone.wav"], show_progress=False)
        assert statistics.shape == (1, 80)
        # HTK mel of 1000 Hz is 1000.0 and of 8000 Hz 2840.0; band b is centred at (b + 1) / 41 of the latter.
        assert statistics[0, :40].argmax() == round(1000.0 / 2840.0 * 41) - 1
        assert statistics[0, 40 + 13] < 0.5

    def test_rate_matters_little_and_short_clips_work(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", tone(1000, 1.0), RATE, subtype="FLOAT")
        soundfile.write(tmp_path / "b.wav", tone(1000, 1.0, 44_100), 44_100, subtype="FLOAT")
        soundfile.write(tmp_path / "c.wav", tone(1000, 0.01), RATE)
        statistics = log_mel_statistics([tmp_path / name for name in ("a.wav", "b.wav", "c.wav")], show_progress=False)
        assert torch.allclose(statistics[0, 10:18], statistics[1, 10:18], atol=0.1)
        assert torch.isfinite(statistics).all()
