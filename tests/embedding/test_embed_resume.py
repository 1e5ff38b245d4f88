"""Runs of embed_dataset that were interrupted, damaged or repeated end as one run does."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from audio_files import DAMAGES, truncate
from embed_runs import contents, make_model, rows_in, save_model, shard_files, wav, write_sounds

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.embedding.embed_dataset import embed_dataset
from mtslvr_hf.shards import folder as shards

ROOT = Path(__file__).parents[2]
OPTIONS = {"rows_per_shard": 2, "columns": ["label"]}

KILLED = """
import os, signal, sys
from mtslvr_hf.cli import main

replace, records = os.replace, []

def replace_or_die(source, destination):
    if "records" in str(destination):
        records.append(destination)
        if len(records) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, destination)

os.replace = replace_or_die
main(sys.argv[1:])
"""


class Interrupted(BaseException):
    """Not an Exception, so that nothing catches it, as nothing catches a killed process."""


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("run") / "sounds", bad=(3,))


@pytest.fixture(scope="module")
def whole(model, sounds):
    """What an uninterrupted run leaves."""
    out = sounds.parent / "whole"
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 4
    return contents(out)


@pytest.fixture
def out(sounds, request):
    """Beside the source, as the whole run's folder is: the place of the source is one of the settings."""
    return sounds.parent / re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def finished(model, sounds, out):
    embed_dataset(model, sounds, out, **OPTIONS)
    return out


def test_killed_process(sounds, whole, tmp_path):
    save_model(tmp_path / "model")
    out = sounds.parent / "killed"
    command = ["embed", str(sounds), "--model", str(tmp_path / "model"), "--output", str(out)]
    command += ["--rows-per-shard", "2", "--columns", "label", "--device", "cpu"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(shard_files(out)) == 3
    assert len(list((out / "records").glob("*.json"))) == 2  # the third shard is there, and has no record
    assert len(list((out / "records").glob(".*.tmp"))) == 1
    assert not (out / "manifest.json").exists()
    model = make_model()
    kept = [file.stat().st_mtime_ns for file in shard_files(out)[:2]]
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 2
    assert [file.stat().st_mtime_ns for file in shard_files(out)[:2]] == kept
    assert contents(out) == whole


def test_interrupted_at_any_file(model, sounds, whole, monkeypatch):
    replace = os.replace
    for files in range(12):
        out, left = sounds.parent / f"after-{files}", [files]

        def replace_or_stop(source, destination, left=left):
            if left[0] == 0:
                Path(source).write_bytes(Path(source).read_bytes()[:10])  # half-written
                raise Interrupted
            left[0] -= 1
            replace(source, destination)

        monkeypatch.setattr(shards.os, "replace", replace_or_stop)
        with pytest.raises(Interrupted):
            embed_dataset(model, sounds, out, **OPTIONS)
        monkeypatch.setattr(shards.os, "replace", replace)
        made = embed_dataset(model, sounds, out, **OPTIONS).computed
        assert made == 4 - max(0, min(4, (files - 1) // 2))  # settings, then shard and record of each
        assert contents(out) == whole, files
    assert files == 11  # README and manifest come last; a run of 12 renames is whole


def test_manifest_is_gone_while_shards_change(model, sounds, whole, finished, monkeypatch):
    truncate(shard_files(finished)[0])

    def stop(*_):
        raise Interrupted

    monkeypatch.setattr(shards.os, "replace", stop)
    with pytest.raises(Interrupted):
        embed_dataset(model, sounds, finished, **OPTIONS)
    assert not (finished / "manifest.json").exists()


def test_repeated(model, sounds, whole, finished):
    times = {file: file.stat().st_mtime_ns for file in shard_files(finished)}
    assert embed_dataset(model, sounds, finished, **OPTIONS).computed == 0
    assert {file: file.stat().st_mtime_ns for file in shard_files(finished)} == times
    assert contents(finished) == whole


def test_batches_workers_and_model_names_may_differ(sounds, whole, finished, tmp_path):
    model = type(make_model()).from_pretrained(save_model(tmp_path / "renamed"))
    options = {**OPTIONS, "batch_size": 3, "num_workers": 0}
    assert embed_dataset(model, sounds, finished, **options).computed == 0


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["data/embeddings-000002-0000.parquet", "records/embeddings-000002-0000.json"])
def test_damaged_shard_or_record(model, sounds, whole, out, damage, kind):
    embed_dataset(model, sounds, out, **OPTIONS)
    damage(out / kind)
    embed_dataset(model, sounds, out, **OPTIONS)
    assert contents(out) == whole


def test_damaged_shard_is_the_only_one_made_again(model, sounds, whole, finished):
    truncate(shard_files(finished)[1])
    assert embed_dataset(model, sounds, finished, **OPTIONS).computed == 1


def test_record_with_fields_of_another_version(model, sounds, whole, finished):
    file = finished / "records/embeddings-000000-0000.json"
    file.write_text(json.dumps({"unit": 0}))
    assert embed_dataset(model, sounds, finished, **OPTIONS).computed == 1
    assert contents(finished) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": True}, "normalize was False and now is True"),
        ({"tasks": ["predictive"]}, r"tasks was \['contrastive', 'predictive'\] and now is \['predictive'\]"),
        ({"rows_per_shard": 3}, "rows_per_shard was 2 and now is 3"),
        ({"columns": []}, r"columns was \['label'\] and now is \[\]"),
        ({"id_column": "file"}, "id_column was None and now is 'file'"),
        ({"feature_extractor": MTSLVRFeatureExtractor(normalization="sample")}, "feature_extractor.normalization was"),
        ({"model": make_model(seed=1)}, "model.weights_sha256 was"),
        ({"model": make_model().bfloat16()}, "model.dtype was 'float32' and now is 'bfloat16'"),
    ],
)
def test_other_settings(model, sounds, whole, finished, options, message):
    with pytest.raises(ValueError, match=message) as error:
        embed_dataset(**{"model": model, "source": sounds, "output": finished, **OPTIONS, **options})
    assert "Choose another output folder, or repeat the earlier settings" in str(error.value)
    assert contents(finished) == whole


def test_other_settings_before_there_is_a_shard(model, sounds, whole, out):
    with pytest.raises(ValueError, match="batch_size"):
        embed_dataset(model, sounds, out, normalize=True, batch_size=0)
    embed_dataset(model, sounds, out, **OPTIONS)
    assert contents(out) == whole


def test_other_source(model, whole, finished, tmp_path):
    with pytest.raises(ValueError, match=r"source\.name was '\.\./sounds' and now is"):
        embed_dataset(model, write_sounds(tmp_path / "others"), finished, **OPTIONS)
    assert contents(finished) == whole


def test_damaged_settings(model, sounds, finished):
    (finished / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        embed_dataset(model, sounds, finished, **OPTIONS)


def test_changed_source(model, tmp_path):
    sounds, out = write_sounds(tmp_path / "sounds"), tmp_path / "out"
    embed_dataset(model, sounds, out, **OPTIONS)
    before = [row["embedding"] for row in rows_in(out)]
    (sounds / "even/4.wav").write_bytes(wav(99))
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 1
    after = [row["embedding"] for row in rows_in(out)]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True, True, True, True]
    (sounds / "odd/5.wav").unlink()  # the fourth shard has no file any more
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 0
    assert len(shard_files(out)) == len(list((out / "records").iterdir())) == 3
    assert [row["embedding"] for row in rows_in(out)] == after[:-1]
