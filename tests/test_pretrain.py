"""Pre-training as a command: its configurations, and runs of it from data to a model that loads by name."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard
from markdown_rows import unpadded
from pretraining_runs import RATE, ROOT, TINY, logged, tone, wav_bytes
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining, pretrain
from mtslvr_hf.cards.pretraining import variant_name
from mtslvr_hf.resumable import RunStopped, last_checkpoint
from mtslvr_hf.runs import pretraining_arguments as arguments
from mtslvr_hf.runs.command import run_command
from mtslvr_hf.runs.lock import locked
from mtslvr_hf.runs.parser import CONFIGS, configurations
from mtslvr_hf.runs.run_folder import find_checkpoint
from mtslvr_hf.runs.saved_values import saved_values
from mtslvr_hf.trainer import MTSLVRTrainer

TRAINING = ROOT / "training"
WITH_SIZES = [*configurations().values(), *sorted((TRAINING / "configs").rglob("*.yaml"))]
WITH_SIZES.remove(CONFIGS / "small_data.yaml")
WITH_SIZES = [path for path in WITH_SIZES if path.parent.name != "accelerate"]  # tests/trainer/test_launchers.py
AFTER_PRE_TRAINING = ("added_adapters", "active_adapters", "merged_adapters", "embedding_scale")

# The paper's two tables, by the name that model cards give the variant.
PAPER_ROWS = {
    "cont_only_simclr": "Cont Only (SimCLR)",
    "cont_only_simsiam": "Cont Only (SimSiam)",
    "pred_only": "Pred Only",
    "mt_simple_simclr": "MT-Simple (SimCLR)",
    "mt_simple_simsiam": "MT-Simple (SimSiam)",
    "mt_split_simclr": "MT-Split (SimCLR)",
    "mt_split_simsiam": "MT-Split (SimSiam)",
    "mt_bn_simclr": "MT-Bn (SimCLR)",
    "mt_bn_simsiam": "MT-Bn (SimSiam)",
    "mt_series_simclr": "MT-Series (SimCLR)",
    "mt_series_simsiam": "MT-Series (SimSiam)",
    "mt_parallel_simclr": "MT-Parallel (SimCLR)",
    "mt_parallel_simsiam": "MT-Parallel (SimSiam)",
}
RUN = {
    **TINY,
    "held_out_fraction": 0.4,
    "eval_clips": 8,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_total_limit": None,
    "learning_rate": "1e-3",
    "dataloader_num_workers": 1,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A folder of WAV files, one of them no audio."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(40):
        (folder / f"{number}.wav").write_bytes(wav_bytes(tone(number)))
    (folder / "broken.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture
def run_file(tmp_path, monkeypatch, audio):
    """A configuration of a small run, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, "dataset_name": str(audio), "max_bad_share": 0.5}))
    return str(path)


def read(*argv):
    return arguments.read_arguments([str(argument) for argument in argv])


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


# Configurations


def test_model_arguments_are_the_fields_of_the_configuration():
    parameters = inspect.signature(MTSLVRConfig.__init__).parameters
    expected = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in parameters.items()
        if name not in ("self", "kwargs", *AFTER_PRE_TRAINING)
    }
    assert vars(arguments.ModelArguments()) == expected


@pytest.mark.parametrize("path", WITH_SIZES, ids=lambda path: path.stem)
def test_every_configuration_is_read_and_builds_its_network(path):
    on_a_cpu = ["--bf16", "false", "--sync_batch_norm", "false"]
    _, model_args, data_args, _, args = read(path, *on_a_cpu)
    assert data_args.dataset_name and args.max_steps > 0
    assert args.load_best_model_at_end == path.is_relative_to(CONFIGS)
    assert args.save_steps == args.eval_steps
    assert args.output_dir == str(Path("outputs") / path.stem)
    with torch.device("meta"):
        model = MTSLVRForPreTraining(MTSLVRConfig(**vars(model_args)))
    assert model.config.tasks == model_args.tasks


