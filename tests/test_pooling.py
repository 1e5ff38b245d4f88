"""Pooling of the last feature map, with and without heads: values, folding, adapters, checkpoints read another way."""

import json
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import assert_close
from test_adapters import error, settled, train_a_little, waveforms
from test_conversion import BACKBONES, FRAMEWORKS, original
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining
from transformers.utils import logging

from mtslvr_hf import (
    MTSLVRConfig,
    MTSLVRFeatureExtractor,
    MTSLVRForAudioClassification,
    MTSLVRForPreTraining,
    MTSLVRModel,
)
from mtslvr_hf.conversion import convert_checkpoint
from mtslvr_hf.evaluation.embedders.base import MTSLVREmbedder
from mtslvr_hf.trainer.probe import _part_names

MEAN, MEAN_MAX = {"pooling": "mean"}, {"pooling": "mean_max"}
FOUR, TWO = {"pooling": "bands"}, {"pooling": "bands", "num_bands": 2}
POOLINGS = [MEAN, MEAN_MAX, FOUR, TWO]
AS_IT_IS = MTSLVRFeatureExtractor(normalization="none")
WARNING = "The heads were trained with the pooling"


def two_seconds(**options):
    """A tiny network whose last feature map has four rows and two frames."""
    return settled(window_seconds=2.0, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network with projectors and heads of the mean, and its folder."""
    model = settled(MTSLVRForPreTraining, window_seconds=2.0)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def warnings(monkeypatch):
    """Lines that loading logs."""
    from mtslvr_hf import configuration_mtslvr

    logging.warning_once.cache_clear()
    lines = []
    monkeypatch.setattr(configuration_mtslvr.logger, "warning", lambda message: lines.append(message))
    return lines


def feature_maps(model, clips, tasks=("contrastive", "predictive")):
    return model.encoder(model.frontend(clips), tasks)[0]


def by_hand(feature_map, pooling, num_bands=4):
    """Pooled feature map of (windows, C, rows, frames), value by value."""
    rows = []
    for window in feature_map:
        groups = window.split(window.shape[1] // num_bands, dim=1) if pooling == "bands" else [window]
        values = [group[channel].mean() for group in groups for channel in range(len(group))]
        if pooling == "mean_max":
            values += [channel.max() for channel in window]
        rows.append(torch.stack(values))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_embedding_is_the_pooled_map_by_hand_through_the_head(pooling, heads):
    model, clips = two_seconds(use_heads=heads, **pooling), waveforms(2, 32_000)
    maps, out = feature_maps(model, clips), model(clips)
    assert maps["contrastive"].shape == (2, 32, 4, 2)
    parts = []
    for task in ("contrastive", "predictive"):
        pooled = by_hand(maps[task], **pooling)
        assert pooled.shape[1] == model.config.pooled_size
        if heads:
            pooled = pooled @ model.heads[task].weight.T + model.heads[task].bias
        assert_close(getattr(out, f"{task}_embeds"), pooled)
        parts.append(pooled)
    assert_close(out.pooler_output, torch.cat(parts, dim=1))
    assert out.pooler_output.shape[1] == model.config.embedding_size_of()
    assert heads or not any("heads" in name for name in model.state_dict())


@torch.no_grad()
def test_waveforms_have_a_maximum_but_no_bands():
    model, clips = two_seconds(frontend="waveform", use_heads=False, **MEAN_MAX), waveforms(2, 32_000)
    maps = feature_maps(model, clips)["contrastive"]  # (2, 32, S / 32)
    assert_close(model(clips).contrastive_embeds, torch.cat([maps.mean(-1), maps.amax(-1)], dim=1))
    frames = model(clips, tasks=["contrastive"]).last_hidden_state
    assert frames.shape == (2, 2, 64)
    assert_close(frames[..., 32:].amax(1), maps.amax(-1))
    with pytest.raises(ValueError, match="'bands' needs a spectrogram"):
        MTSLVRConfig(frontend="waveform", pooling="bands")


def test_sizes():
    config = MTSLVRConfig(pooling="bands")
    assert (config.hidden_size, config.pooled_size, config.head_size) == (512, 2048, 500)
    config = MTSLVRConfig(pooling="mean_max", use_heads=False, embedding_size=7, depth=50)
    assert config.pooled_size == config.head_size == 4096
    assert config.embedding_size_of() == 8192 and config.embedding_size_of("predictive") == 4096


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("adapter_type", ["none", "parallel"])
@pytest.mark.parametrize("num_mel_bins", [1, 31, 32, 33, 80, 128, 129])
def test_rows_of_the_last_map_are_those_that_bands_divide(num_mel_bins, adapter_type, depth):
    sizes = {"num_mel_bins": num_mel_bins, "adapter_type": adapter_type, "depth": depth, "base_width": 4}
    encoder = MTSLVRModel(MTSLVRConfig(frontend="mel", **sizes)).eval().encoder
    rows = encoder(torch.zeros(1, 1, num_mel_bins, 33), ["contrastive"])[0]["contrastive"].shape[2]
    for bands in range(1, rows + 2):
        if rows % bands == 0:
            assert MTSLVRConfig(pooling="bands", num_bands=bands, **sizes).num_bands == bands
        else:
            with pytest.raises(ValueError, match=rf"divide the {rows} rows of frequency .* choose one of 1"):
                MTSLVRConfig(pooling="bands", num_bands=bands, **sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "'mean', 'mean_max', 'bands'; got 'max'"),
        ({"pooling": "bands", "num_bands": 3}, "divide the 4 rows .* choose one of 1, 2, 4"),
        ({"num_bands": 0}, "`num_bands` must be a whole number between 1 and 1,024; got 0"),
        ({"use_heads": None}, "`use_heads` must be one of True, False; got None"),
    ],
)
def test_wrong_values_are_refused_in_new_and_in_saved_configurations(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        MTSLVRConfig(**settings)
    MTSLVRConfig(use_heads=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path, **settings)


def test_other_overrides_are_checked_too(tmp_path):
    MTSLVRConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="18, 34, 50, 101, 152; got 20"):
        AutoConfig.from_pretrained(tmp_path, depth=20)
    config, unused = AutoConfig.from_pretrained(
        tmp_path, tasks="predictive", num_labels=7, other=1, return_unused_kwargs=True
    )
    assert (config.tasks, config.num_labels, unused) == (["predictive"], 7, {"other": 1})


def test_features_with_other_mel_bands_are_refused():
    with pytest.raises(ValueError, match="has 64 mel bands; the pooling 'bands' takes 128"):
        settled(**FOUR)(input_features=torch.zeros(1, 3, 64, 33))


@torch.no_grad()
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_frames_are_pooled_over_frequency_alone(pooling, heads):
    model, clips = two_seconds(use_heads=heads, **pooling), waveforms(2, 32_000)
    out, maps = model(clips), feature_maps(model, clips)
    size = model.config.pooled_size
    assert out.last_hidden_state.shape == (2, 2, 2 * size)
    for place, task in enumerate(maps):
        for frame in range(2):
            expected = by_hand(maps[task][..., frame : frame + 1], **pooling)
            found = out.last_hidden_state[:, frame, place * size : (place + 1) * size]
            assert_close(found, expected)
    frames = model.frame_embeddings(out.last_hidden_state)  # (2, 2, D)
    assert frames.shape[-1] == model.config.embedding_size_of()
    if pooling != MEAN_MAX:
        assert_close(frames.mean(1), out.pooler_output)
    elif not heads:
        mean, maximum = out.contrastive_embeds.chunk(2, dim=1)
        assert_close(frames[..., :32].mean(1), mean)
        assert_close(frames[..., 32:64].amax(1), maximum)
    seconds = model.encode(clips[0], 16_000, return_timestamps=True, feature_extractor=AS_IT_IS)
    assert error(torch.from_numpy(seconds.embeddings), frames[0]) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_embedding_depends_on_its_clip_alone(pooling, heads):
    model = settled(use_heads=heads, **pooling)
    encode = partial(model.encode, feature_extractor=AS_IT_IS)
    clips, lengths = waveforms(3, 50_000), (50_000, 16_000, 700)
    mask = torch.stack([torch.arange(50_000) < length for length in lengths]).long()
    together = model(clips, mask).pooler_output
    for clip, length, found in zip(clips, lengths, together):
        alone = model(clip[None, :length]).pooler_output[0]
        assert error(found, alone) <= 1e-5
        assert error(torch.from_numpy(encode(clip[:length], 16_000)), alone) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("adapter_type", ["none", "series", "parallel"])
@pytest.mark.parametrize(("pooling", "heads"), [(MEAN, False), (MEAN_MAX, True), (FOUR, True), (FOUR, False)])
def test_merged_networks_are_equal_and_load(pooling, heads, adapter_type, tmp_path):
    model = settled(adapter_type=adapter_type, use_heads=heads, **pooling)
    model.add_adapter("birds", "series")
    expected, tasks = model(waveforms()), ["birds", "contrastive"]
    assert error(model.inference_network()(waveforms()).pooler_output, expected.pooler_output) <= 1e-5
    two = model(waveforms(), tasks=tasks).pooler_output
    model.merge_adapters(tasks).save_pretrained(tmp_path)
    for merged in (model, AutoModel.from_pretrained(tmp_path)):
        out = merged(waveforms(), tasks=tasks)
        assert error(out.pooler_output, two) <= 1e-5
        frames = merged.frame_embeddings(out.last_hidden_state, tasks)
        assert frames.shape == (3, 2, two.shape[1])
    assert torch.equal(model.unmerge_adapters()(waveforms()).pooler_output, expected.pooler_output)


@torch.no_grad()
def test_tasks_that_share_the_trunk_have_one_embedding_without_heads():
    model = settled(adapter_type="none", use_heads=False, **FOUR)
    out = model(waveforms())
    assert torch.equal(out.contrastive_embeds, out.predictive_embeds)
    assert out.pooler_output.shape == (3, 128) and model.config.embedding_size_of() == 128
    assert list(MTSLVREmbedder(model, None)._named(out.pooler_output)) == ["both"] == _part_names(model.config)
    model = settled(adapter_type="bn", shared_head=True, use_heads=False, **FOUR)
    named = MTSLVREmbedder(model, None)._named(model(waveforms()).pooler_output)
    assert {name: values.shape[1] for name, values in named.items()} == {
        "contrastive": 128,
        "predictive": 128,
        "both": 256,
    }


@pytest.mark.parametrize("shared_head", [False, True])
def test_adapters_without_heads_train_and_travel(shared_head, tmp_path):
    options = {"use_heads": False, "shared_head": shared_head, **TWO}
    model = settled(**options)
    before = model(waveforms()).pooler_output
    model.add_adapter("birds", "parallel")
    assert torch.equal(model(waveforms(), tasks=["birds"]).pooler_output, before[:, :64])
    model.train_adapter("birds")
    train_a_little(model)
    expected = model(waveforms(), tasks=["birds"]).pooler_output
    assert error(expected, before[:, :64]) > 1e-3
    assert torch.equal(model(waveforms(), tasks=["contrastive", "predictive"]).pooler_output, before)
    path = model.save_adapter(tmp_path / "birds", "birds")
    assert not any("head" in name for name in load_file(path))
    other = settled(**options)
    other.load_adapter(path)
    assert torch.equal(other(waveforms(), tasks=["birds"]).pooler_output, expected)
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "whole")(waveforms()).pooler_output, expected)
    model.delete_adapter("birds")
    assert torch.equal(model(waveforms()).pooler_output, before)
    model.save_adapter(tmp_path / "own", "predictive")  # it has adapters of its own, and needs no more


def test_an_adapter_for_another_pooling_is_refused(tmp_path):
    model = settled(embedding_size=8, **MEAN_MAX)
    path = model.save_adapter(tmp_path, "predictive")
    with pytest.raises(ValueError, match="it has pooling 'mean_max' instead of 'bands', num_bands None instead of 2"):
        settled(embedding_size=8, **TWO).load_adapter(path, "birds")
    with pytest.raises(ValueError, match="it has use_heads True instead of False"):
        settled(use_heads=False, embedding_size=128, **MEAN_MAX).load_adapter(path, "birds")
    settled(embedding_size=8, num_bands=2, **MEAN_MAX).load_adapter(path, "birds")  # bands are not used


def test_an_adapter_of_an_earlier_version_is_one_of_the_mean(tmp_path):
    model = settled()
    path = model.save_adapter(tmp_path, "predictive")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    description = json.loads(metadata["mtslvr_adapter"])
    for field in ("pooling", "num_bands", "use_heads"):
        del description["architecture"][field]
    save_file(load_file(path), path, {**metadata, "mtslvr_adapter": json.dumps(description)})
    model.load_adapter(path, "birds")
    assert torch.equal(*[model(waveforms(), tasks=[task]).pooler_output for task in ("birds", "predictive")])
    with pytest.raises(ValueError, match="pooling 'mean' instead of 'bands'"):
        settled(**TWO).load_adapter(path, "birds")


@pytest.mark.parametrize(
    ("pooling", "method", "adapter_type"),
    [(MEAN, "simsiam", "bn"), (MEAN_MAX, "simclr", "none"), (FOUR, "simclr", "parallel")],
)
def test_pretraining_without_heads(pooling, method, adapter_type):
    options = {"contrastive_method": method, "adapter_type": adapter_type, "use_heads": False, **pooling}
    gradients = []
    for checkpointing in (False, True):
        model = settled(MTSLVRForPreTraining, **options).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        views = torch.randn(4, 2, 16_000, generator=torch.Generator().manual_seed(0))
        labels = torch.ones(4, len(model.config.augmentations))
        model(views, augmentation_labels=labels).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


@torch.no_grad()
def test_a_checkpoint_is_read_with_another_pooling(saved, warnings, tmp_path):
    model, folder = saved
    clips = waveforms(2, 32_000)
    maps = feature_maps(model.mtslvr, clips)
    readings = {
        "auto": lambda **pooling: AutoModel.from_pretrained(folder, output_loading_info=True, **pooling),
        "own": lambda **pooling: MTSLVRModel.from_pretrained(folder, output_loading_info=True, **pooling),
        "config": lambda **pooling: AutoModel.from_pretrained(
            folder, config=AutoConfig.from_pretrained(folder, **pooling), output_loading_info=True
        ),
    }
    for number, (pooling, read) in enumerate(zip((FOUR, TWO, MEAN_MAX), readings.values()), start=1):
        found, info = read(**pooling)
        assert not any(info.values()), info
        expected = torch.cat([by_hand(maps[task], **pooling) for task in maps], dim=1)
        assert_close(found(clips).pooler_output, expected)
        assert len(found.heads) == 0 and not found.config.use_heads
        assert len(warnings) == number and warnings[-1].startswith(f"{WARNING} 'mean' and are not used with")
        found.save_pretrained(tmp_path / pooling["pooling"])
        again, info = AutoModel.from_pretrained(tmp_path / pooling["pooling"], output_loading_info=True)
        assert not any(info.values()), info
        assert torch.equal(again(clips).pooler_output, found(clips).pooler_output)
        read(**pooling)
        assert len(warnings) == number  # the same line once, and none for what was saved so


@torch.no_grad()
def test_a_checkpoint_is_read_before_its_heads(saved, warnings):
    model, folder = saved
    clips = waveforms(2, 32_000)
    found, info = AutoModel.from_pretrained(folder, use_heads=False, output_loading_info=True)
    assert not any(info.values()) and not warnings
    maps = feature_maps(model.mtslvr, clips)
    assert_close(found(clips).predictive_embeds, by_hand(maps["predictive"], "mean"))


@torch.no_grad()
def test_nothing_changes_if_the_pooling_is_the_one_trained(warnings, tmp_path):
    model = settled(**TWO)
    model.save_pretrained(tmp_path)
    for same in ({}, TWO, {"use_heads": True}, {"num_bands": 2}):
        loaded = AutoModel.from_pretrained(tmp_path, **same)
        assert torch.equal(loaded(waveforms()).pooler_output, model(waveforms()).pooler_output)
    assert not warnings
    assert not AutoModel.from_pretrained(tmp_path, num_bands=4).config.use_heads
    assert warnings
    settled().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, num_bands=2).config.use_heads  # of the mean: no bands


def test_heads_that_do_not_exist_are_refused(saved, tmp_path):
    _, folder = saved
    with pytest.raises(ValueError, match=r"no heads for the pooling 'bands': it was saved with the pooling 'mean'\."):
        AutoModel.from_pretrained(folder, use_heads=True, **FOUR)
    settled(use_heads=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no heads for the pooling 'mean': .*, without heads"):
        AutoModel.from_pretrained(tmp_path, use_heads=True)


def test_projectors_and_classifiers_of_another_embedding_are_refused(saved, tmp_path):
    _, folder = saved
    for load in (AutoModelForPreTraining.from_pretrained, MTSLVRForPreTraining.from_pretrained):
        for changes in (FOUR, {"use_heads": False}):
            with pytest.raises(ValueError, match="saved as MTSLVRForPreTraining, trained on another embedding than"):
                load(folder, **changes)
        load(folder, num_bands=2, use_heads=True)
    classifier = settled(MTSLVRForAudioClassification, use_heads=False, num_labels=3, **MEAN_MAX)
    classifier.save_pretrained(tmp_path)
    for load in (AutoModelForAudioClassification.from_pretrained, MTSLVRForAudioClassification.from_pretrained):
        with pytest.raises(ValueError, match="saved as MTSLVRForAudioClassification, trained on another"):
            load(tmp_path, **TWO)  # the same size
    with torch.no_grad():
        assert torch.equal(
            AutoModelForAudioClassification.from_pretrained(tmp_path)(waveforms()).logits,
            classifier(waveforms()).logits,
        )


def test_a_new_classifier_behind_another_pooling(saved):
    _, folder = saved
    model, info = AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True, **FOUR
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"] and model.classifier.in_features == 256
    model.add_adapter("birds")
    model.train_adapter("birds")
    assert model.classifier.in_features == 128
    train_a_little(model, labels=torch.tensor([0, 1, 2, 0]))


@torch.no_grad()
def test_added_tasks_are_read_with_another_pooling(tmp_path):
    model = settled()
    model.add_adapter("birds", "series")
    model.set_adapter(["birds", "predictive"])
    model.save_pretrained(tmp_path)
    found, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **TWO)
    assert not any(info.values())
    maps = feature_maps(model, waveforms(2, 16_000), ["birds", "predictive"])
    expected = torch.cat([by_hand(maps[task], **TWO) for task in maps], dim=1)
    assert_close(found(waveforms(2, 16_000)).pooler_output, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["backbone", "framework"])
def test_an_original_checkpoint_is_read_with_another_pooling(kind, tmp_path):
    shapes = BACKBONES["parallel_2d_3ch_resnet18"]["shapes"]
    if kind == "framework":
        shapes = FRAMEWORKS["parallel_simclr"]["shapes"]
    torch.save(original(shapes, narrow=True), tmp_path / "original.pt")
    model = convert_checkpoint(tmp_path / "original.pt", tmp_path / "converted").base_model
    found, info = AutoModel.from_pretrained(tmp_path / "converted", output_loading_info=True, **FOUR)
    assert not any(info.values())
    clips = waveforms(1, 80_000)
    maps = feature_maps(model, clips)
    expected = torch.cat([by_hand(maps[task], **FOUR) for task in maps], dim=1)
    assert_close(found(clips).pooler_output, expected)
    assert AutoModel.from_pretrained(tmp_path / "converted").config.use_heads
