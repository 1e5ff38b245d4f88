"""MT-SLVR models and baselines under one interface."""

import pytest
import soundfile
import torch
from small_models import assert_close
from transformers import AutoFeatureExtractor, AutoModel, BertConfig

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.data import BadClipError
from mtslvr_hf.embedding import encode
from mtslvr_hf.evaluation.embedders.base import Embedder, load_embedder, untrained
from mtslvr_hf.evaluation.embedders.log_mel import LogMelStatistics

TINY = {"base_width": 4, "window_seconds": 1.0, "embedding_size": 8}


@pytest.fixture(scope="module")
def audio(sounds):
    return [{"bytes": None, "path": str(path)} for path in sorted(sounds.glob("*/0.flac"))]


@pytest.fixture(scope="module")
def waveforms(audio):
    return torch.stack([torch.from_numpy(soundfile.read(row["path"], dtype="float32")[0]) for row in audio])


@pytest.mark.parametrize("kind", ["model", "untrained", "log-mel"])
def test_embedders_have_the_interface_and_embed_files_as_their_waveforms(kind, save_model, audio, waveforms):
    embedder = {
        "model": lambda: load_embedder(save_model()),
        "untrained": lambda: untrained(MTSLVRConfig(**TINY), seed=0),
        "log-mel": LogMelStatistics,
    }[kind]()
    assert isinstance(embedder, Embedder)
    embeddings, again = embedder.embed(audio), embedder.embed_waveforms(waveforms)
    assert list(embeddings) == list(again)
    for name, values in embeddings.items():
        assert values.dtype == torch.float32 and len(values) == len(audio)
        assert_close(values, again[name])


def test_tasks_of_a_model(save_model, audio):
    folder = save_model(adapter_type="parallel")
    found = load_embedder(folder, batch_size=2, name="ours").embed(audio)
    assert list(found) == ["contrastive", "predictive", "both"]
    whole = encode(
        AutoModel.from_pretrained(folder),
        [row["path"] for row in audio],
        feature_extractor=AutoFeatureExtractor.from_pretrained(folder),
        convert_to="torch",
    )
    assert_close(found["both"], whole)
    assert torch.equal(torch.cat([found["contrastive"], found["predictive"]], dim=1), found["both"])


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"tasks": ["predictive"]}, ["predictive"]), ({"shared_head": True, "adapter_type": "none"}, ["both"])],
)
def test_a_single_embedding_has_one_entry(save_model, audio, changes, names):
    assert list(load_embedder(save_model(**changes)).embed(audio[:2])) == names


def test_untrained_network_is_its_seeds(save_model, audio):
    state = torch.random.get_rng_state()
    first, same, other = (untrained(MTSLVRConfig(**TINY), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.name == "untrained network"
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(first.embed(audio)["both"], same.embed(audio)["both"])
    folder = save_model()
    trained = load_embedder(folder)
    assert untrained(folder, 0).fingerprint != trained.fingerprint
    assert untrained(folder, 0).embed(audio)["both"].shape == trained.embed(audio)["both"].shape


def test_other_models_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type bert; expected an audio model of type mtslvr, .*wav2vec2"):
        load_embedder(tmp_path)
    with pytest.raises(ValueError, match="type bert; expected an MT-SLVR model"):
        untrained(tmp_path, 0)


def test_name_is_the_source_unless_given(save_model):
    folder = save_model()
    assert load_embedder(folder).name == str(folder)
    assert load_embedder(folder, name="ours").name == "ours"


def test_undecodable_row_is_named(save_model, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    for embedder in (load_embedder(save_model()), LogMelStatistics()):
        with pytest.raises(BadClipError, match=r"text\.wav"):
            embedder.embed([{"bytes": None, "path": str(tmp_path / "text.wav")}])
