"""Checkpoints: which one is taken, what is said of damaged ones, and what a new run does with those of an old one."""

import json
import shutil

import pytest
from pretraining_runs import make_trainer

from mtslvr_hf.resumable import fault_of, last_checkpoint
from mtslvr_hf.resumable.checkpoints import checkpoints_of, load_run_state, save_run_state, set_aside


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, save_total_limit=None).train()
    return folder


def flip(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


def change(path, function):
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def absurd_position(content):
    content["state"]["stream"]["position"]["workers"]["0"]["index"] = 10**9


DAMAGE = {
    "bits of the weights": (lambda c: flip(c / "model.safetensors"), "model.safetensors is damaged"),
    "bits of the optimizer": (lambda c: flip(c / "optimizer.pt"), "optimizer.pt is damaged"),
    "cut": (lambda c: (c / "optimizer.pt").write_bytes(b""), "optimizer.pt is damaged"),
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "no scheduler": (lambda c: (c / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no random states": (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "binary": (lambda c: (c / "trainer_state.json").write_bytes(b"\xff\x00"), "trainer_state.json is damaged"),
    "a list": (lambda c: (c / "trainer_state.json").write_text("[]"), "trainer_state.json is damaged"),
    "another step": (
        lambda c: change(c / "trainer_state.json", lambda state: state.update(global_step=3)),
        "trainer_state.json is damaged",
    ),
    "a digit of the logs": (
        lambda c: change(c / "trainer_state.json", lambda state: state["log_history"][0].update(loss=1.0)),
        "trainer_state.json is damaged",
    ),
    "cut state": (lambda c: (c / "run_state_0.json").write_text('{"processes": 1'), "run_state_0.json is damaged"),
    "no position": (
        lambda c: change(c / "run_state_0.json", lambda state: state["state"].pop("stream")),
        "run_state_0.json is damaged",
    ),
    "absurd position": (lambda c: change(c / "run_state_0.json", absurd_position), "run_state_0.json is damaged"),
    "a folder": (
        lambda c: ((c / "optimizer.pt").unlink(), (c / "optimizer.pt").mkdir()),
        "optimizer.pt cannot be read (Is a directory)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run, tmp_path, damage, caplog):
    folder = shutil.copytree(run, tmp_path / "run")
    assert last_checkpoint(folder) == str(folder / "checkpoint-4") and not caplog.text
    break_it, fault = DAMAGE[damage]
    break_it(folder / "checkpoint-4")
    assert fault_of(folder / "checkpoint-4").startswith(fault)
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    assert f"checkpoint-4 is not used: {fault}" in caplog.text


def test_checkpoints_that_were_cut_off_are_passed_over(run, tmp_path):
    assert (
        last_checkpoint(tmp_path / "nowhere") is None and fault_of(tmp_path / "nowhere") == "there is no such folder"
    )
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoint-4/trainer_state.json").unlink()
    (folder / "checkpoint-9").write_text("a file")
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    save_run_state(folder / "checkpoint-2", 0, 2, {})  # the second process's state is missing
    assert fault_of(folder / "checkpoint-2") == "run_state_1.json is missing" and last_checkpoint(folder) is None


def test_a_checkpoint_of_the_model_alone_is_refused(tmp_path):
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="it holds only a model"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no complete checkpoint in"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="is no complete checkpoint: the state of process 0 is missing"):
        load_run_state(tmp_path, 0, 1)
    save_run_state(tmp_path, 0, 4, {})
    with pytest.raises(ValueError, match="written by 4 processes and cannot be resumed by 2"):
        load_run_state(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="the state of process 1 is missing"):
        load_run_state(tmp_path, 1, 4)


def test_a_new_run_never_mixes_its_checkpoints_with_those_of_an_old_one(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (shutil.copytree(run / "checkpoint-4", folder / "checkpoint-6") / "trainer_state.json").unlink()
    make_trainer(folder, max_steps=2).train()
    assert [path.name for path in checkpoints_of(folder)] == ["checkpoint-2"]
    aside = folder / "_earlier_run_1"
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoint-2", "checkpoint-4"]  # not the unfinished one
    kept = (aside / "checkpoint-4/model.safetensors").read_bytes()
    assert kept == (run / "checkpoint-4/model.safetensors").read_bytes()
    assert set_aside(folder) == folder / "_earlier_run_2"


def test_an_overwritten_checkpoint_counts_as_unfinished_until_it_is_written(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoint-4/optimizer.pt").unlink()
    trainer = make_trainer(folder, save_total_limit=None)
    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)
    assert (folder / "checkpoint-4/model.safetensors").exists()
    assert fault_of(folder / "checkpoint-4") == "it was not finished"


def kill(*args):
    raise KeyboardInterrupt


def test_a_damaged_best_checkpoint_is_not_loaded(run, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "run")
    trainer = make_trainer(folder)
    trainer.state.best_model_checkpoint = str(folder / "checkpoint-2")
    before = trainer.model.state_dict()["mtslvr.heads.contrastive.weight"].clone()
    flip(folder / "checkpoint-2/model.safetensors")
    trainer._load_best_model()
    assert "checkpoint-2 is not used: model.safetensors is damaged" in caplog.text
    assert (trainer.model.state_dict()["mtslvr.heads.contrastive.weight"] == before).all()
