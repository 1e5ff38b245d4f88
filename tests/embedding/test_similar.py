"""Sounds that are most similar to a query, in a folder of audio and in its embeddings."""

import numpy as np
import pytest
from embed_runs import make_model
from torch.nn import functional as F

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.embedding import embed_dataset, encode, find_similar


def first(sounds):
    return next(file for file in sorted(sounds.rglob("*.wav")) if file.is_file())


def expected(model, sounds, query, tasks=None):
    """Ids and cosine similarities of all good files, sorted, from the embeddings of each file."""
    found = {}
    for file in sounds.rglob("*"):
        try:
            found[file.relative_to(sounds).as_posix()] = encode(model, file, tasks=tasks, convert_to="torch")
        except (BadClipError, IsADirectoryError):
            continue
    asked = encode(model, query, tasks=tasks, convert_to="torch")
    values = {name: F.cosine_similarity(asked, embedding, dim=0).item() for name, embedding in found.items()}
    return sorted(values.items(), key=lambda pair: -pair[1])


def assert_same(neighbors, pairs):
    assert [neighbor.id for neighbor in neighbors] == [name for name, _ in pairs]
    assert np.allclose([neighbor.similarity for neighbor in neighbors], [value for _, value in pairs], atol=1e-5)


def test_the_nearest_come_first_from_audio_and_from_embeddings(model, sounds, out):
    query = first(sounds)
    for tasks in (None, "predictive"):
        pairs = expected(model, sounds, query, tasks)
        assert len(pairs) > 4 and pairs[0][0] == query.relative_to(sounds).as_posix()
        assert_same(find_similar(model, query, sounds, count=3, tasks=tasks), pairs[:3])
    embed_dataset(model, sounds, out, rows_per_shard=2, tasks="contrastive")  # several shards
    assert_same(find_similar(model, query, out, count=100), expected(model, sounds, query, "contrastive"))


def test_what_does_not_fit_is_said(model, sounds, out, tmp_path):
    query = first(sounds)
    embed_dataset(model, sounds, out)
    with pytest.raises(ValueError, match=r"of another model .*different: weights_sha256"):
        find_similar(make_model(seed=1), query, out)
    with pytest.raises(ValueError, match=r"are of \['contrastive', 'predictive'\]; got `tasks` predictive"):
        find_similar(model, query, out, tasks="predictive")
    with pytest.raises(ValueError, match="`count` is 0; expected at least 1"):
        find_similar(model, query, out, count=0)
    with pytest.raises(ValueError, match="expected one sound"):
        find_similar(model, [query, query], out)
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match="run `mtslvr embed` again"):
        find_similar(model, query, out)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"no file in .* could be read"):
        find_similar(model, query, tmp_path / "text")
    with pytest.raises(BadClipError):
        find_similar(model, tmp_path / "text/a.wav", sounds)


def test_the_feature_extractor_is_part_of_the_model(model, sounds, out):
    query = first(sounds)
    embed_dataset(model, sounds, out, feature_extractor=MTSLVRFeatureExtractor(normalization="sample"))
    with pytest.raises(ValueError, match="different: normalization"):
        find_similar(model, query, out)
