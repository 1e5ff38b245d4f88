"""Scales of heads: equal variance on unlabeled clips, and their effect on embeddings and evaluations."""

import math

import pytest
import torch
from pretraining_runs import make_model, tone
from small_models import assert_close
from transformers import AutoModel

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor
from mtslvr_hf.embedding import encode, equal_variance_scale
from mtslvr_hf.embedding.head_scale import deviation
from mtslvr_hf.evaluation.few_shot.accuracy import standardized

SAMPLES = 8000


def clips(number=24):
    """Tones, (number, samples)."""
    return torch.stack([torch.from_numpy(tone(each, seconds=0.5)) for each in range(number)])


def test_equal_variance_by_hand():
    embeddings = torch.tensor([[1.0, 5.0], [3.0, 5.0], [1.0, 9.0], [3.0, 9.0]])
    assert deviation(embeddings) == pytest.approx(math.sqrt((1 + 4) / 2))


def test_scaled_heads_have_the_same_variance():
    model = make_model().eval()
    with torch.no_grad():
        model.mtslvr.heads["predictive"].weight.mul_(1e-3)
    scale = equal_variance_scale(model, clips(), batch_size=7)
    assert scale["predictive"] == 1.0 and scale["contrastive"] < 0.1
    model.config.embedding_scale = scale
    found = encode(model.mtslvr, list(clips().numpy()), 16000, convert_to="torch")
    contrastive, predictive = found.chunk(2, dim=1)
    assert deviation(contrastive) == pytest.approx(deviation(predictive), rel=1e-3)
    assert equal_variance_scale(model, clips(), batch_size=7) == scale  # the scale that is set does not count


def test_a_constant_head_is_an_error():
    model = make_model().eval()
    with torch.no_grad():
        model.mtslvr.heads["predictive"].weight.zero_()
    with pytest.raises(ValueError, match="the embeds of predictive are the same for all clips"):
        equal_variance_scale(model, clips())


def test_the_scale_multiplies_the_parts_of_the_embedding(tmp_path):
    model = make_model().mtslvr.eval()
    audio = clips(2)
    with torch.no_grad():
        plain = model(audio)
        frames = model.frame_embeddings(plain.last_hidden_state)
        encode(model, audio.numpy(), 16000)  # caches a network
        model.config.embedding_scale = {"predictive": 0.25}
        scaled = model(audio)
    expected = plain.pooler_output * torch.tensor([1.0] * 16 + [0.25] * 16)
    assert torch.equal(scaled.pooler_output, expected)
    assert torch.equal(scaled.predictive_embeds, plain.predictive_embeds)
    assert torch.equal(model.frame_embeddings(scaled.last_hidden_state)[..., :16], frames[..., :16])
    assert torch.equal(model.frame_embeddings(scaled.last_hidden_state)[..., 16:], frames[..., 16:] * 0.25)
    normalized = MTSLVRFeatureExtractor(normalization="none")
    found = encode(model, list(audio.numpy()), 16000, feature_extractor=normalized, convert_to="torch")
    assert_close(found, expected)
    model.config.embedding_scale["predictive"] = 0.5  # in place: the cached network has another scale
    found = encode(model, list(audio.numpy()), 16000, feature_extractor=normalized, convert_to="torch")
    assert_close(found[:, 16:], expected[:, 16:] * 2)
    model.config.embedding_scale["predictive"] = 0.25
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.embedding_scale == {"predictive": 0.25}
    with torch.no_grad():
        assert torch.equal(loaded(audio).pooler_output, expected)
        assert_close(loaded.merge_adapters()(audio).pooler_output, expected)


def test_standardized_heads_keep_their_deviation():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(500, 6, generator=generator).double() * torch.tensor([1, 2, 3, 0.1, 0.1, 0.1]) + 5
    found = standardized(embeddings, head_sizes=[3, 3])
    own = embeddings.std(0, correction=0)
    expected = [own[:3].square().mean().sqrt().item()] * 3 + [own[3:].square().mean().sqrt().item()] * 3
    assert found.mean(0).abs().max() < 1e-12
    assert found.std(0, correction=0).tolist() == pytest.approx(expected)
    torch.testing.assert_close(found / torch.tensor(expected).double(), standardized(embeddings))


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"tasks": ["contrastive"]}, (24, SAMPLES), "with one head; expected several"),
        ({"adapter_type": "none", "shared_head": True}, (24, SAMPLES), "with one head; expected several"),
        ({}, (24, 2, SAMPLES), r"got clips of shape \(24, 2, 8000\)"),
        ({}, (9, SAMPLES), "at least 16 clips"),
    ],
)
def test_what_cannot_be_scaled(changes, shape, message):
    with pytest.raises(ValueError, match=message):
        equal_variance_scale(make_model(**changes), torch.randn(shape))


@pytest.mark.parametrize("scale", [{"rhythm": 1.0}, {"contrastive": 0.0}, {"contrastive": float("nan")}])
def test_wrong_scales(scale):
    with pytest.raises(ValueError, match=r"must give some of the tasks .* a positive, finite factor; got "):
        MTSLVRConfig(embedding_scale=scale)
