"""Original checkpoints: golden outputs after conversion, every tensor accounted for, nothing written on failure."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from mtslvr_hf import MTSLVRFeatureExtractor, MTSLVRForPreTraining, MTSLVRModel
from mtslvr_hf.conversion import convert_checkpoint, infer_config, model_from_state_dict

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from fill import fill  # noqa: E402

BACKBONES = json.loads((GOLDEN / "backbones.json").read_text())
FRAMEWORKS = json.loads((GOLDEN / "training.json").read_text())
OUTPUTS = {"output": "pooler_output", "contrastive": "contrastive_embeds", "predictive": "predictive_embeds"}
PREDICTIVE_WEIGHT = 0.5  # in golden/training.*


def original(shapes, narrow=False):
    """An original's state dict; eight times narrower if asked, heads and projectors aside."""
    if narrow:
        shapes = {name: _narrow(name, shape) for name, shape in shapes.items()}
    return {name: torch.as_tensor(array) for name, array in fill(shapes).items()}


def _narrow(name, shape):
    if "project" in name or "predictor" in name:
        return shape
    of_trunk = shape[1:] if "fc" in name else shape
    narrow = [size // 8 if size in (64, 128, 256, 512) else size for size in of_trunk]
    return shape[: len(shape) - len(of_trunk)] + narrow if "weight" in name or "fc" not in name else shape


def relative_error(found, expected):
    expected = torch.as_tensor(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def parallel_state():
    return original(BACKBONES["parallel_2d_3ch_resnet18"]["shapes"], narrow=True)


def save(content, folder):
    torch.save(content, folder / "original.pt")
    return folder / "original.pt"


@pytest.mark.parametrize("name", BACKBONES)
def test_converted_backbone_gives_the_original_outputs(name, tmp_path):
    entry = BACKBONES[name]
    source = save(original(entry["shapes"]), tmp_path)
    convert_checkpoint(source, tmp_path / "converted")
    model = AutoModel.from_pretrained(tmp_path / "converted")
    assert type(model) is MTSLVRModel
    assert model.config.depth == entry["depth"]
    assert model.config.adapter_type == ("none" if entry["adapter"] == "split" else entry["adapter"])
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
    with np.load(GOLDEN / "backbones.npz") as golden, torch.no_grad():
        outputs = model(input_features=torch.as_tensor(golden[f"{name}/input"]))
        wanted = {kind: golden[f"{name}/{kind}"] for kind in OUTPUTS if f"{name}/{kind}" in golden.files}
    assert wanted
    for kind, expected in wanted.items():
        assert relative_error(outputs[OUTPUTS[kind]], expected) < 1e-4, kind


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_converted_framework_gives_the_original_losses(name, tmp_path):
    source = save(original(FRAMEWORKS[name]["shapes"]), tmp_path)
    convert_checkpoint(source, tmp_path / "converted")
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "converted").train()
    assert type(model) is MTSLVRForPreTraining
    assert model.config.contrastive_method == name.split("_")[1]
    assert model.config.shared_head == name.startswith("none")
    model.config.predictive_weight = PREDICTIVE_WEIGHT
    with np.load(GOLDEN / "training.npz") as golden, torch.no_grad():
        views = torch.stack([torch.as_tensor(golden[f"{name}/view{number}"]) for number in (1, 2)], dim=1)
        labels = torch.as_tensor(golden[f"{name}/labels"])
        expected = {kind: golden[f"{name}/{kind}"][0] for kind in ("joint", "contrastive", "predictive")}
        outputs = model(input_features=views, augmentation_labels=labels)
    assert outputs.loss.item() == pytest.approx(expected["joint"], rel=1e-4, abs=1e-6)
    assert outputs.contrastive_loss.item() == pytest.approx(expected["contrastive"], rel=1e-4, abs=1e-6)
    assert outputs.predictive_loss.item() == pytest.approx(expected["predictive"], rel=1e-4, abs=1e-6)


def test_a_converted_folder_is_complete(parallel_state, tmp_path):
    convert_checkpoint(save(parallel_state, tmp_path), tmp_path / "new" / "converted")
    names = {path.name for path in (tmp_path / "new" / "converted").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert {"configuration_mtslvr.py", "feature_extraction_mtslvr.py", "modeling_mtslvr.py"} <= names
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "new" / "converted")
    assert type(extractor) is MTSLVRFeatureExtractor
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["converted"]


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "model"])
def test_wrapped_and_data_parallel_checkpoints(parallel_state, tmp_path, wrap):
    content = {wrap: {f"module.{key}": value for key, value in parallel_state.items()}, "epoch": 7, "optimizer": {}}
    model = convert_checkpoint(save(content, tmp_path), tmp_path / "converted")
    assert torch.equal(model.encoder.stem.conv.weight, parallel_state["conv1.weight"])


