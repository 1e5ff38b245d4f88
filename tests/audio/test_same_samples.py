"""Every reader decodes a file to the same samples: pre-training, `encode`, `mtslvr cache`, fine-tuning, evaluation."""

import io

import numpy as np
import pytest
import soundfile
from audio_files import RATE, encode, noise, row

from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClip
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


def test_a_stream_of_unknown_length():
    audio = row(unknown_length(encode(noise(1.5))))
    expected = decode_clip(audio, None)
    assert len(expected) > RATE
    assert np.array_equal(in_blocks(audio), expected)
    assert np.abs(cached(audio) - expected).max() <= STEP


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
def test_every_reader_gives_the_same_reason(format, kept):
    data = encode(noise(1.5), format=format)
    audio = row(data[: round(kept * len(data))])
    reasons = set()
    for read in (lambda audio: decode_clip(audio, None), in_blocks, cached, lambda audio: read_waveform(audio, RATE)):
        with pytest.raises(BadClip) as caught:
            read(audio)
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
