"""Saved values of a run: what may be published has no secrets and no paths of this machine."""

import json

import pytest
import yaml

from mtslvr_hf.runs.pretraining_arguments import read_arguments
from mtslvr_hf.runs.saved_values import mask_secrets, save_values, saved_values, shareable


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("https://me:secret@host/a.parquet", "https://***@host/a.parquet"),
        ("https://host/a.parquet?X-Sig=secret&b=1", "https://host/a.parquet?***"),
        ("zip://*.wav::https://me@host/a.zip?sig=secret", "zip://*.wav::https://***@host/a.zip?***"),
        ("hf://datasets/a/b@main/c.parquet", "hf://datasets/a/b@main/c.parquet"),
        ("agkphysics/AudioSet", "agkphysics/AudioSet"),
        (["s3://key:secret@bucket/x", 3], ["s3://***@bucket/x", 3]),
    ],
)
def test_secrets_in_urls_are_masked(value, masked):
    assert mask_secrets(value) == shareable(value) == masked


def test_values_repeat_a_run_here_and_show_nothing_elsewhere(tmp_path):
    values = {"dataset_name": str(tmp_path / "sounds"), "output_dir": "out", "hub_token": "hf_secret", "depth": 34}
    values |= {
        "data_files": ["https://me:secret@host/a.parquet", str(tmp_path / "b.parquet")],
        "data_changed": "go_on",
    }
    path = tmp_path / "run/pretrain.yaml"
    save_values(path, values, data="abc")
    text = path.read_text()
    assert (
        str(tmp_path) not in text and "secret" not in text and "secret" not in path.with_name("_run.json").read_text()
    )
    assert yaml.safe_load(text)["dataset_name"] == "sounds"
    again = saved_values(path)
    assert again["dataset_name"] == values["dataset_name"] and "data_changed" not in again
    read, *_ = read_arguments([str(path), "--use_cpu", "true"])
    assert read["dataset_name"] == values["dataset_name"] and read["data_files"][1] == str(tmp_path / "b.parquet")
    assert json.loads(path.with_name("_run.json").read_text())["data"] == "abc"


@pytest.mark.parametrize("content", ["", "[]", "a: [", None])
def test_a_damaged_file_has_no_values(tmp_path, content):
    if content is not None:
        (tmp_path / "pretrain.yaml").write_text(content)
    assert saved_values(tmp_path / "pretrain.yaml") == {}
