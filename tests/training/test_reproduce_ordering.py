"""Commands, files and messages of training/reproduce_ordering.py; test_pretrain.py tests the training itself."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mtslvr_hf.runs.parser import CONFIGS
from mtslvr_hf.runs.pretraining_arguments import read_arguments

TRAINING = Path(__file__).parents[2] / "training"
sys.path.insert(0, str(TRAINING))
import repeated_runs  # noqa: E402
import reproduce_ordering as script  # noqa: E402


@pytest.fixture
def started(monkeypatch):
    """The commands that are started; each leaves a finished run unless its row is in `failing`."""
    commands, failing = [], set()

    def run(command, **options):
        commands.append(command)
        folder = Path(command[command.index("--output_dir") + 1])
        if folder.name in failing:
            return SimpleNamespace(returncode=3)
        folder.mkdir()
        for name in ("eval_results.json", "model.safetensors"):
            (folder / name).touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(repeated_runs.subprocess, "run", run)
    return SimpleNamespace(commands=commands, failing=failing)


def test_every_row_once_and_three_of_them_from_three_seeds(started, tmp_path):
    script.main(["--output", str(tmp_path), "--parallel", "1"])
    runs = [Path(command[command.index("--output_dir") + 1]).name for command in started.commands]
    assert len(runs) == len(set(runs)) == 10 + 2 * 3
    assert set(runs[:10]) == {f"{row}_0" for row in script.ROWS}  # a whole table before the repetitions
    assert {name.rpartition("_")[0] for name in runs[10:]} == set(script.REPEATED)


def test_finished_runs_are_kept_and_failed_ones_named(started, tmp_path, capsys):
    started.failing.add("pred_only_0")
    options = ["--output", str(tmp_path), "--rows", "pred_only,mt_bn_simclr", "--seeds", "1", "--parallel", "1"]
    with pytest.raises(SystemExit, match="1 of 2 runs failed: pred_only_0"):
        script.main(options)
    assert "pred_only_0 ended with 3; see" in capsys.readouterr().err
    started.failing.clear()
    script.main(options)
    names = [Path(command[command.index("--output_dir") + 1]).name for command in started.commands]
    assert sorted(names) == ["mt_bn_simclr_0", "pred_only_0", "pred_only_0"]
    script.main(options)
    assert len(started.commands) == 3


@pytest.mark.parametrize("config", ["base.yaml", "gpu.yaml"])
def test_commands_are_what_pretrain_reads(started, tmp_path, config):
    shared = TRAINING / "configs/ordering" / config
    script.main(["--output", str(tmp_path), "--config", str(shared), "--seeds", "1", "--max_steps", "7"])
    for command in started.commands:
        values, *_ = read_arguments([*command[2:], "--use_cpu", "true", "--bf16", "false"])
        name = Path(values["output_dir"]).name
        own = yaml.safe_load((CONFIGS / "paper" / f"{name.removesuffix('_0')}.yaml").read_text())
        assert {key: values[key] for key in own if key != "base"} == {k: v for k, v in own.items() if k != "base"}
        assert (values["max_steps"], values["seed"], values["window_seconds"]) == (7, 0, 2.0)


def test_evaluates_the_finished_runs(started, tmp_path, monkeypatch, capsys):
    asked = {}

    def evaluate(models, data, protocol, **options):
        asked.update(models=models, data=data, protocol=protocol, **options)
        return SimpleNamespace(to_dict=lambda: {"some": "figures"})

    monkeypatch.setattr(script, "evaluate", evaluate)
    monkeypatch.setattr(script, "to_markdown", lambda report: "the tables\n")
    output = tmp_path / "runs"
    rows = ["--rows", "mt_parallel_simclr,pred_only", "--seeds", "2", "--episodes", "50"]
    script.main(["--output", str(output), "--data-root", str(tmp_path), *rows])
    names = ["pred_only_0", "mt_parallel_simclr_0", "mt_parallel_simclr_1"]
    assert asked["models"] == [output / name for name in names]
    assert (asked["data"], asked["protocol"].episodes, asked["root"]) == (("labelled",), 50, tmp_path)
    assert asked["classifier"] == "logistic"
    assert (output / "results.md").read_text() == "the tables\n"
    assert "the tables" in capsys.readouterr().out


def test_unknown_rows(capsys):
    with pytest.raises(SystemExit):
        script.main(["--output", "x", "--rows", "pred_only,mt_magic"])
    assert "no such row: mt_magic; there are cont_only_simclr, " in capsys.readouterr().err
