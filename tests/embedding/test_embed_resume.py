"""Runs of embed_dataset that were interrupted, damaged or repeated end as one run does."""

import json
import re
from pathlib import Path

import pytest
from audio_files import change_a_byte, truncate
from embed_runs import make_model, rows_in, save_model, shard_files, wav, write_sounds
from interrupted_runs import contents, interrupt, kill

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.embedding import embed_dataset

OPTIONS = {"rows_per_shard": 2, "columns": ["label"]}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("run") / "sounds", bad=(3,))


@pytest.fixture(scope="module")
def whole(model, sounds):
    """Files of an uninterrupted run."""
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
    kill(6, command)
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
    for files in range(12):
        out = sounds.parent / f"after-{files}"
        interrupt(monkeypatch, files, embed_dataset, model, sounds, out, **OPTIONS)
        made = embed_dataset(model, sounds, out, **OPTIONS).computed
        assert made == 4 - max(0, min(4, (files - 1) // 2))  # settings, then shard and record of each
        assert contents(out) == whole, files
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 0  # README and manifest come last


def test_manifest_is_gone_while_shards_change(model, sounds, whole, finished, monkeypatch):
    truncate(shard_files(finished)[0])
    interrupt(monkeypatch, 0, embed_dataset, model, sounds, finished, **OPTIONS)
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


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize("kind", ["data/embeddings-000002-0000.parquet", "records/embeddings-000002-0000.json"])
def test_incomplete_shard_or_record(model, sounds, whole, out, damage, kind):
    embed_dataset(model, sounds, out, **OPTIONS)
    damage(out / kind)
    assert embed_dataset(model, sounds, out, **OPTIONS).computed == 1
    assert contents(out) == whole


def test_damaged_shard_is_found_on_request(model, sounds, whole, finished):
    change_a_byte(shard_files(finished)[2])
    assert embed_dataset(model, sounds, finished, **OPTIONS).computed == 0
    assert embed_dataset(model, sounds, finished, verify=True, **OPTIONS).computed == 1
    assert contents(finished) == whole


def test_shard_of_the_recorded_size_without_a_footer(model, sounds, whole, finished):
    file = shard_files(finished)[2]
    file.write_bytes(bytes(file.stat().st_size))
    assert embed_dataset(model, sounds, finished, **OPTIONS).computed == 1
    assert contents(finished) == whole


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
