"""Losses and weights that are not finite: skipped, counted, ended, never saved."""

import json
from pathlib import Path

import pytest
import torch
from pretraining_runs import logged, make_model, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from mtslvr_hf.resumable import NonFiniteError, last_checkpoint
from mtslvr_hf.resumable.steps import StepGuard
from mtslvr_hf.trainer import MTSLVRTrainer


def poison(monkeypatch, steps):
    """Has the views of some steps hold a NaN, which reaches loss, gradients and BatchNorm's statistics."""
    make_views = MTSLVRTrainer.make_views

    def poisoned(self, values, step, split, scales=None):
        views = make_views(self, values, step, split, scales)
        if split == "train" and step + 1 in steps:
            views.views[0, 0, 7] = torch.nan
        return views

    monkeypatch.setattr(MTSLVRTrainer, "make_views", poisoned)


@pytest.mark.parametrize("optim", ["adam", "adamw_torch", "sgd"])
def test_a_step_that_is_not_finite_leaves_weights_and_statistics_alone(tmp_path, monkeypatch, optim):
    poison(monkeypatch, {2})
    model, states = make_model(), []
    trainer = make_trainer(tmp_path, model=model, max_steps=3, eval_strategy="no", optim=optim, weight_decay=0.1)
    stop = trainer.stop_if_asked

    def noting():
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        stop()

    trainer.stop_if_asked = noting
    trainer.train()
    first, second, third = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["mtslvr.heads.contrastive.weight"], third["mtslvr.heads.contrastive.weight"])
    assert all(value.isfinite().all() for value in third.values())
    assert logged(trainer, "loss").keys() == {1, 3} and logged(trainer, "skipped_steps") == {2: 1, 3: 1}


def test_the_mean_of_a_window_is_that_of_its_finite_steps(tmp_path, monkeypatch):
    options = {"max_steps": 2, "eval_strategy": "no", "logging_steps": 2}
    with monkeypatch.context() as patch:
        poison(patch, {2})
        trainer = make_trainer(tmp_path / "poisoned", **options)
        trainer.train()
    alone = make_trainer(tmp_path / "alone", **{**options, "max_steps": 1, "logging_steps": 1})
    alone.train()
    for name in ("loss", "contrastive_loss", "augmentation_map", "contrastive_spread"):
        assert logged(trainer, name)[2] == pytest.approx(logged(alone, name)[1]), name


def test_too_many_steps_in_a_row_end_the_run_and_keep_the_good_checkpoint(tmp_path, monkeypatch):
    poison(monkeypatch, {4, *range(6, 100)})
    trainer = make_trainer(tmp_path, max_steps=50, eval_strategy="no", save_steps=1, max_nonfinite_steps=3)
    with pytest.raises(NonFiniteError, match=r"in 3 steps in a row, the last one step 8.*Clips of the last") as error:
        trainer.train()
    assert str(error.value).count(".wav") == 4
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")  # no later one pushed it out
    state = json.loads(Path(tmp_path, "checkpoint-5/trainer_state.json").read_text())
    assert state["log_history"][-1]["skipped_steps"] == 1
    with pytest.raises(NonFiniteError):
        make_trainer(tmp_path, max_steps=50, eval_strategy="no", max_nonfinite_steps=3).train(True)


def test_a_learning_rate_that_breaks_the_weights_saves_nothing(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, learning_rate=1e39, eval_strategy="no")
    with pytest.raises(NonFiniteError, match="tensors of the model are not finite"):
        trainer.train()
    with pytest.raises(NonFiniteError, match="nothing is saved"):
        trainer.save_model()
    assert last_checkpoint(tmp_path) is None and not list(tmp_path.rglob("*.safetensors"))


def test_a_run_that_ends_in_steps_that_are_not_finite_fails(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model(temperature=1e-45), max_steps=4, eval_strategy="no")
    with pytest.raises(NonFiniteError, match="in 4 steps in a row"):
        trainer.train()
    assert last_checkpoint(tmp_path) is None


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, eval_steps=1, save_steps=100)
    values = iter([float("nan"), 2.0, float("nan")])
    evaluate = trainer.evaluation_loop

    def scripted(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_loss"] = next(values)
        return output

    trainer.evaluation_loop = scripted
    trainer.train()
    assert trainer.state.best_metric == 2.0 and trainer.state.best_global_step == 2
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_a_guard_corrects_logs_and_leaves_out_what_is_not_finite():
    guard = StepGuard(most=9)
    assert guard.add(torch.tensor(4.0)) == 4 and guard.add(torch.tensor(float("inf"))) == 0
    assert guard.corrected({"loss": 2.0, "grad_norm": float("nan")}) == {"loss": 4.0}
    guard.add(torch.tensor(float("nan")))
    assert guard.corrected({"loss": 0.0, "learning_rate": 1.0}) == {"learning_rate": 1.0}


def test_a_step_reads_its_gradients_once(tmp_path, monkeypatch):
    """Trainer's own norm would also multiply all gradients by 1."""
    calls = []
    norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *args: calls.append(1) or norm(*args))
    trainer = make_trainer(tmp_path, max_steps=2, eval_strategy="no", save_strategy="no")
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *args, **options: pytest.fail("clipped"))
    trainer.train()
    assert len(calls) == 2 and all(value > 0 for value in logged(trainer, "grad_norm").values())


class Launches(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.count += not operator.is_view and operator._schema.name != "aten::detach"
        return operator(*arguments, **(options or {}))


def test_a_guard_asks_the_device_once_for_all_statistics():
    model, guard = make_model(base_width=4), StepGuard(most=9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    with Launches() as launches:
        guard.begin(model)
        guard.add(torch.tensor(1.0))
        guard.check(model, optimizer, 1, (), stop=False, scaled=False, norm=torch.tensor(1.0))
    assert launches.count < 50 < len(list(model.buffers()))
