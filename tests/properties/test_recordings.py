"""Properties of the reader: blocks, parts, crops, sizes in headers, cut files and joined files of any signal."""

import struct
from unittest.mock import patch

import numpy as np
import pytest
import soxr
from audio_files import encode, row
from hypothesis import example, given
from hypothesis import strategies as st

from mtslvr_hf.audio import libsndfile
from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.audio.recording import Recording, open_recording

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]
LOSSLESS = ["WAV", "FLAC", "AIFF", "W64", "CAF", "AU", "RF64"]
CHUNKED = ["WAV", "AIFF", "RF64"]
PIPED = {"WAV": (b"data", "<I"), "AIFF": (b"SSND", ">I"), "AU": (b".snd", ">I")}  # the size stands 4 bytes behind
FEW_BYTES = 8  # that may be missing: a chunk's header, or padding


@st.composite
def signals(draw, smallest=1, largest=3_000, channels=3):
    """Integer samples (frames, channels) of 16 bits; the first tells of a signal that is not silent."""
    shape = draw(st.integers(smallest, largest)), draw(st.integers(1, channels))
    samples = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(-(2**15), 2**15, shape)
    samples[0] = 2**14
    return samples.astype(np.int16)


def mono(samples):
    return (samples / 2**15).mean(axis=1).astype(np.float32)


def read(data, begin=0, end=None, on_truncated="error"):
    with open_recording(row(data), on_truncated=on_truncated) as recording:
        return np.concatenate(list(recording.read(begin, end)))


def is_close(actual, expected):
    return actual.shape == expected.shape and np.allclose(actual, expected, rtol=0, atol=1e-6)


def likest_part(crop, whole):
    """Beginning of the part of a signal that begins most like a crop, and the largest difference between both."""
    few = min(50, len(crop))
    begins = np.lib.stride_tricks.sliding_window_view(whole[: len(whole) - len(crop) + few], few)
    start = int(np.abs(begins - crop[:few]).max(axis=1).argmin())
    return start, float(np.abs(whole[start : start + len(crop)] - crop).max())


@given(signals(), st.sampled_from(LOSSLESS), st.sampled_from(RATES), st.integers(1, 500))
def test_a_file_is_its_samples_whatever_the_size_of_the_blocks(samples, format, rate, block):
    with patch.object(libsndfile, "BLOCK_SAMPLES", block):
        assert is_close(read(encode(samples, rate, format, "PCM_16")), mono(samples))


@given(signals(), st.sampled_from(RATES), st.sampled_from([8_000, 16_000, 24_000]), st.data())
def test_blocks_of_any_partition_are_resampled_as_the_whole(samples, rate, new_rate, data):
    whole = mono(samples)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))  # equal ones make empty blocks
    recording = Recording("clip", rate, lambda: iter(np.split(whole, cuts)))
    blocks = list(recording.blocks(new_rate))
    expected = whole if rate == new_rate else soxr.resample(whole, rate, new_rate, quality="HQ")
    assert all(len(block) for block in blocks) and blocks
    if len(expected):
        assert is_close(np.concatenate(blocks), expected)
        assert np.array_equal(recording.samples(new_rate), np.concatenate(blocks))


@given(signals(2), st.sampled_from(LOSSLESS), st.integers(1, 500), st.data())
def test_a_part_of_a_file_is_the_part_of_its_samples(samples, format, block, data):
    begin = data.draw(st.integers(0, len(samples) - 1))
    end = data.draw(st.integers(begin + 1, len(samples)))
    with patch.object(libsndfile, "BLOCK_SAMPLES", block):
        assert is_close(read(encode(samples, format=format, subtype="PCM_16"), begin, end), mono(samples)[begin:end])


@given(signals(8), st.sampled_from(LOSSLESS), st.integers(8, 4_000), st.none() | st.integers(0, 2**63))
def test_a_crop_is_a_part_of_the_file_and_a_short_file_is_repeated(samples, format, length, seed):
    whole = mono(samples)
    crop = decode_clip(row(encode(samples, format=format, subtype="PCM_16")), length / 16_000, crop_seed=seed)
    if len(whole) <= length:
        assert is_close(crop, np.resize(whole, length))
    else:
        begin, difference = likest_part(crop, whole)
        assert crop.shape == (length,) and difference < 1e-6
        assert seed is not None or abs(begin - (len(whole) - length) / 2) < 1  # the middle


