"""Files are read to their end, whatever their headers state; only proof of missing samples makes one truncated."""

import struct

import numpy as np
import pytest
from audio_files import RATE, encode, noise, row
from test_same_samples import cached, in_blocks, unknown_length

from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.audio.mpeg import find_streams
from mtslvr_hf.audio.recording import open_recording, read_waveform

SECONDS = 1.5
TONE = (0.4 * np.sin(np.arange(round(SECONDS * RATE)) / 9) * np.linspace(0.2, 1, round(SECONDS * RATE))).astype("f4")


def mp3(samples=TONE, rate=RATE):
    return encode(samples, rate, "MP3")


def without_header(data):
    """An MP3 file without its Xing or Info header."""
    place = max(data.find(b"Xing"), data.find(b"Info"))
    start = data.rfind(b"\xff", 0, place)
    while data[start + 1] & 0xE0 != 0xE0:
        start = data.rfind(b"\xff", 0, start)
    return data[:start] + data[data.index(b"\xff" + data[start + 1 : start + 2], place) :]


def with_frames(data, frames):
    """An MP3 file whose Xing or Info header states a number of frames, and no bytes."""
    place = max(data.find(b"Xing"), data.find(b"Info"))
    assert data[place + 7] & 3 == 3
    return data[: place + 8] + struct.pack(">II", frames, 0) + data[place + 16 :]


def seconds(data, **options):
    """Duration for all readers."""
    lengths = {len(decode_clip(row(data), **options)), len(read_waveform(row(data), RATE, **options))}
    with open_recording(row(data), **options) as recording:
        lengths.add(sum(map(len, recording.blocks(RATE))))
    assert len(lengths) == 1
    return lengths.pop() / RATE


def reason_of(data, **options):
    with pytest.raises(BadClipError) as caught:
        decode_clip(row(data), **options)
    return caught.value


