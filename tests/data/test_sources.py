"""load_audio on every kind of source; each must give the same rows, undecoded."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from audio_files import encode, noise, numbered_clip, row, write_parquet
from hub_server import HubServer

from mtslvr_hf import workers
from mtslvr_hf.data import audio_rows, decode_clip, load_audio, usable_workers
from mtslvr_hf.trainer import MTSLVRTrainingArguments
from mtslvr_hf.workers import default_workers, usable_cores

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files():
    """Encoded files by name: several formats, nested."""
    return {
        "dog/a.wav": encode(noise(0.2, seed=1), format="WAV"),
        "dog/deep/down/b.FLAC": encode(noise(0.2, seed=2)),
        "train/c.mp3": encode(noise(0.2, seed=3), format="MP3"),  # a class of ESC-50, no split
        "d.v2.ogg": encode(noise(0.2, seed=4), format="OGG", subtype="VORBIS"),
    }


@pytest.fixture
def folder(tmp_path, files):
    for name, data in files.items():
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    (tmp_path / "audio" / ".hidden.wav").write_text("no audio")
    return tmp_path / "audio"


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def rows_of(dataset):
    """All rows' bytes, by the order-free means of a set; checks the form of rows on the way."""
    assert dataset.column_names == ["audio"]
    rows = [example["audio"] for example in dataset]
    assert all(set(audio) == {"bytes", "path"} for audio in rows)
    for audio in rows:
        decode_clip(audio, 0.1)
    return {audio["bytes"] or Path(audio["path"]).read_bytes() for audio in rows}


