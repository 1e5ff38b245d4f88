"""The networks: shapes of every variant, windows, padding, precision, checkpointing, saving and loading."""

import itertools
import json

import numpy as np
import pytest
import torch
from small_models import assert_close
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    pipeline,
)

from mtslvr_hf import (
    MTSLVRConfig,
    MTSLVRFeatureExtractor,
    MTSLVRForAudioClassification,
    MTSLVRForPreTraining,
    MTSLVRModel,
)
from mtslvr_hf.modeling_mtslvr import MTSLVRFrontend, MTSLVRParallelAdapter, cut_windows

WINDOW = 8000  # samples of the tiny models' windows
FRONTENDS = ("mel_stft", "mel", "waveform")
ADAPTERS = ("none", "bn", "series", "parallel")
HEADS = {  # (tasks, shared_head): one head, a head per task, a shared head
    "one": (("contrastive",), False),
    "predictive": (("predictive",), False),
    "per_task": (("contrastive", "predictive"), False),
    "shared": (("contrastive", "predictive"), True),
}


def tiny(**changes) -> MTSLVRConfig:
    """A network of less than a million parameters."""
    settings = {"base_width": 8, "window_seconds": 0.5, "embedding_size": 40, **changes}
    return MTSLVRConfig(**settings)


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every BatchNorm statistics and scales of its own, so that none is the identity; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.1, 0.1),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def clips(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) for length in lengths]


