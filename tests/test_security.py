"""Promises of SECURITY.md that no other test holds: pickled code runs nowhere."""

import os
import pickle

import pytest
import torch
from pretraining_runs import make_trainer
from small_models import make_model
from transformers import AutoModel

from mtslvr_hf.conversion import read_state_dict
from mtslvr_hf.resumable.checkpoints import fault_of, load_run_state, save_run_state


class Evil:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code ran"


def write_evil(path, marker):
    """A file of `torch.save` and its state dictionary, in which an entry is code."""
    torch.save({"state": {}, "code": Evil(marker)}, path)


def test_the_files_of_this_test_would_run_code(tmp_path, marker):
    write_evil(tmp_path / "evil.pt", marker)
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("write", [write_evil, lambda path, marker: path.write_bytes(pickle.dumps(Evil(marker)))])
def test_checkpoints_of_the_authors(write, tmp_path, marker):
    write(tmp_path / "original.pt", marker)
    with pytest.raises(ValueError, match="could not be read"):
        read_state_dict(tmp_path / "original.pt")
    assert not marker.exists()


def test_weights_beside_a_configuration(tmp_path, marker):
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    write_evil(tmp_path / "model/pytorch_model.bin", marker)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        AutoModel.from_pretrained(tmp_path / "model")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "log_window_0.pt"])
def test_checkpoints_of_a_run_whose_checksums_are_right(name, tmp_path, marker):
    make_trainer(tmp_path, max_steps=2, save_steps=1, eval_strategy="no").train()
    checkpoint = tmp_path / "checkpoint-1"
    assert (checkpoint / name).is_file()
    state = load_run_state(checkpoint, 0, 1)
    write_evil(checkpoint / name, marker)
    save_run_state(checkpoint, 0, 1, state)
    assert fault_of(checkpoint) is None
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        make_trainer(tmp_path, max_steps=2, save_steps=1, eval_strategy="no").train(
            resume_from_checkpoint=str(checkpoint)
        )
    assert not marker.exists()
