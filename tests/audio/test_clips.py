"""decode_clip against whole decodings, and against every kind of bad file."""

import io
import struct
import sys

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import RATE, encode, noise, row

from mtslvr_hf.audio.files import fetch
from mtslvr_hf.audio.hashing import row_key
from mtslvr_hf.data import BadClipError, decode_clip

FORMATS = [
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("AIFF", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def reason(audio, **options):
    with pytest.raises(BadClipError) as caught:
        decode_clip(audio, **options)
    assert "clip" in str(caught.value)  # names the row
    return caught.value.reason


def whole(data, rate=RATE):
    """Samples of the whole file at 16 kHz, plainly decoded."""
    samples, found = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert found == rate
    return soxr.resample(samples.mean(1), rate, RATE, quality="HQ")


def find(clip, signal):
    """Offset of a clip in a signal, and the largest difference there."""
    windows = np.lib.stride_tricks.sliding_window_view(signal, len(clip))
    at = int(np.argmin(np.square(windows[:, :64] - clip[:64]).sum(1)))
    return at, np.abs(windows[at] - clip).max()


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_crop_is_a_part_of_the_whole(format, subtype, channels):
    rate = 48_000
    data = encode(noise(3, rate, channels), rate, format, subtype)
    signal = whole(data, rate)
    starts = set()
    for seed in range(6):
        clip = decode_clip(row(data), 1.0, crop_seed=seed)
        start, error = find(clip, signal)
        assert clip.shape == (RATE,) and clip.dtype == np.float32
        assert error < 1e-5  # at the edges too
        starts.add(start)
    assert len(starts) == 6


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
def test_any_rate_becomes_16_khz(rate):
    data = encode(noise(3, rate), rate, "WAV", "FLOAT")
    clip = decode_clip(row(data), 1.0, crop_seed=7)
    assert clip.shape == (RATE,)
    assert find(clip, whole(data, rate))[1] < 1e-5


def test_pitch_survives_resampling():
    t = np.arange(44_100) / 44_100
    clip = decode_clip(row(encode(np.sin(2 * np.pi * 1000 * t) / 2, 44_100)), 1.0)
    spectrum = np.abs(np.fft.rfft(clip))
    assert np.argmax(spectrum) == 1000
    assert np.sqrt(np.mean(clip**2)) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)


def test_crop_depends_on_its_seed_alone():
    data = encode(noise(2))
    assert np.array_equal(decode_clip(row(data), 1.0, crop_seed=3), decode_clip(row(data, "other"), 1.0, crop_seed=3))
    middle = decode_clip(row(data), 1.0)
    assert find(middle, whole(data)) == (RATE // 2, 0)


def test_short_clips_are_repeated_and_long_ones_kept_whole_without_a_length():
    data = encode(noise(0.3))
    clip = decode_clip(row(data), 1.0)
    assert np.array_equal(clip, np.tile(whole(data), 4)[:RATE])
    assert np.array_equal(decode_clip(row(data)), whole(data))


def test_stereo_is_averaged():
    left, right = noise(1, seed=1), noise(1, seed=2)
    clip = decode_clip(row(encode(np.hstack([left, right]), format="WAV", subtype="FLOAT")), 1.0)
    assert np.allclose(clip, (left + right)[:, 0] / 2, atol=1e-7)


def test_paths_read_like_bytes(tmp_path):
    data = encode(noise(2))
    path = tmp_path / "clip.flac"
    path.write_bytes(data)
    by_path, by_bytes = row(None, str(path)), row(data)
    assert np.array_equal(decode_clip(by_path, 1.0, crop_seed=5), decode_clip(by_bytes, 1.0, crop_seed=5))
    assert row_key(by_path) == row_key(by_bytes)
    by_url = row(None, f"file://{path}")
    assert np.array_equal(decode_clip(by_url, 1.0, crop_seed=5), decode_clip(by_bytes, 1.0, crop_seed=5))
    assert row_key(by_url) == row_key(by_bytes)
    assert fetch(by_path) is by_path and fetch(by_url) is by_url


def test_row_key_sees_length_head_and_tail():
    data = bytes(20_000)
    keys = {
        row_key(row(data)),
        row_key(row(data + b"\0")),
        row_key(row(b"x" + data[1:])),
        row_key(row(data[1:] + b"x")),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(("format", "subtype"), [f for f in FORMATS if f[0] not in ("OGG", "MP3")])
@pytest.mark.parametrize("kept", [0.3, 0.95, 0.999])
def test_truncated_files_are_found_out(format, subtype, kept):
    data = encode(noise(2), format=format, subtype=subtype)
    assert reason(row(data[: int(kept * len(data))])) == "truncated"


def test_truncated_mp3_is_found_out():
    data = encode(noise(4), format="MP3")
    assert reason(row(data[: len(data) // 2])) == "truncated"


def test_truncated_header_is_unreadable():
    assert reason(row(encode(noise(1))[:20])) == "unreadable"


def test_what_remains_of_truncated_flac_is_enough_where_the_crop_lies_in_it():
    data = encode(noise(10))[:-1000]
    assert decode_clip(row(data), 1.0).shape == (RATE,)
    assert reason(row(data), clip_seconds=9.999) == "truncated"


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1])
def test_streamed_wav_without_a_length_is_whole(size):
    data = bytearray(encode(noise(1), format="WAV"))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", size)
    assert decode_clip(row(bytes(data))).shape == (RATE,)


def test_streamed_flac_without_a_length_is_read():
    data = bytearray(encode(noise(2)))
    data[21] &= 0xF0  # the number of samples: 36 bits of STREAMINFO
    data[22:26] = bytes(4)
    clip = decode_clip(row(bytes(data)))
    assert np.array_equal(clip, whole(encode(noise(2))))


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (row(b""), "empty"),
        (row(None, None) | {"path": ""}, "empty"),
        (row(b"<html>404 Not Found</html>"), "unreadable"),
        (row(bytes(1000)), "unreadable"),
        (row(None, "/no/such/clip.flac"), "unreadable"),
        (row(None, "nonsense://clip.flac"), "unreadable"),
    ],
)
def test_what_is_no_audio(audio, expected):
    with pytest.raises(BadClipError) as caught:
        decode_clip(fetch(audio), 1.0)
    assert caught.value.reason == expected


def test_no_samples():
    assert reason(row(encode(np.zeros((0, 1)), format="WAV"))) == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_non_finite(value):
    samples = noise(1, channels=2)
    samples[100, 1] = value
    assert reason(row(encode(samples, format="WAV", subtype="FLOAT"))) == "non_finite"


def test_silence():
    assert reason(row(encode(np.zeros(RATE)))) == "silent"
    assert reason(row(encode(np.full(RATE, 0.25)))) == "silent"  # a constant offset is no sound
    assert reason(row(encode(noise(1, level=2e-5), subtype="PCM_24"))) == "silent"  # -94 dBFS
    assert decode_clip(row(encode(noise(1, level=5e-5), subtype="PCM_24"))).shape == (RATE,)  # -86 dBFS


def test_silence_is_that_of_the_crop():
    data = encode(np.concatenate([np.zeros((10 * RATE, 1), "float32"), noise(1)]))
    assert decode_clip(row(data)).shape == (11 * RATE,)
    assert reason(row(data), clip_seconds=1.0) == "silent"


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x20ftypM4A \0\0\0\0", b"\x1a\x45\xdf\xa3" + bytes(12), b"\xff\xf1" + bytes(14)]
)
def test_formats_libsndfile_cannot_read_name_the_missing_part(monkeypatch, head):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(BadClipError, match=r"missing_codec: clip.*pip install -e '\.\[codecs\].*FFmpeg"):
        decode_clip(row(head + bytes(100)), 1.0)


def test_torchcodec_without_ffmpeg_names_the_missing_part(monkeypatch):
    def decoder(data):
        raise RuntimeError("Could not load libtorchcodec. Likely causes: ...")

    monkeypatch.setitem(sys.modules, "torchcodec", type(sys)("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", type(sys)("torchcodec.decoders"))
    sys.modules["torchcodec.decoders"].AudioDecoder = decoder
    assert reason(row(b"\0\0\0\x20ftypM4A " + bytes(100))) == "missing_codec"


def test_torchcodec_decodes_what_libsndfile_cannot():
    encoders = pytest.importorskip("torchcodec.encoders")
    import torch

    t = torch.arange(3 * 44_100) / 44_100
    tone = torch.sin(2 * torch.pi * 1000 * t)[None] / 2
    data = bytes(encoders.AudioEncoder(tone, sample_rate=44_100).to_tensor(format="mp4").tolist())
    clip = decode_clip(row(data), 1.0, crop_seed=1)
    assert clip.shape == (RATE,)
    assert np.argmax(np.abs(np.fft.rfft(clip))) == 1000
    assert reason(row(data[: len(data) // 2]), clip_seconds=1.0) in ("unreadable", "truncated")


def test_damaged_files_raise_nothing_but_bad_clip():
    random = np.random.default_rng(0)
    files = [encode(noise(0.5, 44_100, 2), 44_100, *which) for which in FORMATS if which[1] != "OPUS"]
    good = 0
    for number in range(140):
        data = bytearray(files[number % len(files)])
        places = random.integers(0, 200 if number % 2 else len(data), 20)
        for place in places:
            data[place] = random.integers(256)
        try:
            good += decode_clip(row(bytes(data)), 0.2, crop_seed=number).shape == (3200,)
        except BadClipError:
            continue
    assert 0 < good < 140
