"""The command `mtslvr cache`; runs that were killed, damaged or shared out end as one run does."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audio_files import change_a_byte, numbered_clip, truncate, write_parquet
from hub_server import HubServer
from interrupted_runs import ROOT, contents, environment, interrupt, kill

from mtslvr_cli import main
from mtslvr_hf.caching import cache_audio


def data_files(out):
    return sorted((out / "balanced/train/data").glob("*.parquet"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three shards of two rows, one of them bad."""
    files = [numbered_clip(n) for n in range(6)]
    files[4] = b"no audio"
    return write_parquet(tmp_path_factory.mktemp("run") / "source", files, shards=3)


@pytest.fixture(scope="module")
def whole(source):
    """Files of an uninterrupted run."""
    assert cache_audio(source, source.parent / "whole").computed == 3
    return contents(source.parent / "whole")


@pytest.fixture
def out(source, request):
    """Beside the source, as the whole run's folder is: the place of the source is one of the settings."""
    return source.parent / re.sub(r"\W", "-", request.node.name)


def test_killed_command(source, whole, out, capsys):
    command = ["cache", str(source), "--output", str(out), "--num-workers", "2"]
    kill(5, command)
    assert len(data_files(out)) == 2  # settings twice, a shard with its record, and a shard without one
    assert len(list((out / "balanced/train/records").glob("*.json"))) == 1
    assert not (out / "manifest.json").exists()
    kept = data_files(out)[0].stat().st_mtime_ns
    assert main(command) == 0
    assert "5 clips" in (printed := capsys.readouterr().out)
    assert "1 bad rows (1 unreadable; see balanced/train/errors.jsonl)" in printed
    assert "2 of 3 shards were made in this run" in printed
    assert data_files(out)[0].stat().st_mtime_ns == kept
    assert contents(out) == whole


def test_interrupted_at_any_file(source, whole, out, monkeypatch):
    for files in range(12):  # two settings, three times a shard and its record, errors, two manifests and the README
        folder = out.with_name(f"after-{files}")
        interrupt(monkeypatch, files, cache_audio, source, folder)
        assert cache_audio(source, folder).computed == 3 - max(0, min(3, (files - 2) // 2)), files
        assert contents(folder) == whole, files


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize("kind", ["data/audio-000001-0000.parquet", "records/audio-000001-0000.json"])
def test_what_is_incomplete_is_made_again(source, whole, out, damage, kind):
    cache_audio(source, out)
    damage(out / "balanced/train" / kind)
    assert cache_audio(source, out).computed == 1
    assert contents(out) == whole


def test_damaged_shard_is_found_on_request(source, whole, out, capsys):
    command = ["cache", str(source), "--output", str(out)]
    assert main(command) == 0
    change_a_byte(data_files(out)[1])
    for options, made in (([], 0), (["--verify"], 1)):
        assert main([*command, *options]) == 0
        assert f"{made} of 3 shards were made in this run" in capsys.readouterr().out.splitlines()[-2]
    assert contents(out) == whole


def test_shards_of_one_partition(tmp_path):
    files = [numbered_clip(n) for n in range(5)]
    files[3] = b"no audio"
    source = write_parquet(tmp_path / "source", files, shards=1)
    out = tmp_path / "out"
    assert cache_audio(source, out, rows_per_shard=2).computed == 3
    before = contents(out)
    kept = [[row["video_id"] for row in pq.read_table(file).to_pylist()] for file in data_files(out)]
    assert kept == [["v0", "v1"], ["v2"], ["v4"]]
    assert '"row": 3' in (out / "balanced/train/errors.jsonl").read_text()
    truncate(data_files(out)[1])
    assert cache_audio(source, out, rows_per_shard=2).computed == 1
    assert contents(out) == before


def test_manifests_are_gone_while_shards_change(source, whole, out, monkeypatch):
    cache_audio(source, out)
    truncate(data_files(out)[0])
    interrupt(monkeypatch, 0, cache_audio, source, out)
    assert not (out / "manifest.json").exists()
    assert not (out / "balanced/train/manifest.json").exists()


def test_number_of_workers_changes_nothing(source, whole, out):
    for workers in (0, 1, 3):
        folder = out.with_name(f"workers-{workers}")
        cache_audio(source, folder, num_workers=workers)
        assert contents(folder) == whole


def failure(command, capsys):
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_mistakes(source, out, tmp_path, capsys):
    command = ["cache", str(source), "--output", str(out)]
    assert main([*command, "--columns", "labels"]) == 0
    capsys.readouterr()
    assert f"mtslvr cache: error: {out}/balanced/train holds audio made with other settings: columns" in failure(
        command, capsys
    )
    assert "there is no file or folder ./nowhere" in failure(["cache", "./nowhere", *command[2:]], capsys)
    assert "`num_workers` must be at least 0" in failure([*command, "--num-workers", "-1"], capsys)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.wav").write_bytes(b"no audio")
    message = failure(["cache", str(tmp_path / "bad"), "--output", str(tmp_path / "out")], capsys)
    assert f"nothing could be decoded; see {tmp_path}/out/default/train/errors.jsonl." in message
    for arguments, code in ((["cache", "--help"], 0), (["cache", "x"], 2), ([*command, "--num-workers", "all"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    assert "--rows-per-shard" in capsys.readouterr().out


@pytest.mark.slow  # as embeddings do, by the same code
@pytest.mark.ddp
def test_two_processes_write_what_one_writes(source, whole, out, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mtslvr_cli"]
    done = subprocess.run(
        [sys.executable, *launch, "cache", str(source), "--output", str(out)],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Wrote") == 1
    assert "3 of 3 shards were made" in done.stdout
    assert contents(out) == whole


HUB = """
import sys
from huggingface_hub import HfApi
from mtslvr_cli import main

HfApi().create_repo("tester/clips", repo_type="dataset")
HfApi().upload_folder(folder_path=sys.argv[1], repo_id="tester/clips", repo_type="dataset")
for _ in range(2):
    main(["cache", "tester/clips", "--output", sys.argv[2]])
"""


@pytest.mark.slow
def test_data_set_on_the_hub(source, tmp_path):
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", HUB, str(source), str(tmp_path / "out")],
            env={**hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT)), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "5 clips" in done.stdout
    assert "3 of 3 shards" in done.stdout and "0 of 3 shards" in done.stdout
