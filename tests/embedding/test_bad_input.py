"""Odd and bad input of encode: an embedding, or an error that names the item and the remedy."""

import io
import logging
import re

import numpy as np
import pytest
import soundfile
import torch
from unreliable_server import unreliable_server

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.data import BadClipError
from mtslvr_hf.embedding import encode, encode_items

RATE = 16_000
SIZE = 8


def noise(seconds, channels=1, rate=RATE, seed=0):
    """(channels, samples)."""
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))).astype(np.float32)


def at_rate(samples, rate):
    return {"array": samples, "sampling_rate": rate}


def encoded(samples, rate=RATE, format="WAV", subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model():
    """On log-mel input. (A phase can jump from -pi to pi when a sample changes by its last bit.)"""
    torch.manual_seed(0)
    return MTSLVRModel(MTSLVRConfig(frontend="mel", base_width=4, window_seconds=1.0, embedding_size=SIZE))


@pytest.fixture(scope="module")
def server():
    with unreliable_server(encoded(noise(1.5))) as address:
        yield address


ODD = {
    "one sample": (noise(1 / RATE), RATE),
    "one sample at 192 kHz": (noise(1 / 192_000, rate=192_000), 192_000),
    "5 ms": (noise(0.005), RATE),
    "5 ms at 44.1 kHz": (noise(0.005, rate=44_100), 44_100),
    "silence": (np.zeros((1, 20_000), dtype=np.float32), RATE),
    "constant": (np.full((1, 20_000), 0.3, dtype=np.float32), RATE),
    "clipped": (np.clip(50 * noise(1.5), -1, 1), RATE),
    "stereo": (noise(1.5, channels=2), RATE),
    "7 channels": (noise(1.5, channels=7), RATE),
    "8 kHz": (noise(1.5, rate=8_000), 8_000),
    "192 kHz": (noise(1.5, rate=192_000), 192_000),
}


class TestOddInput:
    @pytest.mark.parametrize("normalization", ["global", "sample", "none"])
    def test_arrays_and_files_have_the_same_finite_embedding(self, model, normalization, tmp_path):
        arrays, files = [], []
        for name, (samples, rate) in ODD.items():
            arrays.append(at_rate(samples, rate))
            files.append(tmp_path / f"{name}.wav")
            files[-1].write_bytes(encoded(samples, rate))
        extractor = MTSLVRFeatureExtractor(normalization=normalization)
        embeddings = encode(model, arrays, feature_extractor=extractor)
        assert embeddings.shape == (len(ODD), SIZE)
        assert np.isfinite(embeddings).all()
        by_file = encode(model, files, feature_extractor=extractor)
        assert np.allclose(by_file, embeddings, rtol=1e-4, atol=1e-5 * np.abs(embeddings).max())
        alone = np.stack([encode(model, item, feature_extractor=extractor) for item in arrays])
        assert np.allclose(alone, embeddings, rtol=1e-4, atol=1e-5 * np.abs(embeddings).max())

    @pytest.mark.parametrize("name", [name for name, (_, rate) in ODD.items() if rate == RATE])
    def test_embeddings_are_those_of_extractor_and_forward(self, model, name):
        samples, rate = ODD[name]
        inputs = MTSLVRFeatureExtractor()(samples, sampling_rate=rate, return_tensors="pt", channels_first=True)
        with torch.no_grad():
            expected = model.eval()(**inputs).pooler_output[0].numpy()
        difference = np.abs(encode(model, samples, rate, channels_first=True) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max()

    @pytest.mark.parametrize(
        ("dtype", "subtype", "scale", "offset"),
        [("int16", "PCM_16", 2**15, 0), ("int32", "PCM_32", 2**31, 0), ("uint8", "PCM_U8", 2**7, 2**7)],
    )
    def test_integers_are_pcm(self, model, dtype, subtype, scale, offset):
        samples = noise(1.5, channels=2)
        integers = np.round(samples.astype(np.float64) * scale + offset).astype(dtype)
        exact = ((integers.astype(np.float64) - offset) / scale).astype(np.float32)
        expected = encode(model, exact, RATE, channels_first=True)
        file = encoded(exact, subtype=subtype)
        for item in (integers, torch.from_numpy(integers), file):
            embedding = encode(model, item, RATE, channels_first=True)
            assert np.allclose(embedding, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    def test_a_url(self, model, server):
        assert np.array_equal(encode(model, f"{server}/sound.wav"), encode(model, noise(1.5)[0], RATE))

    def test_a_clip_shorter_than_a_sample_of_the_network_s_rate_is_its_mean(self, model):
        tiny = np.array([0.2, 0.4], dtype=np.float32)
        expected = encode(model, np.array([0.3], dtype=np.float32), RATE)
        assert np.allclose(encode(model, tiny, 192_000), expected, rtol=1e-4)


def bad_arrays():
    """name -> (item, sampling rate, reason, message)."""
    nan, infinite = noise(1.5), noise(1.5, channels=2)
    nan[0, 20_000] = np.nan
    infinite[1, 7] = -np.inf
    fine = noise(0.1)
    return {
        "no samples": (np.zeros(0), RATE, "empty", "has no samples; leave it out"),
        "no samples of two channels": (np.zeros((2, 0)), RATE, "empty", "has no samples; leave it out"),
        "empty list": (at_rate([], RATE), None, "empty", "has no samples; leave it out"),
        "none": (None, RATE, "empty", "is None; leave it out"),
        "NaN": (nan, RATE, "non_finite", "the sample at 1.250 s is NaN or infinite; replace such samples"),
        "NaN resampled": (at_rate(nan, 44_100), None, "non_finite", "the sample at 0.454 s is NaN or infinite"),
        "infinite": (at_rate(infinite, RATE), None, "non_finite", "the sample at 0.000 s is NaN or infinite"),
        "absurdly loud": (1e30 * fine, RATE, "non_finite", "embedding is not finite; samples should lie within -1 to"),
        "complex": (fine + 1j, RATE, "unreadable", "is complex; expected real samples"),
        "64-bit integers": (np.arange(99), RATE, "unreadable", "torch.int64, which has no full scale"),
        "samples first": (fine.T, RATE, "unreadable", r"shape \(1600, 1\); expected .* 64 channels. Transpose"),
        "few samples first": (at_rate(np.zeros((9, 2)), RATE), None, "unreadable", r"shape \(9, 2\); .* Transpose"),
        "65 channels": (at_rate(np.zeros((65, 99)), RATE), None, "unreadable", r"shape \(65, 99\); .* 64 channels"),
        "channels or clips": (
            np.zeros((2, 99)),
            RATE,
            "unreadable",
            r"shape \(2, 99\): one clip \(channels, .* 2 clips",
        ),
        "4 axes": (fine[None, None], RATE, "unreadable", r"shape \(1, 1, 1, 1600\); expected \(samples,\), or \(cha"),
        "words": (["a", "b"], RATE, "unreadable", "is a list that is no array of samples .* expected an array"),
        "no rate": (fine, None, "unreadable", "came without a sampling rate: pass `sampling_rate`, in Hz"),
        "two rates": (at_rate(fine, 8_000), RATE, "unreadable", "at 8000 Hz, but `sampling_rate` is"),
        "rate 0": (at_rate(fine, 0), None, "unreadable", "sampling rate 0; expected a positive whole number of Hz"),
        "rate NaN": (at_rate(fine, float("nan")), None, "unreadable", "sampling rate nan; expected a positive whole"),
        "rate in words": (at_rate(fine, "16k"), None, "unreadable", "sampling rate '16k'; expected a positive whole"),
        "a row without audio": ({"id": 1, "text": "a"}, RATE, "unreadable", "no audio among id, text; name it"),
    }


def bad_files(folder, server):
    """name -> (path, reason, message)."""
    samples, long = noise(1.5), noise(8.0)
    nan = samples.copy()
    nan[0, 5] = np.nan
    mp3, flac = encoded(long, format="MP3", subtype=None), encoded(long, format="FLAC", subtype="PCM_16")
    contents = {
        "nothing.wav": (b"", "empty", "the file is empty; leave it out"),
        "header.wav": (encoded(samples[:, :0]), "empty", "no samples; leave it out"),
        "text.wav": (b"this is no audio", "unreadable", "no audio that could be read .*; expected WAV, FLAC, MP3"),
        "short header.wav": (encoded(samples)[:20], "unreadable", "no audio that could be read"),
        "half.wav": (encoded(samples)[:40_000], "truncated", "bytes less than in its header.*; fetch or write it"),
        "half.flac": (flac[: len(flac) // 2], "truncated", "(breaks off|ends) after .* fetch or write it again"),
        "half.mp3": (mp3[: len(mp3) // 2], "truncated", "after .* s.*; fetch or write it again"),
        "nan.wav": (encoded(nan), "non_finite", "the sample at 0.000 s is NaN or infinite"),
    }
    cases = {}
    for name, (data, reason, message) in contents.items():
        (folder / name).write_bytes(data)
        cases[name] = (str(folder / name), reason, message)
    (folder / "folder.wav").mkdir()
    return {
        **cases,
        "a folder": (str(folder / "folder.wav"), "unreadable", "is a folder; expected a file: pass the files in it"),
        "missing": (str(folder / "gone.wav"), "unreadable", "there is no such file; relative paths start at /"),
        "null": ("a\0.wav", "unreadable", "null"),
        "refused": ("http://127.0.0.1:9/a.wav", "unreadable", "the URL cannot be read .*; check the address"),
        "404": (f"{server}/missing.wav", "unreadable", "the URL cannot be read .*FileNotFoundError.*; check"),
        "500": (f"{server}/a.wav", "unreadable", "the URL cannot be read .*; check the address"),
        "protocol": ("carrier-pigeon://a.wav", "unreadable", "the URL cannot be read .*Protocol not known: carrier-"),
        "missing URL": (f"file://{folder}/gone.wav", "unreadable", "there is no such file"),
    }


class TestBadInput:
    @pytest.mark.parametrize("name", bad_arrays())
    def test_arrays(self, model, name):
        item, rate, reason, message = bad_arrays()[name]
        with pytest.raises(BadClipError, match=f"^{reason}: Clip 1.*{message}") as caught:
            encode(model, [at_rate(noise(0.1), rate or RATE), item], rate)
        assert isinstance(caught.value, ValueError)
        assert caught.value.reason == reason

    def test_files_by_path_by_bytes_and_in_rows(self, model, tmp_path, server):
        for name, (path, reason, message) in bad_files(tmp_path, server).items():
            pattern = f"^{reason}: Clip 0 \\({re.escape(path)}\\).*{message}"
            with pytest.raises(BadClipError, match=pattern):
                encode(model, path)
            with pytest.raises(BadClipError, match=pattern):
                encode(model, {"audio": {"bytes": None, "path": path}, "label": 1})
            if name.endswith((".wav", ".flac", ".mp3")):
                with open(path, "rb") as file:
                    data = file.read()
                with pytest.raises(BadClipError, match=f"^{reason}: Clip 0: .*"):
                    encode(model, data)
                with pytest.raises(BadClipError, match=pattern):
                    encode(model, {"bytes": data, "path": path})

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_good_items_are_not_lost_with_the_bad_ones(self, model, tmp_path, server, num_workers, caplog):
        good = [noise(seconds, seed=seed) for seed, seconds in enumerate((0.3, 2.5, 1.0))]
        items, bad = [], []
        for path, reason, message in bad_files(tmp_path, server).values():
            items += [at_rate(good[len(bad) % 3], RATE), path]
            bad.append((path, reason, message))
        expected = encode(model, good, RATE)
        with caplog.at_level(logging.WARNING, logger="mtslvr_hf"):
            embeddings = encode(model, items, on_error="skip", batch_size=4, num_workers=num_workers)
        assert np.isnan(embeddings[1::2]).all()
        for number, embedding in enumerate(embeddings[::2]):
            assert np.allclose(embedding, expected[number % 3], rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == len(bad)
        for number, (warning, (path, reason, message)) in enumerate(zip(warnings, bad)):
            assert re.search(f"{reason}: Clip {2 * number + 1} \\({re.escape(path)}\\).*{message}", warning)

    def test_only_bad_items(self, model):
        items = [np.zeros(0), np.full(9, np.nan)]
        assert np.isnan(encode(model, items, RATE, on_error="skip")).all()
        assert encode(model, items, RATE, on_error="skip").shape == (2, SIZE)
        assert encode(model, items, RATE, on_error="skip", tasks=["predictive"]).shape == (2, SIZE // 2)
        assert torch.isnan(encode(model, items[0], RATE, on_error="skip", convert_to="torch")).all()

    def test_bad_items_have_no_frames(self, model):
        items = [noise(1.5), np.zeros(0)]
        good, bad = encode(model, items, RATE, on_error="skip", return_timestamps=True)
        assert (good.embeddings.shape, good.seconds.shape) == ((2, SIZE), (2,))
        assert (bad.embeddings.shape, bad.seconds.shape) == ((0, SIZE), (0,))
        tensors = encode(model, items, RATE, on_error="skip", return_timestamps=True, convert_to="torch")
        assert tensors[1].embeddings.shape == (0, SIZE)

    def test_encode_items_hands_errors_out(self, model, tmp_path):
        results = list(encode_items(model, [str(tmp_path / "gone.wav"), at_rate(noise(0.5), RATE)]))
        assert [result.error is None for result in results] == [False, True]
        assert results[0].error.reason == "unreadable"
        assert str(tmp_path / "gone.wav") in str(results[0].error)

    def test_a_long_item_that_turns_out_bad_is_left_out_whole(self, model):
        long = noise(20.0)
        long[0, -1] = np.nan
        embeddings = encode(model, [noise(2.0), long, noise(1.0, seed=1)], RATE, on_error="skip", batch_size=2)
        assert np.isfinite(embeddings[[0, 2]]).all()
        assert np.isnan(embeddings[1]).all()
