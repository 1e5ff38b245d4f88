"""The `mtslvr` command: what it prints, and what it says of mistakes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel

import mtslvr_hf
from mtslvr_cli import main
from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MTSLVRConfig(base_width=4, embedding_size=12, window_seconds=0.5, num_mel_bins=32)
    MTSLVRModel(config).save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (folder / name).mkdir()
        for clip in range(4):
            soundfile.write(folder / name / f"{clip}.wav", generator.uniform(-0.5, 0.5, 4000), 16_000)
    return folder


@pytest.fixture
def evaluate(model, sounds):
    return [
        "evaluate",
        "--model",
        str(model),
        "--data",
        str(sounds),
        "--ways",
        "2",
        "--queries",
        "2",
        "--episodes",
        "50",
    ]


def usage_error(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def failure(arguments, capsys) -> str:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_version_and_help(capsys):
    for arguments, expected in (
        (["--version"], f"mtslvr-hf {mtslvr_hf.__version__}"),
        (["--help"], "evaluate"),
        (["evaluate", "--help"], "--group-disjoint"),
        (["convert", "--help"], "SOURCE.pt"),
        (["pretrain", "--help"], "--contrastive_method"),
        (["finetune", "--help"], "--adapter_name"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        output = capsys.readouterr().out
        assert expected in output
        assert "%%" not in output


def test_runs_take_their_own_arguments(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "smal_data", "--max_steps", "3"])
    error = "mtslvr pretrain: error: there is no configuration file smal_data; did you mean small_data?"
    assert stop.value.code == 2 and error in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--model", "m", "--data", "d"])
    assert stop.value.code == 2 and "mtslvr finetune: error: --output_dir is missing" in capsys.readouterr().err


def test_misspelled_options_and_commands(capsys):
    message = usage_error(["embed", "sounds", "--model", "m", "--output", "o", "--colums", "file"], capsys)
    assert message.startswith("usage: mtslvr embed ") and "unrecognized arguments: --colums" in message
    assert message.endswith("; did you mean --columns?\n")
    message = usage_error(["embed", "sounds", "--modle", "m", "--output", "o"], capsys)
    assert "the following arguments are required: --model; did you mean --model?" in message
    message = usage_error(["embed", "sounds", "--model", "m", "--output", "o", "--zzz"], capsys)
    assert message.endswith("unrecognized arguments: --zzz\n")
    assert "did you mean embed?" in usage_error(["embd"], capsys)
    assert "did you mean bands?" in usage_error(["export", "m", "--output", "o", "--pooling", "band"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["embed", "YOUR_SOUNDS", "--output", "o"],
            "there is no folder YOUR_SOUNDS; on the Hub it could not be looked up",
        ),
        (
            ["embed", "me/sounds", "--output", "o"],
            "there is no folder me/sounds; on the Hub it could not be looked up",
        ),
        (["cache", "./sound", "--output", "o"], "there is no file or folder ./sound (did you mean ./sounds?)."),
        (["similar", "knok.wav", "sounds"], "there is no file knok.wav (did you mean knock.wav?)."),
        (["evaluate", "--data", "esc5"], "there is no folder esc5; on the Hub it could not be looked up"),
        (["evaluate", "--data", "esc5"], "Names of the registry: esc50, "),
        (["info", "modell"], "there is no folder modell (did you mean model?); on the Hub it could not be looked up"),
        (["export", "./modell", "--output", "o.onnx"], "there is no ./modell/config.json (did you mean ./model?)."),
        (["info", "sounds"], "no model in sounds: there is no sounds/config.json."),
        (["info", "listed"], "listed/config.json holds a list; expected the configuration of a model."),
        (["info", "broken"], "broken/config.json is no JSON file (Expecting"),
        (["info", "absurd"], "`window_seconds` must be a number between 0 and 3,600; got 1000000000000.0."),
        (["embed", "sounds", "--output", "o", "--model", "half"], "half has weights that cannot be read ("),
        (["embed", "sounds", "--output", "o", "--model", "foreign"], "The option of mtslvr is --trust-remote-code."),
    ],
)
def test_what_does_not_exist_or_cannot_be_read(arguments, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run code"))
    monkeypatch.chdir(tmp_path)
    for name in ("sounds", "listed", "broken", "absurd", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "listed/config.json").write_text("[]")
    (tmp_path / "broken/config.json").write_text("{")
    (tmp_path / "absurd/config.json").write_text('{"model_type": "mtslvr", "window_seconds": 1e12}')
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (tmp_path / "foreign/config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": code}))
    (tmp_path / "knock.wav").touch()
    soundfile.write(tmp_path / "sounds/a.wav", np.zeros(100), 16_000)
    shutil.copytree(model, "model")
    shutil.copytree(model, "half")
    (tmp_path / "half/model.safetensors").write_bytes(b"half a download")
    needs_model = arguments[0] in ("embed", "similar") and "--model" not in arguments
    assert message in failure([*arguments, *(["--model", "model"] if needs_model else [])], capsys)
    assert not (tmp_path / "o").exists()


def test_names_do_not_command_the_terminal(tmp_path, capsys):
    torch.save({"\x1b[2Jconv": torch.ones(1)}, tmp_path / "original.pt")
    message = failure(["convert", str(tmp_path / "original.pt"), str(tmp_path / "out")], capsys)
    assert "\\x1b[2Jconv" in message and "\x1b" not in message
    assert "\x1b" not in failure(["info", str(tmp_path / "\x1b[2J")], capsys)


CHILD = """
import sys, threading, time
import mtslvr_cli