def test_every_row_of_the_papers_tables_has_a_configuration():
    files = {path.stem for path in (CONFIGS / "paper").glob("*.yaml")} - {"base"}
    assert files == PAPER_ROWS.keys()


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_paper_configurations_are_the_papers(name):
    _, model_args, data_args, _, args = read(CONFIGS / f"paper/{name}.yaml")
    config = MTSLVRConfig(**vars(model_args))
    assert variant_name(config) == PAPER_ROWS[name]
    assert (config.depth, config.base_width, config.frontend, config.embedding_size) == (18, 64, "mel_stft", 1000)
    assert config.shared_head == ("simple" in name)
    assert config.head_size == (500 if name.startswith("mt_") and "simple" not in name else 1000)
    assert (args.optim, args.learning_rate, args.weight_decay) == ("adam", 5e-5, 1e-6)
    assert (args.per_device_train_batch_size, args.eval_steps, args.early_stopping_patience) == (100, 50, 50)
    assert args.max_steps == 1000 * args.eval_steps and args.lr_scheduler_type == "cosine" and args.warmup_steps == 0
    assert (data_args.dataset_name, data_args.dataset_config) == ("agkphysics/AudioSet", "balanced")


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_paper_configurations_hold_only_the_difference(name):
    values = yaml.safe_load((CONFIGS / f"paper/{name}.yaml").read_text())
    assert values.pop("base") == "base.yaml"
    assert values.keys() <= {"tasks", "adapter_type", "shared_head", "contrastive_method"}


def test_command_line_wins_over_the_file_and_the_file_over_its_base(tmp_path):
    (tmp_path / "below").mkdir()
    write(tmp_path, "base.yaml", "depth: 34\nbase_width: 32\nlearning_rate: 1e-4\ntasks: [predictive]\n")
    path = write(tmp_path / "below", "run.yaml", "base: ../base.yaml\ndepth: 50\nsave_total_limit: null\n")
    values, *_ = read(path, "--base_width", "16", "--no-streaming", "--max_steps=7", "--output-dir", "there")
    assert (values["depth"], values["base_width"], values["learning_rate"]) == (50, 16, 1e-4)
    assert values["tasks"] == ["predictive"] and values["streaming"] is False and values["max_steps"] == 7
    assert values["save_total_limit"] is None and values["output_dir"] == "there"
    assert values["temperature"] == 0.07 and values["optim"] == "adam"  # defaults of this package
    assert "adam_beta1" not in values  # left to transformers


