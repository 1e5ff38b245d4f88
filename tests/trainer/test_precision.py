"""bfloat16 on a CPU: only where a measurement finds it faster; a resumed run keeps what it began with."""

import logging
from pathlib import Path

import pytest
import torch
from markdown_rows import unpadded
from pretraining_runs import make_model, make_trainer

import mtslvr_hf.trainer.precision as precision
import mtslvr_hf.trainer.trainer as trainer_module


def dtypes_of_training(trainer):
    """Dtypes of the heads' outputs in training, noted while it runs."""
    found = set()
    head = trainer.model.mtslvr.heads["contrastive"]
    head.register_forward_hook(lambda module, inputs, output: found.add(output.dtype) if module.training else None)
    return found


def refuse(*arguments):
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    ("faster", "dtype", "name"), [(True, torch.bfloat16, "bf16"), (False, torch.float32, "float32")]
)
def test_a_run_trains_in_the_faster_precision_and_goes_on_in_it(tmp_path, monkeypatch, faster, dtype, name):
    options = {"bf16": True, "eval_strategy": "no", "save_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "bfloat16_is_faster", lambda *arguments: faster)
        trainer = make_trainer(tmp_path, max_steps=1, **options)
        found = dtypes_of_training(trainer)
        trainer.train()
    assert found == {dtype}
    monkeypatch.setattr(trainer_module, "bfloat16_is_faster", refuse)
    resumed = make_trainer(tmp_path, max_steps=2, **options)
    found = dtypes_of_training(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert found == {dtype} and resumed.state.global_step == 2
    resumed.create_model_card()
    assert f"| Precision | {name} |" in unpadded(Path(tmp_path, "README.md").read_text())
    with resumed.accelerator.autocast():
        assert torch.is_autocast_enabled("cpu") == faster


def test_float32_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "bfloat16_is_faster", refuse)
    trainer = make_trainer(tmp_path, max_steps=1, eval_strategy="no")
    found = dtypes_of_training(trainer)
    trainer.train()
    assert found == {torch.float32}


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.5), "bfloat16"), ((1.0, 0.99), "float32")])
def test_one_line_says_what_was_measured(tmp_path, monkeypatch, caplog, seconds, chosen):
    monkeypatch.setattr(precision, "_seconds_a_batch", lambda model, batch: seconds)
    trainer = make_trainer(tmp_path)
    with caplog.at_level(logging.INFO, "mtslvr_hf"):
        faster = precision.bfloat16_is_faster(trainer.model, trainer.accelerator, 4)
    assert faster == (chosen == "bfloat16")
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"take {seconds[1]:.3g} s in bfloat16 and 1 s in float32: training in {chosen}." in line


def test_a_measurement_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "ROUNDS", 1)
    trainer = make_trainer(tmp_path, model=make_model(predictive_target="both", base_width=4))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()
    precision.bfloat16_is_faster(trainer.model, trainer.accelerator, 2)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
