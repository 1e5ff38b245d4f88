"""Runs and tables of training/compare_recipes.py, from evaluations whose figures are known."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from markdown_rows import unpadded

from mtslvr_hf.evaluation import DataResult, EvaluationReport, FewShotProtocol, Row
from mtslvr_hf.evaluation.probes import ProbeResult
from mtslvr_hf.runs.parser import CONFIGS
from mtslvr_hf.runs.pretraining_arguments import read_arguments

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import compare_recipes as script
import repeated_runs

ACCURACIES = {"old": (0.40, 0.42, 0.44), "new": (0.50, 0.51, 0.52)}  # of three seeds


def probed(value):
    return [ProbeResult("linear", "accuracy", value, (0.0, 1.0), "", 70, 30)]


def report(shots):
    """Two data sets; the second is 0.1 better, 5-shot is 0.2 better, the probe 0.3."""
    more, probes = (0.0, True) if shots == 1 else (0.2, False)
    results = []
    for data, extra in (("drums", more), ("birds", more + 0.1)):
        rows = [
            Row("log-mel statistics", "", 80, 0.45 + extra, 0.01, True, probed(0.9) if probes else []),
            Row("untrained network", "both", 8, 0.3 + extra, 0.01, True, probed(0.8) if probes else []),
            Row("untrained network of out/new_0", "both", 8, 0.2 + extra, 0.01, True, probed(0.7) if probes else []),
        ]
        for name, accuracies in ACCURACIES.items():
            for seed, value in enumerate(accuracies):
                for embedding, less in (("predictive", 0.05), ("both", 0.0)):
                    value_probed = probed(value + extra + 0.3 - less) if probes else []
                    main = embedding == "both"
                    model = f"out/{name}_{seed}"
                    rows.append(Row(model, embedding, 8, value + extra - less, 0.01, main, value_probed))
        results.append(DataResult(data, "a folder", "", ["a", "b"], 20, False, "ab" * 32, {}, rows))
    return EvaluationReport(FewShotProtocol(shots=shots), "logistic", results, {})


@pytest.fixture
def tables():
    return [
        unpadded(line) for line in script.to_markdown(script.collect({1: report(1), 5: report(5)}), "old").split("\n")
    ]


def test_means_and_intervals_over_seeds(tables):
    # Student's t of 2 degrees of freedom is 4.303; the standard errors are 2 / sqrt(3) and 1 / sqrt(3).
    assert "| old | both | 3 | 42.0 ± 5.0 | 52.0 ± 5.0 | 47.0 ± 5.0 |" in tables
    assert "| new | both | 3 | 51.0 ± 2.5 | 61.0 ± 2.5 | 56.0 ± 2.5 |" in tables
    assert "| new | both | 3 | 71.0 ± 2.5 | 81.0 ± 2.5 | 76.0 ± 2.5 |" in tables  # 5-shot
    assert "| new | predictive | 3 | 46.0 ± 2.5 | 56.0 ± 2.5 | 51.0 ± 2.5 |" in tables
    assert "| log-mel statistics | | 1 | 45.0 | 55.0 | 50.0 |" in tables
    assert "| untrained network of new_0 | both | 1 | 20.0 | 30.0 | 25.0 |" in tables
    assert [line for line in tables if line.startswith("###")] == [
        "### 1-shot",
        "### linear probe",
        "### 5-shot",
        "### Differences in percentage points",
    ]


def test_differences_from_the_first_configuration(tables):
    # Welch: standard error sqrt((2**2 + 1**2) / 3) = 1.291, 2.941 degrees of freedom, t = 3.219.
    assert "| new | 1-shot | +9.0 ± 4.2 | +9.0 ± 4.2 | +9.0 ± 4.2 |" in tables
    assert "| log-mel statistics | 1-shot | +3.0 | +3.0 | +3.0 |" in tables
    assert not [line for line in tables if line.startswith("| old | 1-shot | ")]


def test_trains_every_seed_and_evaluates_all_runs(tmp_path, monkeypatch, capsys):
    commands, asked = [], []

    def run(command, **options):
        commands.append(command)
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir()
        for name in ("eval_results.json", "model.safetensors"):
            (folder / name).touch()
        return SimpleNamespace(returncode=0)

    def evaluate(models, data, protocol, **options):
        asked.append((list(models), data, protocol, options))
        return report(protocol.shots)

    monkeypatch.setattr(repeated_runs.subprocess, "run", run)
    monkeypatch.setattr(script, "evaluate", evaluate)
    configs = [tmp_path / "old.yaml", tmp_path / "new.yaml"]
    for config in configs:
        config.touch()
    output = tmp_path / "out"
    places = ["--output", str(output), "--data-root", str(tmp_path), "--parallel", "1"]
    arguments = [*map(str, configs), *places, "--max_steps", "7"]
    script.main(arguments)
    assert [Path(command[command.index("--output_dir") + 1]).name for command in commands] == [
        f"{name}_{seed}" for seed in range(3) for name in ("old", "new")
    ]
    assert commands[0][2:5] == [str(configs[0]), "--max_steps", "7"]
    assert [(protocol.shots, protocol.queries, options["probes"]) for *_, protocol, options in asked] == [
        (1, 5, ["linear"]),
        (5, 3, []),
    ]
    assert asked[0][1] == script.DEVELOPMENT
    assert asked[0][3]["classifier"] == "logistic"
    tables = (output / "comparison.md").read_text(encoding="utf-8")
    assert tables in capsys.readouterr().out
    assert set(json.loads((output / "comparison.json").read_text(encoding="utf-8"))) == {"1", "5"}
    script.main([*arguments, "--name", "confirmation", "--data", "birds"])
    assert len(commands) == 6 and asked[-1][1] == ("birds",)  # finished runs are kept
    assert (output / "confirmation.md").is_file() and (output / "comparison.md").read_text() == tables


def test_two_files_of_one_name(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").touch()
    arguments = [str(tmp_path / "a/same.yaml"), str(tmp_path / "b/same.yaml"), "--output", "x"]
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert "two configurations have one name: same, same; rename a file." in capsys.readouterr().err


def test_missing_file(capsys):
    with pytest.raises(SystemExit):
        script.main(["nowhere.yaml", "--output", "x"])
    assert "there is no file nowhere.yaml." in capsys.readouterr().err


def test_the_recipe_is_the_one_for_small_data():
    """recipe/small_data.yaml changes nothing of the paper's row but what small_data.yaml changes, and the steps."""
    configs = script.Path(script.__file__).parent / "configs"
    ours = yaml.safe_load((CONFIGS / "small_data.yaml").read_text())
    recipe = yaml.safe_load((configs / "recipe" / "small_data.yaml").read_text())
    assert recipe.pop("base") == "mt_parallel.yaml" and recipe.pop("max_steps")
    assert recipe.items() <= ours.items()
    shared = read_arguments([str(configs / "recipe" / "mt_parallel.yaml")])[0]
    different = {name for name in ours if name in shared and shared[name] != ours[name]} - set(recipe)
    assert different == {"size_to_data"}


def test_each_change_alone_is_a_part_of_the_recipe():
    """The files of recipe/alone change the paper's row by all parts of the recipe, and by one that it leaves out."""
    recipe = script.Path(script.__file__).parent / "configs/recipe"
    parts = yaml.safe_load((recipe / "small_data.yaml").read_text())
    for name in ("base", "max_steps", "scale_heads"):  # scales are measured after training
        del parts[name]
    together = {}
    for file in sorted((recipe / "alone").glob("*.yaml")):
        change = yaml.safe_load(file.read_text())
        assert change.pop("base") == "../mt_parallel.yaml" and not change.keys() & together.keys(), file.name
        together |= change
    assert together == parts | {"different_crops": True}
