"""Data sets of the registry on a loopback Hub, and a Hub that does not answer."""

import subprocess
import sys
import textwrap

import datasets
import pytest
from hub_server import HubServer
from huggingface_hub.errors import HfHubHTTPError

from mtslvr_hf.data import EncodedAudio
from mtslvr_hf.evaluation import DataNotReachableError, open_data

OPENED = """
    import dataclasses
    import sys
    from pathlib import Path

    from huggingface_hub import HfApi

    from mtslvr_hf.evaluation import BENCHMARKS, DataNotReachableError, open_data

    for folder in sorted(Path(sys.argv[1]).iterdir()):
        benchmark = BENCHMARKS[folder.name]
        HfApi().create_repo(benchmark.repository, repo_type="dataset")
        commit = HfApi().upload_folder(folder_path=folder, repo_id=benchmark.repository, repo_type="dataset")
        BENCHMARKS[folder.name] = dataclasses.replace(benchmark, revision=commit.oid)  # the loopback Hub's own
        try:
            data = open_data(folder.name)
        except DataNotReachableError as error:
            print(str(error).replace(chr(10), " "))
        else:
            rows = [row["path"] for row in data.audio]
            print((data.name, data.label_names(), data.groups, rows, data.note == benchmark.note))
"""


def write_table(path, sounds, **columns):
    """A parquet file of as many clips as the columns have rows."""
    rows = len(next(iter(columns.values())))
    audio = [{"bytes": clip.read_bytes(), "path": clip.name} for clip in sorted(sounds.rglob("*.flac"))[:rows]]
    table = datasets.Dataset.from_dict({"audio": audio}, features=datasets.Features({"audio": EncodedAudio()}))
    for name, values in columns.items():
        table = table.add_column(name, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def test_sets_on_the_hub(sounds, tmp_path):
    """Names of classes, groups, splits together; a set without its column; a shard that is none."""
    up = tmp_path / "up"
    write_table(up / "esc50/data/train-0.parquet", sounds, category=["dog", "rain"], src_file=[7, 8], target=[0, 10])
    write_table(up / "nsynth/data/test-0.parquet", sounds, instrument_family=[3])
    (up / "voxceleb1/data").mkdir(parents=True)
    (up / "voxceleb1/data/test-0.parquet").write_bytes(b"PAR1 is not all there is to it")
    write_table(up / "watkins/data/train-0.parquet", sounds, species=["Walrus", "Narwhal"])
    write_table(up / "watkins/data/test-0.parquet", sounds, species=["Walrus"])
    with HubServer() as hub:
        command = [sys.executable, "-c", textwrap.dedent(OPENED), str(up)]
        environment = hub.environment(tmp_path / "home")
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    esc50, nsynth, voxceleb1, watkins = result.stdout.splitlines()
    assert esc50 == "('esc50', ['dog', 'rain'], ['7', '8'], ['0.flac', '1.flac'], True)"
    assert "split test) cannot be opened" in nsynth and "no column 'instrument_str'" in nsynth
    assert voxceleb1.startswith("voxceleb1: asahi417/voxceleb1-test-split (revision")
    assert watkins == "('watkins', ['Walrus', 'Narwhal', 'Walrus'], None, ['0.flac', '1.flac', '0.flac'], True)"


def test_a_hub_that_does_not_answer_leaves_the_names_of_the_registry(monkeypatch):
    def without_network(*_):
        raise ConnectionError("Couldn't reach 'esc-50' on the Hub")

    monkeypatch.setattr("mtslvr_hf.evaluation.data.load_labelled_audio", without_network)
    with pytest.raises(FileNotFoundError, match=r"'esc-50' on the Hub.* Names of the registry: esc50, .*paper"):
        open_data("esc-50")


def test_an_interrupted_download_is_not_reachable(monkeypatch):
    """A timeout of the Hub's client is no OSError."""

    def times_out(*_, **__):
        raise HfHubHTTPError.__bases__[0]("timed out")

    monkeypatch.setattr("mtslvr_hf.evaluation.data.load_labelled_audio", times_out)
    with pytest.raises(DataNotReachableError, match=r"crema_d: mteb/crema-d .* cannot be opened: timed out"):
        open_data("crema_d")
