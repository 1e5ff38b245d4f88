"""torch.compile of the model's forward.

Without an attention mask the whole forward is one graph. With one, the number of windows depends on the mask's values,
and so do the checks of padding: the graph breaks there, and the network behind is compiled all the same.
"""

import pytest
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining, MTSLVRModel

WINDOW = 16_000


def tiny(kind=MTSLVRModel, **changes):
    torch.manual_seed(0)
    return kind(MTSLVRConfig(**{"base_width": 4, "window_seconds": 1.0, "embedding_size": 8, **changes})).eval()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("changes", "merged"),
    [
        ({}, False),
        ({"frontend": "waveform"}, True),
        ({"frontend": "mel", "pooling": "bands", "use_heads": False}, True),
        ({"frontend": "mel", "pooling": "mean_max"}, False),
    ],
)
def test_forward_is_one_graph(changes, merged):
    """Traced only (`backend="eager"`), which is what can fail."""
    model = tiny(**changes)
    if merged:
        model.merge_adapters()
    waveforms = torch.randn(2, WINDOW)
    with torch.no_grad():
        expected = model(waveforms)
        compiled = torch.compile(model, backend="eager", fullgraph=True)(waveforms)
    assert relative_error(compiled.pooler_output, expected.pooler_output) < 1e-5
    assert relative_error(compiled.last_hidden_state, expected.last_hidden_state) < 1e-5


def test_attention_mask_breaks_the_graph_and_nothing_else():
    model = tiny(frontend="mel")
    waveforms, mask = torch.randn(2, 3 * WINDOW), torch.ones(2, 3 * WINDOW, dtype=torch.long)
    mask[1, WINDOW + 5 :] = 0
    with torch.no_grad():
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(model, backend="eager", fullgraph=True)(waveforms, mask)
        torch.compiler.reset()
        expected = model(waveforms, mask).pooler_output
        assert relative_error(torch.compile(model, backend="eager")(waveforms, mask).pooler_output, expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"frontend": "waveform", "predictive_target": "both"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"contrastive_method": "simsiam", "adapter_type": "series"}, marks=pytest.mark.slow),
        pytest.param({"frontend": "mel", "adapter_type": "none"}, marks=pytest.mark.slow),
    ],
)
def test_training_step_is_one_graph(changes):
    """Losses of two views, gradients and the statistics of batch normalization, through AOTAutograd."""
    models = [tiny(MTSLVRForPreTraining, embedding_size=64, **changes).train() for _ in range(2)]
    inputs = {"input_values": torch.randn(3, 2, WINDOW), "augmentation_labels": (torch.rand(3, 7) < 0.5).float()}
    if models[0].config.parameter_targets:
        inputs["parameter_differences"] = torch.randn(3, len(models[0].config.parameter_targets))
    losses = [models[0](**inputs).loss, torch.compile(models[1], backend="aot_eager", fullgraph=True)(**inputs).loss]
    assert relative_error(losses[1], losses[0]) < 1e-5
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(models[1].named_parameters(), models[0].parameters()):
        error, size = (ours.grad - theirs.grad).norm(), theirs.grad.norm()
        assert error <= 1e-3 * size, name
    assert all(weight.grad.any() for weight in models[0].mtslvr.heads.parameters())
    for (name, ours), theirs in zip(models[1].named_buffers(), models[0].buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Torchinductor does not support code generation for complex"
)  # the STFT stays eager
@pytest.mark.parametrize("frontend", ("mel_stft", "waveform"))
def test_inductor(frontend):
    """To machine code, for the network that `encode` runs, with another batch size than that it was compiled for."""
    network = tiny(frontend=frontend).inference_network()
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        for clips in (2, 5):
            waveforms = torch.randn(clips, WINDOW)
            assert relative_error(compiled(waveforms).pooler_output, network(waveforms).pooler_output) < 1e-4