def padded(waveforms: list[torch.Tensor], extra: int = 0) -> dict[str, torch.Tensor]:
    longest = max(map(len, waveforms)) + extra
    values, mask = torch.zeros(len(waveforms), longest), torch.zeros(len(waveforms), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        values[row, : len(waveform)], mask[row, : len(waveform)] = waveform, 1
    return {"input_values": values, "attention_mask": mask}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("frontend,adapter_type,heads", list(itertools.product(FRONTENDS, ADAPTERS, HEADS)))
def test_every_variant_embeds_and_trains(frontend, adapter_type, heads):
    tasks, shared_head = HEADS[heads]
    config = tiny(frontend=frontend, adapter_type=adapter_type, tasks=tasks, shared_head=shared_head)
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(config)
    views = torch.stack([torch.stack(clips(WINDOW, WINDOW, WINDOW, seed=view)) for view in (0, 1)], dim=1)
    output = model(views, augmentation_labels=torch.randint(0, 2, (3, 7)).float())
    output.loss.backward()
    for task in ("contrastive", "predictive"):
        embeds = getattr(output, f"{task}_embeds")
        assert (embeds is None) == (task not in tasks)
        assert embeds is None or embeds.shape == (3, 2, config.head_size)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.num_parameters() < 1_000_000

    with torch.no_grad():
        out = model.mtslvr.eval()(views[:, 0])
    parts = 1 if adapter_type == "none" and shared_head else len(tasks)
    assert out.pooler_output.shape == (3, parts * config.head_size)
    assert out.last_hidden_state.shape == (3, 1, config.hidden_size * len(tasks))


@pytest.mark.parametrize("depth", (34, 50, 101, 152))
@pytest.mark.parametrize("frontend", ("mel", "waveform"))
def test_every_depth_has_adapters(depth, frontend):
    for adapter_type in ADAPTERS:
        config = tiny(depth=depth, frontend=frontend, adapter_type=adapter_type, base_width=4)
        out = MTSLVRModel(config).eval()(torch.stack(clips(WINDOW, WINDOW)))
        assert out.pooler_output.shape == (2, 40)
        assert out.last_hidden_state.shape[-1] == 2 * config.hidden_size


@pytest.mark.parametrize("depth", (18, 50))
@pytest.mark.parametrize("frontend", ("mel", "waveform"))
@pytest.mark.parametrize("adapter_type", ("bn", "series", "parallel"))
def test_convolution_with_adapters_computes_the_papers_formula(adapter_type, frontend, depth):
    """DESIGN 3: bn: BN_t(y); parallel: BN_t(y + A_t x); series: BN_t(A_t BN'_t(y) + y); y = conv(x)."""
    model = settle(MTSLVRModel(tiny(adapter_type=adapter_type, frontend=frontend, depth=depth))).double()
    layers = [model.encoder.layer2[0].conv1, model.encoder.layer3[0].conv2, model.encoder.layer4[1].conv1]
    for layer, task in itertools.product(layers, ("contrastive", "predictive")):
        adapter = layer.adapters[task]
        size = (9, 10) if frontend == "mel" else (65,)
        x = torch.randn(2, layer.conv.in_channels, *size, dtype=torch.float64)
        y = layer.conv(x)
        if adapter_type == "parallel":
            y = y + adapter.conv(x)
        elif adapter_type == "series":
            y = adapter.conv(adapter.input_norm(y)) + y
        torch.testing.assert_close(layer(x, task), adapter.norm(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frontend", ("mel", "mel_stft"))
def test_normalized_spectrogram(frontend):
    """Decibels not below -60, then (x - 7) / 26; the phase is divided by 26 alone."""
    waveforms = torch.stack(clips(WINDOW, WINDOW, WINDOW))
    waveforms[0], waveforms[1] = 0.0, waveforms[1] * 1e-4
    plain = MTSLVRModel(tiny(frontend=frontend)).frontend(waveforms)
    found = MTSLVRModel(tiny(frontend=frontend, normalize_spectrogram=True)).frontend(waveforms)
    expected = [(plain[:, 0].clamp(min=-60) - 7) / 26]
    if frontend == "mel_stft":
        expected += [(plain[:, 1].clamp(min=-60) - 7) / 26, plain[:, 2] / 26]
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-6, atol=1e-6)
    assert plain.min() < -150 and found.min() > -5


def test_trunk_runs_once_for_all_tasks():
    model = MTSLVRModel(tiny()).eval()
    calls = {"layer1": 0, "layer2": 0}
    for name in calls:
        block = getattr(model.encoder, name)[0]
        block.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    model(torch.stack(clips(WINDOW)))
    assert calls == {"layer1": 1, "layer2": 2}


def test_chosen_tasks_are_computed_alone_and_unchanged():
    model = settle(MTSLVRModel(tiny()))
    waveforms = torch.stack(clips(WINDOW, WINDOW))
    both, one = model(waveforms), model(waveforms, tasks=("predictive",))
    assert one.contrastive_embeds is None
    assert torch.equal(one.predictive_embeds, both.predictive_embeds)
    swapped = model(waveforms, tasks=("predictive", "contrastive"))
    assert torch.equal(swapped.pooler_output, torch.cat([both.predictive_embeds, both.contrastive_embeds], dim=-1))
    with pytest.raises(ValueError, match=r"got \['speaker'\]"):
        model(waveforms, tasks=("speaker",))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_embedding_does_not_depend_on_batch_or_padding(frontend):
    model = settle(MTSLVRModel(tiny(frontend=frontend)))
    waveforms = clips(1, 80, 3000, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 700)
    with torch.no_grad():
        alone = [model(waveform[None]) for waveform in waveforms]
        for extra, order in ((0, range(7)), (5000, (6, 2, 0, 4)), (1, (3, 1))):
            batch = model(**padded([waveforms[index] for index in order], extra))
            for row, index in enumerate(order):
                frames = alone[index].last_hidden_state.shape[1]
                assert relative_error(batch.pooler_output[row], alone[index].pooler_output[0]) <= 1e-5
                assert relative_error(batch.last_hidden_state[row, :frames], alone[index].last_hidden_state[0]) <= 1e-4
                assert not batch.last_hidden_state[row, frames:].any()


def test_windows_are_cut_and_filled_by_repetition():
    waveform = torch.arange(1.0, 12.0)  # 11 samples, windows of 4
    windows, of_clip = cut_windows(waveform[None], None, 4)
    assert windows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 9]]
    assert of_clip.counts.tolist() == [3]
    windows, of_clip = cut_windows(
        torch.tensor([[1.0, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]]), torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]), 4
    )
    assert windows.tolist() == [[1, 2, 3, 1], [4, 5, 6, 7], [8, 9, 8, 9]]
    assert of_clip.mean(torch.tensor([[1.0], [2.0], [4.0]])).tolist() == [[1.0], [3.0]]


def test_embedding_of_a_long_clip_is_the_mean_over_windows():
    model = settle(MTSLVRModel(tiny()))
    (long,) = clips(3 * WINDOW)
    with torch.no_grad():
        together = model(long[None])
        apart = model(long.view(3, WINDOW))
    assert relative_error(together.pooler_output[0], apart.pooler_output.mean(0)) <= 1e-5
    assert_close(together.last_hidden_state[0], apart.last_hidden_state.flatten(0, 1))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "either `input_values`"),
        ({"input_values": torch.zeros(1, 9), "input_features": torch.zeros(1, 3, 128, 9)}, "either `input_values`"),
        ({"input_values": torch.zeros(9)}, r"got the shape \(9,\)"),
        ({"input_values": torch.zeros(2, 0)}, "not empty"),
        ({"input_features": torch.zeros(2, 1, 128, 20)}, "3 channels"),
        ({"input_values": torch.zeros(2, 9), "attention_mask": torch.ones(2, 8)}, "the clips"),
        ({"input_values": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}, "leaves clip 1"),
        ({"input_values": torch.zeros(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])}, "padding before samples"),
    ],
)
def test_wrong_input_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        MTSLVRModel(tiny(base_width=2)).eval()(**arguments)


