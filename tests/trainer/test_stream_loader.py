"""Workers that die while a run reads, and shards that vanish."""

import multiprocessing
import os
import signal
import threading

import pytest
import torch
from pretraining_runs import logged, make_rows, make_stream, make_trainer
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import TrainerCallback

from mtslvr_hf.data import AudioStream, load_audio
from mtslvr_hf.trainer.stream_loader import StreamLoader


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """torch looks every 5 s for workers that have ended."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.fixture(scope="module")
def rows():
    return make_rows(good=24, bad=1)


def read(loader, batches, disturb=None):
    """Names of the first batches; before the fifth one, something happens to a worker."""
    others, seen, iterator = set(multiprocessing.active_children()), [], iter(loader)
    for number in range(batches):
        if number == 4 and disturb is not None:
            disturb(next(child for child in multiprocessing.active_children() if child not in others))
        seen.append(next(iterator)["stream"]["names"])
    return seen


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_replaced_and_no_clip_lost_or_repeated(rows, workers, caplog):
    expected = read(StreamLoader(make_stream(rows), workers), 20)
    found = read(StreamLoader(make_stream(rows), workers), 20, lambda worker: os.kill(worker.pid, signal.SIGKILL))
    assert found == expected
    assert caplog.text.count("a DataLoader worker ended (killed by SIGKILL); trying again in 1 s") == 1


def test_a_connection_that_is_lost_before_its_worker_counts_as_ended(rows, monkeypatch):
    expected = read(StreamLoader(make_stream(rows), 0), 12)
    get, lost = _MultiProcessingDataLoaderIter._try_get_data, []

    def lose(iterator, *arguments, **options):
        if lost:
            threading.Timer(0.5, lost.pop().kill).start()
            raise ConnectionResetError(104, "Connection reset by peer")
        return get(iterator, *arguments, **options)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", lose)
    assert read(StreamLoader(make_stream(rows), 1), 12, lost.append) == expected


def test_a_stream_that_was_resumed_goes_on_from_there(rows):
    batches = [batch["stream"] for batch, _ in zip(StreamLoader(make_stream(rows), 2), range(5))]
    state = make_stream(rows).state_after(batches)
    expected = read(StreamLoader(make_stream(rows, state=state), 2), 12)
    assert read(StreamLoader(make_stream(rows, state=state), 2), 12, lambda worker: worker.kill()) == expected


def test_a_worker_may_die_behind_another_dataloader(rows, monkeypatch):
    """Of which torch's handler of SIGCHLD stays, once in a process."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        next(iter(DataLoader([1, 2], num_workers=1)))
        assert signal.getsignal(signal.SIGCHLD).__module__ == signal_handling.__name__
        expected = read(StreamLoader(make_stream(rows), 0), 12)
        assert read(StreamLoader(make_stream(rows), 1), 12, lambda worker: worker.kill()) == expected
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_workers_that_die_again_and_again_end_the_run(rows, monkeypatch):
    pauses = []
    monkeypatch.setattr("mtslvr_hf.data.shuffling.time.sleep", pauses.append)
    monkeypatch.setattr("mtslvr_hf.trainer.stream_loader.WORKER_SECONDS", 3.0)
    monkeypatch.setattr(AudioStream, "_decode", lambda self, row, epoch: os._exit(3))
    with pytest.raises(ChildProcessError, match=r"A DataLoader worker ended \(exit code 3\) again and again"):
        next(iter(StreamLoader(make_stream(rows), 1)))
    assert pauses == [1, 2]


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, EOFError])
def test_errors_of_reading_are_not_those_of_a_dead_worker(rows, monkeypatch, kind):
    def fail(self, row, epoch):
        raise kind("of reading")

    monkeypatch.setattr(AudioStream, "_decode", fail)
    monkeypatch.setattr("mtslvr_hf.trainer.stream_loader.connection", None)  # it does not wait
    with pytest.raises(kind, match="of reading"):
        next(iter(StreamLoader(make_stream(rows), 1)))


def test_nothing_is_drawn_from_the_global_generator(rows):
    before = torch.get_rng_state()
    next(iter(StreamLoader(make_stream(rows), 1)))
    assert torch.equal(torch.get_rng_state(), before)


class AtStep(TrainerCallback):
    """Call of a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def test_a_run_whose_worker_is_killed_is_the_undisturbed_one(rows, tmp_path):
    options = {"max_steps": 8, "eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 2}
    whole = make_trainer(tmp_path / "whole", rows, **options)
    whole.train()
    disturbed = make_trainer(tmp_path / "disturbed", rows, **options)
    disturbed.add_callback(AtStep(3, lambda: multiprocessing.active_children()[0].kill()))
    disturbed.train()
    for name in ("loss", "rows_read", "skipped_rows"):
        assert logged(disturbed, name) == logged(whole, name)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, disturbed.model.state_dict()[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_during_a_run_is_skipped_and_counted(rows, tmp_path, workers):
    (tmp_path / "shards").mkdir()
    for number in range(4):
        rows.shard(4, number).to_parquet(tmp_path / f"shards/{number}.parquet")
    stream = make_stream(load_audio(tmp_path / "shards"), max_bad_share=0.5)
    options = {"max_steps": 24, "eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": workers}
    trainer = make_trainer(tmp_path / "out", stream=stream, **options)
    trainer.add_callback(AtStep(2, (tmp_path / "shards/2.parquet").unlink))
    trainer.train()
    assert trainer.state.global_step == 24 and len(logged(trainer, "loss")) == 24
    counted = logged(trainer, "skipped_unreadable_shard")
    assert counted and 2 not in counted and counted[24] >= 12  # all of the shard's rows, at least twice
    assert logged(trainer, "rows_read")[24] == 24 * 4 + logged(trainer, "skipped_rows")[24]
