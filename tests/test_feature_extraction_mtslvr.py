"""The feature extractor: every way audio comes in, and every way it is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel, feature_extraction_mtslvr
from mtslvr_hf.feature_extraction_mtslvr import normalize_waveforms

PLAIN = MTSLVRFeatureExtractor(normalization="none")


def tone(samples: int, rate: int = 16000, frequency: float = 440.0) -> np.ndarray:
    return np.sin(2 * math.pi * frequency * np.arange(samples) / rate).astype(np.float32)


class Decoder:
    """Decoder objects that torchcodec and datasets give for an audio column."""

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(np.stack([tone(1000), tone(1000)])), sample_rate=16000)


@pytest.mark.parametrize(
    "clip",
    [
        tone(1000),
        tone(1000).astype(np.float64),
        tone(1000).tolist(),
        torch.from_numpy(tone(1000)),
        tone(1000)[None],
        {"array": tone(1000), "sampling_rate": 16000},
        {"array": np.stack([tone(1000), tone(1000)]), "sampling_rate": 16000},
        Decoder(),
        np.round(tone(1000) * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16),
        np.round(tone(1000).astype(np.float64) * 2**31).clip(-(2**31), 2**31 - 1).astype(np.int32),
    ],
    ids=[
        *["float32", "float64", "list", "tensor", "one channel", "dictionary", "stereo"],
        "decoder",
        "int16",
        "int32",
    ],
)
def test_every_kind_of_clip_alone_and_in_a_list(clip):
    rate = None if isinstance(clip, (dict, Decoder)) else 16000
    for clips in (clip, [clip], [clip, tone(1200)] if rate else [clip, {"array": tone(1200), "sampling_rate": 16000}]):
        inputs = PLAIN(clips, sampling_rate=rate, return_tensors="pt")
        assert inputs["input_values"].dtype == torch.float32
        np.testing.assert_allclose(inputs["input_values"][0, :1000], tone(1000), atol=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_2d_array_is_a_batch_and_channels_must_be_said(kind):
    stereo = kind(np.stack([np.full(100, 0.5), np.full(100, -0.1)]))

    def values(*clips, **options):
        return PLAIN(*clips, sampling_rate=16000, return_tensors="np", **options)["input_values"]

    np.testing.assert_allclose(values(stereo), stereo)
    np.testing.assert_allclose(values({"array": stereo, "sampling_rate": 16000}), np.full((1, 100), 0.2), atol=1e-7)
    for clips in (stereo, [stereo], stereo[None]):
        np.testing.assert_allclose(values(clips, channels_first=True), np.full((1, 100), 0.2), atol=1e-7)
    np.testing.assert_allclose(values([stereo[0], stereo], channels_first=True)[:, 0], [0.5, 0.2], atol=1e-7)
    with pytest.raises(ValueError, match=r"Clip 1 .* \(2, 100\): one clip \(channels, samples\), or 2 clips"):
        values([stereo[0], stereo])
    with pytest.raises(ValueError, match=r"\(100, 2\): one clip \(samples, channels\), or 100 clips"):
        values(stereo.T)
    with pytest.raises(ValueError, match=r"\(1, 2, 100\); expected \(samples,\) for one clip"):
        values(stereo[None])


def test_padding_and_mask():
    inputs = PLAIN([np.ones(3), np.ones(5)], sampling_rate=16000, return_tensors="pt")
    assert inputs["input_values"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    inputs = PLAIN([np.ones(3), np.ones(9)], 16000, padding="max_length", max_length=4, truncation=True)
    assert [row.tolist() for row in inputs["input_values"]] == [[1, 1, 1, 0], [1, 1, 1, 1]]
    inputs = PLAIN([np.ones(3), np.ones(9)], sampling_rate=16000, padding=False)
    assert [len(row) for row in inputs["input_values"]] == [3, 9]
    assert "attention_mask" not in PLAIN(np.ones(3), sampling_rate=16000, return_attention_mask=False)
    with pytest.raises(ValueError, match="padding=True"):
        PLAIN([np.ones(3), np.ones(9)], sampling_rate=16000, padding=False, return_tensors="pt")


def test_zeros_of_padding_are_zeros_after_normalization():
    inputs = MTSLVRFeatureExtractor()([np.zeros(2), np.zeros(4)], sampling_rate=16000, return_tensors="pt")
    assert inputs["input_values"][0, :2].tolist() == pytest.approx([0.00029522 / 0.11652075] * 2)
    assert inputs["input_values"][0, 2:].tolist() == [0, 0]


def test_normalizations():
    x = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    expected = [[(v + 0.00029522) / 0.11652075 for v in row] for row in x.tolist()]
    torch.testing.assert_close(normalize_waveforms(x, "global"), torch.tensor(expected))
    assert normalize_waveforms(x, "sample").tolist() == [[-1, 1], [0, 0]]
    assert normalize_waveforms(x, "none") is x


@pytest.mark.parametrize("rate", (8000, 22050, 44100, 48000))
def test_resampling_keeps_the_tone(rate):
    inputs = PLAIN(tone(2 * rate, rate), sampling_rate=rate, return_tensors="pt")
    values = inputs["input_values"][0]
    assert len(values) == 32000
    np.testing.assert_allclose(values[1000:-1000], tone(32000)[1000:-1000], atol=2e-2)


def test_rates_that_are_missing_wrong_or_contradictory():
    with pytest.raises(ValueError, match="Clip 1 came without a sampling rate"):
        PLAIN([{"array": tone(10), "sampling_rate": 16000}, tone(10)])
    with pytest.raises(ValueError, match="Clip 0 has 8000 Hz, but `sampling_rate` is 16000 Hz"):
        PLAIN({"array": tone(10), "sampling_rate": 8000}, sampling_rate=16000)
    with pytest.raises(ValueError, match="Clip 0 is at 44100 Hz and the model takes 16000 Hz"):
        MTSLVRFeatureExtractor(do_resample=False)(tone(10), sampling_rate=44100)


@pytest.mark.parametrize(
    "clip,message",
    [
        (np.zeros(0, np.float32), "Clip 1 is empty"),
        (np.array([0.0, np.nan]), "Clip 1 has samples that are NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (np.zeros(4, np.complex64), "Clip 1 is complex"),
        (np.zeros((2, 2, 4)), "has the shape"),
        (np.zeros((4000, 2)), "expected \\(samples,\\), or \\(channels, samples\\)"),
        (np.zeros(4, np.int64), "full scale"),
        ("kick.wav", r"Clip 1 \(kick.wav\): there is no such file"),
        ([[0.1], [0.1, 0.2]], "Clip 1 is a list"),
        ({"path": "kick.wav"}, r"Clip 1 \(kick.wav\): there is no such file"),
        ({"text": "kick"}, "needs `array` and `sampling_rate`, or `bytes` or `path` of a file"),
    ],
)
def test_wrong_clips_are_refused_by_number(clip, message):
    with pytest.raises(ValueError, match=message):
        PLAIN([tone(10), clip], sampling_rate=16000, return_tensors="pt")


@pytest.fixture
def file(tmp_path):
    """Two channels at another rate than the extractor's."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(22050, 22050), 0.5 * tone(22050, 22050)], axis=1), 22050, subtype="FLOAT")
    return path


