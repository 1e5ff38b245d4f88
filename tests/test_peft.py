"""Adapters of PEFT on our models: what is trained is what is computed, saved and embedded."""

import pytest
import torch
from small_models import RATE, assert_close, make_model, noise
from transformers import AutoModel, AutoModelForAudioClassification

from mtslvr_hf import MTSLVRFeatureExtractor, MTSLVRForAudioClassification, MTSLVRModel
from mtslvr_hf.adapters import load_adapter
from mtslvr_hf.configuration_mtslvr import ADAPTER_TYPES

peft = pytest.importorskip("peft")

HEADS = r".*heads\.\w+"
TRUNK = r".*layer\d\.\d\.conv\d\.conv"
TASK_LAYERS = r".*adapters\.\w+\.conv"
CLIP = noise(9000)


def wrapped(model, target, **options):
    """The model with random LoRA matrices, which change its output."""
    torch.manual_seed(1)
    options = {"r": 2, "init_lora_weights": False} | options
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=target, **options)).eval()


def network(adapter_type="parallel", **changes):
    """A network whose statistics and adapters are not those of its start."""
    model = make_model(adapter_type=adapter_type, window_seconds=0.5, num_mel_bins=32, **changes)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name and value.is_floating_point():
                value.mul_(1 + 0.2 * torch.rand(value.shape)).add_(0.05)
    return model.eval()


@pytest.mark.parametrize(
    ("adapter_type", "target"),
    [
        *((kind, TRUNK) for kind in ADAPTER_TYPES),
        ("series", TASK_LAYERS),
        ("parallel", TASK_LAYERS),
        ("parallel", HEADS),
        ("parallel", "all-linear"),
    ],
)
def test_wrapped_layers_are_not_bypassed(adapter_type, target):
    model = network(adapter_type)
    base = model.encode(CLIP, RATE)
    changed = wrapped(model, target)
    embedding = changed.encode(CLIP, RATE)
    assert abs(embedding - base).max() > 1e-2 * abs(base).max()
    with changed.disable_adapter():
        assert_close(changed.encode(CLIP, RATE), base)
    inputs = MTSLVRFeatureExtractor()(CLIP, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        assert_close(changed(**inputs).pooler_output[0].numpy(), embedding)
    merged = changed.merge_and_unload()  # PEFT adds its matrices to the weights of the plain layers
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert_close(merged.encode(CLIP, RATE), embedding, tolerance=1e-4)


@pytest.mark.parametrize("target", [TRUNK, TASK_LAYERS, HEADS])
def test_all_that_peft_added_is_trained(target):
    model = wrapped(make_model(model_class=MTSLVRForAudioClassification, num_labels=2), target)
    model.train()
    model(input_values=torch.from_numpy(noise(RATE, 4)), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    added = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert added and all("lora" in name for name in added)
    assert all(grad is not None and grad.abs().max() > 0 for grad in added.values())


def test_train_save_and_load(tmp_path):
    base = make_model(model_class=MTSLVRForAudioClassification, num_labels=2, window_seconds=0.5)
    for _ in range(20):  # until the statistics of batch normalization are those of audio
        base.train()(input_values=torch.from_numpy(noise(8000, 4)))
    base.save_pretrained(tmp_path / "base")
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(tmp_path / "base")
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "base")
    model = wrapped(model, TRUNK, modules_to_save=["classifier"]).train()
    optimizer = torch.optim.SGD((value for value in model.parameters() if value.requires_grad), lr=1e-3)
    inputs = {"input_values": torch.from_numpy(noise(8000, 4)), "labels": torch.tensor([0, 1, 0, 1])}
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    # PEFT saves its own layers alone: what else changed in training would be lost without a word.
    before = AutoModelForAudioClassification.from_pretrained(tmp_path / "base").state_dict()
    after = {name.replace("base_layer.", ""): value for name, value in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items() if "classifier" not in name)
    model.eval().save_pretrained(tmp_path / "lora")
    embedding, logits = model.encode(CLIP, RATE), model(**inputs).logits.detach()

    base = AutoModelForAudioClassification.from_pretrained(tmp_path / "base").eval()
    for loaded in (
        peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval(),
        AutoModelForAudioClassification.from_pretrained(tmp_path / "lora").eval(),
    ):
        assert_close(loaded.encode(CLIP, RATE), embedding)
        assert_close(loaded(**inputs).logits, logits)


def test_what_cannot_work_with_peft_says_so(tmp_path):
    model = network()
    model.save_adapter(tmp_path / "own", "contrastive")
    wrapped_model = wrapped(model, HEADS)
    inner = wrapped_model.get_base_model()
    for act in (
        lambda: inner.merge_adapters(),
        lambda: MTSLVRModel.add_adapter(inner, "birds"),
        lambda: MTSLVRModel.save_adapter(inner, tmp_path / "x", "contrastive"),
        lambda: load_adapter(inner, tmp_path / "own", "again"),
    ):
        with pytest.raises(ValueError, match="a model whose layers PEFT replaced: call `merge_and_unload`"):
            act()
    with pytest.raises(ValueError, match="save the model that `get_peft_model`"):
        inner.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    wrapped_model.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"lora holds an adapter of PEFT: load it with `PeftModel.from_pretrained"):
        network().load_adapter(str(tmp_path / "lora"))
    with pytest.raises(ValueError, match=r"`name` is a LoraConfig.*call `peft.get_peft_model"):
        network().add_adapter(peft.LoraConfig(target_modules=HEADS))


def test_the_folder_of_an_adapter_loads(tmp_path):
    network().save_pretrained(tmp_path / "base")
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(tmp_path / "base")
    model = wrapped(AutoModel.from_pretrained(tmp_path / "base"), TRUNK)
    model.save_pretrained(tmp_path / "lora")
    assert_close(AutoModel.from_pretrained(tmp_path / "lora").encode(CLIP, RATE), model.encode(CLIP, RATE))
