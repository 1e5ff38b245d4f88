"""Prediction of augmentation parameters: projector, losses, every variant, saving and loading."""

import pytest
import torch
from small_models import assert_close
from transformers import AutoModel, AutoModelForPreTraining

from mtslvr_hf import MTSLVRConfig, MTSLVRForAudioClassification, MTSLVRForPreTraining
from mtslvr_hf.augmentations import TwoViewAugmentation
from mtslvr_hf.configuration_mtslvr import AUGMENTATION_PARAMETERS

WINDOW = 4000
VARIANTS = {
    "none": {"adapter_type": "none"},
    "bn, SimSiam": {"adapter_type": "bn", "contrastive_method": "simsiam"},
    "series": {"adapter_type": "series"},
    "parallel": {},
    "shared head": {"adapter_type": "none", "shared_head": True},
    "shared head, parallel": {"shared_head": True},
    "predictive alone": {"adapter_type": "none", "tasks": ["predictive"]},
    "parameters alone": {"adapter_type": "none", "tasks": ["predictive"], "predictive_target": "parameters"},
    "parameters, SimCLR": {"predictive_target": "parameters"},
    "mel": {"frontend": "mel"},
    "waveform": {"frontend": "waveform"},
}


def make_model(**changes):
    torch.manual_seed(0)
    settings = {"base_width": 4, "window_seconds": WINDOW / 16000, "embedding_size": 32, "predictive_target": "both"}
    return MTSLVRForPreTraining(MTSLVRConfig(**settings | changes))


def make_batch(model, clips=8, step=0):
    """Arguments of the model for noise with its augmentations."""
    waveforms = torch.randn(clips, WINDOW, generator=torch.Generator().manual_seed(0))
    views, labels, draw = TwoViewAugmentation(model.config.augmentations)(waveforms, step)
    batch = {"input_values": views, "augmentation_labels": labels}
    if model.config.parameter_targets:
        batch["parameter_differences"] = draw.differences(model.config.parameter_targets)
    return batch


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_the_differences_of_a_batch(name):
    model = make_model(**VARIANTS[name]).train()
    batch, optimizer = make_batch(model), torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        out = model(**batch)
        out.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())  # as DistributedDataParallel needs
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.parameter_loss.item())
    assert losses[-1] < 0.7 * losses[0]
    labels_too = model.config.predictive_target == "both"
    assert (out.augmentation_logits is not None) == (out.label_loss is not None) == labels_too
    assert out.predicted_differences.shape == (8, len(AUGMENTATION_PARAMETERS))


def test_losses_are_the_sums_of_their_terms():
    model = make_model(predictive_weight=0.5).eval()
    batch = make_batch(model)
    out = model(**batch)
    torch.testing.assert_close(out.predictive_loss, out.label_loss + out.parameter_loss)
    torch.testing.assert_close(out.loss, out.contrastive_loss + 0.5 * out.predictive_loss)
    by_hand = []
    for target, name in enumerate(AUGMENTATION_PARAMETERS):
        got = batch["augmentation_labels"][:, model.config.augmentations.index(name.split(".")[0])] == 1
        if got.any():
            errors = out.predicted_differences[got, target] - batch["parameter_differences"][got, target]
            by_hand.append(errors.square().mean())
    torch.testing.assert_close(out.parameter_loss, torch.stack(by_hand).mean())
    embeddings = torch.cat([out.predictive_embeds[:, 0], out.predictive_embeds[:, 1]], dim=1)
    assert_close(model.parameter_projector(embeddings), out.predicted_differences)


def test_differences_of_augmentations_that_a_clip_did_not_get_do_not_matter():
    model = make_model().eval()
    batch = make_batch(model)
    expected, mask = model(**batch).parameter_loss, model.parameter_mask(batch["augmentation_labels"])
    assert 0 < mask.sum() < mask.numel()
    batch["parameter_differences"] = batch["parameter_differences"] + 100 * (1 - mask)
    assert torch.equal(model(**batch).parameter_loss, expected)


