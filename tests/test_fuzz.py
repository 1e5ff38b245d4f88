"""Mutated audio files: each one is read or counted with a reason, in bounded time and memory, by every reader."""

import json
import resource
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from audio_files import encode, noise, row
from embed_runs import make_model

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.audio.errors import REASONS, BadClipError
from mtslvr_hf.audio.recording import open_recording
from mtslvr_hf.caching import cache_audio
from mtslvr_hf.embedding import embed_dataset

FORMATS = [
    ("WAV", "PCM_16", "wav"),
    ("WAV", "FLOAT", "wav"),
    ("FLAC", "PCM_16", "flac"),
    ("OGG", "VORBIS", "ogg"),
    ("MP3", "MPEG_LAYER_III", "mp3"),
    ("AIFF", "PCM_16", "aiff"),
]
MAX_SECONDS = 2.0  # of a core for one file
MAX_MEAN_SECONDS = 0.2  # of all cores, for each file of a whole folder
MAX_GROWTH = 2**30  # bytes


def mutate(data, random):
    """A file with bits flipped, a part cut off, doubled or overwritten, or a lie in its header."""
    data = bytearray(data)
    kind = random.integers(6)
    if kind == 0:
        for place in random.integers(0, len(data), random.integers(1, 20)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 1:
        del data[random.integers(len(data)) :]
    elif kind == 2:  # header lies
        for _ in range(random.integers(1, 4)):
            place = random.integers(min(len(data), 100))
            data[place : place + 4] = random.choice([bytes(4), b"\xff" * 4, random.bytes(4), b"\x7f\xff\xff\xff"])
    elif kind == 3:
        place, count = random.integers(len(data)), random.integers(1, 500)
        data[place : place + count] = random.bytes(count)
    elif kind == 4:
        begin, end = sorted(random.integers(0, len(data), 2))
        data[end:end] = data[begin:end]
    else:
        begin, end = sorted(random.integers(0, len(data), 2))
        del data[begin:end]
    return bytes(data)


def outcome(data):
    """None for a file that is read, or the reason."""
    try:
        with open_recording(row(data)) as recording:
            for block in recording.blocks(16_000):
                assert np.isfinite(block).all()
    except BadClipError as error:
        assert error.reason in REASONS and str(error)
        return error.reason
    return None


@contextmanager
def limited_time(count, seconds, name):
    """Context that fails if `count` files take too long; notes the seconds of each in `seconds`."""
    start = time.process_time()
    yield
    seconds[name] = (time.process_time() - start) / count
    assert seconds[name] < MAX_MEAN_SECONDS


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files(count, tmp_path):
    random = np.random.default_rng(0)
    originals = [encode(noise(0.3, 8_000), 8_000, format, subtype) for format, subtype, _ in FORMATS]
    peak = Path("/proc/self/clear_refs")
    if peak.exists():  # Linux: forgets the peak of earlier tests in this process
        peak.write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, slowest, mutants = {}, 0.0, []
    for number in range(count):
        suffix = FORMATS[number % len(FORMATS)][2]
        data = mutate(originals[number % len(FORMATS)], random)
        name = f"{number:05d}.{suffix}"
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
        mutants.append(data)
        start = time.thread_time()
        outcomes[name] = outcome(data)
        slowest = max(slowest, time.thread_time() - start)
    assert slowest < MAX_SECONDS
    bad = {name: reason for name, reason in outcomes.items() if reason is not None}
    assert 0 < len(bad) < count

    model, seconds = make_model(), {}
    options = {"batch_size": 64, "feature_extractor": MTSLVRFeatureExtractor()}
    with limited_time(count, seconds, "encode"):
        embeddings = model.encode([data or b"x" for data in mutants], on_error="skip", **options)
    failed = np.isnan(embeddings).any(axis=1)
    absurd = [number for number in np.flatnonzero(failed) if f"{number:05d}" not in {name[:5] for name in bad}]
    assert {FORMATS[number % len(FORMATS)][1] for number in absurd} <= {"FLOAT"}  # samples of up to 1e38
    assert all(failed[int(name[:5])] for name in bad)

    with limited_time(count, seconds, "embed"):
        report = embed_dataset(model, tmp_path / "in", tmp_path / "embedded", **options)
    lines = (tmp_path / "embedded" / "errors.jsonl").read_text().splitlines()
    listed = {line["id"]: line["reason"] for line in map(json.loads, lines)}
    assert report.rows + report.bad_rows == count and report.bad_rows == len(listed) == failed.sum()
    assert bad.items() <= listed.items()

    with limited_time(count, seconds, "cache"):
        cached = cache_audio(tmp_path / "in", tmp_path / "cached", num_workers=1)
    assert cached.rows + cached.bad_rows == count
    assert Counter(bad.values()) <= Counter(cached.reasons) and set(cached.reasons) <= set(REASONS)
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert growth < MAX_GROWTH
    print(f"{count} files; bad in the reader {dict(Counter(bad.values()))}, in embed {report.reasons},")
    print(f"in cache {cached.reasons}; slowest {slowest:.3f} s, mean {seconds}, growth {growth / 2**20:.0f} MiB")
