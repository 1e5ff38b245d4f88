"""Fine-tuning as a command: from labelled audio to a classifier that loads by name."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys

import datasets
import pytest
import torch
import yaml
from classifier_runs import RATE, ROOT, make_rows, save_model, write_folder
from hub_server import HubServer
from markdown_rows import unpadded
from processes import launch
from safetensors.torch import load_file
from small_models import assert_close
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
)

from mtslvr_hf import finetune
from mtslvr_hf.classification import ClassificationTrainer, ClipCollator, ClipDataset, make_folds
from mtslvr_hf.data import TooManyBadRowsError, load_labelled_audio
from mtslvr_hf.resumable import NonFiniteError, RunStopped, last_checkpoint
from mtslvr_hf.runs import finetuning_arguments as arguments

METHODS = list(arguments.METHODS)
RUN = {"use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "pre-trained")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("audio") / "tones")


def options(**values):
    return [text for name, value in {**RUN, **values}.items() for text in (f"--{name}", *map(str, _list(value)))]


def _list(value):
    return value if isinstance(value, list) else [value]


def run(model, audio, output, **values):
    return finetune.main(options(model=model, data=audio, output_dir=output, **values))


def weights(folder):
    return load_file(folder / "model.safetensors")


def is_adapter(name):
    return ".finetuned." in name or name.startswith("classifier.")


# Training


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_model_has_the_measures_that_training_reports(tmp_path, model, audio, method):
    metrics = run(model, audio, tmp_path, method=method, num_train_epochs=6, class_weights="balanced")
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_accuracy"] == metrics["eval_accuracy"]
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert saved.config.id2label == {0: "high", 1: "low", 2: "middle"}
    assert saved.active_adapters() == (["finetuned"] if method == "adapters" else ["contrastive", "predictive"])
    data = load_labelled_audio(audio)
    held_out = finetune.divide(data.labels, (0.2, 0.8), 0) == 0
    clips = ClipDataset(data.select(held_out.nonzero()[0]), RATE)
    inputs = ClipCollator(AutoFeatureExtractor.from_pretrained(tmp_path))([clips[n] for n in range(len(clips))])
    with torch.no_grad():
        output = saved.eval()(**inputs)
    assert (output.logits.argmax(1) == inputs["labels"]).float().mean() == pytest.approx(metrics["eval_accuracy"])
    # Balanced weights of equally frequent classes are 1, so that the model's own loss is the same.
    assert output.loss.item() == pytest.approx(metrics["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_its_part_and_nothing_else(tmp_path, model, audio, method):
    run(model, audio, tmp_path, method=method, num_train_epochs=2, eval_fraction=0)
    before, after = weights(model), weights(tmp_path)
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    kept = {name for name in after if name not in changed}
    assert {"classifier.weight", "classifier.bias"} <= changed
    if method == "everything":
        assert not {name for name in kept if name.endswith((".weight", "running_mean"))}
        return
    assert all(is_adapter(name) for name in changed) and kept >= {name for name in after if not is_adapter(name)}
    assert len(changed) == 2 or method == "adapters"
    waveform = torch.randn(2, 20_000)
    for task in ("contrastive", "predictive"):
        embeddings = [AutoModel.from_pretrained(f).eval()(waveform, tasks=[task]) for f in (model, tmp_path)]
        assert torch.equal(embeddings[0].pooler_output, embeddings[1].pooler_output)


def test_a_linear_probe_tells_tones_apart(tmp_path, model, audio):
    metrics = run(model, audio, tmp_path, eval_fraction=0.5)
    assert metrics["eval_accuracy"] >= 2 / 3  # of an untrained network; guesses reach 1 / 3


def test_an_embedding_may_be_of_one_task(tmp_path, model, audio):
    run(model, audio, tmp_path, tasks=["predictive"], num_train_epochs=1)
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert saved.active_adapters() == ["predictive"] and saved.classifier.in_features == 4


def test_an_adapter_can_be_saved_alone(tmp_path, model, audio):
    run(model, audio, tmp_path, method="adapters", adapter_type="bn", save_adapter=True, num_train_epochs=1)
    other = AutoModel.from_pretrained(model)
    other.load_adapter(str(tmp_path / "adapter"))
    assert other.config.added_adapters == {"finetuned": "bn"}
    found, expected = other.state_dict(), AutoModel.from_pretrained(tmp_path).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, model, audio, method):
    settings = {
        "method": method,
        "num_train_epochs": 4,
        "max_seconds": 0.5,
        "eval_fraction": 0,
        "save_strategy": "epoch",
    }
    run(model, audio, tmp_path / "whole", save_total_limit=9, **settings)
    steps = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.copytree(steps[1], tmp_path / "cut" / steps[1].name)
    broken = shutil.copytree(steps[2], tmp_path / "cut" / steps[2].name)
    (broken / "trainer_state.json").write_text('{"epoch": ')  # was being written
    run(model, audio, tmp_path / "cut", **settings)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    tolerance = 1e-6 if method == "linear_probe" else 0  # it was scaled for the checkpoint, and back
    assert all(torch.allclose(found[name].float(), expected[name].float(), tolerance, tolerance) for name in expected)
    assert not torch.equal(weights(steps[1])["classifier.weight"], expected["classifier.weight"])
    state = json.loads((tmp_path / "cut/trainer_state.json").read_text())
    assert state["epoch"] == 4 and len(state["log_history"]) > 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_within_an_epoch(tmp_path, model, audio, monkeypatch, number, code):
    settings = {"method": "everything", "num_train_epochs": 3, "max_seconds": 0.5, "eval_fraction": 0}
    run(model, audio, tmp_path / "whole", **settings)
    training_step = ClassificationTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 6:
            os.kill(os.getpid(), number)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RunStopped) as stopped:
        patch.setattr(ClassificationTrainer, "training_step", signalled)
        run(model, audio, tmp_path / "stopped", **settings)
    assert stopped.value.code == code
    assert last_checkpoint(tmp_path / "stopped") == str(tmp_path / "stopped/checkpoint-7")  # 5 steps are an epoch
    run(model, audio, tmp_path / "stopped", **settings)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_break_are_not_saved(tmp_path, model, audio, method):
    options = {"learning_rate": 1e38, "num_train_epochs": 9, "max_nonfinite_steps": 3, "warmup_steps": 0}
    with pytest.raises(NonFiniteError, match="not finite"):
        run(model, audio, tmp_path, method=method, **options)
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("checkpoint-*"))


def test_a_run_with_other_arguments_or_data_is_refused(tmp_path, model, audio):
    data = shutil.copytree(audio, tmp_path / "audio")
    settings = {"method": "everything", "num_train_epochs": 1, "max_seconds": 0.5}
    run(model, data, tmp_path / "out", **settings)
    with pytest.raises(SystemExit, match=r"holds another run: learning_rate \(0.001, now 0.5\)"):
        run(model, data, tmp_path / "out", **settings, learning_rate=0.5)
    (data / "low/0.wav").unlink()
    with pytest.raises(SystemExit, match="The data changed since the run in"):
        run(model, data, tmp_path / "out", **settings)
    run(model, data, tmp_path / "out", **settings, resume_from_checkpoint="false")


def test_every_epoch_has_crops_of_its_own(tmp_path, model, audio, monkeypatch):
    seen, get = [], ClipDataset.__getitem__

    def spy(self, index):
        seen.append((self.random_crops, self.epoch, index))
        return get(self, index)

    monkeypatch.setattr(ClipDataset, "__getitem__", spy)
    run(model, audio, tmp_path, method="everything", num_train_epochs=3, max_seconds=0.5)
    assert {epoch for random, epoch, _ in seen if random} == {0, 1, 2}
    assert not any(epoch for random, epoch, _ in seen if not random)


def test_a_folder_belongs_to_one_run(tmp_path, model, audio):
    run(model, audio, tmp_path, method="everything", num_train_epochs=1)
    with pytest.raises(SystemExit, match=r"holds another run: method \(everything, now adapters\)"):
        run(model, audio, tmp_path, method="adapters", num_train_epochs=1)
    run(model, audio, tmp_path, method="adapters", num_train_epochs=1, resume_from_checkpoint="false")


def test_saving_a_linear_probe_leaves_it_as_it_was(tmp_path, model, audio):
    """Only one process saves: a rounding error there would set it apart from the others."""
    given = options(model=model, data=audio, output_dir=tmp_path, num_train_epochs=1)
    _, model_args, data_args, args = arguments.read_arguments(given)
    clips = finetune.load_data(data_args)
    trainer, _ = finetune.make_trainer(
        *finetune.make_model(model_args, clips.train, args), clips, model_args, data_args, args
    )
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.save_model()
    after = trainer.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    raw = trainer.restore()
    inputs = ClipCollator(trainer.processing_class)([ClipDataset(clips.evaluation, RATE)[0]])
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert_close(raw(**inputs).logits, saved(**inputs).logits)


def test_a_configuration_repeats_a_run(tmp_path, model, audio):
    first = run(model, audio, tmp_path / "first", num_train_epochs=2, seed=3)
    (tmp_path / "shorter.yaml").write_text(
        yaml.safe_dump({"base": "first/finetune.yaml", "output_dir": str(tmp_path / "b")})
    )
    second = finetune.main([str(tmp_path / "shorter.yaml")])
    assert second["eval_loss"] == first["eval_loss"]


# Data


def test_folds_evaluate_every_clip_once_and_keep_groups(tmp_path, model, audio, monkeypatch):
    folder = shutil.copytree(audio, tmp_path / "grouped")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    lines = [f"{name},{int(name.split('/')[1][0]) // 2}" for name in files]  # two clips of each class a group
    (folder / "manifest.csv").write_text("\n".join(["file,group", *lines]))
    seen = []
    for fold in range(3):
        read = arguments.read_arguments(options(model="m", data=folder, output_dir="o", fold=fold, folds=3))
        clips = finetune.load_data(read[2])
        assert not set(clips.train.groups) & set(clips.evaluation.groups)
        assert clips.evaluation.labels.sum(0).tolist() == [2, 2, 2]
        seen += [row["path"] for row in clips.evaluation.audio]
    assert sorted(seen) == sorted(str(folder / name) for name in files)
    data = load_labelled_audio(audio)
    metrics = run(model, audio, tmp_path / "out", fold=1, folds=3, num_train_epochs=1)
    assert metrics["eval_loss"] > 0 and (make_folds(data.labels, 3) == 1).sum() == 6
    assert "On 6 clips (fold 1 of 3" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("method", ["linear_probe", "everything"])
def test_several_labels_a_clip(tmp_path, model, method):
    label = datasets.List(datasets.Value("string"))
    make_rows(tmp_path / "files", label, lambda name, number: [name, "even"][number % 2 :]).to_parquet(
        tmp_path / "set/train-00000-of-00001.parquet"
    )
    make_rows(tmp_path / "files", label, lambda name, number: [name] * (number > 0)).to_parquet(
        tmp_path / "set/test-00000-of-00001.parquet"
    )
    with pytest.raises(ValueError, match="no training clips of"):
        run(model, tmp_path / "set", tmp_path / "out", eval_split="train", train_split="test", num_train_epochs=1)
    metrics = run(
        model,
        tmp_path / "set",
        tmp_path / "out",
        method=method,
        eval_split="test",
        num_train_epochs=2,
        class_weights="balanced",
    )
    assert 0 < metrics["eval_map"] <= 1 and metrics["eval_map_classes"] == 3
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
    assert saved.config.problem_type == "multi_label_classification"
    assert saved.config.label2id == {"even": 0, "high": 1, "low": 2, "middle": 3}
    assert "(mAP)" in (tmp_path / "out/README.md").read_text()


def test_bad_clips_are_left_out_or_stop_the_run(tmp_path, model, caplog):
    folder = write_folder(tmp_path / "set", clips=5)
    (folder / "high/0.wav").write_text("no audio")
    with pytest.raises(TooManyBadRowsError, match="1 unreadable"):
        run(model, folder, tmp_path / "out", num_train_epochs=1)
    with caplog.at_level(logging.INFO):
        for fold in (0, 1):  # it is trained on in one, and evaluated on in the other
            values = {"method": "everything", "fold": fold, "folds": 2, "max_bad_share": 0.5, "num_train_epochs": 1}
            run(model, folder, tmp_path / f"{fold}", **values)
    assert caplog.text.count("1 of ") == 2 and caplog.text.count("high/0.wav") == 2
    counts = [re.findall(r"(\d+) clips of 3 classes to train on, (\d+) to", message) for message in caplog.messages]
    assert [sum(map(int, *found)) for found in counts if found] == [14, 14]


def test_classes_that_are_not_trained_are_named(tmp_path, model, caplog):
    folder = write_folder(tmp_path / "set", clips=4)
    for number in (1, 2, 3):
        (folder / f"low/{number}.wav").unlink()
    data = load_labelled_audio(folder)
    fold = make_folds(data.labels, 3)[data.labels[:, 1]][0]
    run(model, folder, tmp_path / "out", num_train_epochs=1, fold=fold, folds=3)
    assert "Classes with evaluation clips, but no training clips: low" in caplog.text


# Arguments


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": None}, "--model is missing"),
        ({"method": "knn"}, "--method must be one of linear_probe, adapters, everything; got 'knn'"),
        ({"fold": 1}, "--fold and --folds need each other"),
        ({"fold": 3, "folds": 3}, "--fold must lie in 0..2, got 3"),
        ({"fold": 0, "folds": 3, "eval_fraction": 0.1}, "exclude each other"),
        ({"eval_fraction": 1.0}, "must lie in [0, 1), got 1.0"),
        ({"max_seconds": 0}, "must be greater than 0"),
        ({"class_weights": "some"}, "none, balanced; got 'some'"),
        ({"method": "adapters", "tasks": ["contrastive"]}, "--tasks is not for method adapters"),
        ({"save_adapter": True}, "need --method adapters"),
        ({"methd": "adapters"}, "unknown argument --methd; did you mean 'method'?"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_are_named(values, message, capsys):
    given = {
        name: value
        for name, value in {"model": "m", "data": "d", "output_dir": "o", **values}.items()
        if value is not None
    }
    with pytest.raises(SystemExit):
        arguments.read_arguments(options(**given))
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_field_of_a_configuration_is_named(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("dta: folder\n")
    with pytest.raises(SystemExit):
        arguments.read_arguments([str(tmp_path / "run.yaml")])
    assert "unknown field 'dta'; did you mean 'data'?" in capsys.readouterr().err


def test_a_method_brings_its_learning_rate_unless_one_is_given():
    given = {"model": "m", "data": "d", "output_dir": "o", "method": "everything"}
    args = arguments.read_arguments(options(**given))[3]
    assert args.learning_rate == arguments.METHODS["everything"]["learning_rate"] and args.num_train_epochs == 30
    assert arguments.read_arguments(options(**given, learning_rate="0.5"))[3].learning_rate == 0.5


def test_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit):
        arguments.read_arguments(["--help"])
    assert "--class_weights" in capsys.readouterr().out


# As it is called


@pytest.mark.ddp
def test_two_processes_share_a_linear_probe(tmp_path, model):
    audio = write_folder(tmp_path / "audio", clips=4)
    changes = {"num_train_epochs": 3, "fold": 0, "folds": 3}  # 8 clips to train on: two batches of 4, or one of 8
    values = options(model=model, data=audio, output_dir=tmp_path / "out", **changes)
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", ROOT / "training/finetune.py", *values]
    launch(command, tmp_path, ACCELERATE_USE_CPU="true")
    alone = run(model, audio, tmp_path / "alone", **changes, per_device_train_batch_size=8)
    together = json.loads((tmp_path / "out/eval_results.json").read_text())
    card = unpadded((tmp_path / "out/README.md").read_text())
    assert "| Batch | 8 clips |" in card and "audio, 8 clips" in card
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)


LOAD_BY_NAME = """
import sys
sys.modules["mtslvr_hf"] = None
import numpy as np
from transformers import pipeline
classify = pipeline("audio-classification", "tester/tones", trust_remote_code=True, device="cpu")
print({entry["label"] for entry in classify(np.ones(16000, np.float32), top_k=None)} == {"high", "low", "middle"})
"""


@pytest.mark.slow
def test_a_published_classifier_loads_by_name_without_the_package(tmp_path, model, audio):
    values = options(model=model, data=audio, output_dir=tmp_path / "out", num_train_epochs=1, method="adapters")
    values += ["--push_to_hub", "--hub_model_id", "tester/tones", "--license", "cc-by-4.0"]
    with HubServer() as hub:
        env = hub.environment(tmp_path / "home", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        command = [sys.executable, ROOT / "training/finetune.py", *values]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"Published at {hub.endpoint}/tester/tones\n" in done.stderr
        files = hub.files("tester/tones")
        assert {"README.md", "preprocessor_config.json", "finetune.yaml", "modeling_mtslvr.py"} <= files.keys()
        assert "license: cc-by-4.0\n" in (tmp_path / "out/README.md").read_text()
        assert 'pipeline("audio-classification", "tester/tones"' in (tmp_path / "out/README.md").read_text()
        env = hub.environment(tmp_path / "other", OMP_NUM_THREADS="1")
        command = [sys.executable, "-I", "-c", LOAD_BY_NAME]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr[-3000:]
