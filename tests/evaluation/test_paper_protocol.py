"""The paper's protocol: pieces of clips, raw embeddings, SGD; against the same by hand."""

import html
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.evaluation import (
    FewShotProtocol,
    LogMelStatistics,
    MTSLVREmbedder,
    PaperProtocol,
    evaluate,
    open_data,
    sample_episodes,
    to_html,
    to_markdown,
)
from mtslvr_hf.evaluation.embedders.base import load_embedder
from mtslvr_hf.evaluation.few_shot.paper import paper_episodes, score_paper_episodes
from mtslvr_hf.evaluation.few_shot.weight_shares import paper_weight_shares

PROTOCOL = PaperProtocol(episodes=80, seed=2)
SECONDS = (1, 2, 3, 4, 7, 11)


@pytest.fixture(scope="module")
def long_sounds(tmp_path_factory):
    """Five classes of six noises, with one, two or three pieces; one piece is silent."""
    folder = tmp_path_factory.mktemp("long")
    generator = np.random.default_rng(0)
    for number in range(5):
        (folder / f"class {number}").mkdir()
        for seconds in SECONDS:
            spectrum = np.fft.rfft(generator.standard_normal(8000 * seconds))
            spectrum[: 300 * seconds * (number + 1)] = 0
            waveform = np.fft.irfft(spectrum)
            waveform /= 2 * np.abs(waveform).max()
            if (number, seconds) == (3, 11):
                waveform[40_000:80_000] = 0
            soundfile.write(folder / f"class {number}" / f"{seconds:02}.wav", waveform, 8000, "PCM_24")
    return folder


@pytest.fixture(scope="module")
def slow_model(save_model):
    return save_model(window_seconds=2.0, adapter_type="parallel")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(long_sounds, slow_model, cache):
    options = {"probes": ["knn"], "cache": cache, "show_progress_bar": False}
    return evaluate([slow_model], [long_sounds], PROTOCOL, **options)


def test_every_piece_is_embedded_on_its_own(report, long_sounds, slow_model):
    """Pieces cut by hand go through the model as clips of 5 s, and score as in the report."""
    pieces, bounds = [], [0]
    for file in sorted(long_sounds.rglob("*.wav")):
        waveform = soundfile.read(file, dtype="float32")[0]
        own = [waveform[begin : begin + 40_000] for begin in range(0, len(waveform), 40_000)]
        own = [np.resize(piece, 40_000) for piece in own if np.abs(piece).max() > 0]
        pieces += [soxr.resample(piece, 8000, 16_000) for piece in own]
        bounds.append(len(pieces))
    result = report.results[0]
    assert (result.pieces, result.silent_pieces) == (len(pieces), 1) == (44, 1)

    model, extractor = AutoModel.from_pretrained(slow_model), MTSLVRFeatureExtractor()
    inputs = extractor(pieces, sampling_rate=16_000, return_tensors="pt")
    embeddings = model.eval()(**inputs).pooler_output.detach()  # the mean over three windows of 2 s
    labels = [f"class {index // 6}" for index in range(30)]
    clips = sample_episodes(labels, queries=1, episodes=80, seed=2)
    episodes = paper_episodes(clips, bounds, seed=2)
    assert result.episodes_sha256 == episodes.sha256
    for row, columns in zip(result.rows[2:], (slice(0, 6), slice(6, 12), slice(0, 12))):
        accuracies = score_paper_episodes(embeddings[:, columns], episodes)
        assert row.accuracy == pytest.approx(accuracies.mean().item(), abs=0.01)
    shares = paper_weight_shares({"c": embeddings[:, :6], "p": embeddings[:, 6:]}, episodes).shares
    found = result.weight_shares[str(slow_model)].shares
    assert [found["contrastive"], found["predictive"]] == pytest.approx(list(shares.values()), abs=1e-3)


def test_baselines_probes_and_projections(report, slow_model):
    rows = report.results[0].rows
    names = ["log-mel statistics", "untrained network", *[str(slow_model)] * 3]
    assert [row.model for row in rows] == names
    assert all(0 < row.accuracy <= 1 for row in rows)
    assert all(row.probes[0].train_clips + row.probes[0].test_clips == 30 for row in rows)  # clips, not pieces
    assert {len(projection.points) for projection in report.results[0].projections} == {30}