def test_a_backbone_saved_out_of_its_framework(parallel_state, tmp_path):
    content = {f"backbone.module.{key}": value for key, value in parallel_state.items()}
    assert type(convert_checkpoint(save(content, tmp_path), tmp_path / "converted")) is MTSLVRModel


@pytest.mark.parametrize("name", ["split_simclr", "series_simclr", "bn_simsiam", "parallel_simsiam"])
def test_every_tensor_of_the_file_reaches_one_of_the_model(name):
    shapes = original(FRAMEWORKS[name]["shapes"], narrow=True)
    state = {key: torch.full_like(value, number) for number, (key, value) in enumerate(shapes.items())}
    filled = model_from_state_dict(state).state_dict()
    numbers = [value.flatten()[0].item() for value in filled.values()]
    assert all((value == number).all() for value, number in zip(filled.values(), numbers))
    assert sorted(numbers) == list(range(len(state)))


@pytest.mark.parametrize("adapter, name", [("bn", "bn_2d_3ch_resnet18"), ("none", "split_1d_1ch_resnet18")])
def test_tasks_of_two_heads_are_known(adapter, name):
    state = original(BACKBONES[name]["shapes"], narrow=True)
    config = infer_config(state)
    assert (config.adapter_type, config.tasks, config.shared_head) == (adapter, ["contrastive", "predictive"], False)
    with pytest.raises(ValueError, match="contradicts the file"):
        infer_config(state, tasks=("predictive",))


def test_tasks_of_a_single_head_can_be_told(caplog):
    state = original(BACKBONES["none_2d_1ch_resnet18"]["shapes"], narrow=True)
    assert infer_config(state).tasks == ["contrastive"]
    assert "taking it as contrastive" in caplog.text
    caplog.clear()
    assert infer_config(state, tasks="predictive").tasks == ["predictive"]
    simple = infer_config(state, tasks=("predictive", "contrastive"))
    assert (simple.tasks, simple.shared_head, simple.embedding_size) == (["contrastive", "predictive"], True, 1000)
    assert not caplog.text
    with pytest.raises(ValueError, match="must be one of"):
        infer_config(state, tasks=("contrastive", "supervised"))


def test_a_framework_of_one_task_has_one_projector():
    state = original(FRAMEWORKS["none_simsiam"]["shapes"], narrow=True)
    state = {key: value for key, value in state.items() if not key.startswith("predict_projector.")}
    model = model_from_state_dict(state)
    assert (model.config.tasks, model.config.shared_head) == (["contrastive"], False)
    assert model.predictive_projector is None
    with pytest.raises(ValueError, match="contradicts the file"):
        model_from_state_dict(state, tasks=("contrastive", "predictive"))


def _drop(state):
    del state["layer3.1.conv2.bns.1.running_var"]


def _add(state):
    state["layer3.1.conv2.bns.2.weight"] = torch.ones(32)


def _reshape(state):
    state["layer4.0.conv1.parallel_conv.0.conv.weight"] = torch.ones(64, 32, 3, 3)


def _retype(state):
    state["end_bns.0.0.bias"] = state["end_bns.0.0.bias"].long()


def _remove_layer(state):
    for key in [key for key in state if key.startswith("layer4.1.")]:
        del state[key]


def _change_input(state):
    state["conv1.weight"] = torch.ones(8, 2, 7, 7)


