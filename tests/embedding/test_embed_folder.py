"""The folder that embed_dataset writes: manifest, README and index."""

import hashlib
import re
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from embed_runs import SIZE, make_model, manifest_of, rows_in, save_model, shard_files, wav
from interrupted_runs import contents

from mtslvr_hf.embedding import embed_dataset


def test_manifest_counts_and_checksums(model, sounds, out):
    embed_dataset(model, sounds, out, rows_per_shard=4)
    manifest = manifest_of(out)
    for shard, file in zip(manifest["shards"], shard_files(out), strict=True):
        assert shard["file"] == file.relative_to(out).as_posix()
        assert shard["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert shard["bytes"] == file.stat().st_size
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 3]
    assert (manifest["rows"], manifest["windows"], manifest["embedding_size"]) == (7, 10, SIZE)
    assert manifest["source"]["name"] == "../sounds"
    assert manifest["model"]["name"] == "MTSLVRModel"
    assert manifest["model"]["window_seconds"] == 1.0


def test_fingerprint_is_of_all_weights(sounds, out, tmp_path):
    model = make_model()
    embed_dataset(model, sounds, out)
    with torch.no_grad():
        model.head("predictive").bias[-1] += 1e-3
    with pytest.raises(ValueError, match="weights_sha256"):
        embed_dataset(model, sounds, out)


@pytest.mark.parametrize("pooling", [{}, {"pooling": "bands", "num_bands": 2}])
def test_its_readme_runs(sounds, out, tmp_path, monkeypatch, pooling):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    model = type(make_model()).from_pretrained(save_model(tmp_path / "model"), **pooling)
    embed_dataset(model, sounds, out, rows_per_shard=2, normalize=True, faiss=True)
    assert faiss.read_index(str(out / "embeddings.faiss")).ntotal == 7
    (tmp_path / "query.wav").write_bytes((sounds / "odd/3.wav").read_bytes())
    text = (out / "README.md").read_text().replace("PATH_OF_THIS_FOLDER", str(out))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names = {}
    exec("".join(blocks), names)
    assert names["dataset"].num_rows == 7
    assert names["examples"]["id"][0] == "odd/3.wav"
    assert names["scores"][0] == pytest.approx(1, abs=1e-5)


def test_index_follows_the_shards(model, sounds, out):
    faiss = pytest.importorskip("faiss")
    embed_dataset(model, sounds, out, faiss=True)
    index = faiss.read_index(str(out / "embeddings.faiss"))
    stored = index.reconstruct_n(0, index.ntotal)
    assert np.array_equal(stored, np.float32([row["embedding"] for row in rows_in(out)]))
    assert index.metric_type == faiss.METRIC_L2
    before = contents(out)
    embed_dataset(model, sounds, out)
    assert contents(out) == before  # an index that fits stays
    (sounds / "odd/9.wav").write_bytes(wav(9))
    embed_dataset(model, sounds, out)
    assert not (out / "embeddings.faiss").exists()
    assert "index" not in manifest_of(out)


def test_index_of_a_source_that_became_smaller(model, sounds, out):
    pytest.importorskip("faiss")
    embed_dataset(model, sounds, out, rows_per_shard=2, faiss=True)
    (sounds / "odd/5.wav").unlink()  # alone in its shard
    assert embed_dataset(model, sounds, out, rows_per_shard=2).computed == 0
    assert not (out / "embeddings.faiss").exists()


def test_index_of_what_is_there(model, sounds, out):
    pytest.importorskip("faiss")
    embed_dataset(model, sounds, out)
    assert embed_dataset(model, sounds, out, faiss=True).computed == 0
    assert "load_faiss_index" in (out / "README.md").read_text()
    before = contents(out)
    (out / "embeddings.faiss").write_bytes(b"half of it")
    embed_dataset(model, sounds, out, faiss=True)
    assert contents(out) == before


def test_faiss_is_missing(model, sounds, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[faiss\]'"):
        embed_dataset(model, sounds, out, faiss=True)
    assert not out.exists()


def test_names_in_the_readme_are_text_whatever_they_hold(tmp_path):
    model = make_model()
    model.config.name_or_path = "<b>model"
    table = pa.table({"audio": [{"bytes": wav(0), "path": None}], "<script>\nx": ["a"]})
    embed_dataset(model, datasets.Dataset(table), tmp_path, columns=["<script>\nx"], num_workers=0)
    text = (tmp_path / "README.md").read_text()
    assert "&lt;script> x" in text and "&lt;b>model" in text
    assert "<script>" not in text and "<b>" not in text