def test_reports_say_so(report):
    text, page = to_markdown(report), html.unescape(to_html(report))
    for words in (
        "5-way 1-shot accuracy: 80 episodes of 1 query a class, seed 2",
        "cut into pieces of 5 s",
        "not standardized",
        "SGDClassifier",
        "The paper has 10,000 episodes.",
        "30 clips of 5 classes",
        "Pieces of these clips: 44, without 1 that are silent.",
        "The features are raw",
    ):
        assert words in text and words in page
    assert "standardized over" not in text and "keep groups apart" not in text
    data = report.to_dict()
    assert data["classifier"] == "sgd"
    assert data["protocol"]["name"] == "paper" and data["protocol"]["queries"] == 1


def test_cache_keeps_pieces_apart_from_clips(report, long_sounds, slow_model, cache, monkeypatch):
    entries = set(cache.iterdir())
    options = {"cache": cache, "show_progress_bar": False}
    protocol = FewShotProtocol(queries=1, episodes=20)
    whole = evaluate([slow_model], [long_sounds], protocol, **options)
    assert len(set(cache.iterdir())) == 2 * len(entries)
    monkeypatch.setattr(MTSLVREmbedder, "embed", lambda *args, **options: pytest.fail("computed again"))
    monkeypatch.setattr(LogMelStatistics, "embed", lambda *args, **options: pytest.fail("computed again"))
    again = evaluate([slow_model], [long_sounds], PROTOCOL, probes=["knn"], **options)
    assert again == report
    assert evaluate([slow_model], [long_sounds], protocol, **options) == whole


def test_other_models_of_transformers(long_sounds, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    layers = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 8), "num_feat_extract_layers": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **layers)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    models = [load_embedder(tmp_path)]
    found = evaluate(models, [long_sounds], PROTOCOL, show_progress_bar=False).results[0]
    assert [row.size for row in found.rows] == [80, 16]


def test_groups_are_mixed_unless_asked_for(long_sounds, tmp_path):
    shutil.copytree(long_sounds, tmp_path / "sounds")
    files = sorted(long_sounds.rglob("*.wav"))
    lines = [f"{file.relative_to(long_sounds).as_posix()},{number % 3}" for number, file in enumerate(files)]
    (tmp_path / "sounds" / "manifest.csv").write_text("\n".join(["file,group", *lines]))
    data = replace(open_data(tmp_path / "sounds"), group_disjoint=True)  # as of a data set of the registry
    report = evaluate([], [data], PROTOCOL, show_progress_bar=False)
    assert not report.results[0].group_disjoint
    report = evaluate([], [data], replace(PROTOCOL, group_disjoint=True), show_progress_bar=False)
    assert report.results[0].group_disjoint and "The paper does not keep groups apart." in to_markdown(report)


def test_contradictions(long_sounds):
    for changes, message in (
        ({"queries": 5}, "the paper's protocol has queries 1; got 5: leave queries out"),
        ({"shots": 5}, "has shots 1; got 5"),
        ({"ways": 3}, "has ways 5; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            PaperProtocol(**changes)
    with pytest.raises(ValueError, match="its own classifier; got 'logistic': leave classifier out"):
        evaluate([], [long_sounds], PROTOCOL, classifier="logistic", show_progress_bar=False)
    given = replace(open_data(long_sounds), name="given", audio=None, embeddings=torch.rand(30, 4))
    with pytest.raises(ValueError, match=r"given holds embeddings of whole clips, .* evaluate the audio"):
        evaluate([], [given], PROTOCOL, show_progress_bar=False)


def test_bad_clips_are_left_out(long_sounds, tmp_path):
    shutil.copytree(long_sounds, tmp_path / "sounds")
    (tmp_path / "sounds" / "class 1" / "bad.wav").write_text("no audio")
    soundfile.write(tmp_path / "sounds" / "class 2" / "silent.wav", np.zeros(90_000), 16_000)
    result = evaluate([], [tmp_path / "sounds"], PROTOCOL, show_progress_bar=False).results[0]
    assert result.clips == 30 and len(result.bad_clips) == 2
    assert "silent.wav: under -90 dBFS in each of 2 pieces" in " ".join(result.bad_clips)
