"""Scales of heads: their choice on unlabeled crops, and their effect on embeddings and evaluations."""

import copy

import pytest
import torch
from pretraining_runs import make_model, tone
from transformers import AutoModel

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor
from mtslvr_hf.embedding import choose_embedding_scale, encode
from mtslvr_hf.embedding.head_scale import SHARES, deviation, reciprocal_rank
from mtslvr_hf.evaluation.few_shot.accuracy import standardized

SAMPLES = 8000


def crops(files=24):
    """Two overlapping crops of each file, (files, 2, samples)."""
    clips = [torch.from_numpy(tone(number, seconds=0.7)) for number in range(files)]
    return torch.stack([torch.stack([clip[:SAMPLES], clip[2000 : 2000 + SAMPLES]]) for clip in clips])


def test_reciprocal_rank_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    second = torch.tensor([[0.9, 0.1], [0.8, 0.2], [-0.9, 0.0]])  # the second file's is nearer to none
    heads = {"a": torch.stack([first, second], dim=1).double()}
    # Ranks: 1; of [0, 1], the second file's own crop has the largest second number: 1; 1.
    assert reciprocal_rank(heads, {"a": 1.0}) == 1.0
    heads["a"][1, 1] = torch.tensor([0.8, -0.2])  # behind both others
    assert reciprocal_rank(heads, {"a": 1.0}) == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_a_head_without_information_gets_the_smallest_share():
    model = make_model().eval()
    with torch.no_grad():
        head = model.mtslvr.heads["predictive"]
        head.weight.mul_(1e-3)
        noise = torch.Generator().manual_seed(0)
    informative = choose_embedding_scale(model, crops())
    # A head that is a thousand times smaller, with the same information, gets a scale that makes up for it.
    assert informative["predictive"] == 1.0 and informative["contrastive"] < 0.1

    def random_head(_, inputs, output):
        return torch.randn(output.shape, generator=noise) * 5

    head.register_forward_hook(random_head)
    deaf = copy.deepcopy(model)
    found = choose_embedding_scale(_unmerged(deaf), crops(), batch_size=7)
    assert found["contrastive"] == 1.0
    with torch.no_grad():
        output = model.mtslvr(crops().flatten(0, 1), tasks=["contrastive"])
    expected = SHARES[0] * deviation(output.contrastive_embeds) / 5
    assert found["predictive"] == pytest.approx(expected, rel=0.3)


def _unmerged(model):
    """The model, whose inference network is itself, so that hooks stay."""
    model.mtslvr.inference_network = lambda tasks: model.mtslvr
    return model


def test_the_scale_multiplies_the_parts_of_the_embedding(tmp_path):
    model = make_model().mtslvr.eval()
    audio = crops(2)[:, 0]
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
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.config.embedding_scale["predictive"] = 0.5  # in place: the cached network has another scale
    found = encode(model, list(audio.numpy()), 16000, feature_extractor=normalized, convert_to="torch")
    torch.testing.assert_close(found[:, 16:], expected[:, 16:] * 2, rtol=1e-4, atol=1e-5)
    model.config.embedding_scale["predictive"] = 0.25
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.embedding_scale == {"predictive": 0.25}
    with torch.no_grad():
        assert torch.equal(loaded(audio).pooler_output, expected)
        torch.testing.assert_close(loaded.merge_adapters()(audio).pooler_output, expected, rtol=1e-4, atol=1e-5)


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
        ({"tasks": ["contrastive"]}, (24, 2, SAMPLES), "with one head; expected several"),
        ({"adapter_type": "none", "shared_head": True}, (24, 2, SAMPLES), "with one head; expected several"),
        ({}, (24, SAMPLES), r"got crops of shape \(24, 8000\)"),
        ({}, (9, 2, SAMPLES), "at least 16 files"),
    ],
)
def test_what_cannot_be_scaled(changes, shape, message):
    with pytest.raises(ValueError, match=message):
        choose_embedding_scale(make_model(**changes), torch.randn(shape))


@pytest.mark.parametrize("scale", [{"rhythm": 1.0}, {"contrastive": 0.0}, {"contrastive": float("nan")}])
def test_wrong_scales(scale):
    with pytest.raises(ValueError, match=r"must give some of the tasks .* a positive, finite factor; got "):
        MTSLVRConfig(embedding_scale=scale)