@pytest.mark.parametrize("streaming", [True, False])
def test_audioset_layout(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = [numbered_clip(n) for n in range(20)]
    dataset = load_audio(write_parquet(tmp_path / "AudioSet", data), "balanced", streaming=streaming)
    assert isinstance(dataset, datasets.IterableDataset if streaming else datasets.Dataset)
    assert rows_of(dataset) == set(data)


def test_few_parquet_files_are_divided_into_row_groups(tmp_path):
    dataset = load_audio(
        write_parquet(tmp_path / "x", [numbered_clip(n) for n in range(20)], shards=2, rows_per_group=5)
    )
    assert dataset.num_shards == 4
    assert len(rows_of(dataset)) == 20


def test_what_a_parquet_folder_does_not_have(tmp_path):
    folder = write_parquet(tmp_path / "x", [numbered_clip(0)], shards=1)
    with pytest.raises(ValueError, match="unbalanced"):
        load_audio(folder, "unbalanced")
    with pytest.raises(ValueError, match="evaluation"):
        load_audio(folder, split="evaluation")
    with pytest.raises(ValueError, match=r"no column 'sound'; it has: video_id, audio, labels, human_labels"):
        load_audio(folder, audio_column="sound")


def test_single_parquet_file_and_builders(tmp_path):
    data = [numbered_clip(n) for n in range(4)]
    file = write_parquet(tmp_path / "x", data, shards=1) / "data" / "bal_train" / "00.parquet"
    assert rows_of(load_audio(file)) == set(data)
    assert rows_of(load_audio("parquet", data_files=str(file))) == set(data)


@pytest.mark.parametrize("streaming", [True, False])
def test_folder_of_files(folder, files, streaming):
    dataset = load_audio(folder, streaming=streaming)
    assert rows_of(dataset) == set(files.values())
    if streaming:
        assert dataset.num_shards == 4


def test_folder_of_files_is_mixed_in_a_fixed_order(tmp_path):
    for n in range(60):
        path = tmp_path / f"{n // 30}" / f"{n}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    orders = [[example["audio"]["path"] for example in load_audio(tmp_path)] for _ in range(2)]
    assert orders[0] == orders[1]
    classes = [Path(path).parent.name for path in orders[0]]
    assert 10 < classes[:30].count("0") < 20


@pytest.mark.parametrize("streaming", [True, False])
def test_tar_shards(tmp_path, files, streaming, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = list(files)
    for n in range(2):
        content = {"readme.txt": b"x"} | {name: files[name] for name in names[n::2]}
        content |= {f"{name}.json": b"{}" for name in names[n::2]}
        write_tar(tmp_path / "shards" / f"clips-{n:03d}.tar{'.gz' * n}", content, "w:gz" if n else "w")
    dataset = load_audio(tmp_path / "shards", streaming=streaming)
    assert rows_of(dataset) == set(files.values())
    if streaming:
        assert dataset.num_shards == 2
        assert len(rows_of(load_audio(tmp_path / "shards" / "clips-000.tar"))) == 2


def test_splits_of_folders(tmp_path, files, folder):
    data = list(files.values())
    for split, content in (("train", data[:3]), ("test", data[3:])):
        write_tar(tmp_path / "tars" / f"{split}-0.tar", {f"{n}.wav": file for n, file in enumerate(content)})
        (tmp_path / "files" / split).mkdir(parents=True)
        for n, file in enumerate(content):
            (tmp_path / "files" / split / f"{n}.wav").write_bytes(file)
    for place in ("tars", "files"):
        assert rows_of(load_audio(tmp_path / place)) == set(data[:3])
        assert rows_of(load_audio(tmp_path / place, split="test")) == set(data[3:])
        with pytest.raises(ValueError, match=r"no split 'validation'; it has: test, train"):
            load_audio(tmp_path / place, split="validation")
    with pytest.raises(ValueError, match="not divided into splits"):
        load_audio(folder, split="test")


def test_nothing_there(tmp_path):
    for name in ("/no/such/folder", "./nothing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load_audio(name)
    with pytest.raises(
        ValueError, match="holds neither parquet shards nor tar shards nor audio files; found: nothing"
    ):
        load_audio(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"found: 1 x \.txt"):
        load_audio(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor"):
        load_audio(tmp_path / "x.txt")


def test_config_of_a_folder_of_files(folder):
    with pytest.raises(ValueError, match="has no configuration 'balanced'"):
        load_audio(folder, "balanced")


def columns(**types):
    """A data set of one row with the given columns."""
    values = {"string": "x", "binary": b"x"}
    example = {name: values.get(getattr(kind, "dtype", None), row(b"x")) for name, kind in types.items()}
    return datasets.Dataset(pa.Table.from_pylist([example], schema=datasets.Features(types).arrow_schema))


def test_audio_column_is_found():
    text, struct = datasets.Value("string"), {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    undecoded, binary = datasets.Audio(decode=False), datasets.Value("binary")
    for found in (
        columns(label=text, recording=undecoded),
        columns(a=undecoded, audio=undecoded),
        columns(label=text, clip=struct),
        columns(json=binary, m4a=binary),
    ):
        for dataset in (audio_rows(found), audio_rows(found.to_iterable_dataset())):
            assert next(iter(dataset))["audio"]["bytes"] == b"x"
            assert audio_rows(dataset) is dataset
    paths = audio_rows(columns(label=text, file=text), "file")
    assert paths[0] == {"audio": {"bytes": None, "path": "x"}}


def test_audio_column_is_not_found():
    text, undecoded = datasets.Value("string"), datasets.Audio(decode=False)
    with pytest.raises(ValueError, match=r"no audio column; name one with audio_column. Its columns: label, text"):
        audio_rows(columns(label=text, text=text))
    with pytest.raises(ValueError, match=r"several audio columns \(a, b\)"):
        audio_rows(columns(a=undecoded, b=undecoded))
    with pytest.raises(ValueError, match="columns of the data set are unknown"):
        audio_rows(columns(a=text).to_iterable_dataset().map(lambda example: example))


@pytest.mark.parametrize("builder", ["audiofolder", "webdataset"])
def test_builders_of_datasets_need_no_torchcodec(tmp_path, builder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    data = {f"{n}.wav": encode(noise(0.2, seed=n), format="WAV") for n in range(3)}
    write_tar(tmp_path / "clips.tar", data)
    for name, file in data.items():
        (tmp_path / name).write_bytes(file)
    pattern = tmp_path / ("*.wav" if builder == "audiofolder" else "*.tar")
    assert rows_of(load_audio(builder, data_files=str(pattern))) == set(data.values())


def test_usable_workers(tmp_path):
    dataset = load_audio(write_parquet(tmp_path / "x", [numbered_clip(n) for n in range(20)], shards=5))
    assert [usable_workers(dataset, asked) for asked in (0, 1, 5, 16)] == [0, 1, 5, 5]
    assert usable_workers(dataset, 16, world_size=2) == 2
    assert usable_workers(dataset, 16, world_size=8) == 1
    assert usable_workers(columns(audio=datasets.Audio(decode=False)), 4) == 1


def test_workers_are_chosen_from_the_cores_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (default_workers(on_cpu=False), default_workers(on_cpu=True)) == (15, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(on_cpu=False) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_workers(on_cpu=False) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    for quota, cores in (("max 100000", 16), ("650000 100000", 7), ("2400000 100000", 16)):
        workers.CPU_QUOTA.write_text(quota + "\n")
        assert usable_cores() == cores
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    assert MTSLVRTrainingArguments(**options).dataloader_num_workers == 2
    assert MTSLVRTrainingArguments(**options, dataloader_num_workers=0).dataloader_num_workers == 0


HUB = """
import sys
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from mtslvr_hf.data import AudioStream, load_audio

for kind in ("parquet", "webdataset", "audiofolder"):
    repo = f"tester/{kind}"
    HfApi().create_repo(repo, repo_type="dataset")
    HfApi().upload_folder(folder_path=f"{sys.argv[1]}/{kind}", repo_id=repo, repo_type="dataset")
    stream = AudioStream(load_audio(repo), 0.2, batch_size=3, endless=False)
    batches = list(DataLoader(stream, batch_size=None, num_workers=2))
    print(kind, sum(len(batch["input_values"]) for batch in batches))
try:
    load_audio("tester/nothing")
except FileNotFoundError as error:
    print(type(error).__name__, error)
"""


def test_data_sets_on_the_hub(tmp_path):
    data = {f"{n}.wav": encode(noise(0.3, seed=n), format="WAV") for n in range(10)}
    write_parquet(tmp_path / "parquet", list(data.values()))
    for n in range(2):
        write_tar(tmp_path / "webdataset" / f"{n}.tar", dict(list(data.items())[n::2]))
    (tmp_path / "audiofolder").mkdir()
    for name, file in data.items():
        (tmp_path / "audiofolder" / name).write_bytes(file)
    path = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home", PYTHONPATH=path)
        command = [sys.executable, "-c", HUB, str(tmp_path)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    *counts, missing = result.stdout.splitlines()
    assert counts == ["parquet 10", "webdataset 10", "audiofolder 10"]
    assert "tester/nothing" in missing