@given(st.integers(0, 2**32), st.sampled_from([8_000, 22_050, 44_100, 48_000]), st.none() | st.integers(0, 2**63))
def test_a_crop_of_another_rate_is_a_part_of_the_resampled_file(noise_seed, rate, seed):
    whole = 0.1 * np.random.default_rng(noise_seed).standard_normal((rate // 2, 1)).astype(np.float32)
    crop = decode_clip(row(encode(whole, rate, "WAV", "FLOAT")), 0.1, crop_seed=seed)
    resampled = soxr.resample(whole[:, 0], rate, 16_000, quality="HQ")
    begin, difference = likest_part(crop, resampled)
    assert crop.shape == (1_600,) and difference < 2e-3  # 2 % of the deviation
    assert seed is not None or abs(begin - (8_000 - 1_600) / 2) <= 320  # the middle, at a common sample of both rates


@given(
    signals(),
    st.sampled_from(["WAV", "RF64"]),
    st.lists(st.tuples(st.sampled_from([b"LIST", b"bext", b"junk", b"id3 "]), st.binary(max_size=40)), max_size=4),
    st.integers(0, 4),
)
def test_other_chunks_before_and_after_the_data_change_nothing(samples, format, chunks, before):
    data = encode(samples, format=format, subtype="PCM_16")
    place = data.index(b"data")
    if format == "RF64":  # libsndfile refuses odd ones there
        chunks = [(name, content[: len(content) // 2 * 2]) for name, content in chunks]
    made = [name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks]
    head, tail = b"".join(made[:before]), b"".join(made[before:])
    assert is_close(read(data[:place] + head + data[place:] + tail), mono(samples))


@given(
    signals(9),
    st.sampled_from(sorted(PIPED)),
    st.sampled_from([0, 2**32 - 1, 2**31 - 1, 2**31, 2**32 - 2**20]) | st.integers(2**31 - 2**24, 2**31 + 2**24),
    st.text("abc", max_size=9).map(str.encode),
)
@example(np.full((9, 1), 2**14, dtype=np.int16), "AU", 2**31 - 1, b"")
@example(np.full((9, 1), 2**14, dtype=np.int16), "WAV", 0, b"odd")
def test_a_size_that_a_pipe_did_not_know_loses_no_sample(samples, format, size, chunk):
    name, kind = PIPED[format]
    data = bytearray(encode(samples, format=format, subtype="PCM_16"))
    if format == "WAV":
        head = b"LIST" + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) % 2)
        data[data.index(name) : data.index(name)] = head
    place = data.index(name) + (8 if format == "AU" else 4)
    data[place : place + 4] = struct.pack(kind, size)
    assert is_close(read(bytes(data)), mono(samples))


@given(signals(100), st.sampled_from(["WAV", "AIFF", "W64", "AU", "FLAC", "RF64"]), st.floats(0, 1), st.booleans())
def test_a_cut_file_is_never_read_as_a_shorter_one(samples, format, kept, keep):
    whole, data = mono(samples), encode(samples, format=format, subtype="PCM_16")
    cut = data[: round(kept * len(data))]
    missing = len(data) - len(cut)
    try:
        found = read(cut, on_truncated="keep" if keep else "error")
    except BadClipError:
        assert missing and (not keep or format == "FLAC" or len(cut) < 200)  # a header, or FLAC's first frame
        return
    assert is_close(found, whole[: len(found)])
    if not keep:
        lost = (len(whole) - len(found)) * samples.itemsize * samples.shape[1]
        assert lost <= FEW_BYTES + samples.itemsize * samples.shape[1] * (missing > 0)


@given(
    st.lists(signals(50, 1_000, 1), min_size=2, max_size=3),
    st.sampled_from(["WAV", "FLAC", "AIFF", "RF64"]),
    st.integers(1, 500),
    st.data(),
)
def test_joined_files_are_read_one_after_another(parts, format, block, data):
    joined = b"".join(encode(part, format=format, subtype="PCM_16") for part in parts)
    whole = np.concatenate([mono(part) for part in parts])
    begin = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(begin + 1, len(whole)))
    with patch.object(libsndfile, "BLOCK_SAMPLES", block):
        assert is_close(read(joined), whole)
        assert is_close(read(joined, begin, end), whole[begin:end])


@given(signals(50), signals(50), st.sampled_from(["WAV", "FLAC", "AIFF"]))
def test_joined_files_of_two_rates_are_refused(first, second, format):
    joined = encode(first, 16_000, format, "PCM_16") + encode(second, 8_000, format, "PCM_16")
    with pytest.raises(BadClipError, match="joined from files of 16000 and 8000 Hz"):
        read(joined)


@given(signals(), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(1, 5), st.data())
def test_a_sample_that_is_not_finite_is_found_anywhere(samples, value, blocks, data):
    values = mono(samples)
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] = value
    recording = Recording("clip", 16_000, lambda: iter(np.array_split(values, blocks)))
    with pytest.raises(BadClipError, match=f"non_finite: clip: the sample at {place / 16_000:.3f} s "):
        recording.samples(16_000)
