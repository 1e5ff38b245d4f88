"""embed_dataset: every kind of source, the columns, bad rows and mistakes."""

import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from embed_runs import (
    FEATURES,
    SIZE,
    errors_in,
    make_dataset,
    manifest_of,
    rows_in,
    save_model,
    shard_files,
    sound_rows,
    wav,
    write_parquet,
    write_sounds,
)
from interrupted_runs import contents
from small_models import assert_close

from mtslvr_hf import MTSLVRForPreTraining
from mtslvr_hf.embedding import embed_dataset, encode

ROOT = Path(__file__).parents[2]

HUB = """
import os
from huggingface_hub import HfApi
from transformers import AutoModel
import mtslvr_hf
from mtslvr_hf.embedding import embed_dataset

api = HfApi()
api.create_repo("tester/sounds", repo_type="dataset")
api.upload_folder(repo_id="tester/sounds", repo_type="dataset", folder_path="parquet")
model = AutoModel.from_pretrained("model")
options = {"rows_per_shard": 3, "columns": ["name"]}
for change in (lambda: None, lambda: None, lambda: os.remove("out/data/embeddings-000000-0001.parquet")):
    change()
    print(embed_dataset(model, "tester/sounds", "out", **options).computed, "made")
"""


def assert_embeddings(rows, expected):
    assert_close(np.float32([row["embedding"] for row in rows]), np.float32(expected))


class TestFolderOfAudio:
    def test_rows_are_the_files_in_order_with_what_encode_gives(self, model, sounds, out):
        report = embed_dataset(model, sounds, out, columns=["label", "file"], rows_per_shard=3)
        rows = rows_in(out)
        names = [f"even/{n}.wav" for n in (0, 2, 4, 6)] + [f"odd/{n}.wav" for n in (1, 3, 5)]
        assert [row["id"] for row in rows] == [row["file"] for row in rows] == names
        assert [row["label"] for row in rows] == ["even"] * 4 + ["odd"] * 3
        assert [row["duration"] for row in rows] == pytest.approx([0.4, 1.2, 0.4, 1.2, 0.8, 1.6, 0.8])
        assert [row["windows"] for row in rows] == [1, 2, 1, 2, 1, 2, 1]
        assert_embeddings(rows, encode(model, [sounds / name for name in names]))
        assert len(shard_files(out)) == report.shards == report.computed == 3
        assert (report.rows, report.bad_rows, report.failures, report.embedding_size) == (7, 0, [], SIZE)
        assert report.seconds == pytest.approx(6.4)

    def test_options_of_the_embedding(self, model, sounds, out):
        report = embed_dataset(
            model, str(sounds), out, tasks="predictive", normalize=True, batch_size=2, num_workers=0
        )
        expected = encode(model, [sounds / row["id"] for row in rows_in(out)], tasks="predictive", normalize=True)
        assert_embeddings(rows_in(out), expected)
        assert report.embedding_size == SIZE // 2
        assert manifest_of(out)["tasks"] == ["predictive"]

    def test_mode_of_the_model_and_its_class_do_not_matter(self, model, sounds, out, tmp_path):
        whole = MTSLVRForPreTraining(model.config)
        whole.base_model.load_state_dict(model.state_dict())
        whole.train()
        embed_dataset(whole, sounds, out)
        assert whole.training
        embed_dataset(model, sounds, tmp_path / "other")
        assert [row["embedding"] for row in rows_in(out)] == [r["embedding"] for r in rows_in(tmp_path / "other")]

    def test_split_is_a_folder_if_all_are(self, model, tmp_path, out):
        (tmp_path / "sounds/test").mkdir(parents=True)
        (tmp_path / "sounds/train").mkdir()
        (tmp_path / "sounds/test/a.wav").write_bytes(wav(0))
        (tmp_path / "sounds/train/b.wav").write_bytes(wav(1))
        assert embed_dataset(model, tmp_path / "sounds", out).rows == 2
        embed_dataset(model, tmp_path / "sounds", tmp_path / "test", split="test")
        assert [row["id"] for row in rows_in(tmp_path / "test")] == ["test/a.wav"]


