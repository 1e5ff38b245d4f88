"""The command `mtslvr embed`, and several processes under `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from embed_runs import errors_in, make_model, manifest_of, rows_in, save_model, write_sounds
from interrupted_runs import contents
from small_models import assert_close
from transformers import AutoModel

from mtslvr_cli import main
from mtslvr_hf.embedding import embed_dataset
from mtslvr_hf.shards import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a model and sounds."""
    folder = tmp_path_factory.mktemp("embed")
    save_model(folder / "model")
    write_sounds(folder / "sounds", bad=(2,))
    return folder


@pytest.fixture
def command(folder, tmp_path):
    return ["embed", str(folder / "sounds"), "--model", str(folder / "model"), "--output", str(tmp_path / "out")]


def failure(command, capsys):
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_writes_and_says_what(command, tmp_path, capsys):
    options = ["--columns", "file,label", "--tasks", "contrastive", "--normalize", "--rows-per-shard", "4"]
    options += [
        "--batch-size",
        "2",
        "--num-workers",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--id-column",
        "file",
    ]
    assert main([*command, *options]) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out == (
        f"Wrote {out}: 6 embeddings of 4 values, 1 bad rows (1 unreadable; see errors.jsonl); 2 of 2 shards were made "
        f"in this run.\nLoad them with datasets.load_dataset({str(out)!r}, split='train').\n"
    )
    assert list(rows_in(out)[0]) == ["id", "embedding", "duration", "windows", "file", "label"]
    assert manifest_of(out)["model"]["dtype"] == "bfloat16"
    assert manifest_of(out)["model"]["name"] == "model"
    assert main([*command, *options]) == 0
    assert "no bad rows" not in (printed := capsys.readouterr().out)
    assert "0 of 2 shards" in printed


def test_mistakes(command, folder, tmp_path, capsys, monkeypatch):
    assert main(command) == 0
    capsys.readouterr()
    message = failure([*command, "--normalize"], capsys)
    assert (
        f"mtslvr embed: error: {tmp_path / 'out'} holds embeddings made with other settings: normalize was False"
        in message
    )
    assert "there is no file or folder ./nowhere" in failure(["embed", "./nowhere", *command[2:]], capsys)
    assert "no model in ./nowhere" in failure([*command, "--model", "./nowhere"], capsys)
    assert "cannot use the device 'gpu0'" in failure([*command, "--device", "gpu0"], capsys)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install -e '.[faiss]'" in failure([*command, "--faiss"], capsys)


def test_another_pooling(command, folder, tmp_path, capsys):
    assert main([*command, "--pooling", "bands", "--num-bands", "2", "--device", "cpu"]) == 0
    out = tmp_path / "out"
    assert "6 embeddings of 128 values" in capsys.readouterr().out
    model = AutoModel.from_pretrained(folder / "model", pooling="bands", num_bands=2)
    expected = model.encode(folder / "sounds" / rows_in(out)[0]["id"])
    assert_close(np.float32(rows_in(out)[0]["embedding"]), expected)
    facts = manifest_of(out)["model"]
    assert (facts["pooling"], facts["num_bands"], facts["use_heads"]) == ("bands", 2, False)
    text = (out / "README.md").read_text()
    assert "; pooled feature maps, pooling bands, num_bands 2, use_heads False" in text
    for other in (["--pooling", "bands"], ["--no-heads"], []):
        assert "other settings: model." in failure([*command, *other, "--device", "cpu"], capsys)


def test_nothing_but_bad_files(command, tmp_path, capsys):
    write_sounds(tmp_path / "bad", count=2, bad=(0, 1))
    assert "nothing could be embedded" in failure(["embed", str(tmp_path / "bad"), *command[2:]], capsys)
    assert len(errors_in(tmp_path / "out")) == 2


def test_processes_that_see_different_sources(folder, command, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "gather_object", lambda counts: [*counts, 12])
    with pytest.raises(ValueError, match="divided into 1, 12 partitions"):
        embed_dataset(make_model(), folder / "sounds", tmp_path / "out")


@pytest.mark.ddp
def test_two_processes_write_what_one_writes(folder, command, tmp_path):
    alone, together = folder / "alone", folder / "together"
    embed_dataset(make_model(), folder / "sounds", alone, rows_per_shard=2)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--module", "mtslvr_cli"]
    command = [*command, "--output", str(together), "--rows-per-shard", "2"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "HF_HUB_OFFLINE": "1",
    }
    env["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [sys.executable, *launch, *command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Wrote") == 1
    assert "4 of 4 shards were made" in done.stdout
    names = {file: data for file, data in contents(together).items() if file not in ("manifest.json", "README.md")}
    assert names == {file: contents(alone)[file] for file in names}
    one, two = manifest_of(alone), manifest_of(together)
    assert one["model"].pop("name") != two["model"].pop("name")
    assert one == two
