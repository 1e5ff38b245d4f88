"""MTSLVRTrainer with `predictive_target` parameters: what it passes to the model, logs, resumes and refuses."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from markdown_rows import unpadded
from pretraining_runs import logged, make_args, make_clips, make_model, make_rows, make_stream, make_trainer

from mtslvr_hf.augmentations import Augmentation, PitchShift, TwoViewAugmentation
from mtslvr_hf.configuration_mtslvr import AUGMENTATION_PARAMETERS
from mtslvr_hf.trainer import MTSLVRTrainer
from mtslvr_hf.trainer.metrics import StepAverages, r2_name


def r2_by_hand(predicted, actual):
    return 1 - ((predicted - actual) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()


def test_r2_is_that_of_all_clips_with_the_augmentation():
    generator = torch.Generator().manual_seed(0)
    averages, steps = StepAverages(["fade.in_fraction", "time_shift.shift_fraction_sine", "gain.gain_db"]), []
    for _ in range(5):
        actual = torch.randn(6, 3, generator=generator)
        predicted = actual + torch.tensor([0.1, 1.0, 0.0]) * torch.randn(6, 3, generator=generator)
        mask = (torch.rand(6, 3, generator=generator) > 0.4).float()
        mask[:, 2] = 0  # no clip
        averages.add({"loss": torch.tensor(1.0)}, torch.ones(6, 7))
        averages.add_differences(predicted, actual, mask)
        steps.append((predicted, actual, mask == 1))
    results = averages.compute(Accelerator(cpu=True))
    predicted, actual, mask = (torch.cat(parts) for parts in zip(*steps))
    expected = [r2_by_hand(predicted[mask[:, n], n], actual[mask[:, n], n]).item() for n in (0, 1)]
    assert expected[0] > 0.9 > expected[1]
    assert results["r2_fade_in_fraction"] == pytest.approx(expected[0], abs=1e-5)
    assert results["r2_time_shift_shift_fraction_sine"] == pytest.approx(expected[1], abs=1e-5)
    assert results["augmentation_r2"] == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert "r2_gain_gain_db" not in results


def test_r2_of_predictions_that_are_nan_is_nan():
    averages = StepAverages(["fade.in_fraction"])
    averages.add({"loss": torch.tensor(math.nan)}, torch.ones(3, 7))
    averages.add_differences(torch.full((3, 1), math.nan), torch.randn(3, 1), torch.ones(3, 1))
    assert math.isnan(averages.compute(Accelerator(cpu=True))["augmentation_r2"])


OPTIONS = {"max_steps": 4, "eval_steps": 2, "logging_steps": 2, "save_total_limit": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("both"), model=make_model(predictive_target="both"), **OPTIONS)
    trainer.train()
    return trainer


def test_the_losses_are_logged_apart_and_r2_for_each_parameter(finished):
    for prefix in ("", "eval_"):
        entries = [entry for entry in finished.state.log_history if f"{prefix}parameter_loss" in entry]
        assert [entry["step"] for entry in entries] == [2, 4]
        for entry in entries:
            entry = {name.removeprefix(prefix): value for name, value in entry.items()}
            parts = entry["label_loss"] + entry["parameter_loss"]
            assert entry["predictive_loss"] == pytest.approx(parts, rel=1e-5)
            r2 = {name: value for name, value in entry.items() if name.startswith("r2_")}
            assert len(r2) >= 8 and r2.keys() <= {r2_name(name) for name in AUGMENTATION_PARAMETERS}
            assert entry["augmentation_r2"] == pytest.approx(sum(r2.values()) / len(r2), rel=1e-4)
            assert "augmentation_map" in entry
    card = unpadded(Path(finished.args.output_dir, "checkpoint-4/README.md").read_text())
    for name in ("augmentation_r2", "eval_augmentation_r2", "eval_parameter_loss", "label_loss"):
        assert f"| `{name}` |" in card
    assert "r2_pitch" not in card


def test_evaluation_is_that_of_the_model_on_the_differences_of_the_draw(finished):
    metrics, model, parts = finished.evaluate(), finished.model.eval(), []
    for step, clips in enumerate(make_clips().split(4)):
        views = finished.make_views(clips, step, "eval")
        differences = views.parameters.differences(AUGMENTATION_PARAMETERS)
        with torch.no_grad():
            out = model(views.views, augmentation_labels=views.labels, parameter_differences=differences)
        parts.append((out.predicted_differences, differences, views.labels, out.parameter_loss))
    predicted, actual, labels = (torch.cat(part) for part in list(zip(*parts))[:3])
    assert metrics["eval_parameter_loss"] == pytest.approx(sum(part[3].item() for part in parts) / 2, rel=1e-5)
    for name in ("pitch_shift.semitones", "time_shift.shift_fraction_cosine"):
        got = labels[:, model.config.augmentations.index(name.split(".")[0])] == 1
        column = AUGMENTATION_PARAMETERS.index(name)
        expected = r2_by_hand(predicted[got, column], actual[got, column]).item()
        assert metrics[f"eval_{r2_name(name)}"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one(finished, tmp_path):
    shutil.copytree(f"{finished.args.output_dir}/checkpoint-2", tmp_path / "checkpoint-2")
    half = make_trainer(tmp_path, model=make_model(predictive_target="both"), **OPTIONS)
    torch.manual_seed(12345)
    half.train(resume_from_checkpoint=True)
    for name in ("parameter_loss", "label_loss", "augmentation_r2", "eval_loss", "eval_augmentation_r2"):
        assert logged(half, name)[4] == pytest.approx(logged(finished, name)[4], rel=1e-5), name


def test_labels_alone_log_what_they_logged(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, eval_steps=1)
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert not any("r2" in name or "label_loss" in name or "parameter" in name for name in names)


@pytest.mark.parametrize(
    "changes", [{"predictive_target": "parameters", "tasks": ["predictive"]}, {"predictive_target": "both"}]
)
def test_accumulated_batches_in_bfloat16(tmp_path, monkeypatch, changes):
    monkeypatch.setattr("mtslvr_hf.trainer.trainer.bfloat16_is_faster", lambda *arguments: True)
    model = make_model(contrastive_method="simsiam", adapter_type="none", **changes)
    trainer = make_trainer(tmp_path, model=model, max_steps=2, gradient_accumulation_steps=2, bf16=True)
    trainer.train()
    assert all(math.isfinite(value) for value in logged(trainer, "predictive_loss").values())
    assert logged(trainer, "augmentation_r2").keys() == {1, 2}
    assert (
        bool(logged(trainer, "label_loss"))
        == bool(logged(trainer, "augmentation_map"))
        == (model.config.predictive_target == "both")
    )


class Gain(Augmentation):
    """Gain between -6 and 6 dB."""

    name = "gain"
    parameter_names = ("gain_db",)
    parameter_ranges = {"gain_db": (-6.0, 6.0)}

    def sample_parameters(self, n, generator):
        return {"gain_db": 12 * torch.rand(n, generator=generator) - 6}

    def transform(self, waveforms, parameters):
        return waveforms * 10 ** (parameters["gain_db"].to(waveforms.device)[:, None] / 20)


def test_an_augmentation_of_ones_own_is_predicted(tmp_path):
    model = make_model(
        predictive_target="parameters", augmentations=["gain", "fade"], augmentation_parameters=["gain.gain_db"]
    )
    args = make_args(tmp_path, max_steps=2, eval_strategy="no")
    augmentation = TwoViewAugmentation([Gain(), "fade"])
    trainer = MTSLVRTrainer(model, args, make_stream(make_rows()), augmentation=augmentation)
    trainer.train()
    assert logged(trainer, "r2_gain_gain_db").keys() <= {1, 2} and logged(trainer, "augmentation_r2")


def test_augmentations_that_do_not_fit_are_refused_at_once(tmp_path):
    def trainer(entries, **changes):
        augmentation, args = TwoViewAugmentation(entries), make_args(tmp_path, eval_strategy="no")
        return MTSLVRTrainer(make_model(**changes), args, make_stream(), augmentation=augmentation)

    pitch = {"predictive_target": "both", "augmentations": ["pitch_shift"]}
    with pytest.raises(ValueError, match=r"'pitch_shift.semitones' .* one value has no differences"):
        trainer([PitchShift(2.0, 2.0)], **pitch)
    with pytest.raises(ValueError, match=r"'pitch_shift.cents' to predict; there are pitch_shift.semitones"):
        trainer(["pitch_shift"], **pitch, augmentation_parameters=["pitch_shift.cents"])
    with pytest.raises(ValueError, match="has fade, pitch_shift; the model predicts pitch_shift, fade"):
        trainer(["fade", "pitch_shift"], augmentations=["pitch_shift", "fade"])
