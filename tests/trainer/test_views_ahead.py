"""Views of the next batches in threads: the same run as in turns, on fewer cores for the network."""

import os
import signal
import threading

import pytest
import torch
from pretraining_runs import logged, make_rows, make_trainer
from transformers import TrainerCallback

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.resumable import RunStopped, StopSignals
from mtslvr_hf.trainer.views_ahead import ViewsAhead, threads_for_views

OPTIONS = {"max_steps": 8, "eval_steps": 4, "save_steps": 4, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def rows():
    return make_rows(good=24, bad=1)


@pytest.fixture
def two_threads():
    """Two threads of torch, of which the network of a small model gets one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def in_turns(rows, tmp_path_factory):
    """A run in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = make_trainer(tmp_path_factory.mktemp("run") / "in turns", rows, **OPTIONS)
    trainer.train()
    torch.set_num_threads(before)
    return trainer


def are_equal(found, expected):
    for name in ("loss", "eval_loss", "rows_read", "skipped_rows"):
        assert logged(found, name) == logged(expected, name), name
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


@pytest.mark.parametrize("workers", [0, 2])
def test_the_run_is_that_in_turns(rows, tmp_path, in_turns, two_threads, monkeypatch, workers):
    threads = set()
    trainer = make_trainer(tmp_path, rows, **OPTIONS, dataloader_num_workers=workers)
    make_views = trainer.make_views

    def noting(values, step, split, *scales):
        threads.add((split, threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return make_views(values, step, split, *scales)

    monkeypatch.setattr(trainer, "make_views", noting)
    trainer.train()
    assert threads == {("train", False, 1), ("eval", True, 1)}
    assert torch.get_num_threads() == 2
    if workers == 0:
        are_equal(trainer, in_turns)
    else:  # clips come in another order
        assert len(logged(trainer, "loss")) == len(logged(in_turns, "loss"))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(rows, tmp_path, in_turns, two_threads):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = make_trainer(tmp_path, rows, **OPTIONS)
    stopped.add_callback(Stop())
    with pytest.raises(RunStopped), StopSignals() as stopped.signals:
        stopped.train()
    assert torch.get_num_threads() == 2
    resumed = make_trainer(tmp_path, rows, **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    for name, value in in_turns.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_errors_of_reading_and_of_views_come_to_the_caller(two_threads):
    def read():
        yield {"number": 0}
        raise OSError("of reading")

    def make(batch, draw):
        if draw == 5:
            raise ValueError("of views")
        return draw

    ahead = iter(ViewsAhead(read(), make, 4, 1))
    assert next(ahead) == {"number": 0, "views": 4, "draw": 4}
    with pytest.raises(OSError, match="of reading"):
        next(ahead)
    with pytest.raises(ValueError, match="of views"):
        next(iter(ViewsAhead([{}], make, 5, 1)))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("width", "cores", "threads"),
    [(16, 1, 0), (16, 2, 1), (16, 4, 2), (16, 16, 7), (8, 2, 1), (32, 2, 0), (64, 2, 0), (64, 16, 1), (4, 64, 54)],
)
def test_narrow_networks_leave_cores_to_the_views(width, cores, threads):
    assert threads_for_views(MTSLVRConfig(base_width=width), cores) == threads