def test_pretraining_output_with_one_and_two_views():
    model = settle(MTSLVRForPreTraining(tiny(predictive_weight=0.25)))
    views = torch.stack([torch.stack(clips(WINDOW, WINDOW, seed=seed)) for seed in (0, 1)], dim=1)
    labels = torch.tensor([[1.0, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0]])
    out = model(views, augmentation_labels=labels)
    assert torch.allclose(out.loss, out.contrastive_loss + 0.25 * out.predictive_loss)
    assert out.augmentation_logits.shape == (2, 2, 7)
    single = model(views[:, 1])
    assert single.loss is None and single.contrastive_loss is None and single.predictive_loss is None
    assert_close(single.augmentation_logits, out.augmentation_logits[:, 1])
    assert_close(single.pooler_output, out.pooler_output[:, 1])
    assert model(views).loss is None  # no labels, no predictive loss
    with pytest.raises(ValueError, match="expected 2 clips x 7 augmentations"):
        model(views, augmentation_labels=labels[:, :3])
    with pytest.raises(ValueError, match="two views on axis 1"):
        model(torch.zeros(2, 3, WINDOW))
    features = torch.stack([model.mtslvr.frontend(views[:, view]) for view in (0, 1)], dim=1)
    from_features = model(input_features=features, augmentation_labels=labels)
    assert torch.allclose(from_features.loss, out.loss, atol=1e-6)


def test_hidden_states_by_argument_and_by_configuration():
    model = MTSLVRModel(tiny()).train()
    waveforms = torch.stack(clips(WINDOW, WINDOW))
    assert model(waveforms).hidden_states is None
    out = model(waveforms, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert [state.shape[1] for state in out.hidden_states] == [8, 8, 32, 64, 128]  # layer2-4: both tasks
    for state in out.hidden_states[:2]:
        state.retain_grad()
    out.pooler_output.sum().backward()
    assert all(state.grad.abs().sum() > 0 for state in out.hidden_states[:2])
    model.config.output_hidden_states = True
    assert model(waveforms).hidden_states is not None
    as_tuple = model(waveforms, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 5


@pytest.mark.parametrize("adapter_type", ADAPTERS)
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_gradient_checkpointing_updates_statistics_once(adapter_type, use_reentrant):
    config = tiny(adapter_type=adapter_type)
    torch.manual_seed(0)
    plain = MTSLVRForPreTraining(config).train()
    checkpointed = MTSLVRForPreTraining(config).train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    views = torch.stack([torch.stack(clips(WINDOW, WINDOW, seed=seed)) for seed in (0, 1)], dim=1)
    labels = torch.ones(2, 7)
    for model in (plain, checkpointed):
        model(views, augmentation_labels=labels).loss.backward()
    for (name, ours), theirs in zip(checkpointed.state_dict().items(), plain.state_dict().values()):
        assert torch.equal(ours, theirs), name
    for (name, ours), theirs in zip(checkpointed.named_parameters(), plain.parameters()):
        assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm() + 1e-5, name


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_half_precision(dtype, frontend, tmp_path):
    model = settle(MTSLVRModel(tiny(frontend=frontend)))
    waveforms = torch.stack(clips(WINDOW, WINDOW))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        reference = model(waveforms).pooler_output
        features = model.frontend(waveforms)
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
        model.to(dtype)
        for half in (model, loaded):
            assert half.dtype == dtype
            assert torch.equal(half.frontend(waveforms), features)  # computed in float32 all the same
            assert relative_error(half(waveforms).pooler_output.float(), reference) < 0.05
        model.float()
        assert torch.equal(model.frontend(waveforms), features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.frontend(waveforms), features)
            assert relative_error(model(waveforms).pooler_output.float(), reference) < 0.05


def test_initialization():
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(MTSLVRConfig(base_width=32, contrastive_method="simsiam"))
    fan_out = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            fan_out[name] = module.weight.std().item() / (2 / fan) ** 0.5
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
            assert (module.running_mean == 0).all() and (module.running_var == 1).all(), name
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert module.weight.abs().max() <= bound and module.weight.std() > 0.5 * bound, name
            assert module.bias.abs().max() <= bound and module.bias.any(), name
    assert all(0.9 < ratio < 1.1 for ratio in fan_out.values()), fan_out


@pytest.mark.parametrize("saved_class", (MTSLVRModel, MTSLVRForPreTraining, MTSLVRForAudioClassification))
def test_checkpoint_loads_as_every_class(saved_class, tmp_path):
    model = settle(saved_class(tiny(num_labels=3)))
    model.save_pretrained(tmp_path)
    waveforms = torch.stack(clips(WINDOW, WINDOW))
    base = getattr(model, "mtslvr", model)
    with torch.no_grad():
        expected = base(waveforms)
        loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(waveforms).pooler_output, expected.pooler_output)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), MTSLVRForPreTraining)
    assert isinstance(AutoModelForAudioClassification.from_pretrained(tmp_path), MTSLVRForAudioClassification)
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForPreTraining",
        "AutoModelForAudioClassification",
    }
    assert {"configuration_mtslvr.py", "modeling_mtslvr.py"} <= {path.name for path in tmp_path.iterdir()}
    assert AutoConfig.from_pretrained(tmp_path).auto_map == written["auto_map"]


