"""open_recording against decoding in one piece."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import soxr
import torch
from audio_files import RATE, encode, noise, row

from mtslvr_hf.audio import libsndfile, recording
from mtslvr_hf.audio.recording import decoder_recording, open_recording
from mtslvr_hf.data import BadClipError, decode_clip

FORMATS = [
    ("FLAC", "PCM_24"),
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("AIFF", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many blocks in short files."""
    monkeypatch.setattr(libsndfile, "BLOCK_SAMPLES", 10_000)


def read(audio, sampling_rate=RATE):
    with open_recording(audio) as recording:
        return np.concatenate(list(recording.blocks(sampling_rate)))


def reason(audio):
    with pytest.raises(BadClipError) as caught:
        read(audio)
    assert "clip" in str(caught.value)  # names the row
    return caught.value.reason


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_are_the_whole(format, subtype, channels, tmp_path):
    data = encode(noise(3, 48_000, channels), 48_000, format, subtype)
    whole = decode_clip(row(data))
    path = tmp_path / "clip"
    path.write_bytes(data)
    assert np.allclose(read(row(data)), whole, rtol=0, atol=1e-7)  # libsndfile rounds MP3 by block
    assert np.array_equal(read(row(None, str(path))), read(row(data)))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 192_000])
def test_any_rate_is_resampled_as_in_one_piece(rate):
    samples = noise(2, rate)
    with open_recording(row(encode(samples, rate, "WAV", "FLOAT"))) as recording:
        assert recording.rate == rate
        blocks = list(recording.blocks(RATE))
    assert len(blocks) > 1 and max(map(len, blocks)) <= 25_000
    assert all(block.dtype == np.float32 for block in blocks)
    whole = samples[:, 0] if rate == RATE else soxr.resample(samples[:, 0], rate, RATE, quality="HQ")
    assert np.array_equal(np.concatenate(blocks), whole)


def test_a_recording_can_be_read_again():
    with open_recording(row(encode(noise(2)))) as recording:
        first, second = (np.concatenate(list(recording.blocks(RATE))) for _ in range(2))
        next(recording.blocks(RATE))  # and left
    assert len(first) == 2 * RATE
    assert np.array_equal(first, second)


def test_silence_is_audio_and_less_than_a_sample_is_one():
    assert np.array_equal(read(row(encode(np.zeros(5), format="WAV"))), np.zeros(5))
    short = read(row(encode(np.array([0.2, 0.4]), 192_000, "WAV", "FLOAT")))
    assert np.allclose(short, [0.3])


@pytest.mark.parametrize(("format", "subtype"), [f for f in FORMATS if f[0] != "OGG"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_truncated_files_are_found_out_at_their_end(format, subtype, kept):
    data = encode(noise(4), format=format, subtype=subtype)
    assert reason(row(data[: int(kept * len(data))])) == "truncated"


def test_flac_of_unknown_length_is_read_to_its_end():
    data = bytearray(encode(noise(3)))
    assert data[:4] == b"fLaC"
    data[21] &= 0xF0  # STREAMINFO's count of samples: 36 bits, 0 if it is not known
    data[22:26] = bytes(4)
    waveform = read(row(bytes(data)))
    whole = decode_clip(row(encode(noise(3))))
    assert np.array_equal(waveform, whole)


def test_bad_rows():
    assert reason(row(b"")) == "empty"
    assert reason(row(encode(np.zeros(0), format="WAV"))) == "empty"
    assert reason(row(b"RIFFclip")) == "unreadable"
    assert reason(row(None, "/no/such/clip")) == "unreadable"
    with pytest.raises(BadClipError, match="empty: 0 bytes without a name: neither bytes nor a path"):
        read(row(None, None))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15_000, 31_999])
def test_samples_that_are_not_finite_are_found_wherever_they_are(bad, place):
    samples = noise(2)
    samples[place] = bad
    with pytest.raises(BadClipError, match=f"non_finite: clip: the sample at {place / RATE:.3f} s is NaN or infinite"):
        read(row(encode(samples, format="WAV", subtype="FLOAT")))


