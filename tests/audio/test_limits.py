"""What is refused before memory or time is spent: special files, absurd headers, files that are too long or large."""

import io
import os
import socket
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from audio_files import RATE, encode, noise, row

from mtslvr_hf.audio import files
from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClipError, mask_secrets
from mtslvr_hf.audio.hashing import row_key
from mtslvr_hf.audio.recording import open_recording, read_waveform
from mtslvr_hf.conversion import read_state_dict
from mtslvr_hf.data import load_audio, sources
from mtslvr_hf.feature_extraction_mtslvr import MTSLVRFeatureExtractor


def wav(rate=RATE, channels=1, samples=2000):
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    pcm = (3000 * np.sin(np.arange(samples * channels))).astype("<i2").tobytes()
    body = b"WAVE" + fmt + b"data" + struct.pack("<I", len(pcm)) + pcm
    return b"RIFF" + struct.pack("<I", len(body)) + body


class TestSpecialFiles:
    @pytest.fixture(params=["fifo", "socket", "device", "link to a fifo"])
    def special(self, request, tmp_path):
        path = tmp_path / "clip.wav"
        if request.param == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                yield path, "a socket"
            return
        if request.param == "device":
            yield "/dev/zero", "a device"
            return
        os.mkfifo(path)
        if request.param != "fifo":
            link = tmp_path / "link.wav"
            link.symlink_to(path)
            path = link
        yield path, "a FIFO"

    def test_they_are_named_by_every_reader(self, special):
        path, kind = special
        for audio in (row(None, str(path)), row(None, f"file://{path}")):
            for read in (decode_clip, row_key, lambda audio: read_waveform(audio, RATE)):
                with pytest.raises(BadClipError, match=rf"{kind}; expected a regular file") as caught:
                    read(audio)
                assert caught.value.reason == "unreadable"

    def test_checkpoints_and_archives(self, tmp_path):
        os.mkfifo(tmp_path / "model.pt")
        os.mkfifo(tmp_path / "shard.tar")
        with pytest.raises(ValueError, match="is no regular file"):
            read_state_dict(tmp_path / "model.pt")
        with pytest.raises(OSError, match="a FIFO"):
            next(iter(sources.open_tars([tmp_path / "shard.tar"])))


class TestHeaders:
    @pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
    def test_rates(self, rate):
        tracemalloc.start()
        for read in (decode_clip, lambda audio: read_waveform(audio, RATE)):
            with pytest.raises(BadClipError, match=r"sampling rate is .* expected 1,000 to 768,000 Hz"):
                read(row(wav(rate)))
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()

    @pytest.mark.parametrize("rate", [1_000, 768_000])
    def test_the_outermost_rates(self, rate):
        assert len(decode_clip(row(wav(rate)))) == pytest.approx(2000 * RATE / rate, abs=1)

    def test_channels(self):
        assert len(decode_clip(row(wav(channels=64)))) == 2000
        with pytest.raises(BadClipError, match="65 channels; expected at most 64"):
            decode_clip(row(wav(channels=65)))

    def test_rates_of_arrays(self):
        for rate in (1, 10**9):
            with pytest.raises(ValueError, match="sampling rate"):
                MTSLVRFeatureExtractor()(noise(1)[:, 0], sampling_rate=rate)


def test_samples_that_overflow_when_they_are_resampled():
    samples = noise(1, 8_000)
    samples[4_000:4_004] = [[3e38], [-3e38], [3e38], [-3e38]]
    for read in (decode_clip, lambda audio: read_waveform(audio, RATE)):
        with pytest.raises(BadClipError, match="too large to be resampled") as caught:
            read(row(encode(samples, 8_000, "WAV", "FLOAT")))
        assert caught.value.reason == "non_finite"


class TestLongFiles:
    def test_a_file_that_is_too_long_is_not_decoded_whole(self):
        silence = row(encode(np.zeros(100 * RATE)))
        tracemalloc.start()
        for read in (
            lambda: decode_clip(silence, max_seconds=99),
            lambda: read_waveform(silence, RATE, max_seconds=99),
        ):
            with pytest.raises(BadClipError, match=r"longer than max_seconds=99 .*cut it into parts"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 3e6
        tracemalloc.stop()
        assert len(read_waveform(silence, RATE, max_seconds=100)) == 100 * RATE

    def test_one_of_unknown_length_is_stopped(self):
        data = bytearray(encode(noise(20)))
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        with pytest.raises(BadClipError, match="longer than max_seconds=10"):
            read_waveform(row(bytes(data)), RATE, max_seconds=10)

    def test_large_members_of_archives_are_bad_rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "MAX_FILE_BYTES", 40_000)
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in (("large.wav", encode(noise(3), format="WAV")), ("small.wav", wav())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        large, small = (item["audio"] for item in load_audio(tmp_path / "a.tar"))
        with pytest.raises(BadClipError, match=r"unreadable: large.wav: 96,044 bytes, more than max_file_bytes"):
            decode_clip(large)
        assert len(decode_clip(small)) == 2000

    def test_large_urls(self, monkeypatch):
        import fsspec

        with fsspec.open("memory://large/clip.wav", "wb") as file:
            file.write(wav())
        monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
        with pytest.raises(BadClipError, match="max_file_bytes"):
            decode_clip(row(None, "memory://large/clip.wav"))


def test_passwords_are_masked():
    url = "https://user:secret@example.org/a.wav?X-Signature=abc"
    assert mask_secrets(f"{url}: no") == "https://***@example.org/a.wav?*** no"
    with pytest.raises(BadClipError) as caught:
        decode_clip(row(None, "nonsense://user:secret@host/clip.wav?token=abc"))
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)
    assert "host/clip.wav" in str(caught.value)


def test_rows_of_urls_are_read_like_files(tmp_path):
    path = tmp_path / "a clip.wav"
    path.write_bytes(wav())
    expected = decode_clip(row(wav()))
    for url in (f"file://{path}", path.as_uri()):
        assert np.array_equal(decode_clip(row(None, url)), expected)
        with files.open_audio(row(None, url)) as file:
            assert file.read() == wav()


def test_decoders_get_no_python_file_objects(tmp_path, monkeypatch):
    """An interrupt or an I/O error inside a Python file object would be lost in C code."""
    import soundfile

    opened = []
    start = soundfile.SoundFile.__init__
    monkeypatch.setattr(
        soundfile.SoundFile,
        "__init__",
        lambda self, file, *args, **options: opened.append(type(file)) or start(self, file, *args, **options),
    )
    path = tmp_path / "clip"
    path.write_bytes(wav())
    for audio in (row(wav()), row(None, str(path))):
        with open_recording(audio) as recording:
            list(recording.read())
            list(recording.read(5, 10))
    assert set(opened) == {int}
