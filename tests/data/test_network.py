"""Reading over HTTP: a server that is silent, and one that is slow."""

import fsspec
import pytest
from unreliable_server import unreliable_server

from mtslvr_hf.data import BadClipError, network
from mtslvr_hf.data.stream import fetch


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setattr(network.datasets.config, "STREAMING_READ_MAX_RETRIES", 20)
    network.limit_silence(0.2)
    return network.datasets.config


def test_a_silent_server_is_given_up(limited):
    assert limited.STREAMING_READ_MAX_RETRIES == 2
    with unreliable_server(b"sound" * 1000) as address:
        assert fetch({"bytes": None, "path": f"{address}/sound.wav"})["bytes"] == b"sound" * 1000
        with pytest.raises(BadClipError, match=r"stalled.wav: the URL cannot be read \(\w*Timeout"):
            fetch({"bytes": None, "path": f"{address}/stalled.wav"})
