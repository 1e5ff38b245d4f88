"""Failures of an HTTP server are bad rows, never the end of a stream."""

from itertools import islice

import aiohttp
import datasets
import fsspec
import pytest
from audio_files import encode, noise, row
from torch.utils.data import DataLoader
from unreliable_server import unreliable_server

from mtslvr_hf.audio.files import fetch
from mtslvr_hf.data import AudioStream, BadClipError, EncodedAudio, SkippedRows

SOUND = encode(noise(2), format="WAV")
FAILURES = ("get_500.wav", "always_500.wav", "missing.wav", "cut.wav", "stalled.wav")


@pytest.fixture
def server(monkeypatch):
    client = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.5)}}
    monkeypatch.setitem(fsspec.config.conf, "http", client)
    with unreliable_server(SOUND) as address:
        yield address


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_request_is_an_unreadable_clip(server, name):
    with pytest.raises(BadClipError, match=name) as caught:
        fetch(row(None, f"{server}/{name}"))
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_and_counts_them(server, workers):
    names = ["sound.wav", *FAILURES, "sound.wav"]
    rows = {"audio": [row(None, f"{server}/{n}/{name}") for n, name in enumerate(names)]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features({"audio": EncodedAudio()}))
    stream = AudioStream(dataset, 1.0, batch_size=2, max_bad_share=1.0)
    skipped = SkippedRows()
    for batch in islice(DataLoader(stream, batch_size=None, num_workers=workers), 3):  # of two good rows an epoch
        assert len(batch["input_values"]) == 2
        skipped.merge(batch["stream"]["skipped"])
    assert set(skipped.reasons) == {"unreadable"}
    assert skipped.good == 6 and 2 * len(FAILURES) <= skipped.skipped <= 3 * len(FAILURES)