class TestMP3:
    @pytest.mark.parametrize(
        "change",
        [
            without_header,
            lambda data: with_frames(data, 0),
            lambda data: with_frames(data, 5),
            lambda data: b"ID3\x03\x00\x00\x00\x00\x10\x00" + bytes(2048) + data + b"TAG" + bytes(125),
            lambda data: data + b"junk" * 5000,
        ],
        ids=["no header", "0 frames", "5 frames", "tags", "junk behind"],
    )
    def test_the_header_does_not_matter(self, change):
        assert seconds(change(mp3())) == pytest.approx(SECONDS, abs=0.12)  # an encoder adds up to 0.11 s

    def test_joined_files(self):
        assert seconds(mp3() + mp3()) == pytest.approx(2 * SECONDS, abs=0.01)
        assert seconds(without_header(mp3()) * 2) == pytest.approx(2 * SECONDS, abs=0.25)
        stereo = mp3(np.stack([TONE, TONE], axis=1))
        assert seconds(mp3() + stereo) == pytest.approx(2 * SECONDS, abs=0.01)
        assert "44100" in str(reason_of(mp3() + mp3(noise(1, 44_100), 44_100)))

    def test_a_crop_of_joined_files_is_a_part_of_the_whole(self):
        data = mp3() + mp3(noise(SECONDS))
        whole = decode_clip(row(data))
        with open_recording(row(data)) as recording:
            for begin, end in ((0, 100), (20_000, 30_000), (40_000, 47_000)):
                (part,) = recording.read(begin, end)
                assert np.array_equal(part, whole[begin:end])

    def test_frames_that_the_header_states_are_missing(self):
        data = mp3()
        error = reason_of(data[: len(data) // 2])
        assert error.reason == "truncated" and "MPEG frames are missing" in str(error)
        assert "on_truncated='keep'" in str(error)
        kept = decode_clip(row(data[: len(data) // 2]), on_truncated="keep")
        assert 0.2 * SECONDS < len(kept) / RATE < 0.8 * SECONDS
        most = len(kept) - 2 * 1152  # the last frames need those behind them
        assert np.allclose(kept[:most], decode_clip(row(data))[:most], atol=1e-4)

    def test_streams_of_a_plain_file(self, tmp_path):
        path = tmp_path / "clip"
        path.write_bytes(mp3())
        with open(path, "rb") as file:
            (stream,) = find_streams(file, 0, path.stat().st_size)
        assert stream.stated == stream.frames and stream.missing == 0 and len(stream.runs) == 1

    def test_libmpg123_prints_nothing(self, capfd):
        data = bytearray(mp3())
        for place in range(900, len(data), 97):
            data[place] ^= 0x55
        for damaged in (bytes(data), mp3() + b"junk" * 5000, with_frames(mp3(), 3)):
            try:
                decode_clip(row(damaged))
            except BadClipError:
                continue
        assert capfd.readouterr().err == ""


def riff_sizes(size):
    data = bytearray(encode(TONE, format="WAV"))
    at = data.index(b"data") + 4
    data[4:8] = struct.pack("<I", min(size + 36, 2**32 - 1))
    data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


STREAMED = (0, 2**31 - 1, 2**31, 2**32 - 1, 0x7FFFF000, 2**31 - 37, 2**32 - 37, 2**32 - 2, 0x7FFF_FF00, 0x8000_0024)


class TestContainers:
    @pytest.mark.parametrize("size", STREAMED)
    def test_wav_sizes_of_streams(self, size):
        assert seconds(riff_sizes(size)) == SECONDS

    @pytest.mark.parametrize("more", [1, 8, 36, 44])
    def test_a_few_bytes_too_many_are_no_truncation(self, more):
        assert seconds(riff_sizes(2 * len(TONE) + more)) == SECONDS

    @pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "RF64"])
    def test_missing_bytes_are_counted_and_the_rest_can_be_kept(self, format):
        data = encode(TONE, format=format)
        cut = data[: len(data) - len(TONE)]
        error = reason_of(cut)
        assert error.reason == "truncated" and f"of {SECONDS:.2f} s" in str(error)
        assert seconds(cut, on_truncated="keep") == pytest.approx(SECONDS * 0.5, abs=0.01)

    @pytest.mark.parametrize(
        ("format", "marker", "size"), [("AIFF", b"SSND", 4), ("AU", b".snd", 4), ("CAF", b"data", 8)]
    )
    def test_sizes_of_0_mean_unknown(self, format, marker, size):
        data = bytearray(encode(TONE, format=format))
        at = data.index(marker) + (8 if format == "AU" else 4)
        data[at : at + size] = bytes(size)
        assert seconds(bytes(data)) == pytest.approx(SECONDS, abs=0.01)

    def test_no_samples_before_other_chunks(self):
        data = encode(np.zeros(0), format="WAV") + b"LIST\x04\x00\x00\x00INFO"
        assert reason_of(data).reason == "empty"

    @pytest.mark.parametrize("format", ["WAV", "AIFF", "FLAC", "OGG"])
    def test_joined_files(self, format):
        first, second = encode(TONE, format=format), encode(noise(1), format=format)
        expected = np.concatenate([decode_clip(row(first)), decode_clip(row(second))])
        joined = row(first + second)
        assert np.allclose(decode_clip(joined), expected, atol=1e-6)
        assert np.allclose(in_blocks(joined), expected, atol=1e-6)

    def test_a_flac_of_unknown_length_is_read_to_its_last_sample(self):
        for count in (100, 3_000, 4_096, 5_000, 24_000):
            data = unknown_length(encode(TONE[:count]))
            assert np.array_equal(decode_clip(row(data)), decode_clip(row(encode(TONE[:count]))))
            cached(row(data))

    def test_a_truncated_flac_is_kept_to_its_last_whole_frame(self):
        data = encode(noise(3))
        cut = data[: len(data) * 2 // 3]
        assert reason_of(cut).reason == "truncated"
        kept = decode_clip(row(cut), on_truncated="keep")
        assert 1.5 * RATE < len(kept) < 2.1 * RATE
        assert np.array_equal(kept, decode_clip(row(data))[: len(kept)])


def test_mp3_in_wav():
    inner = mp3()
    fmt = b"fmt " + struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
    body = b"WAVE" + fmt + b"data" + struct.pack("<I", len(inner)) + inner
    assert seconds(b"RIFF" + struct.pack("<I", len(body)) + body) == pytest.approx(SECONDS, abs=0.12)


def test_an_unknown_choice_is_an_error():
    with pytest.raises(ValueError, match="on_truncated"), open_recording(row(mp3()), on_truncated="drop"):
        pass
