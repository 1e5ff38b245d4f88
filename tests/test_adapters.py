"""Tasks added as adapters, merging, and the inference network."""

import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModel, AutoModelForAudioClassification

from mtslvr_hf import MTSLVRConfig, MTSLVRForAudioClassification, MTSLVRForPreTraining, MTSLVRModel

FRONTENDS = ("mel_stft", "mel", "waveform")
ADAPTER_TYPES = ("none", "bn", "series", "parallel")


def settled(model_class=MTSLVRModel, **options):
    """A tiny model whose batch normalization has seen audio, so that no statistic or scale is 0 or 1."""
    torch.manual_seed(0)
    options = {"base_width": 4, "window_seconds": 1.0, "embedding_size": 8, **options}
    model = model_class(MTSLVRConfig(**options))
    torch.manual_seed(1)  # whatever the model has behind its heads
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model.train()
        for _ in range(3):
            model(torch.randn(4, 16_000))
    return model.eval()


def waveforms(clips=3, samples=20_000):
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(1))


def error(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def train_a_little(model, **inputs):
    """Steps in train mode over all that trains."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for seed in range(3):
        batch = torch.randn(4, 16_000, generator=torch.Generator().manual_seed(seed))
        out = model(batch, **inputs)
        loss = out.loss if "labels" in inputs else out.pooler_output.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_merged_equals_unmerged(frontend, depth, adapter_type):
    model = settled(frontend=frontend, depth=depth, adapter_type=adapter_type)
    expected = model(waveforms(), output_hidden_states=True)
    kernels = model.encoder
    assert model.merge_adapters() is model
    merged = model(waveforms(), output_hidden_states=True)
    assert not any(isinstance(module, _BatchNorm) or "adapters" in name for name, module in model.named_modules())
    assert error(merged.pooler_output, expected.pooler_output) <= 1e-5
    assert error(merged.last_hidden_state, expected.last_hidden_state) <= 1e-5
    assert error(merged.hidden_states[2], expected.hidden_states[2]) <= 1e-5
    assert model.unmerge_adapters().encoder is kernels
    assert torch.equal(model(waveforms()).pooler_output, expected.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("shared_head", [False, True])
@pytest.mark.parametrize("adapter_type", ["none", "parallel"])
def test_merging_some_tasks(adapter_type, shared_head):
    model = settled(adapter_type=adapter_type, shared_head=shared_head)
    model.add_adapter("birds", "series", init_from="predictive")
    train_a_little_in_place = model.encoder.layer2[0].conv1.adapters["birds"].conv.weight
    train_a_little_in_place.normal_()
    expected = model(waveforms(), tasks=("birds", "contrastive"))
    model.merge_adapters(["contrastive", "birds"])
    assert model.active_adapters() == ["contrastive"]
    merged = model(waveforms(), tasks=("birds", "contrastive"))
    assert error(merged.pooler_output, expected.pooler_output) <= 1e-5
    with pytest.raises(ValueError, match=r"contrastive', 'birds'.*predictive"):
        model(waveforms(), tasks="predictive")
    model.unmerge_adapters()
    assert model.active_adapters() == ["contrastive", "predictive"]
    model(waveforms(), tasks="predictive")


@torch.no_grad()
@pytest.mark.parametrize("model_class", [MTSLVRModel, MTSLVRForPreTraining, MTSLVRForAudioClassification])
def test_merged_model_saves_and_loads(model_class, tmp_path):
    model = settled(model_class)
    model.base_model.add_adapter("birds", "bn")
    name = "logits" if model_class is MTSLVRForAudioClassification else "pooler_output"
    expected = model(waveforms())[name]
    model.merge_adapters()
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) == len(model.state_dict())
    loaded = model_class.from_pretrained(tmp_path)
    assert error(loaded(waveforms())[name], expected) <= 1e-5
    with pytest.raises(ValueError, match="merged before it was saved"):
        loaded.unmerge_adapters()
    embedding = AutoModel.from_pretrained(tmp_path)(waveforms(), tasks=("birds",)).pooler_output
    model.unmerge_adapters()
    assert error(embedding, model.base_model(waveforms(), tasks=("birds",)).pooler_output) <= 1e-5


def test_merged_models_refuse_what_needs_adapters(tmp_path):
    model = settled()
    with pytest.raises(ValueError, match="not merged"):
        model.unmerge_adapters()
    model.merge_adapters("contrastive")
    for act in (
        lambda: model.merge_adapters(),
        lambda: model.add_adapter("birds"),
        lambda: model.train_adapter("contrastive"),
        lambda: model.save_adapter(tmp_path, "contrastive"),
    ):
        with pytest.raises(ValueError, match="unmerge_adapters"):
            act()
    with pytest.raises(ValueError, match="MTSLVRForAudioClassification reads"):
        settled(MTSLVRForAudioClassification).merge_adapters("contrastive")
    with pytest.raises(ValueError, match="must name some of"):
        settled().merge_adapters("birds")


def test_merging_keeps_the_dtype():
    model = settled().to(torch.bfloat16)
    model.merge_adapters()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(waveforms()).pooler_output.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.encoder.layer4[1].conv2.adapters["predictive"].norm.running_var.add_(0.1),
        lambda model: model.encoder.stem.conv.weight.data.mul_(1.01),
        lambda model: model.encoder.layer3[0].conv2.conv.weight.data[5].zero_(),
        lambda model: model.encoder.layer3[0].conv2.conv.weight.data[:, 6, 1, 2].add_(0.5),
        lambda model: model.heads["predictive"].weight.data[:, 31].add_(1.0),
        lambda model: model.heads["predictive"].bias.data[1:2].add_(1.0),
        lambda model: model.encoder.layer2[0].conv1.adapters["predictive"].norm.running_mean.data[3:4].add_(1.0),
        lambda model: model.heads["contrastive"].load_state_dict({"weight": torch.ones(4, 32), "bias": torch.ones(4)}),
        lambda model: model.encoder.layer1[0].conv1.conv.register_parameter(
            "weight", torch.nn.Parameter(model.encoder.layer1[0].conv1.conv.weight * 2)
        ),
        lambda model: model.double(),
    ],
    ids=[
        "statistic",
        "data",
        "channel",
        "tap",
        "column",
        "value",
        "statistic's value",
        "load_state_dict",
        "new parameter",
        "dtype",
    ],
)
def test_inference_network_follows_the_weights(change):
    model = settled()
    network = model.inference_network()
    assert model.inference_network() is network
    assert error(network(waveforms()).pooler_output, model(waveforms()).pooler_output) <= 1e-5
    assert network.encoder.layer2[0].conv1.convs["contrastive"].weight.is_contiguous(memory_format=torch.channels_last)
    change(model)
    changed = model.inference_network()
    assert changed is not network
    assert error(changed(waveforms()).pooler_output, model(waveforms()).pooler_output) <= 1e-5


def test_inference_network_stays_out_of_the_model():
    model = settled()
    names, size = set(model.state_dict()), len(pickle.dumps(model))
    model.inference_network()
    assert set(model.state_dict()) == names
    assert len(pickle.dumps(model)) == size
    model.train()
    assert not model.inference_network().training


def test_inference_network_after_optimizer_step():
    model = settled()
    before = model.inference_network()
    train_a_little(model)
    after = model.inference_network()
    assert after is not before
    assert error(after(waveforms()).pooler_output, model(waveforms()).pooler_output) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("frontend", "tolerance"), [("mel_stft", 1e-5), ("waveform", 2e-2)])
def test_frames_average_to_the_embedding(frontend, tolerance):
    model = settled(frontend=frontend, window_seconds=3.0)
    out = model(torch.randn(2, 48_000), tasks=("predictive", "contrastive"))
    frames = model.frame_embeddings(out.last_hidden_state, ("predictive", "contrastive"))  # (batch, frames, D)
    assert error(frames.mean(1), out.pooler_output) <= tolerance
    centers = model.frame_centers(frames.shape[1])
    assert centers.shape == frames.shape[1:2]
    assert 0 <= centers[0] < centers[-1] < 3.0


@torch.no_grad()
def test_frames_look_where_they_say():
    """A burst moves the frame whose center it stands on most."""
    model = settled(window_seconds=8.0, adapter_type="none")
    quiet = 0.01 * torch.randn(1, 128_000, generator=torch.Generator().manual_seed(0))
    frames = model(quiet).last_hidden_state  # (1, frames, channels)
    centers = model.frame_centers(frames.shape[1])
    for frame in (2, 4, 5):
        loud = quiet.clone()
        middle = round(float(centers[frame]) * 16_000)
        loud[:, middle - 1600 : middle + 1600] *= 30
        moved = (model(loud).last_hidden_state - frames).norm(dim=-1)[0]
        assert moved.argmax() == frame


@torch.no_grad()
@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
@pytest.mark.parametrize("added", ADAPTER_TYPES[1:])
def test_added_task_starts_from_another(adapter_type, added):
    model = settled(adapter_type=adapter_type)
    expected = model(waveforms(), tasks=("predictive",)).pooler_output
    model.add_adapter("birds", added, init_from="predictive")
    out = model(waveforms(), tasks=("contrastive", "birds"))
    assert list(out.added_embeds) == ["birds"]
    assert out.pooler_output.shape == (3, 8)
    if added == adapter_type or adapter_type == "none" or (adapter_type, added) == ("bn", "parallel"):
        assert error(out.added_embeds["birds"], expected) <= 1e-5
    if (adapter_type, added) == ("bn", "series"):  # BN(0 + y)
        assert error(out.added_embeds["birds"], expected) <= 1e-5


@pytest.mark.parametrize("frontend", ["mel", "waveform"])
@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES)
@pytest.mark.parametrize("added", ADAPTER_TYPES[1:])
def test_training_an_adapter_leaves_other_tasks_as_they_are(frontend, adapter_type, added):
    model = settled(frontend=frontend, adapter_type=adapter_type)
    with torch.no_grad():
        expected = model(waveforms()).pooler_output
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_adapter("birds", added)
    model.train_adapter("birds")
    assert model.active_adapters() == ["birds"]
    with torch.no_grad():
        start = model(waveforms()).pooler_output
    train_a_little(model)
    with torch.no_grad():
        assert error(model(waveforms()).pooler_output, start) > 1e-3
        assert torch.equal(model(waveforms(), tasks=("contrastive", "predictive")).pooler_output, expected)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".birds." in name for name in trained)


@torch.no_grad()
def test_an_adapter_that_was_trained_merges():
    model = settled()
    model.add_adapter("birds", "series")
    model.train_adapter("birds")
    expected = model(waveforms()).pooler_output
    model.merge_adapters()
    for mode in (True, False):
        assert error(model.train(mode)(waveforms()).pooler_output, expected) <= 1e-5
    model.unmerge_adapters().train()
    training = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training}
    assert training and all(".birds" in name for name in training)
    assert torch.equal(model.eval()(waveforms()).pooler_output, expected)


def test_what_is_added_to_a_frozen_model_is_frozen():
    model = settled().train()
    model.add_adapter("birds", "bn")
    model.train_adapter("birds")
    model.add_adapter("frogs", "bn")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".birds." in name for name in trained)
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training]
    assert norms and all(".birds" in name for name in norms)


def test_training_an_adapter_with_a_classifier(tmp_path, caplog):
    model = settled(MTSLVRForAudioClassification, num_labels=3)
    expected = model.mtslvr(waveforms()).pooler_output
    model.add_adapter("birds")
    model.train_adapter("birds")
    assert model.classifier.in_features == model.config.head_size == 4
    train_a_little(model, labels=torch.tensor([0, 1, 2, 0]))
    assert torch.equal(model.mtslvr(waveforms(), tasks=("contrastive", "predictive")).pooler_output, expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(waveforms()).logits, model(waveforms()).logits)
    assert loaded.active_adapters() == ["birds"]
    embedder = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(embedder(waveforms(), tasks=("contrastive", "predictive")).pooler_output, expected)


def test_added_task_joins_the_embedding(tmp_path):
    model = settled()
    model.add_adapter("birds", "bn")
    assert model(waveforms()).pooler_output.shape == (3, 8)
    model.set_adapter(["contrastive", "predictive", "birds"])
    out = model(waveforms())
    assert out.pooler_output.shape == (3, 12)
    assert torch.equal(out.pooler_output[:, 8:], out.added_embeds["birds"])
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(waveforms()).pooler_output, out.pooler_output)
    loaded.delete_adapter("birds")
    assert loaded.active_adapters() == ["contrastive", "predictive"]
    assert set(loaded.state_dict()) == set(settled().state_dict())
    assert torch.equal(loaded(waveforms()).pooler_output, out.pooler_output[:, :8])


def test_a_shared_embedding_counts_once_beside_an_added_one():
    model = settled(adapter_type="none", shared_head=True)
    model.add_adapter("birds")
    out = model(waveforms(), tasks=("contrastive", "predictive", "birds"))
    assert out.pooler_output.shape == (3, 16)
    model.set_adapter(["contrastive", "predictive", "birds"])
    assert model.config.embedding_size_of() == 16


@pytest.mark.parametrize(
    ("name", "adapter_type", "match"),
    [
        ("contrastive", "bn", "is reserved"),
        ("train", "bn", "is reserved"),
        ("training", "bn", "is reserved"),
        ("my.birds", "bn", "letters"),
        ("birds", "none", "adapter_type"),
        ("taken", "bn", "already"),
    ],
)
def test_impossible_adapters_change_nothing(name, adapter_type, match):
    model = settled()
    model.add_adapter("taken")
    names = set(model.state_dict())
    with pytest.raises(ValueError, match=match):
        model.add_adapter(name, adapter_type)
    with pytest.raises(ValueError, match="must name some of"):
        model.add_adapter("other", init_from="nothing")
    assert set(model.state_dict()) == names
    assert model.config.added_adapters == {"taken": "parallel"}


def test_only_added_adapters_are_deleted():
    model = settled()
    for name in ("contrastive", "birds"):
        with pytest.raises(ValueError, match="not among the adapters that were added"):
            model.delete_adapter(name)


def test_shared_weights_are_not_one_tasks_to_train(tmp_path):
    for options in ({"adapter_type": "none"}, {"shared_head": True}):
        model = settled(**options)
        with pytest.raises(ValueError, match="add_adapter"):
            model.train_adapter("contrastive")
        with pytest.raises(ValueError, match="nothing of its own"):
            model.save_adapter(tmp_path, "contrastive")
    assert not os.listdir(tmp_path)


def test_print_trainable_parameters(capsys):
    model = settled()
    model.add_adapter("birds", "bn")
    model.train_adapter("birds")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    model.print_trainable_parameters()
    line = f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("adapter_type", ADAPTER_TYPES[1:])
def test_adapter_round_trip(adapter_type, tmp_path):
    model = settled()
    model.add_adapter("birds", adapter_type)
    model.train_adapter("birds")
    train_a_little(model)
    expected = model(waveforms(), tasks=("birds",)).pooler_output
    path = model.save_adapter(tmp_path, "birds")
    assert os.listdir(tmp_path) == [os.path.basename(path)]
    assert os.path.getsize(path) < 0.5 * sum(p.numel() * p.element_size() for p in model.parameters())
    other = settled()
    assert other.load_adapter(tmp_path) == "birds"
    assert other.active_adapters() == ["contrastive", "predictive"]
    assert torch.equal(other(waveforms(), tasks=("birds",)).pooler_output, expected)
    assert other.load_adapter(path, name="again") == "again"
    assert torch.equal(other(waveforms(), tasks=("again",)).pooler_output, expected)


def test_adapter_brings_its_classifier(tmp_path):
    model = settled(MTSLVRForAudioClassification, num_labels=2, id2label={0: "rain", 1: "wind"})
    model.add_adapter("weather", "bn")
    model.train_adapter("weather")
    train_a_little(model, labels=torch.tensor([0, 1, 1, 0]))
    model.save_adapter(tmp_path, "weather")
    other = settled(MTSLVRForAudioClassification, num_labels=5)
    other.load_adapter(tmp_path)
    assert other.config.id2label == {0: "rain", 1: "wind"}
    assert other.config.num_labels == 2
    torch.testing.assert_close(other(waveforms()).logits, model(waveforms()).logits, rtol=0, atol=0)
    plain = settled()
    plain.load_adapter(tmp_path)
    assert not any("classifier" in name for name in plain.state_dict())


def test_adapter_for_another_network_is_refused(tmp_path, caplog):
    model = settled()
    model.add_adapter("birds", "bn")
    path = model.save_adapter(tmp_path, "birds")
    with pytest.raises(ValueError, match="base_width 4 instead of 8"):
        settled(base_width=8).load_adapter(tmp_path)
    with pytest.raises(ValueError, match="already"):
        model.load_adapter(path)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="not written by `save_adapter`"):
        settled().load_adapter(tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        settled().load_adapter(tmp_path / "text.safetensors")
    with pytest.raises(OSError):
        settled().load_adapter(tmp_path / "nowhere")


def test_incomplete_adapter_leaves_the_model_as_it_was(tmp_path):
    from safetensors import safe_open

    model = settled()
    model.add_adapter("birds", "bn")
    path = model.save_adapter(tmp_path, "birds")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["head.bias"]
    save_file(tensors, path, metadata)
    other = settled()
    with pytest.raises(ValueError, match=r"head\.bias"):
        other.load_adapter(path)
    assert set(other.state_dict()) == set(settled().state_dict())
    assert json.loads(metadata["mtslvr_adapter"])["name"] == "birds"


def test_another_trunk_is_a_warning(tmp_path, monkeypatch):
    from mtslvr_hf import adapters

    warnings = []
    monkeypatch.setattr(adapters.logger, "warning", lambda *message: warnings.append(message))
    model = settled()
    model.add_adapter("birds", "bn")
    model.save_adapter(tmp_path, "birds")
    settled().load_adapter(tmp_path)
    assert not warnings
    other = settled()
    with torch.no_grad():
        other.encoder.layer3[0].conv1.conv.weight.mul_(2)
    other.load_adapter(tmp_path)
    assert "other weights" in warnings[0][0]


def rewritten(path, change=lambda description: description, tensors=lambda tensors: tensors):
    """Replaces the description and the tensors of an adapter's file."""
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["mtslvr_adapter"])
    content = tensors(load_file(path))
    text = change(description)
    save_file(content, path, metadata={"mtslvr_adapter": text if isinstance(text, str) else json.dumps(text)})


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"change": lambda _: "no JSON"}, "a description that is no JSON"),
        ({"change": lambda _: [1]}, "has the format None; this version reads 1"),
        ({"change": without("version")}, "has the format None"),
        ({"change": without("trunk")}, "'trunk' is None; expected a str"),
        ({"change": lambda d: {**d, "name": 5}}, "'name' is 5; expected a str"),
        ({"change": lambda d: {**d, "architecture": None}}, "'architecture' is None; expected a dict"),
        ({"change": lambda d: {**d, "adapter_type": "loud"}}, "`adapter_type` must be one of"),
        ({"change": lambda d: {**d, "id2label": ["a", "b"]}}, "'id2label' must give a name for each number"),
        ({"change": lambda d: {**d, "id2label": {"x": "a"}}}, "'id2label' must give a name for each number"),
        ({"change": without("id2label")}, r"do not fit together: .* for 0 class names"),
        ({"tensors": without("classifier.bias")}, r"do not fit together: .* for 2 class names"),
        ({"tensors": lambda t: {**t, "classifier.bias": torch.ones(3)}}, "do not fit together"),
        (
            {"tensors": lambda t: {**t, "classifier.weight": torch.ones(2, 3)}},
            "classifier of 3 values for a head of 4",
        ),
        ({"tensors": lambda t: {**t, "head.bias": torch.full((4,), torch.nan)}}, "NaN or infinite: head.bias"),
        ({"tensors": lambda t: {**t, "head.bias": torch.ones(5)}}, r"does not hold what the adapter needs: shapes"),
    ],
)
def test_damaged_adapter_files_are_refused(change, message, tmp_path):
    model = settled(MTSLVRForAudioClassification, num_labels=2)
    model.train_adapter("contrastive")
    path = model.save_adapter(tmp_path, "contrastive")
    rewritten(path, **change)
    other = settled(MTSLVRForAudioClassification, num_labels=2)
    with pytest.raises(ValueError, match=message):
        other.load_adapter(path, "again")
    assert other.config.added_adapters == {} and other.config.num_labels == 2


def test_files_of_weights_are_readable_by_others(tmp_path):
    (tmp_path / "plain").touch()  # as the umask says
    model = settled()
    model.save_pretrained(tmp_path / "model")
    for path in (model.save_adapter(tmp_path / "adapter", "contrastive"), tmp_path / "model/model.safetensors"):
        assert os.stat(path).st_mode == (tmp_path / "plain").stat().st_mode
