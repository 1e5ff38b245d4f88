"""Embeddings are computed once, and again when anything they depend on changes."""

import shutil

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from mtslvr_hf.data import BadClipError
from mtslvr_hf.evaluation.embedders.base import MTSLVREmbedder, load_embedder
from mtslvr_hf.evaluation.embedders.cache import cached_embeddings


class Counting:
    """An embedder whose every computation gives something else, with names that are not in alphabetical order."""

    name = "counting"

    def __init__(self, fingerprint="a"):
        self.fingerprint = fingerprint
        self.calls = 0

    def embed(self, audio, show_progress_bar=False):
        self.calls += 1
        whole = torch.arange(4.0 * len(audio)).reshape(len(audio), 4) + self.calls
        return {"predictive": whole[:, :2], "contrastive": whole[:, 2:], "both": whole}


@pytest.fixture
def audio(sounds, tmp_path):
    files = sorted((sounds / "anvil").iterdir())[:2]
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / f"{number}.flac")
    return [{"bytes": None, "path": str(tmp_path / f"{number}.flac")} for number in range(2)]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def assert_same(first, second):
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_second_time_reads(cache, audio):
    embedder = Counting()
    first, second = (cached_embeddings(cache, embedder, audio) for _ in range(2))
    assert embedder.calls == 1
    assert_same(first, second)
    assert len(list(cache.iterdir())) == 1  # nothing partial is left


@pytest.mark.parametrize("change", ["embedder", "file", "order", "fewer"])
def test_what_changes_embeddings_has_an_entry_of_its_own(cache, audio, change):
    embedder = Counting()
    cached_embeddings(cache, embedder, audio)
    if change == "embedder":
        embedder.fingerprint = "b"
    elif change == "file":
        shutil.copy(audio[1]["path"], audio[0]["path"])
    else:
        audio = audio[::-1] if change == "order" else audio[:1]
    cached_embeddings(cache, embedder, audio)
    assert embedder.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_bytes_and_the_file_they_came_from_share_an_entry(cache, audio):
    embedder = Counting()
    cached_embeddings(cache, embedder, audio)
    read = []
    for row in audio:
        with open(row["path"], "rb") as file:
            read.append({"bytes": file.read(), "path": "elsewhere"})
    cached_embeddings(cache, embedder, read)
    assert embedder.calls == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "text"])
def test_damaged_entry_is_computed_again(cache, audio, damage, caplog):
    embedder = Counting()
    cached_embeddings(cache, embedder, audio)
    (entry,) = cache.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "bit":
        content[-2] ^= 1
    entry.write_bytes({"cut": content[:-5], "bit": content, "text": b"hello"}[damage])
    again = cached_embeddings(cache, embedder, audio)
    assert "is damaged" in caplog.text
    assert_same(again, cached_embeddings(cache, embedder, audio))
    assert embedder.calls == 2


def test_row_without_audio_is_named(cache):
    with pytest.raises(BadClipError, match=r"song\.wav: no data"):
        cached_embeddings(cache, Counting(), [{"bytes": b"", "path": "song.wav"}])


def test_a_models_embeddings_come_back_as_they_were(save_model, cache, audio):
    embedder = load_embedder(save_model())
    first, second = (cached_embeddings(cache, embedder, audio) for _ in range(2))
    assert_same(embedder.embed(audio), first)
    assert_same(first, second)


@pytest.mark.parametrize("change", ["weights", "tasks", "extractor"])
def test_fingerprint_follows_the_model(save_model, change):
    folder = save_model()
    model, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    embedder = MTSLVREmbedder(model, extractor)
    before = embedder.fingerprint
    assert before == load_embedder(folder).fingerprint
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
    elif change == "tasks":
        model.set_adapter(["contrastive"])
    else:
        extractor.normalization = "sample"
    assert embedder.fingerprint != before