def test_large_samples_are_finite():
    samples = np.full((20_000, 1), 3e38, dtype=np.float32)
    assert np.array_equal(read(row(encode(samples, format="WAV", subtype="FLOAT"))), samples[:, 0])


def test_a_url_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    data = encode(noise(2))
    with fsspec.open("memory://long/clip.flac", "wb") as file:
        file.write(data)
    with open_recording({"bytes": None, "path": "memory://long/clip.flac"}) as recording:
        if Path("/proc/self/fd").exists():  # the copy has no name, so that none remains behind a killed process
            assert os.listdir(tmp_path) == []
        waveform = np.concatenate(list(recording.blocks(RATE)))
    assert os.listdir(tmp_path) == []
    assert np.array_equal(waveform, decode_clip(row(data)))


class FakeDecoder:
    """Plays a signal as torchcodec does: an error behind the end, a duration that may be wrong."""

    def __init__(self, samples, duration, heard=None):
        self.samples = samples  # (channels, samples)
        self.heard = np.ones(samples.shape[1], bool) if heard is None else heard
        self.metadata = SimpleNamespace(sample_rate=RATE, duration_seconds=duration)

    def get_samples_played_in_range(self, start, stop):
        wanted = slice(round(start * RATE), round(stop * RATE))
        samples = self.samples[:, wanted][:, self.heard[wanted]]
        if not samples.size:
            raise RuntimeError("No audio frames were decoded")
        return SimpleNamespace(data=torch.from_numpy(samples), sample_rate=RATE)


