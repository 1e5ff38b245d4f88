"""Sizes of a run that are chosen from the amount of audio."""

from pathlib import Path

import pytest
import yaml
from pretraining_runs import TINY, tone, wav_bytes

from mtslvr_hf import MTSLVRConfig, pretrain
from mtslvr_hf.runs import pretraining_arguments as arguments
from mtslvr_hf.runs import sizes
from mtslvr_hf.runs.sizes import Amount, choose_sizes, measure_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 files of 0.7 s and one that is no audio."""
    path = tmp_path_factory.mktemp("sounds")
    for number in range(40):
        (path / f"{number}.wav").write_bytes(wav_bytes(tone(number)))
    (path / "broken.wav").write_bytes(b"no audio")
    return path


def test_the_amount_of_audio(folder, monkeypatch):
    assert measure_audio(str(folder)) == (40, pytest.approx(40 * 0.7 / 3600, rel=1e-3))
    monkeypatch.setattr(sizes, "MOST_HOURS", 7 / 3600)
    assert measure_audio(str(folder)).files == 10


@pytest.mark.parametrize(
    ("files", "hours", "on_gpu", "fraction", "batch", "eval_batch", "steps"),
    [
        (50, 0.07, False, 0.2, 16, 4, 630),  # 100.8 clips of 2 s in 40 files, 100 passes
        (400, 1.0, False, 0.1, 64, 16, 2000),  # the budget: 128,000 clips
        (3587, 10.0, False, 0.05, 64, 64, 2000),
        (3587, 10.0, True, 0.05, 256, 64, 2344),
        (60, 50.0, False, 0.2, 16, 4, 8000),  # long files: more clips than files
        (12, 0.01, False, 0.2, 4, 2, 360),
    ],
)
def test_sizes(files, hours, on_gpu, fraction, batch, eval_batch, steps):
    found = choose_sizes(Amount(files, hours), 2.0, on_gpu)
    assert found["held_out_fraction"] == fraction
    assert (found["per_device_train_batch_size"], found["per_device_eval_batch_size"]) == (batch, eval_batch)
    assert found["max_steps"] == steps
    assert found["eval_clips"] >= eval_batch
    assert found.keys() == set(sizes.SIZES)


def test_processes_share_the_batch():
    one, two = (choose_sizes(Amount(400, 1.0), 2.0, False, processes) for processes in (1, 2))
    assert two["per_device_train_batch_size"] * 2 == one["per_device_train_batch_size"]
    assert two["max_steps"] == one["max_steps"]


def test_too_few_files():
    with pytest.raises(SystemExit, match="9 files are too few to pre-train on; expected at least 12"):
        choose_sizes(Amount(9, 0.1), 2.0, False)


def test_data_that_are_not_local():
    with pytest.raises(SystemExit, match="someone/audio is not on this machine: cache it first"):
        measure_audio("someone/audio")


def test_a_run_says_what_was_chosen_and_keeps_what_is_given(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "FEWEST_STEPS", 2)
    monkeypatch.setattr(sizes, "PASSES", 1)
    fields = {**TINY, "size_to_data": True, "use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0}
    Path("run.yaml").write_text(yaml.safe_dump({**fields, "dataset_name": str(folder), "max_bad_share": 0.5}))
    options = ["run.yaml", "--eval_clips", "5", "--scale_heads", "true"]
    pretrain.main(options)
    sentence = "3 steps of 16 clips of 0.5 s a process (0.0 hours heard), 20 % of the files held out for evaluation."
    assert f"40 files, 0.0 hours: {sentence}" in capsys.readouterr().out
    saved = yaml.safe_load(Path("outputs/run/pretrain.yaml").read_text())
    assert (saved["max_steps"], saved["eval_clips"], saved["per_device_train_batch_size"]) == (3, 5, 16)
    monkeypatch.setattr(arguments, "measure_audio", None)  # the run in the folder has its sizes
    values, *_ = arguments.read_arguments(options)
    assert (values["max_steps"], values["eval_clips"], values["per_device_train_batch_size"]) == (3, 5, 16)


def test_the_configuration_for_ones_own_audio_reads_its_sizes_from_the_data(folder, tmp_path):
    config = "small_data"  # by name
    options = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    values, model, _, _, training = arguments.read_arguments([config, *options])
    assert MTSLVRConfig(**vars(model)).embedding_size_of() == 2 * 4 * 128
    assert values["size_to_data"] and training.per_device_train_batch_size == 16 and values["held_out_fraction"] == 0.2
