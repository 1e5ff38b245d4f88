"""Other audio models of transformers: small ones with random weights, against their own outputs taken by hand."""

import math

import numpy as np
import pytest
import soundfile
import torch
from small_models import assert_close
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModel,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapTextConfig,
    Data2VecAudioConfig,
    HubertConfig,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWDConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from mtslvr_hf.evaluation.embedders.base import Embedder, load_embedder
from mtslvr_hf.evaluation.embedders.transformers_models import FAMILIES, TransformersEmbedder

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 8), "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SPEECH = SMALL | CONVOLUTIONS | POSITIONS


def clap(truncation):
    tower = ClapAudioConfig(
        spec_size=32,
        patch_embeds_hidden_size=8,
        depths=[1, 1],
        num_attention_heads=[1, 1],
        hidden_size=16,
        num_mel_bins=8,
        window_size=4,
        enable_fusion=truncation == "fusion",
    )
    config = ClapConfig(text_config=ClapTextConfig(**SMALL, vocab_size=10), audio_config=tower, projection_dim=8)
    extractor = ClapFeatureExtractor(feature_size=8, max_length_s=1, truncation=truncation, sampling_rate=32_000)
    return config, extractor


def models():
    """From a name to configuration and extractor."""
    whole = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    frames = SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    whisper = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8, "vocab_size": 60}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return {
        "wav2vec2": (Wav2Vec2Config(**SPEECH), Wav2Vec2FeatureExtractor()),
        "wav2vec2 with layer norm": (Wav2Vec2Config(**SPEECH, feat_extract_norm="layer"), whole),
        "hubert": (HubertConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "wavlm": (WavLMConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "data2vec-audio": (Data2VecAudioConfig(**SMALL, **CONVOLUTIONS), Wav2Vec2FeatureExtractor()),
        "sew-d": (SEWDConfig(**SPEECH, squeeze_factor=2), Wav2Vec2FeatureExtractor()),
        "unispeech": (UniSpeechConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "unispeech-sat": (UniSpeechSatConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "wav2vec2-conformer": (Wav2Vec2ConformerConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "sew": (SEWConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
        "wav2vec2-bert": (Wav2Vec2BertConfig(**SMALL, feature_projection_input_dim=16), frames),
        "ast": (
            ASTConfig(**SMALL, max_length=64, num_mel_bins=32),
            ASTFeatureExtractor(max_length=64, num_mel_bins=32),
        ),
        "whisper": (
            WhisperConfig(**whisper, **heads, **tokens, max_source_positions=50),
            WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        ),
        "clap": clap("rand_trunc"),
        "clap with fusion": clap("fusion"),
    }


NAMES = list(models())


def test_every_family_is_here():
    assert {config.model_type for config, _ in models().values()} == set(FAMILIES)


def build(name, batch_size=4):
    config, extractor = models()[name]
    torch.manual_seed(0)
    return TransformersEmbedder(AutoModel.from_config(config).eval(), extractor, name, batch_size)


def noise(seconds, rate, seed=0):
    return np.random.default_rng(seed).normal(size=round(seconds * rate)).astype(np.float32) / 5


def rows(tmp_path, seconds, rate):
    files = []
    for number, length in enumerate(seconds):
        files.append(tmp_path / f"{number}.wav")
        soundfile.write(files[-1], noise(length, rate, number), rate, subtype="FLOAT")
    return [{"bytes": None, "path": str(file)} for file in files]


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_depend_on_nothing_but_the_clip(name, tmp_path):
    """Not on the batch, its order or size, nor on random state; clips of every length, long and tiny ones too."""
    embedder = build(name)
    audio = rows(tmp_path, [0.03, 0.3, 0.9, 0.9, 2.6], embedder.feature_extractor.sampling_rate)
    assert isinstance(embedder, Embedder)
    together = embedder.embed(audio)[""]
    np.random.seed(1)  # noqa: NPY002 - CLAP's extractor draws from the global generator
    backwards = embedder.embed(audio[::-1])[""].flip(0)
    np.random.seed(2)  # noqa: NPY002
    alone = torch.cat([build(name, batch_size=1).embed([row])[""] for row in audio])
    assert together.shape == (5, 16) and together.dtype == torch.float32 and torch.isfinite(together).all()
    assert (together[1] - together[2]).abs().max() > 1e-4  # it hears something
    for other in (backwards, alone):
        assert_close(other, together, 1e-4)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2 with layer norm", "hubert", "wavlm", "sew"])
def test_speech_models_mean_over_all_positions(name):
    embedder, clip = build(name), noise(0.5, 16_000)
    values = torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))
    with torch.no_grad():
        expected = embedder.family.network(values[None]).last_hidden_state.mean(1)
    assert_close(embedder.embed_waveforms(torch.from_numpy(clip)[None])[""], expected)


def test_spectrogram_transformer_means_over_patches_of_audio():
    embedder = build("ast")
    config, model = embedder.family.network.config, embedder.family.network
    for seconds in (0.3, 0.6):
        clip = noise(seconds, 16_000)
        inputs = embedder.feature_extractor(clip, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            tokens = model(**inputs).last_hidden_state[0]
        frames = math.floor((seconds - 0.025) / 0.01 + 1e-9) + 1
        bands, times = (32 - 16) // config.frequency_stride + 1, (64 - 16) // config.time_stride + 1
        of_audio = [2 + band * times + time for band in range(bands) for time in range(times) if time * 10 < frames]
        expected = tokens[of_audio].mean(0)
        assert_close(embedder.embed_waveforms(torch.from_numpy(clip)[None])[""][0], expected)


def test_patches_of_padding_are_told_from_patches_of_audio():
    """A patch's own embedding, before attention, is that of padding just where the mean leaves it out."""
    embedder = build("ast")
    clip = noise(0.3, 16_000)
    inputs = embedder.feature_extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        patches = embedder.family.network.embeddings.patch_embeddings(inputs["input_values"]).unflatten(1, (2, -1))
    padding = (patches - patches[:, :, -1:]).abs().amax((0, 1, 3)) == 0
    _, used = embedder.family.positions(dict(inputs), torch.tensor([len(clip)]))
    assert padding.tolist() == [False] * int(used) + [True] * (len(padding) - int(used))


def test_whisper_means_over_positions_of_audio():
    embedder, clip = build("whisper"), noise(0.31, 16_000)
    inputs = embedder.feature_extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        hidden = embedder.family.network(inputs["input_features"]).last_hidden_state
    expected = hidden[:, :16].mean(1)  # 0.02 s each
    assert_close(embedder.embed_waveforms(torch.from_numpy(clip)[None])[""], expected)


@pytest.mark.parametrize("name", ["clap", "clap with fusion"])
def test_clap_is_the_audio_towers_own_mean(name, tmp_path):
    embedder = build(name)
    clip = noise(0.4, 32_000)
    inputs = embedder.feature_extractor(clip, sampling_rate=32_000, return_tensors="pt")
    inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
    with torch.no_grad():
        expected = embedder.family.network(**inputs).pooler_output
    assert_close(embedder.embed(rows(tmp_path, [0.4], 32_000))[""], expected)


@pytest.mark.parametrize("name", ["wav2vec2", "ast", "whisper", "clap"])
def test_long_clip_is_the_mean_of_its_windows(name, tmp_path):
    embedder = build(name)
    rate = embedder.feature_extractor.sampling_rate
    seconds = 2.5 * embedder.family.window_samples / rate
    (row,) = rows(tmp_path, [seconds], rate)
    parts = np.array_split(noise(seconds, rate), 3)
    expected = torch.stack([embedder._embed_clips([part])[0] for part in parts]).mean(0)
    assert_close(embedder.embed([row])[""][0], expected, 1e-4)


def test_waveforms_are_resampled_to_the_models_rate(tmp_path):
    embedder = build("clap")
    clip = noise(0.5, 16_000)
    soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
    from_file = embedder.embed([{"bytes": None, "path": str(tmp_path / "clip.wav")}])[""]
    assert_close(embedder.embed_waveforms(torch.from_numpy(clip)[None])[""], from_file)


@pytest.mark.parametrize("name", ["wav2vec2", "ast", "whisper", "clap"])
def test_models_are_loaded_with_their_extractor(name, tmp_path):
    built = build(name)
    config, extractor = models()[name]
    torch.manual_seed(0)
    AutoModel.from_config(config).half().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded = load_embedder(tmp_path, name="other")
    assert loaded.name == "other" and loaded.family.network.dtype == torch.float32
    audio = torch.from_numpy(noise(0.5, 16_000))[None]
    torch.testing.assert_close(
        loaded.embed_waveforms(audio)[""], built.embed_waveforms(audio)[""], rtol=0.02, atol=0.02
    )
    assert loaded.fingerprint != built.fingerprint  # half precision rounded the weights
    assert loaded.fingerprint == load_embedder(tmp_path).fingerprint