@pytest.mark.parametrize("package", [True, False], ids=["with the package", "by soundfile alone"])
def test_files_have_their_own_rate(file, package, monkeypatch):
    if not package:
        monkeypatch.setattr(feature_extraction_mtslvr, "module_of_package", lambda name: None)
    expected = soxr.resample(0.75 * tone(22050, 22050), 22050, 16000, quality="HQ")
    for clip in (str(file), file, file.read_bytes(), {"path": str(file)}, {"bytes": file.read_bytes(), "path": None}):
        for clips in (clip, [clip], [clip, tone(100)], np.array([clip, clip], dtype=object)):
            values = PLAIN(clips, sampling_rate=16000, return_tensors="np")["input_values"]
            np.testing.assert_allclose(values[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="Clip 0 is at 22050 Hz and the model takes 16000 Hz"):
        MTSLVRFeatureExtractor(do_resample=False)(file)
    for damaged in (b"no audio", file.read_bytes()[:30]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Clip 0 \(.*tone.wav\).*"):
            PLAIN(file)
    with pytest.raises(ValueError, match=r"Clip 0 \(.*gone.wav\).*"):
        PLAIN(file.with_name("gone.wav"))


def test_a_clip_shorter_than_a_sample_of_the_new_rate_is_its_mean():
    values = PLAIN(np.array([0.2, 0.4]), sampling_rate=192000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(values, [[0.3]], atol=1e-6)


def test_auto_processor_asks_no_question(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    MTSLVRModel(MTSLVRConfig(base_width=4)).save_pretrained(tmp_path)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(tmp_path)
    for trust in (None, False, True):
        processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=trust)
        assert isinstance(processor, MTSLVRFeatureExtractor) and processor.normalization == "sample"
    assert not asked


def test_empty_list_and_wrong_settings():
    with pytest.raises(ValueError, match="empty list"):
        PLAIN([], sampling_rate=16000)
    with pytest.raises(ValueError, match="global, sample, none"):
        MTSLVRFeatureExtractor(normalization="batch")
    with pytest.raises(TypeError, match="sampling_rat"):
        PLAIN(tone(10), sampling_rat=16000)


def test_saving_and_loading(tmp_path):
    MTSLVRFeatureExtractor(normalization="global", mean=0.1, std=2.0).save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(again, MTSLVRFeatureExtractor)
    assert (again.normalization, again.mean, again.std, again.sampling_rate) == ("global", 0.1, 2.0, 16000)
    assert (tmp_path / "feature_extraction_mtslvr.py").is_file()