class Held(threading.Thread):  # joined at the end of the interpreter
    def run(self):
        time.sleep(60)

def command(options):
    print("started", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        if how == "swallowed":  # as by a callback of a C library
            time.sleep(60)
        Held().start()
        raise

mtslvr_cli._evaluate = command
how, sys.argv[1:] = sys.argv[1], ["evaluate", "--data", "x"]
sys.exit(mtslvr_cli.main())
"""


@pytest.mark.parametrize("how", ["swallowed", "held"])
def test_an_interruption_ends_the_command_with_one_line(how):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's `&` ignores
    ) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip().startswith("mtslvr evaluate: interrupted; run it again with the same --output or --cache")
    assert len(error.strip().splitlines()) == 1


OUTPUTS = """
import sys
import mtslvr_cli

mtslvr_cli._info = lambda options: mtslvr_cli._print("class 犬")
sys.argv[1:] = ["info", "x"]
sys.exit(mtslvr_cli.main())
"""


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", "class 犬"), ("cp1252", "class \\u72ac"), ("ascii", "class \\u72ac")]
)
def test_every_encoding_of_standard_output(encoding, expected):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", OUTPUTS], capture_output=True, env=env, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.decode(encoding).strip()) == (0, expected), done.stderr


SPINNING = """
import os
import sys
import mtslvr_cli

mtslvr_cli._info = lambda options: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
sys.argv[1:] = ["info", "x"]
sys.exit(mtslvr_cli.main())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_idle_threads_sleep_early_unless_the_environment_says_otherwise(given, expected):
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", SPINNING]
    done = subprocess.run(command, capture_output=True, text=True, env=env | given, cwd=ROOT, timeout=60)
    assert done.stdout.split() == [expected, "False"], done.stderr  # set before torch reads it


def test_closed_standard_output():
    command = shlex.join([sys.executable, "-c", OUTPUTS])
    for closed in (">&-", ">&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{command} {closed}"], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_info(model, tmp_path, capsys):
    main(["info", str(model)])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    network = AutoModel.from_pretrained(model)
    assert facts["model"] == "MT-Parallel (SimCLR), saved as MTSLVRModel"
    assert facts["input"] == "16000 Hz, windows of 0.5 s, log-mel and STFT spectrogram of 32 bands, hop 512"
    assert facts["weights"].startswith(f"{sum(value.numel() for value in network.state_dict().values()):,} values")
    assert facts["embedding"] == "12 values: contrastive 6, predictive 6; pooling mean, with heads"
    assert facts["license"] == "none in its card"
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    assert "is a model of type wav2vec2; expected an MT-SLVR model" in failure(["info", str(tmp_path)], capsys)


def test_similar(model, sounds, capsys):
    query = str(sounds / "one/2.wav")
    main(["similar", query, str(sounds), "--model", str(model), "--count", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split() == ["1.000", "one/2.wav"]
    wrong = ["similar", str(sounds / "five.wav"), str(sounds), "--model", str(model)]
    assert "there is no file" in failure(wrong, capsys)


class TestEvaluate:
    def test_prints_tables_and_writes_the_report(self, evaluate, model, tmp_path, capsys):
        output = tmp_path / "report"
        options = ["--seed", "3", "--probe", "knn", "--invariance", "10", "--output", str(output)]
        assert main([*evaluate, *options]) == 0
        captured = capsys.readouterr()
        printed = captured.out
        assert printed.startswith("2-way 1-shot accuracy: ")
        assert printed == (output / "report.md").read_text()
        assert f"Wrote {output / 'report.json'}, {output / 'report.md'}, {output / 'report.html'}" in captured.err
        data = json.loads((output / "report.json").read_text())
        assert data["protocol"]["seed"] == 3
        assert [row["model"] for row in data["results"][0]["rows"]][2:] == [str(model)] * 3
        assert (output / "report.html").read_text().startswith("<!DOCTYPE html>")
        (heat_map,) = output.glob("invariance-*.png")
        assert heat_map.read_bytes().startswith(b"\x89PNG")
        assert list((output / "embeddings").glob("*.safetensors"))
        assert not list(output.glob("*.partial"))

    def test_without_matplotlib_the_report_is_refused_before_the_work(self, evaluate, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        message = failure([*evaluate, "--output", str(tmp_path / "report")], capsys)
        assert "pip install -e '.[evaluation]'" in message
        assert not (tmp_path / "report").exists()

    def test_several_models_and_data_sets(self, evaluate, model, sounds, tmp_path, capsys):
        for source, copy in ((model, "other"), (sounds, "more")):
            shutil.copytree(source, tmp_path / copy)
        assert main([*evaluate, "--model", str(tmp_path / "other"), "--data", str(tmp_path / "more")]) == 0
        output = capsys.readouterr().out
        assert "average rank" in output and "## more" in output
        between = [line for line in output.splitlines() if str(model) in line and str(tmp_path / "other") in line]
        assert len(between) == 2  # the same weights: no difference, episode by episode
        assert all(line.count("+0.0 ± 0.0") == 1 for line in between)

    def test_another_pooling(self, evaluate, model, capsys):
        assert main([*evaluate, "--pooling", "bands", "--num-bands", "1"]) == 0
        assert f"{model} (pooling bands 1, no heads)" in capsys.readouterr().out
        assert main([*evaluate, "--no-heads"]) == 0
        assert "untrained network (pooling mean, no heads)" in capsys.readouterr().out
        assert "choose one of 1." in failure([*evaluate, "--pooling", "bands"], capsys)
        assert "invalid choice: 'max'" in usage_error([*evaluate, "--pooling", "max"], capsys)

    def test_given_embeddings_need_no_model(self, tmp_path, capsys):
        rows = {"embedding": np.eye(3)[np.arange(12) % 3].tolist(), "label": list("abc") * 4}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "made.parquet")
        (tmp_path / "made").mkdir()
        (tmp_path / "made.parquet").rename(tmp_path / "made/0.parquet")
        options = ["--ways", "3", "--queries", "2", "--episodes", "20"]
        assert main(["evaluate", "--data", str(tmp_path / "made"), *options]) == 0
        assert "| given embeddings |           | 100.0 ± 0.0 |" in capsys.readouterr().out

    def test_lists_the_registry(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--list-data"])
        assert stop.value.code == 0
        output = capsys.readouterr().out
        assert "esc50: mteb/esc50, 2,000 clips of 50 classes" in output
        assert "drum_hits: ROOT/drum_hits, 449 clips of 15 classes" in output

    def test_a_suite_that_nobody_can_reach(self, evaluate, model, tmp_path, capsys):
        arguments = ["evaluate", "--model", str(model), "--data", "labelled", "--data-root", str(tmp_path)]
        assert "no data set could be reached: drum_hits: " in failure(arguments, capsys)

    def test_only_the_classes_asked_for(self, evaluate, capsys):
        assert main([*evaluate, "--classes", "one, three"]) == 0
        assert "8 clips of 2 classes" in capsys.readouterr().out

    def test_classes_of_a_file_classifier_and_cache(self, evaluate, tmp_path, capsys):
        (tmp_path / "classes.txt").write_text("three\none\n")
        extra = ["--class-list", str(tmp_path / "classes.txt"), "--classifier", "logistic"]
        tables = []
        for _ in range(2):
            assert main([*evaluate, *extra, "--cache", str(tmp_path / "cache")]) == 0
            tables.append(capsys.readouterr().out)
        assert "clips of 2 classes" in tables[0]
        assert "multinomial logistic regression" in tables[0]
        assert tables[0] == tables[1]
        assert list((tmp_path / "cache").glob("*.safetensors"))

    def test_protocol_of_the_paper(self, model, sounds, tmp_path, capsys):
        for number in range(5):
            shutil.copytree(sounds / "one", tmp_path / f"class {number}")
        arguments = ["evaluate", "--model", str(model), "--data", str(tmp_path), "--protocol", "paper"]
        assert main([*arguments, "--queries", "1", "--episodes", "20"]) == 0
        assert "The paper's protocol" in capsys.readouterr().out
        for option, message in (
            (["--queries", "5"], "the paper's protocol has queries 1; got 5: leave queries out"),
            (["--ways", "2"], "the paper's protocol has ways 5; got 2"),
            (["--classifier", "centroid"], "the paper's protocol has its own classifier; got 'centroid'"),
        ):
            assert message in failure([*arguments, *option], capsys)

    def test_runs_as_a_command(self, evaluate):
        command = [sys.executable, "-m", "mtslvr_cli", *evaluate]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert result.stdout.startswith("2-way 1-shot accuracy: ")
        assert "%|" not in result.stderr  # progress bars are for terminals

    def test_wrong_arguments(self, evaluate, capsys):
        assert "the following arguments are required: --data" in usage_error(["evaluate"], capsys)
        assert "invalid int value: 'many'" in usage_error([*evaluate, "--ways", "many"], capsys)
        assert "expected names separated by commas" in usage_error([*evaluate, "--classes", ","], capsys)
        both = [*evaluate, "--classes", "one", "--class-list", "x.txt"]
        assert "not allowed with argument --classes" in usage_error(both, capsys)
        assert "invalid choice: 'forest'" in usage_error([*evaluate, "--classifier", "forest"], capsys)
        assert "required: COMMAND" in usage_error([], capsys)
        assert "invalid choice: 'fly'" in usage_error(["fly"], capsys)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--ways", "4"], ": 4-way episodes need at least 4 classes, and 3 can be drawn from"),
            (["--shots", "0"], ": shots is 0; expected at least 1"),
            (["--classes", "one,four"], "has no class four; it has: one, three, two"),
            (["--data", "./nowhere"], "nowhere. Names of the registry: esc50, "),
            (["--group-disjoint"], "has no groups, which group-disjoint episodes need"),
            (["--model", "./nowhere"], "no model in ./nowhere: there is no ./nowhere/config.json"),
            (["--device", "gpu0"], "cannot use the device 'gpu0'"),
            (["--batch-size", "0"], "batch_size is 0"),
            (["--classes", "one,two", "--invariance", "10"], "8 clips are too few to measure invariance"),
        ],
    )
    def test_mistakes(self, evaluate, changes, message, capsys):
        assert message in failure([*evaluate, *changes], capsys)

    def test_folder_that_is_no_model(self, evaluate, sounds, capsys):
        assert "no model in" in failure([*evaluate, "--model", str(sounds)], capsys)

    def test_file_that_is_no_audio(self, evaluate, sounds, tmp_path, capsys):
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        for name in ("one/a.wav", "one/b.wav", "one/c.wav", "two/a.wav", "two/b.wav", "two/c.wav"):
            (tmp_path / name).write_text("no audio")
        assert "none of its 6 clips can be decoded; the first error: unreadable: " in failure(
            [*evaluate, "--data", str(tmp_path)], capsys
        )


class TestConvert:
    def test_writes_a_folder_that_loads(self, tmp_path, capsys):
        golden = Path(__file__).parent / "golden"
        shapes = json.loads((golden / "backbones.json").read_text())["none_2d_1ch_resnet18"]["shapes"]
        state = {name: torch.ones(shape) if shape else torch.tensor(1) for name, shape in shapes.items()}
        torch.save(state, tmp_path / "original.pt")
        destination = str(tmp_path / "converted")
        assert main(["convert", str(tmp_path / "original.pt"), destination, "--tasks", "predictive"]) == 0
        assert f"Wrote {destination}." in capsys.readouterr().out
        assert AutoModel.from_pretrained(destination).config.tasks == ["predictive"]

    def test_absent_file(self, tmp_path, capsys):
        source, destination = tmp_path / "absent.pt", tmp_path / "out"
        assert "absent.pt" in failure(["convert", str(source), str(destination)], capsys)
        assert not destination.exists()

    def test_wrong_arguments(self, capsys):
        assert "required: DESTINATION" in usage_error(["convert", "a.pt"], capsys)