class TestTorchcodec:
    @pytest.mark.parametrize("seconds", [0.5, 60, 119.95, 150])
    @pytest.mark.parametrize("duration", [None, 10.0, 150.0])
    def test_ranges_are_the_whole_whatever_the_metadata_say(self, seconds, duration):
        samples = noise(seconds, channels=2).T
        waveform = np.concatenate(list(decoder_recording(FakeDecoder(samples, duration), "clip").blocks(RATE)))
        assert np.allclose(waveform, samples.mean(0), atol=1e-7)
        assert len(waveform) == samples.shape[1]

    def test_an_exact_duration_tells_truncation(self):
        whole, half = FakeDecoder(noise(100).T, 100.04), FakeDecoder(noise(70).T, 100.0)
        list(decoder_recording(whole, "clip", exact=True).blocks(RATE))
        with pytest.raises(BadClipError, match=r"truncated: clip: ends after 70\.00 of 100\.00 s"):
            list(decoder_recording(half, "clip", exact=True).blocks(RATE))

    @pytest.mark.parametrize(
        ("begin", "cut_off"), [(b"\x00\x00\x00\x20ftypM4A ", True), (b"\xff\xf1\x4c\x80", False)], ids=["m4a", "aac"]
    )
    def test_the_duration_of_raw_aac_is_a_guess(self, begin, cut_off, monkeypatch):
        monkeypatch.setattr(recording, "torchcodec_decoder", lambda source, name: FakeDecoder(noise(5).T, 7.0))
        if cut_off:
            assert reason(row(begin + bytes(50))) == "truncated"
        else:
            assert len(read(row(begin + bytes(50)))) == 5 * RATE

    def test_the_rate_is_that_of_the_samples(self):
        """`cast_column("audio", Audio(sampling_rate=16000))`: the metadata are those of the file."""
        decoder = FakeDecoder(noise(5).T, 5.0)
        decoder.metadata.sample_rate = 44_100
        opened = decoder_recording(decoder, "clip")
        assert opened.rate == RATE
        assert sum(map(len, opened.blocks(RATE))) == 5 * RATE

    @pytest.mark.parametrize("gap", [(0, 1), (0, 61), (0, 200), (10, 12), (50, 130), (30, 300)])
    def test_a_late_start_and_gaps_are_no_loss(self, gap):
        samples, (begin, end) = noise(310).T, gap
        heard = np.ones(samples.shape[1], bool)
        heard[begin * RATE : end * RATE] = False
        opened = decoder_recording(FakeDecoder(samples, 310.0, heard), "clip", exact=True)
        assert np.array_equal(np.concatenate(list(opened.blocks(RATE))), samples[0, heard])
        (part,) = opened.read(5_000, 6_000)
        assert np.array_equal(part, samples[0, heard][5_000:6_000])

    def test_what_a_truncated_file_has_can_be_kept(self):
        half = FakeDecoder(noise(70).T, 100.0)
        opened = decoder_recording(half, "clip", exact=True, on_truncated="keep")
        assert sum(map(len, opened.blocks(RATE))) == 70 * RATE

    def test_it_is_tried_where_libsndfile_does_not_know_the_format(self, monkeypatch, tmp_path):
        monkeypatch.setattr(recording, "torchcodec_decoder", lambda path, name: FakeDecoder(noise(5).T, None))
        path = tmp_path / "clip.wav"
        path.write_bytes(b"wvpk" + bytes(100))
        for audio in (row(path.read_bytes()), row(None, str(path)), row(None, path.as_uri())):
            assert len(read(audio)) == 5 * RATE

    def test_nothing_to_decode(self):
        with pytest.raises(BadClipError, match=r"unreadable: clip: no audio that could be read \(No audio frames"):
            list(decoder_recording(FakeDecoder(np.zeros((1, 0)), None), "clip").blocks(RATE))

    @pytest.mark.parametrize("source", ["bytes", "path"])
    def test_without_torchcodec_the_error_names_what_is_missing(self, source, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torchcodec", None)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
        data = b"\x00\x00\x00\x20ftypM4A " + bytes(50)
        path = tmp_path / "clip.m4a"
        path.write_bytes(data)
        audio = row(data) if source == "bytes" else row(None, str(path))
        with pytest.raises(BadClipError, match=r"missing_codec: .*clip.*pip install -e '\.\[codecs\].*FFmpeg"):
            read(audio)

    @pytest.mark.parametrize("suffix", ["m4a", "aac", "webm"])
    def test_files_that_libsndfile_cannot_read(self, suffix, tmp_path, monkeypatch):
        encoders = pytest.importorskip("torchcodec.encoders")
        decoders = pytest.importorskip("torchcodec.decoders")
        monkeypatch.setattr(recording, "RANGE_SECONDS", 1)
        path = tmp_path / f"clip.{suffix}"
        time = np.arange(5 * 48_000) / 48_000  # a tone: AAC codes noise as noise, other each time it is decoded
        tone = torch.from_numpy((0.5 * np.sin(2 * np.pi * (500 * time + 100 * time**2))).astype("float32"))
        encoders.AudioEncoder(torch.stack([tone, tone]), sample_rate=48_000).to_file(str(path))
        whole = decoders.AudioDecoder(str(path)).get_all_samples().data.mean(0).numpy()
        waveform = read(row(None, str(path)), 48_000)
        assert np.array_equal(read(row(path.read_bytes()), 48_000), waveform)
        if suffix == "webm":  # up to a millisecond stands twice at the first edge
            assert 0 <= len(waveform) - len(whole) <= 48
            assert np.allclose(waveform[:48_000], whole[:48_000], atol=1e-6)
            whole, waveform = whole[-48_000:], waveform[-48_000:]
        assert 0 <= len(whole) - len(waveform) < 1024  # the encoder's padding
        assert np.allclose(waveform, whole[: len(waveform)], atol=1e-2)  # the stop at the end is noise

    def test_a_truncated_m4a_is_found_out(self, tmp_path):
        encoders = pytest.importorskip("torchcodec.encoders")
        path = tmp_path / "clip.m4a"
        encoders.AudioEncoder(torch.from_numpy(noise(5).T), sample_rate=RATE).to_file(str(path))
        data = Path(path).read_bytes()
        assert reason(row(data[: len(data) // 2])) in ("unreadable", "truncated")