def test_meta_device_construction():
    with torch.device("meta"):
        model = MTSLVRForPreTraining(MTSLVRConfig(depth=152))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    "labels,problem", [(torch.tensor([0, 2]), None), (torch.eye(3)[:2], "multi_label_classification")]
)
def test_classification_and_frozen_encoder(labels, problem):
    model = MTSLVRForAudioClassification(tiny(num_labels=3, problem_type=problem))
    waveforms = torch.stack(clips(WINDOW, WINDOW))
    out = model(waveforms, labels=labels)
    assert out.logits.shape == (2, 3) and out.loss > 0
    model.freeze_feature_encoder()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.mtslvr.state_dict().items()}
    model(waveforms, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.mtslvr.state_dict().items())


def test_audio_classification_pipeline():
    model = settle(MTSLVRForAudioClassification(tiny(id2label={0: "kick", 1: "snare", 2: "flute"})))
    classify = pipeline("audio-classification", model=model, feature_extractor=MTSLVRFeatureExtractor())
    answers = classify(np.random.default_rng(0).standard_normal(9000).astype(np.float32), top_k=2)
    assert len(answers) == 2 and {answer["label"] for answer in answers} < {"kick", "snare", "flute"}


def test_extractor_and_model_load_from_one_folder(tmp_path):
    MTSLVRModel(tiny()).save_pretrained(tmp_path)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.normalization == "sample"
    inputs = extractor([np.zeros(3000), np.zeros(20000)], sampling_rate=16000, return_tensors="pt")
    assert AutoModel.from_pretrained(tmp_path)(**inputs).pooler_output.shape == (2, 40)


def test_the_frontend_takes_a_batch_in_parts(monkeypatch):
    """The same bits, in the same memory layout."""
    frontend, waveforms = MTSLVRFrontend(MTSLVRConfig()), torch.randn(5, 16_000)
    whole = frontend(waveforms)
    monkeypatch.setattr("mtslvr_hf.modeling_mtslvr.FRONTEND_SAMPLES", 40_000)
    parts = frontend(waveforms)
    assert torch.equal(parts, whole) and parts.stride() == whole.stride()


@pytest.mark.parametrize("changes", [{}, {"adapter_type": "bn"}, {"adapter_type": "series"}])
def test_views_share_kernels(monkeypatch, changes):
    """Losses and gradients are those of a pass that makes its own kernels."""
    models = [MTSLVRForPreTraining(MTSLVRConfig(base_width=4, frontend="mel", **changes)) for _ in "12"]
    models[1].load_state_dict(models[0].state_dict())
    inputs = {"input_features": torch.randn(3, 2, 1, 128, 32), "augmentation_labels": torch.ones(3, 7)}
    made = []
    kernel = MTSLVRParallelAdapter.kernel
    monkeypatch.setattr(
        MTSLVRParallelAdapter, "kernel", lambda self, weight: made.append(self) or kernel(self, weight)
    )
    outputs = [models[0](**inputs)]
    assert len(made) == len(set(made)) == sum(isinstance(m, MTSLVRParallelAdapter) for m in models[0].modules())
    monkeypatch.setattr(models[1].mtslvr.encoder, "training_kernels", lambda tasks: None)
    outputs.append(models[1](**inputs))
    for output in outputs:
        output.loss.backward()
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters()):
        assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name
    models[0].eval()
    assert not models[0].mtslvr.encoder.training_kernels(models[0].config.tasks)


def test_a_parallel_adapter_adds_to_the_center_tap():
    """The values and gradients of a sum with the adapter padded by zeros."""
    adapter = MTSLVRParallelAdapter(2, 3, 4, 1).double()
    weight = torch.randn(4, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    padded = weight + nn.functional.pad(adapter.conv.weight, (2, 2, 1, 1))
    assert torch.equal(adapter.kernel(weight), padded)
    assert torch.autograd.gradcheck(adapter.kernel, (weight,))
    ours, theirs = (
        torch.autograd.grad((kernel * padded.detach()).sum(), adapter.conv.weight)[0]
        for kernel in (adapter.kernel(weight), padded)
    )
    assert torch.equal(ours, theirs)