def test_values_of_yaml_mean_what_they_say(tmp_path):
    text = 'eval_strategy: no\nsave_strategy: "no"\nbf16: no\nlr_scheduler_kwargs: {num_cycles: 0.4}\n'
    *_, args = read(write(tmp_path, "run.yaml", text), "--output_dir", tmp_path)
    assert args.eval_strategy == args.save_strategy == "no" and args.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert not args.load_best_model_at_end


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("learning_rat: 1", [], "run.yaml: unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        ("depth: 18", ["--adapter_tipe", "bn"], "unknown argument --adapter_tipe; did you mean 'adapter_type'?"),
        ("depth: 18", ["--learning", "1"], "unknown argument --learning"),  # no guessing from the beginning
        ("wholly_unknown_thing: 1", [], "unknown field 'wholly_unknown_thing'; --help lists all"),
        ("max_steps: many", [], "argument --max_steps/--max-steps: invalid int value: 'many'"),
        ("max_steps: 1.5", [], "invalid int value: '1.5'"),
        ("lr_scheduler_type: cosinus", [], "invalid choice: 'cosinus'"),
        ("base: run.yaml", [], "is its own base"),
        ("base: other.yaml", [], "there is no configuration file"),
        ("- depth", [], "must hold `field: value` lines, not a list"),
        ("depth: [18", [], "is no YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, text, options, message):
    with pytest.raises(SystemExit) as error:
        read(write(tmp_path, "run.yaml", text), *options)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    for name in read("--output_dir", "out")[0]:
        assert f"--{name}" in text, name
    assert "Share of the training split's clips" in " ".join(text.split())


def test_the_readme_names_files_and_fields_that_exist(tmp_path):
    text = (TRAINING / "README.md").read_text()
    for name in re.findall(r"training/configs/[\w/]+\.yaml", text):
        assert (ROOT / name).is_file(), name
    named = re.findall(r"pretrain(?:\.py)? ([a-z]\w+)", text)
    assert len(named) > 3 and set(named) <= configurations().keys()
    named = re.findall(r"`(\w+): ([^`]+)`", text)
    assert len(named) > 10
    values = yaml.safe_load("\n".join(f"{name}: {value}" for name, value in named if name != "base"))
    run_file = write(tmp_path, "run.yaml", yaml.safe_dump(values))
    assert read(run_file, "--size_to_data", "false")[0].keys() >= values.keys()


# Runs


@pytest.mark.parametrize(
    "script",
    [[TRAINING / "pretrain.py"], pytest.param(["-m", "mtslvr_hf.pretrain"], marks=pytest.mark.slow)],
    ids=["file", "module"],
)
def test_accelerate_launch_trains_and_the_folder_loads(script, run_file, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += [*script, run_file, "--output_dir", "out", "--max_steps", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged("out", "loss").keys() == {1, 2} and 2 in logged("out", "eval_loss")
    for folder in ("out", "out/checkpoint-2"):
        inputs = AutoFeatureExtractor.from_pretrained(folder)(tone(1), sampling_rate=RATE, return_tensors="pt")
        assert AutoModel.from_pretrained(folder)(**inputs).pooler_output.shape == (1, 32)
    card = Path("out/README.md").read_text()
    assert "MT-Parallel (SimCLR)" in card and "(local)" in card and str(tmp_path) not in card


def test_the_saved_configuration_repeats_the_run(run_file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    first = pretrain.main([run_file, "--output_dir", "first", "--temperature", "0.2", "--hub_token", "hf_secret"])
    saved = Path("first/pretrain.yaml").read_text()
    assert "temperature: 0.2" in saved and "per_device_train_batch_size: 4" in saved and "hf_" not in saved
    second = pretrain.main(["first/pretrain.yaml", "--output_dir", "second"])
    assert second["eval_loss"] == first["eval_loss"]
    assert logged("second", "loss") == logged("first", "loss")


def interrupt_before_step(monkeypatch, step):
    """Stops a run as Ctrl-C would, with checkpoints every two steps."""
    training_step = MTSLVRTrainer.training_step

    def interrupted(self, *args):
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return training_step(self, *args)

    monkeypatch.setattr(MTSLVRTrainer, "training_step", interrupted)


def test_the_same_command_goes_on_where_the_run_was_stopped(run_file, monkeypatch):
    command = [run_file, "--max_steps", "6"]
    whole = pretrain.main([*command, "--output_dir", "whole"])
    with monkeypatch.context() as patch:
        interrupt_before_step(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main([*command, "--output_dir", "stopped"])
    half_written = Path("stopped/checkpoint-5")
    shutil.copytree("stopped/checkpoint-4", half_written)
    (half_written / "trainer_state.json").unlink()
    assert pretrain.main([*command, "--output_dir", "stopped"])["eval_loss"] == pytest.approx(
        whole["eval_loss"], rel=1e-6
    )
    for name in ("loss", "eval_loss", "augmentation_map", "rows_read", "skipped_rows"):
        assert logged("stopped", name) == pytest.approx(logged("whole", name), rel=1e-6), name


def test_a_folder_belongs_to_one_run(run_file, capsys):
    pretrain.main([run_file, "--output_dir", "out", "--max_steps", "2"])
    for options, message in (
        ([], "the end of a run of 2 steps"),
        (["--depth", "34"], "out holds another run: depth (18, now 34)"),
        (["--resume_from_checkpoint", "nowhere"], "no complete checkpoint in nowhere"),
    ):
        with pytest.raises(SystemExit, match=re.escape(message)):
            pretrain.main([run_file, "--output_dir", "out", "--max_steps", "2", *options])
    with pytest.raises(SystemExit, match="no complete checkpoint in elsewhere"):
        pretrain.main([run_file, "--output_dir", "elsewhere", "--resume_from_checkpoint", "true"])
    pretrain.main([run_file, "--output_dir", "out", "--max_steps", "2", "--resume_from_checkpoint", "false"])
    more = ["--output_dir", "more", "--max_steps", "4", "--resume_from_checkpoint", "out/checkpoint-2"]
    pretrain.main([run_file, *more])
    assert logged("more", "loss").keys() == {1, 2, 3, 4}


# Runs that are stopped, killed, or resumed otherwise


@pytest.fixture(scope="module")
def whole(tmp_path_factory, audio):
    """A run of six steps that nothing disturbed, with a log every third, and its configuration."""
    folder = tmp_path_factory.mktemp("whole")
    values = {**RUN, "dataset_name": str(audio), "max_bad_share": 0.5, "max_steps": 6, "logging_steps": 3}
    (folder / "run.yaml").write_text(yaml.safe_dump({**values, "eval_steps": 2, "save_steps": 4}))
    metrics = pretrain.main([str(folder / "run.yaml"), "--output_dir", str(folder / "out")])
    return folder, metrics


def same_run(folder, metrics, whole):
    """Checks that a run ended as the one that nothing disturbed: logs and weights."""
    expected, wanted = whole
    assert metrics["eval_loss"] == wanted["eval_loss"]
    for name in (
        "loss",
        "train_loss",
        "contrastive_loss",
        "augmentation_map",
        "eval_loss",
        "rows_read",
        "skipped_rows",
    ):
        assert logged(folder, name) == logged(expected / "out", name), name
    weights = AutoModelForPreTraining.from_pretrained(folder).state_dict()
    for name, value in AutoModelForPreTraining.from_pretrained(expected / "out").state_dict().items():
        assert torch.equal(value, weights[name]), name


def signal_at(monkeypatch, method, step, number):
    """Sends this process a signal when the Trainer calls a method at a step."""
    original = getattr(MTSLVRTrainer, method)

    def signalled(self, *args, **kwargs):
        if self.is_in_train and self.state.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MTSLVRTrainer, method, signalled)


@pytest.mark.parametrize(
    ("method", "step", "number", "checkpoint"),
    [
        ("training_step", 4, signal.SIGTERM, 5),  # in a step, in the middle of a logging window
        pytest.param("training_step", 3, signal.SIGINT, 4, marks=pytest.mark.slow),  # the step's evaluation is due
        ("evaluation_loop", 2, signal.SIGUSR1, 2),  # in an evaluation
        # Between two steps, as while waiting for data.
        pytest.param("_get_num_items_in_batch", 5, signal.SIGTERM, 5, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_a_checkpoint_and_the_run_ends_as_if_it_had_not_come(
    whole, tmp_path, monkeypatch, method, step, number, checkpoint
):
    command = [str(whole[0] / "run.yaml"), "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch, pytest.raises(RunStopped) as stopped:
        signal_at(patch, method, step, number)
        pretrain.main(command)
    assert stopped.value.code == (130 if number == signal.SIGINT else 0)
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / f"out/checkpoint-{checkpoint}")
    assert not (tmp_path / "out/model.safetensors").exists() and not (tmp_path / "out/_lock.json").exists()
    same_run(tmp_path / "out", pretrain.main(command), whole)


@pytest.mark.parametrize("what", ["evaluate", "save_model", "create_model_card"])
def test_a_run_that_is_killed_behind_its_last_checkpoint_is_finished(whole, tmp_path, monkeypatch, what):
    command = [str(whole[0] / "run.yaml"), "--output_dir", str(tmp_path / "out")]

    def killed(self, *args, **kwargs):
        if self.is_in_train:
            return original(self, *args, **kwargs)
        raise KeyboardInterrupt

    original = getattr(MTSLVRTrainer, what)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MTSLVRTrainer, what, killed)
        pretrain.main(command)
    with monkeypatch.context() as patch:
        patch.setattr(MTSLVRTrainer, "training_step", lambda *args: pytest.fail("training goes on"))
        same_run(tmp_path / "out", pretrain.main(command), whole)
    assert "| Steps | " in unpadded((tmp_path / "out/README.md").read_text())
    with pytest.raises(SystemExit, match="is the end of a run of 6 steps"):
        pretrain.main(command)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--learning_rate", "0.01"], "learning_rate (0.001, now 0.01)"),
        (["--max_steps", "9"], "max_steps (6, now 9)"),
        (["--per_device_train_batch_size", "2"], "per_device_train_batch_size (4, now 2)"),
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps (1, now 2)"),
        (["--clip_seconds", "0.25"], "clip_seconds (None, now 0.25)"),
        (["--held_out_fraction", "0.1"], "held_out_fraction (0.4, now 0.1)"),
        (["--lr_scheduler_type", "linear"], "lr_scheduler_type (cosine, now linear)"),
        (["--adam_beta2", "0.9"], "adam_beta2 (0.999, now 0.9)"),
        (["--dataset_name", "."], "dataset_name ("),
        (["--temperature", "0.5"], "temperature (0.07, now 0.5)"),
    ],
)
def test_a_run_with_other_arguments_is_refused(whole, monkeypatch, changed, message):
    monkeypatch.chdir(whole[0])
    values, *_, args = read("run.yaml", "--output_dir", "out", *changed)
    fixed = [arguments.ModelArguments, arguments.DataArguments]
    with pytest.raises(SystemExit, match=re.escape(f"out holds another run: {message}")):
        find_checkpoint(args, values, "pretrain.yaml", fixed)
    free = ["--logging_steps", "1", "--max_bad_share", "0.9", "--dataloader_num_workers", "0", "--report_to", "none"]
    values, *_, args = read("run.yaml", "--output_dir", "out", *free)
    assert find_checkpoint(args, values, "pretrain.yaml", fixed) == "out/checkpoint-6"
    values, *_, args = read(
        "run.yaml", "--output_dir", "new", "--resume_from_checkpoint", "out/checkpoint-6", *changed
    )
    assert find_checkpoint(args, values, "pretrain.yaml", fixed) == "out/checkpoint-6"


@pytest.mark.parametrize("content", ["", "depth: [", None])
def test_damaged_arguments_of_a_run_are_said_and_written_anew(whole, tmp_path, caplog, content):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    path = tmp_path / "out/pretrain.yaml"
    path.unlink() if content is None else path.write_text(content)
    values, *_, args = read(whole[0] / "run.yaml", "--output_dir", tmp_path / "out")
    assert find_checkpoint(args, values, "pretrain.yaml", [arguments.ModelArguments])
    assert "pretrain.yaml is missing or damaged, so the arguments cannot be compared" in caplog.text


def test_checkpoints_that_are_all_damaged_are_not_passed_over_silently(whole, tmp_path):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    for path in (tmp_path / "out").glob("checkpoint-*/optimizer.pt"):
        path.write_bytes(b"")
    command = [str(whole[0] / "run.yaml"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(
        SystemExit, match=r"No checkpoint in .*out can be used \(checkpoint-6: optimizer.pt is damaged"
    ):
        pretrain.main(command)


def test_a_run_goes_on_with_changed_data_only_if_told_so(whole, tmp_path, audio):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    data = shutil.copytree(audio, tmp_path / "audio")
    (data / "39.wav").write_bytes((data / "38.wav").read_bytes() + b"\0\0")
    args = arguments.DataArguments(dataset_name=str(data))
    checkpoint = str(tmp_path / "out/checkpoint-6")
    with pytest.raises(SystemExit, match=r"The data changed since the run in .*out was started"):
        pretrain.check_source(args, checkpoint)
    args.data_changed = "go_on"
    assert pretrain.check_source(args, checkpoint) == pretrain.check_source(args, None)
    args.data_changed = "go on"
    with pytest.raises(SystemExit, match="--data_changed must be one of refuse, go_on"):
        pretrain.check_source(args, checkpoint)
    args = arguments.DataArguments(dataset_name=str(audio))
    assert pretrain.check_source(args, checkpoint)


def test_a_folder_in_use_is_refused(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    with locked(Path("out")), pytest.raises(SystemExit, match=f"out is in use by process {os.getpid()}"):
        pretrain.main(["run.yaml", "--output_dir", "out"])


def test_a_full_disk_is_one_line(run_file, monkeypatch):
    def full(*args):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(MTSLVRTrainer, "_save_optimizer_and_scheduler", full)
        run_command(pretrain.main, [run_file, "--output_dir", "out"])
    assert re.search(
        r"error: out/checkpoint-2 could not be written \(.*unexpected pos 64 vs 0\)\. [\d.]+ MB are free there; "
        r"a checkpoint takes about [\d.]+ MB\. There is no complete checkpoint yet; make room",
        str(ended.value.code),
    )
    assert not Path("out/checkpoint-2").exists()


def test_a_learning_rate_that_is_too_high_ends_with_a_line(run_file):
    options = ["--learning_rate", "1e20", "--max_steps", "20", "--eval_strategy", "no", "--max_nonfinite_steps", "3"]
    with pytest.raises(SystemExit, match=r"error: .*not finite"):
        run_command(pretrain.main, [run_file, "--output_dir", "out", *options])
    assert not Path("out/model.safetensors").exists()


def test_a_run_needs_data_and_something_to_evaluate_on(run_file):
    with pytest.raises(SystemExit, match="`dataset_name` is missing"):
        pretrain.main([run_file, "--output_dir", "out", "--dataset_name", ""])
    with pytest.raises(SystemExit, match="`scale_heads` needs `eval_split` or a `held_out_fraction`"):
        pretrain.main([run_file, "--output_dir", "out", "--held_out_fraction", "0", "--scale_heads", "true"])
    with pytest.raises(SystemExit, match="Evaluation needs `eval_split` or a `held_out_fraction`"):
        pretrain.main([run_file, "--output_dir", "out", "--held_out_fraction", "0"])
    assert not pretrain.main([run_file, "--output_dir", "out", "--eval_strategy", "no", "--max_steps", "1"])


def test_views_of_two_crops_with_few_augmentations(run_file, monkeypatch):
    seen = []
    make_views = MTSLVRTrainer.make_views

    def noting(self, values, *arguments):
        views = make_views(self, values, *arguments)
        seen.append((values.shape, views.labels.sum(dim=1).max().item()))
        return views

    monkeypatch.setattr(MTSLVRTrainer, "make_views", noting)
    options = ["--different_crops", "true", "--max_augmentations", "2"]
    pretrain.main([run_file, "--output_dir", "out", *options])
    assert {shape for shape, _ in seen} == {(4, 2, RATE // 2)} and {most for _, most in seen} <= {1, 2}
    assert "two random crops of a clip, 1 to 2 of 7 augmentations" in Path("out/README.md").read_text()
    with pytest.raises(SystemExit, match="`max_augmentations` or `augmentations`: A clip cannot get 1 to 9 of 7"):
        pretrain.main([run_file, "--output_dir", "more", "--max_augmentations", "9"])


def test_heads_are_scaled_on_the_held_out_clips(run_file, caplog):
    options = ["--scale_heads", "true", "--eval_clips", "16", "--max_bad_share", "0.9"]
    with caplog.at_level("WARNING", logger="pretrain"):
        pretrain.main([run_file, "--output_dir", "few", *options, "--eval_clips", "8"])
    assert "The heads are not scaled: got clips of shape (8, 8000)" in caplog.text
    assert AutoModel.from_pretrained("few").config.embedding_scale is None
    pretrain.main([run_file, "--output_dir", "enough", *options, "--held_out_fraction", "0.6"])
    scale = AutoModel.from_pretrained("enough").config.embedding_scale
    assert scale.keys() == {"contrastive", "predictive"} and max(scale.values()) == 1.0
    assert AutoModelForPreTraining.from_pretrained("enough").config.embedding_scale == scale


@pytest.fixture
def labelled(tmp_path):
    """A folder per class: rumbling and hissing."""
    for name, low, high in (("hiss", 2000, 4000), ("rumble", 100, 300)):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for number in range(12):
            generator = np.random.default_rng([number, low])
            spectrum = np.fft.rfft(generator.standard_normal(RATE // 2))
            spectrum[np.arange(len(spectrum)) < low // 2] = spectrum[high // 2 :] = 0
            waveform = np.fft.irfft(spectrum).astype(np.float32)
            path = tmp_path / "labelled" / name / f"{number}.wav"
            path.write_bytes(wav_bytes(0.3 * waveform / np.abs(waveform).max()))
    return str(tmp_path / "labelled")


def test_a_probe_chooses_the_best_checkpoint(run_file, labelled):
    best = ["--metric_for_best_model", "eval_probe_accuracy_both"]
    metrics = pretrain.main([run_file, "--output_dir", "out", "--probe_data", labelled, *best])
    measured = logged("out", "eval_probe_accuracy_both")
    state = json.loads(Path("out/trainer_state.json").read_text())
    assert 2 in measured and state["best_metric"] == max(measured.values()) > 0.5
    assert metrics["eval_probe_accuracy_both"] == state["best_metric"]  # of the weights that are saved
    assert saved_values(Path("out/pretrain.yaml"))["probe_data"] == labelled
    assert labelled not in Path("out/pretrain.yaml").read_text()


def test_probes_run_as_often_as_asked(run_file, labelled):
    options = ["--eval_strategy", "no", "--probe_data", labelled, "--probe_kind", "knn", "--probe_steps", "3"]
    pretrain.main([run_file, "--output_dir", "out", *options])
    assert logged("out", "eval_probe_accuracy_contrastive").keys() == {3}


def test_groups_that_are_named_are_kept_apart(labelled, tmp_path):
    files = [path.relative_to(labelled).as_posix() for path in sorted(Path(labelled).rglob("*.wav"))]
    rows = "".join(f"{file},{number % 4}\n" for number, file in enumerate(files))
    write(Path(labelled), "manifest.csv", "file,session\n" + rows)
    *_, args = read("--output_dir", tmp_path, "--max_steps", "1", "--use_cpu", "true")
    for column, apart in (("session", True), (None, False)):
        (probe,) = pretrain.make_probes(arguments.ProbeArguments(probe_data=labelled, probe_group_column=column), args)
        assert probe.data.group_disjoint == apart and (probe.data.groups is not None) == apart


def test_a_best_checkpoint_by_a_probe_needs_one(run_file):
    with pytest.raises(SystemExit, match="'eval_probe_accuracy_both', which needs `probe_data`"):
        pretrain.main([run_file, "--output_dir", "out", "--metric_for_best_model", "eval_probe_accuracy_both"])


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


NAME = "tester/pretrained"
LOAD_BY_NAME = """
import sys
sys.modules["mtslvr_hf"] = None
import torch
from transformers import AutoFeatureExtractor, AutoModel
expected = torch.load(sys.argv[1], weights_only=True)
extractor = AutoFeatureExtractor.from_pretrained("tester/pretrained", trust_remote_code=True)
model = AutoModel.from_pretrained("tester/pretrained", trust_remote_code=True)
inputs = extractor(expected["clip"], sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    assert torch.equal(model(**inputs).pooler_output, expected["pooled"])
"""


def test_nothing_is_published_or_asserted_without_a_license(run_file):
    with pytest.raises(ValueError, match=r"`push_to_hub` publishes the weights, and `license` is not given"):
        pretrain.main([run_file, "--output_dir", "out", "--push_to_hub", "--hub_model_id", NAME])
    assert not Path("out").exists()
    pretrain.main([run_file, "--output_dir", "out", "--max_steps", "1", "--eval_strategy", "no"])
    assert ModelCard.load("out/README.md").data.license is None


def test_push_to_hub_publishes_what_loads_by_name_without_the_package(run_file, tmp_path, hub, audio):
    published = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "checkpoint"]
    published += ["--license", "cc0-1.0"]
    command = [
        sys.executable,
        TRAINING / "pretrain.py",
        run_file,
        "--output_dir",
        "out",
        "--max_steps",
        "2",
        *published,
    ]
    env = hub.environment(tmp_path / "hf_home", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Published at {hub.endpoint}/{NAME}\n" in done.stderr
    assert {"README.md", "preprocessor_config.json", "pretrain.yaml", "model.safetensors"} <= hub.files(NAME).keys()
    assert ModelCard.load("out/README.md").data.license == "cc0-1.0"
    assert not any("training_args" in file or file.startswith("_") for file in hub.files(NAME))
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/run_state_0.json"} <= hub.files(NAME).keys()
    assert "hub_strategy checkpoint also publishes optimizer" in done.stderr
    assert str(audio) not in Path("out/pretrain.yaml").read_text() + Path("out/trainer_state.json").read_text()
    first_push = next(commit for commit in hub.repository("models", NAME).history("main") if "step 2" in commit.title)
    assert {"modeling_mtslvr.py", "README.md"} <= first_push.files.keys()  # whole while training goes on
    with torch.no_grad():
        model, extractor = AutoModel.from_pretrained("out"), AutoFeatureExtractor.from_pretrained("out")
        clip = torch.from_numpy(tone(7))
        pooled = model(**extractor(clip, sampling_rate=RATE, return_tensors="pt")).pooler_output
    torch.save({"clip": clip, "pooled": pooled}, "expected.pt")
    env = hub.environment(tmp_path / "other_home", OMP_NUM_THREADS="1")
    command = [sys.executable, "-I", "-c", LOAD_BY_NAME, "expected.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(run_file, tmp_path):
    options = [run_file, "--max_steps", "40", "--eval_steps", "4"]
    whole = pretrain.main([*options, "--output_dir", "whole"])
    command = [sys.executable, TRAINING / "pretrain.py", *options, "--output_dir", "killed"]
    for checkpoint in (8, 20):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True)
        deadline = time.monotonic() + 240
        while not Path(f"killed/checkpoint-{checkpoint}").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=300)
    assert logged("killed", "loss") == pytest.approx(logged("whole", "loss"), rel=1e-6)
    final = AutoModelForPreTraining.from_pretrained("killed").state_dict()
    for name, value in AutoModelForPreTraining.from_pretrained("whole").state_dict().items():
        assert torch.allclose(value, final[name], rtol=1e-6, atol=1e-7), name
    assert json.loads(Path("killed/all_results.json").read_text())["eval_loss"] == pytest.approx(whole["eval_loss"])
