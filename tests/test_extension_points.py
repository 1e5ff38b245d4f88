"""Extensions from outside the package, by its public classes alone, as CONTRIBUTING.md describes them."""

import datasets
import pytest
import torch
from audio_files import encode, noise
from small_models import assert_close
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining, MTSLVRModel
from mtslvr_hf.augmentations import Augmentation, TwoViewAugmentation
from mtslvr_hf.configuration_mtslvr import ADAPTER_TYPES
from mtslvr_hf.data import AudioStream, EncodedAudio, dequantize_clips
from mtslvr_hf.evaluation import FewShotProtocol, evaluate, to_markdown
from mtslvr_hf.evaluation.registry import BENCHMARKS, Benchmark
from mtslvr_hf.modeling_mtslvr import MTSLVRAdapter, register_adapter_type


class Gain(Augmentation):
    """Gain between -6 and 6 dB."""

    name = "gain"
    parameter_names = ("gain_db",)

    def sample_parameters(self, n, generator):
        return {"gain_db": 12 * torch.rand(n, generator=generator) - 6}

    def transform(self, waveforms, parameters):
        return waveforms * 10 ** (parameters["gain_db"].to(waveforms.device)[:, None] / 20)


def test_an_augmentation():
    pipeline = TwoViewAugmentation([Gain(), "fade"], max_augmentations=1)
    waveforms = torch.from_numpy(noise(1.0, channels=8).T.copy())  # (B, S)
    views, labels, draw = pipeline(waveforms, step=0)
    gained = labels[:, 0] == 1
    assert gained.any() and not gained.all()
    factors = 10 ** (draw.values["gain"]["gain_db"][gained] / 20)  # (clips, 2)
    assert torch.allclose(views[gained], waveforms[gained, None] * factors[..., None])
    config = MTSLVRConfig(base_width=4, frontend="mel", window_seconds=1.0, augmentations=list(pipeline.names))
    out = MTSLVRForPreTraining(config)(input_values=views, augmentation_labels=labels)
    assert out.augmentation_logits.shape[-1] == 2 and out.predictive_loss.isfinite()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_source_of_audio(streamed):
    def recordings():
        for seed in range(4):
            yield {"sound": {"bytes": encode(noise(1.0, seed=seed)), "path": f"{seed}.flac"}}

    features = datasets.Features({"sound": EncodedAudio()})
    kind = datasets.IterableDataset if streamed else datasets.Dataset
    source = kind.from_generator(recordings, features=features)
    batches = list(AudioStream(source, clip_seconds=0.5, batch_size=2, endless=False))
    clips = torch.cat([dequantize_clips(batch["input_values"], batch["scales"]) for batch in batches])
    assert clips.shape == (4, 8000) and clips.std() > 0.05


class ScaleAdapter(MTSLVRAdapter):
    """Batch normalization of the convolution's output, each channel scaled by a task's own factor."""

    def __init__(self, dims, in_channels, out_channels, stride):
        super().__init__(dims, in_channels, out_channels, stride)
        self.factor = nn.Parameter(torch.ones(out_channels))

    def kernel(self, weight):
        return weight * self.factor.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))

    def add_nothing(self, other):
        self.factor.fill_(1.0)


@pytest.fixture
def scale_adapter():
    register_adapter_type("scale", ScaleAdapter)
    yield
    ADAPTER_TYPES.remove("scale")


@pytest.mark.usefixtures("scale_adapter")
def test_an_adapter_type(tmp_path):
    torch.manual_seed(0)
    config = MTSLVRConfig(base_width=4, frontend="mel", window_seconds=1.0, adapter_type="scale")
    model = MTSLVRModel(config).eval()
    for module in model.modules():
        if isinstance(module, ScaleAdapter):
            nn.init.uniform_(module.factor, 0.5, 2.0)
    waveforms = torch.from_numpy(noise(1.0, channels=2).T.copy())
    expected = model(waveforms).pooler_output
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(waveforms).pooler_output, expected)
    merged = MTSLVRModel.from_pretrained(tmp_path).eval()
    merged.merge_adapters()
    assert_close(merged(waveforms).pooler_output, expected)
    loaded.add_adapter("speech", "scale")
    loaded.train_adapter("speech")
    assert any(name.endswith("factor") for name, weight in loaded.named_parameters() if weight.requires_grad)
    with pytest.raises(ValueError, match="There is an adapter type 'scale' already"):
        register_adapter_type("scale", ScaleAdapter)


@pytest.mark.usefixtures("scale_adapter")
def test_an_added_adapter_type_adds_nothing_at_first():
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=4, frontend="mel", window_seconds=1.0)).eval()
    model.add_adapter("scaled", "scale")
    model.add_adapter("normalized", "bn")
    waveforms = torch.from_numpy(noise(1.0, channels=2).T.copy())
    scaled, normalized = (model(waveforms, tasks=[task]).pooler_output for task in ("scaled", "normalized"))
    assert torch.allclose(scaled, normalized, atol=1e-6)


class Alignment(MTSLVRForPreTraining):
    """Pre-training that pulls the two views' projections together (the alignment of Wang and Isola, ICML 2020)."""

    def contrastive_objective(self, z1, z2):
        return (F.normalize(z1) - F.normalize(z2)).square().sum(1).mean()


def test_an_objective():
    torch.manual_seed(0)
    model = Alignment(MTSLVRConfig(base_width=4, frontend="mel", window_seconds=1.0, tasks=["contrastive"]))
    views = torch.from_numpy(noise(1.0, channels=8).T.copy()).view(4, 2, -1)
    first = model(input_values=views).loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_values=views).loss.backward()
        optimizer.step()
    assert model(input_values=views).loss < first
    assert model(input_values=torch.stack([views[:, 0]] * 2, dim=1)).loss < 1e-6


def test_an_evaluation_data_set(tmp_path, monkeypatch):
    for label, seconds in (("short", 0.2), ("long", 1.0)):
        for number in range(6):
            file = tmp_path / "beeps" / label / f"{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(noise(seconds, seed=number), format="WAV"))
    monkeypatch.setitem(BENCHMARKS, "beeps", Benchmark("beeps", clips=12, classes=2))
    protocol = FewShotProtocol(ways=2, queries=1, episodes=20)
    report = evaluate([], ["beeps"], protocol, root=tmp_path)
    assert "beeps" in to_markdown(report) and "12" in to_markdown(report)