def _lose_head(state):
    state["fc_layers.1.weight"], state["fc_layers.1.bias"] = torch.ones(10, 64), torch.ones(10)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (_drop, r"1 missing from the file: layer3\.1\.conv2\.bns\.1\.running_var\."),
        (_add, r"1 not part of the network: layer3\.1\.conv2\.bns\.2\.weight\."),
        (_reshape, r"layer4\.0\.conv1\.parallel_conv\.0\.conv\.weight \(64, 32, 3, 3\) instead of \(64, 32, 1, 1\)"),
        (_retype, r"end_bns\.0\.0\.bias torch\.int64 instead of torch\.float32"),
        (_remove_layer, r"\(2, 2, 2, 1\) basic blocks"),
        (_change_input, r"2 channels in 2 dimensions"),
        (_lose_head, r"found \{'fc_layers\.0\.weight': 500, 'fc_layers\.1\.weight': 10\}"),
    ],
)
def test_a_file_that_does_not_add_up_fails_and_writes_nothing(parallel_state, tmp_path, damage, complaint):
    damage(parallel_state)
    source = save(parallel_state, tmp_path)
    with pytest.raises(ValueError, match=complaint):
        convert_checkpoint(source, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [source]


def test_a_framework_with_other_augmentations_fails(tmp_path):
    state = original(FRAMEWORKS["split_simclr"]["shapes"], narrow=True)
    state["predict_projector.layer4.0.weight"] = torch.ones(9, 16)
    with pytest.raises(ValueError, match=r"layer4.0.weight` has the shape \(9, 16\)"):
        infer_config(state)


class Trap:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_in_the_file_is_run(tmp_path):
    source = save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path)
    with pytest.raises(ValueError, match=r"original\.pt could not be read as tensors only"):
        convert_checkpoint(source, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "is not a file that"),
        (b"RIFF not a checkpoint", "is not a file that"),
        (b"PK\x03\x04 nor a zip file", "could not be read"),
        (b"\x80\x02R nor a pickle", "could not be read"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, complaint):
    (tmp_path / "original.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"original\.pt {complaint}"):
        convert_checkpoint(tmp_path / "original.pt", tmp_path / "converted")


def test_a_truncated_file(parallel_state, tmp_path):
    source = save(parallel_state, tmp_path)
    source.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"original\.pt could not be read"):
        convert_checkpoint(source, tmp_path / "converted")


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], {"epoch": 3}, {"state_dict": {}, "model": {}}])
def test_a_file_without_a_state_dict(tmp_path, content):
    with pytest.raises(ValueError, match="expected a state dict"):
        convert_checkpoint(save(content, tmp_path), tmp_path / "converted")


def test_tensors_of_another_network(tmp_path):
    with pytest.raises(ValueError, match=r"No original MT-SLVR network: .* not among encoder\.weight"):
        convert_checkpoint(save({"encoder.weight": torch.ones(2, 2)}, tmp_path), tmp_path / "converted")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        convert_checkpoint(tmp_path / "absent.pt", tmp_path / "converted")


def test_the_destination_must_be_empty(parallel_state, tmp_path):
    source, destination = save(parallel_state, tmp_path), tmp_path / "taken"
    destination.mkdir()
    convert_checkpoint(source, destination)
    before = {path: path.stat().st_mtime_ns for path in destination.iterdir()}
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert_checkpoint(source, destination)
    assert {path: path.stat().st_mtime_ns for path in destination.iterdir()} == before


def test_a_conversion_that_is_interrupted_leaves_nothing(parallel_state, tmp_path, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(MTSLVRFeatureExtractor, "save_pretrained", disk_full)
    source = save(parallel_state, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(source, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [source]


def test_a_small_file_that_claims_a_large_network_is_refused_before_it_is_built(parallel_state, tmp_path, monkeypatch):
    built = []
    build = MTSLVRModel.__init__
    monkeypatch.setattr(
        MTSLVRModel,
        "__init__",
        lambda self, config: (built.append(torch.empty(0).device.type), build(self, config))[1],
    )
    wide = {"conv1.weight": torch.empty(0).expand(10**9, 3, 7, 0), **dict(list(parallel_state.items())[1:])}
    for width, message in ((4096, "`base_width` must be a whole number between 1 and 512"), (10**9, "got 1000000000")):
        wide["conv1.weight"] = torch.empty(0).expand(width, 3, 7, 0)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(save(wide, tmp_path), tmp_path / "converted")
    wide["conv1.weight"] = torch.zeros(512, 3, 7, 7)  # as wide as may be, and all other tensors narrow
    with pytest.raises(ValueError, match="of another shape: "):
        convert_checkpoint(save(wide, tmp_path), tmp_path / "converted")
    assert built == ["meta"]


def test_tensors_larger_than_their_file_are_refused(parallel_state, tmp_path):
    repeated = {name: torch.zeros(1).expand(4096, 1024) for name in parallel_state}  # one number, as often as it says
    with pytest.raises(ValueError, match=r"original.pt has [\d,]+ bytes and claims [\d,]+ bytes of tensors"):
        convert_checkpoint(save(repeated, tmp_path), tmp_path / "converted")
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(save({"conv1.weight": torch.zeros(10**6)}, tmp_path)) as stored,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for entry in stored.infolist():
            deflated.writestr(entry.filename, stored.read(entry))
    with pytest.raises(ValueError, match=r"packed.pt has [\d,]+ bytes and claims 4,"):
        convert_checkpoint(packed, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_pipe_is_refused_and_names_do_not_command_the_terminal(parallel_state, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "."):
        with pytest.raises(ValueError, match="is no regular file; expected an original checkpoint"):
            convert_checkpoint(tmp_path / name, tmp_path / "converted")
    with pytest.raises(ValueError, match="not part of the network: ") as raised:
        convert_checkpoint(
            save({**parallel_state, "\x1b]0;title\x07": torch.ones(1)}, tmp_path), tmp_path / "converted"
        )
    assert str(raised.value).isprintable() and "\\x1b]0;title" in str(raised.value)