def test_chosen_parameters_have_their_order():
    names = ["time_stretch.rate", "pitch_shift.semitones"]
    model = make_model(augmentation_parameters=names).eval()
    labels = torch.zeros(2, 7)
    labels[0, 0] = labels[1, 4] = 1  # pitch_shift, time_stretch
    assert torch.equal(model.parameter_mask(labels), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert model(**make_batch(model)).predicted_differences.shape == (8, 2)


def test_labels_alone_have_the_network_and_the_loss_that_they_had():
    model = make_model(predictive_target="labels").eval()
    assert model.parameter_projector is None
    assert not any(name.startswith("parameter") for name in model.state_dict())
    out = model(**make_batch(model))
    assert out.parameter_loss is None and out.predicted_differences is None
    assert torch.equal(out.predictive_loss, out.label_loss)
    batch = make_batch(make_model())
    both = make_model()
    both.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(both.eval()(**batch).label_loss, out.label_loss)


def test_parameters_alone_have_no_projector_of_labels():
    model = make_model(predictive_target="parameters").eval()
    out = model(**make_batch(model))
    assert model.predictive_projector is None and out.augmentation_logits is None and out.label_loss is None
    assert torch.equal(out.predictive_loss, out.parameter_loss)


def test_contrastive_alone_predicts_nothing():
    model = make_model(tasks=["contrastive"], adapter_type="none").eval()
    assert model.parameter_projector is None and model(**make_batch(model)).loss.isfinite()


def test_losses_need_their_targets():
    model = make_model().eval()
    batch = make_batch(model)
    views, labels, differences = batch.values()
    single = model(views[:, 0])
    assert single.loss is None and single.predicted_differences is None and single.augmentation_logits.shape == (8, 7)
    without = model(views, augmentation_labels=labels)
    assert without.label_loss is not None and without.predictive_loss is None and without.loss is None
    assert without.predicted_differences.shape == (8, 12)
    with pytest.raises(ValueError, match="came without `augmentation_labels`"):
        model(views, parameter_differences=differences)
    with pytest.raises(ValueError, match=r"shape \(8, 3\); expected 8 clips x 12 parameters \(pitch_shift.semitones"):
        model(views, augmentation_labels=labels, parameter_differences=differences[:, :3])
    with pytest.raises(ValueError, match="came for a model that predicts none"):
        make_model(predictive_target="labels")(**batch)
    with pytest.raises(ValueError, match="expected 8 clips x 7 augmentations"):
        make_model(predictive_target="parameters")(**{**batch, "augmentation_labels": labels[:, :3]})
    with pytest.raises(ValueError, match="predicts no parameters"):
        make_model(predictive_target="labels").parameter_mask(labels)


def test_autocast_leaves_the_losses_in_float32():
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**make_batch(model))
    assert out.parameter_loss.dtype == torch.float32 and out.predicted_differences.dtype == torch.bfloat16
    out.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("target", ["parameters", "both"])
def test_saved_models_load_as_every_class(tmp_path, target):
    model = make_model(predictive_target=target, augmentation_parameters=["fade.in_fraction", "time_stretch.rate"])
    model.eval().save_pretrained(tmp_path)
    batch = make_batch(model)
    whole, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert whole.config.parameter_targets == ["fade.in_fraction", "time_stretch.rate"]
    expected = model(**batch)
    assert torch.equal(whole.eval()(**batch).loss, expected.loss)
    for kind in (AutoModel, MTSLVRForAudioClassification):
        _, info = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"] and {key.split(".")[0] for key in info["missing_keys"]} <= {"classifier"}
    whole.merge_adapters().save_pretrained(tmp_path / "merged")
    merged = AutoModelForPreTraining.from_pretrained(tmp_path / "merged").eval()
    assert_close(merged(**batch).predicted_differences, expected.predicted_differences)


def test_a_model_of_labels_goes_on_with_parameters(tmp_path):
    model = make_model(predictive_target="labels")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    assert "parameter_targets" not in config
    more, info = MTSLVRForPreTraining.from_pretrained(tmp_path, predictive_target="both", output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"parameter_projector"}
    assert more(**make_batch(more)).loss.isfinite()
    for name, value in model.state_dict().items():
        assert torch.equal(more.state_dict()[name], value)
