"""The baseline of the benchmarks computes what the model computes."""

import sys
from pathlib import Path

import pytest
import torch
from audio_files import noise

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining, MTSLVRModel

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from as_published import relative_error, task_by_task, unfolded
from training_step import Step, as_published


@pytest.mark.parametrize("adapter_type", ["bn", "parallel"])
def test_the_computation_as_published(adapter_type):
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=4, window_seconds=1.0, adapter_type=adapter_type)).eval()
    waveforms = torch.from_numpy(noise(1.0, channels=2).T.copy())
    with torch.no_grad():
        ours = task_by_task(model, waveforms)
        with unfolded(model):
            published = task_by_task(model, waveforms)
    for task, embeds in ours.items():
        assert relative_error(embeds, published[task]) < 1e-4


def test_a_training_step_as_published():
    torch.manual_seed(0)
    config = MTSLVRConfig(base_width=4, window_seconds=1.0)
    step = Step(MTSLVRForPreTraining(config))
    inputs = torch.randn(3, 2, 16_000), (torch.rand(3, 7) < 0.5).float()
    losses = [step.model(inputs[0], augmentation_labels=inputs[1]).loss]
    with as_published(step.model):
        losses.append(step.model(inputs[0], augmentation_labels=inputs[1]).loss)
        step(*inputs)
    assert relative_error(*losses) < 1e-3
    assert "forward" not in vars(step.model.mtslvr) and "training_kernels" not in vars(step.model.mtslvr.encoder)
