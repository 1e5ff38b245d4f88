"""Every reader decodes a file to the same samples: pre-training, `encode`, `mtslvr cache`, fine-tuning, evaluation."""

import io
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, encode, noise, row

from mtslvr_hf.audio import recording
from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.audio.recording import open_recording, read_waveform
from mtslvr_hf.caching.audio_writer import encode_flac

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
RATES = (8_000, 16_000, 44_100, 48_000)
STEP = 1 / 32768  # of 16 bit


def in_blocks(audio):
    """The samples that `encode` reads."""
    with open_recording(audio) as recording:
        return np.concatenate(list(recording.blocks(RATE)))


def cached(audio):
    """The samples that `mtslvr cache` writes."""
    data, _, _ = encode_flac(audio, RATE)
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def unknown_length(data):
    """A FLAC file whose header does not tell its length, as an encoder writes it to a pipe."""
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [(*kind, rate) for kind in FORMATS for rate in RATES if kind[1] != "OPUS" or rate != 44_100],
)
def test_every_reader_gives_the_same_samples(format, subtype, channels, rate, tmp_path):
    data = encode(noise(1.5, rate, channels), rate, format, subtype)
    audio = row(data)
    expected = decode_clip(audio, None)
    assert np.abs(in_blocks(audio) - expected).max() < 1e-6
    assert np.abs(cached(audio) - expected).max() <= STEP
    file = tmp_path / "clip"
    file.write_bytes(data)
    assert np.array_equal(in_blocks(row(None, str(file))), in_blocks(audio))
    assert np.array_equal(read_waveform(row(None, str(file)), RATE), in_blocks(audio))
    assert np.array_equal(decode_clip(row(None, f"file://{file}"), None), expected)


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_a_part_is_that_of_the_whole(format, subtype):
    audio = row(encode(noise(4, RATE), RATE, format, subtype))
    with open_recording(audio) as recording:
        whole = np.concatenate(list(recording.read()))
        for begin, end in ((0, 100), (20_000, 45_000), (1, 2), (20_000, 45_000)):
            (part,) = recording.read(begin, end)
            assert np.abs(part - whole[begin:end]).max() < 1e-5
        assert np.array_equal(np.concatenate(list(recording.read())), whole)


def test_the_name_of_a_file_tells_nothing(tmp_path):
    for name in ("clip.gsm", "clip.raw", "clip.mp3", b"caf\xe9.wav".decode(errors="surrogateescape")):
        path = tmp_path / name
        path.write_bytes(encode(noise(1)))
        audio = row(None, str(path))
        assert np.array_equal(decode_clip(audio), in_blocks(audio)) and len(decode_clip(audio)) == RATE
    path = tmp_path / "page.gsm"  # libsndfile takes all for audio that is called so
    path.write_bytes(b"<html>404 Not Found</html>" * 99)
    for read in (decode_clip, in_blocks):
        with pytest.raises(BadClipError, match="unreadable"):
            read(row(None, str(path)))


def test_a_stream_of_unknown_length():
    audio = row(unknown_length(encode(noise(1.5))))
    expected = decode_clip(audio, None)
    assert len(expected) > RATE
    assert np.array_equal(in_blocks(audio), expected)
    assert np.abs(cached(audio) - expected).max() <= STEP


def test_a_crop_of_a_long_stream_of_unknown_length_lies_anywhere_and_is_not_held_whole():
    samples = noise(700, 8_000)
    audio = row(unknown_length(encode(samples, 8_000)))
    assert len(decode_clip(audio, sampling_rate=8_000)) > 699 * 8_000
    tracemalloc.start()
    clips = [decode_clip(audio, 1.0, 8_000, crop_seed=seed) for seed in range(12)]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes; the whole has 22 million
    tracemalloc.stop()
    windows = np.lib.stride_tricks.sliding_window_view(samples[:, 0], 8)
    starts = [int(np.abs(windows - clip[:8]).max(axis=1).argmin()) for clip in clips]
    assert max(starts) > 600 * 8_000
    assert all(np.abs(samples[start:, 0][:8_000] - clip).max() < STEP for start, clip in zip(starts, clips))


@pytest.mark.parametrize(
    "head", [b"\x00\x00\x00\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"\xff\xf1\x4c\x80"], ids=["m4a", "webm", "aac"]
)
@pytest.mark.parametrize("duration", [None, 4.95, 5.0, 5.05])
def test_what_torchcodec_decodes(head, duration, monkeypatch):
    """Containers round their duration, or do not tell it."""
    samples = noise(5).T

    def play(start, stop):
        return SimpleNamespace(data=torch.from_numpy(samples[:, round(start * RATE) : round(stop * RATE)]))

    decoder = SimpleNamespace(
        metadata=SimpleNamespace(sample_rate=RATE, duration_seconds=duration), get_samples_played_in_range=play
    )
    monkeypatch.setattr(recording, "torchcodec_decoder", lambda source, name: decoder)
    audio = row(head + bytes(50))
    assert np.array_equal(decode_clip(audio), samples[0])
    assert np.array_equal(in_blocks(audio), samples[0])
    clip = decode_clip(audio, 1.0, crop_seed=3)
    start = int(np.abs(samples[0] - clip[0]).argmin())
    assert np.array_equal(clip, samples[0, start : start + RATE])


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
def test_every_reader_gives_the_same_reason(format, kept):
    data = encode(noise(1.5), format=format)
    audio = row(data[: round(kept * len(data))])
    reasons = set()
    for read in (lambda audio: decode_clip(audio, None), in_blocks, cached, lambda audio: read_waveform(audio, RATE)):
        with pytest.raises(BadClipError) as caught:
            read(audio)
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