class TestDataSets:
    def test_parquet_with_columns_and_their_types(self, model, tmp_path, out, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        rows = sound_rows(10)
        source = write_parquet(tmp_path / "parquet", [rows[:6], rows[6:]], rows_per_group=4)
        embed_dataset(model, source, out, columns=["kind", "tags"], id_column="name")
        assert len(shard_files(out)) == 3  # row groups of 4 and 2, and 4
        loaded = datasets.load_dataset(str(out), split="train")
        assert loaded.features["kind"] == FEATURES["kind"]
        assert loaded.features["tags"] == FEATURES["tags"]
        assert loaded.features["embedding"] == datasets.List(datasets.Value("float32"), length=SIZE)
        assert loaded["id"][:] == [row["name"] for row in rows]
        assert loaded["kind"][:] == [row["kind"] for row in rows]
        assert loaded["tags"][:] == [row["tags"] for row in rows]
        expected = encode(model, [row["audio"] for row in rows])
        assert_close(loaded.with_format("numpy")["embedding"][:], expected)

    def test_folders_of_one_name_are_not_taken_for_each_other(self, model, tmp_path, monkeypatch):
        """datasets keeps what it loaded by the folder's name and README's header."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for count in (2, 3):
            source = write_parquet(tmp_path / f"parquet-{count}", [sound_rows(count)])
            embed_dataset(model, source, tmp_path / str(count) / "embeddings")
            assert len(datasets.load_dataset(str(tmp_path / str(count) / "embeddings"), split="train")) == count

    def test_no_audio_comes_along(self, model, tmp_path, out):
        source = write_parquet(tmp_path / "parquet", [sound_rows(3)])
        embed_dataset(model, source, out)
        assert list(rows_in(out)[0]) == ["id", "embedding", "duration", "windows"]
        assert [row["id"] for row in rows_in(out)] == ["0.wav", "1.wav", "2.wav"]  # the path beside the bytes
        assert not any(b"RIFF" in data for data in contents(out).values())

    @pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3, 1]), (6, [3, 3]), (2, [2])])
    def test_a_long_row_group_becomes_several_files(self, model, tmp_path, out, count, sizes):
        source = write_parquet(tmp_path / "parquet", [sound_rows(count)])
        report = embed_dataset(model, source / "train-0.parquet", out, rows_per_shard=3)
        assert [shard["rows"] for shard in manifest_of(out)["shards"]] == sizes
        assert [row["id"] for row in rows_in(out)] == [f"{number}.wav" for number in range(count)]
        assert report.rows == count

    def test_only_the_damaged_one_of_several_files_is_made_again(self, model, tmp_path, out):
        source = write_parquet(tmp_path / "parquet", [sound_rows(7)])
        embed_dataset(model, source, out, rows_per_shard=3)
        before = contents(out)
        shard_files(out)[1].write_bytes(b"")
        assert embed_dataset(model, source, out, rows_per_shard=3).computed == 1
        assert contents(out) == before

    def test_files_on_both_sides_of_a_whole_one_are_made_again(self, model, tmp_path, out):
        source = write_parquet(tmp_path / "parquet", [sound_rows(7)])
        embed_dataset(model, source, out, rows_per_shard=3)
        before = contents(out)
        for file in shard_files(out)[::2]:
            file.unlink()
        assert embed_dataset(model, source, out, rows_per_shard=3).computed == 2
        assert contents(out) == before

    def test_a_stream_is_read_once(self, model, out):
        read = []

        def rows():
            for row in sound_rows(7):
                read.append(row["name"])
                yield row

        stream = datasets.IterableDataset.from_generator(rows, features=FEATURES)
        embed_dataset(model, stream, out, rows_per_shard=2)
        assert read == [f"clip {number}" for number in range(7)]

    def test_encoded_audio_does_not_pile_up(self, model, tmp_path, out):
        rows = sound_rows(24)
        for number, row in enumerate(rows):
            row["audio"]["bytes"] = wav(number, seconds=8)  # half a megabyte
        stream = make_dataset(rows).to_iterable_dataset()
        tracemalloc.start()
        try:
            embed_dataset(model, stream, out, batch_size=8, num_workers=0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(rows_in(out)) == 24
        assert peak < 8 * 2**20, peak

    def test_name_on_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "tests")
        from hub_server import HubServer

        save_model(tmp_path / "model")
        write_parquet(tmp_path / "parquet", [sound_rows(5)])
        with HubServer() as hub:
            environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
            done = subprocess.run(
                [sys.executable, "-c", HUB], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
            )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines() == ["2 made", "0 made", "1 made"]
        assert manifest_of(tmp_path / "out")["source"]["name"] == "tester/sounds"
        assert [row["name"] for row in rows_in(tmp_path / "out")] == [f"clip {number}" for number in range(5)]

    def test_tar_shards(self, model, tmp_path, out):
        (tmp_path / "tars").mkdir()
        for number in range(2):
            with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
                for name in ("a.wav", "a.txt", "b.wav"):
                    member = tarfile.TarInfo(f"{number}/{name}")
                    data = wav(number)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        embed_dataset(model, tmp_path / "tars", out)
        assert [row["id"] for row in rows_in(out)] == ["0/a.wav", "0/b.wav", "1/a.wav", "1/b.wav"]

    def test_data_set_objects(self, model, tmp_path, out):
        rows = sound_rows(5)
        for row in rows:
            row["audio"]["path"] = None
        dataset = make_dataset(rows)
        embed_dataset(model, dataset, out, columns=["kind"], rows_per_shard=2)
        assert [row["id"] for row in rows_in(out)] == ["0", "1", "2", "3", "4"]
        assert [row["kind"] for row in rows_in(out)] == [0, 1, 0, 1, 0]
        assert embed_dataset(model, dataset, out, columns=["kind"], rows_per_shard=2).computed == 0
        stream = dataset.to_iterable_dataset(num_shards=2)
        embed_dataset(model, stream, tmp_path / "stream", columns=["kind"])
        streamed = rows_in(tmp_path / "stream")
        assert [row["id"] for row in streamed] == ["0-0", "0-1", "0-2", "1-0", "1-1"]
        assert_embeddings(streamed, [row["embedding"] for row in rows_in(out)])

    def test_a_row_group_that_cannot_be_read_is_tried_again(self, model, tmp_path, out, caplog):
        broken = tmp_path / "broken"
        broken.touch()

        def read(shards):
            for shard in shards:
                for number, row in enumerate(sound_rows(3)):
                    if shard == 1 and number == 2 and broken.exists():
                        raise OSError("connection lost")
                    yield row

        stream = datasets.IterableDataset.from_generator(read, features=FEATURES, gen_kwargs={"shards": [0, 1, 2]})
        report = embed_dataset(model, stream, out, rows_per_shard=10)
        assert report.rows == 8
        assert report.failures == ["partition 1 cannot be read on after row 2: OSError: connection lost"]
        assert "connection lost" in caplog.text
        assert "connection lost" in (out / "README.md").read_text()
        broken.unlink()
        report = embed_dataset(model, stream, out, rows_per_shard=10)
        assert (report.rows, report.computed, report.failures) == (9, 1, [])


class TestBadRows:
    def test_they_are_listed_and_the_good_ones_are_there(self, model, tmp_path, out):
        sounds = write_sounds(tmp_path / "sounds", count=8, bad=(2, 5))
        (sounds / "even/4.wav").write_bytes(b"")
        report = embed_dataset(model, sounds, out, rows_per_shard=3)
        assert [row["id"] for row in rows_in(out)] == [
            f"{f}.wav" for f in ("even/0", "even/6", "odd/1", "odd/3", "odd/7")
        ]
        assert (report.rows, report.bad_rows, report.reasons) == (5, 3, {"empty": 1, "unreadable": 2})
        errors = errors_in(out)
        assert [(e["id"], e["partition"], e["row"], e["reason"]) for e in errors] == [
            ("even/2.wav", 0, 1, "unreadable"),
            ("even/4.wav", 0, 2, "empty"),
            ("odd/5.wav", 2, 0, "unreadable"),
        ]
        assert errors[0]["message"].startswith("even/2.wav: no audio that could be read")
        assert not any(str(tmp_path).encode() in data for data in contents(out).values())
        assert [shard["bad_rows"] for shard in manifest_of(out)["shards"]] == [2, 0, 1]

    def test_rows_without_audio(self, model, tmp_path, out):
        rows = sound_rows(3)
        rows[1]["audio"] = None
        source = write_parquet(tmp_path / "parquet", [rows])
        embed_dataset(model, source, out)
        assert [row["id"] for row in rows_in(out)] == ["0.wav", "2.wav"]
        assert errors_in(out)[0] == {
            "id": "0-1", "partition": 0, "row": 1, "reason": "empty", "message": "0-1 is None; leave it out."
        }  # fmt: skip

    def test_nothing_but_bad_rows(self, model, tmp_path, out):
        sounds = write_sounds(tmp_path / "sounds", count=2, bad=(0, 1))
        report = embed_dataset(model, sounds, out)
        assert (report.rows, report.bad_rows) == (0, 2)
        assert len(errors_in(out)) == 2


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rows_per_shard": 0}, "`rows_per_shard` must be at least 1; got 0"),
            ({"batch_size": 0}, "batch_size"),
            ({"tasks": ["cooking"]}, "cooking"),
            ({"columns": ["speaker"]}, "A folder of audio files has no column 'speaker'; it has: file, label"),
            ({"columns": ["id"]}, "rename it in the source, or use it as `id_column`"),
            ({"config": "balanced"}, "holds audio files and has no configuration 'balanced'"),
            ({"split": "test"}, "not divided into splits"),
        ],
    )
    def test_options(self, model, sounds, out, options, message):
        with pytest.raises(ValueError, match=message):
            embed_dataset(model, sounds, out, **options)
        embed_dataset(model, sounds, out)  # a run that made nothing leaves nothing in the way

    def test_sources(self, model, sounds, out, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such file or folder: \./nowhere"):
            embed_dataset(model, "./nowhere", out)
        with pytest.raises(ValueError, match="lies in the source"):
            embed_dataset(model, sounds, sounds / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="neither parquet shards nor tar shards nor audio files"):
            embed_dataset(model, tmp_path / "empty", out)
        with pytest.raises(ValueError, match="neither config nor split"):
            embed_dataset(model, make_dataset(sound_rows(1)), out, split="train")
        assert not out.exists()

    def test_output_that_is_something_else(self, model, sounds, out):
        out.mkdir()
        (out / "thesis.txt").write_text("all of it")
        with pytest.raises(FileExistsError, match="was not written by `mtslvr embed`"):
            embed_dataset(model, sounds, out)
        assert contents(out) == {"thesis.txt": b"all of it"}


def test_a_data_set_without_rows(model, out):
    empty = make_dataset(sound_rows(1)).select([])
    report = embed_dataset(model, empty, out, columns=["kind"])
    assert (report.rows, report.bad_rows, report.seconds, report.shards) == (0, 0, 0, 1)
    loaded = datasets.load_dataset(str(out), split="train", streaming=True)  # else datasets refuses to load no rows
    assert (len(list(loaded)), loaded.column_names) == (0, ["id", "embedding", "duration", "windows", "kind"])


def test_names_that_are_not_utf8(model, sounds, out):
    os.rename(os.fsencode(sounds / "odd/1.wav"), os.fsencode(sounds) + b"/odd/caf\xe9.wav")
    (sounds / "odd/3.wav").write_bytes(b"no audio")
    os.rename(os.fsencode(sounds / "odd/3.wav"), os.fsencode(sounds) + b"/odd/\xe4.wav")
    report = embed_dataset(model, sounds, out, columns=["file", "label"])
    assert (report.rows, report.bad_rows) == (6, 1)
    rows = rows_in(out)
    assert [row["id"] for row in rows if "caf" in row["id"]] == ["odd/caf\\xe9.wav"]
    assert [error["id"] for error in errors_in(out)] == ["odd/\\xe4.wav"]
    assert embed_dataset(model, sounds, out, columns=["file", "label"]).computed == 0
