"""Embeddings are computed once, and again when anything they depend on changes."""

import shutil

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from mtslvr_hf.evaluation import FewShotTask, evaluate_few_shot
from mtslvr_hf.evaluation.embedding_cache import cached_embeddings


@pytest.fixture
def parts(save_model, sounds, tmp_path):
    """Folder, model, extractor and two files; and a counter of computations."""
    folder = save_model()
    files = []
    for name in ("a.flac", "b.flac"):
        files.append(tmp_path / name)
        shutil.copy(sorted((sounds / "anvil").iterdir())[len(files)], files[-1])
    return tmp_path / "cache", AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder), files


class Compute:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return torch.arange(6.0).reshape(2, 3) + self.calls


def test_second_time_reads(parts):
    compute = Compute()
    first, second = (cached_embeddings(*parts, compute) for _ in range(2))
    assert compute.calls == 1
    assert torch.equal(first, second)
    assert len(list(parts[0].iterdir())) == 1  # nothing partial is left


@pytest.mark.parametrize("change", ["weights", "tasks", "extractor", "file", "order"])
def test_what_changes_embeddings_has_an_entry_of_its_own(parts, change):
    cache, model, extractor, files = parts
    compute = Compute()
    cached_embeddings(*parts, compute)
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
    elif change == "tasks":
        model.set_adapter(["contrastive"])
    elif change == "extractor":
        extractor.normalization = "sample"
    elif change == "file":
        shutil.copy(files[1], files[0])
    else:
        files = files[::-1]
    cached_embeddings(cache, model, extractor, files, compute)
    assert compute.calls == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "text"])
def test_damaged_entry_is_computed_again(parts, damage, caplog):
    compute = Compute()
    cached_embeddings(*parts, compute)
    (entry,) = parts[0].iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "bit":
        content[-2] ^= 1
    entry.write_bytes({"cut": content[:-5], "bit": content, "text": b"hello"}[damage])
    again = cached_embeddings(*parts, compute)
    assert "is damaged" in caplog.text
    assert torch.equal(again, cached_embeddings(*parts, compute))
    assert compute.calls == 2


def fail(*args, **kwargs):
    raise AssertionError("embeddings were computed")


def test_evaluation_gives_the_same_from_the_cache(save_model, sounds, tmp_path, monkeypatch):
    model, task = save_model(), FewShotTask(ways=3, queries=4, tasks=50)
    options = {"task": task, "show_progress": False, "classifier": "logistic"}
    plain = evaluate_few_shot([model], sounds, **options)
    first = evaluate_few_shot([model], sounds, cache=tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 2  # the model and the untrained network
    monkeypatch.setattr("mtslvr_hf.evaluation.report.encode", fail)
    assert plain == first == evaluate_few_shot([model], sounds, cache=tmp_path, **options)
