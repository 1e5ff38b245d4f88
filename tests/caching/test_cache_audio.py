"""Cached audio: what is in it, how it is read, and what goes wrong."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from audio_files import FEATURES, encode, noise, numbered_clip, numbers, row, write_parquet
from markdown_rows import unpadded

from mtslvr_hf.caching import cache_audio
from mtslvr_hf.caching.audio_writer import _flac_name, encode_flac
from mtslvr_hf.data import AudioStream, BadClipError, decode_clip, load_audio, load_clips
from mtslvr_hf.shards.partitions import open_source

STEP = 2**-15


def table_of(out, name="*/train"):
    """All rows of a split, in order."""
    return [r for file in sorted(out.glob(f"{name}/data/*.parquet")) for r in pq.read_table(file).to_pylist()]


def manifest_of(out):
    return json.loads((out / "manifest.json").read_text())


def errors_in(out, name="balanced/train"):
    return [json.loads(line) for line in (out / name / "errors.jsonl").read_text().splitlines()]


def write_files(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


KINDS = {
    "48 kHz stereo, 24 bit": encode(noise(1.3, 48_000, channels=2), 48_000, subtype="PCM_24"),
    "44.1 kHz": encode(noise(1.1, 44_100), 44_100, "WAV"),
    "16 kHz float": encode(noise(0.5), 16_000, "WAV", "FLOAT"),
    "8 kHz": encode(noise(0.7, 8_000), 8_000),
    "longer than a block": encode(noise(7.0, 48_000, level=0.01), 48_000),
    "quiet on an offset": encode(noise(0.5, level=1e-3) + np.float32(0.5), 16_000, "WAV", "FLOAT"),
}


class TestEncodeFlac:
    @pytest.mark.parametrize("kind", KINDS)
    def test_decodes_to_what_decode_clip_makes_of_the_source(self, kind):
        audio = row(KINDS[kind])
        data, samples, clipped = encode_flac(audio, 16_000)
        cached, direct = decode_clip(row(data)), decode_clip(audio)
        assert (len(cached), clipped) == (samples, 0)
        assert cached.shape == direct.shape
        assert np.abs(cached - direct).max() <= 0.5 * STEP + 1e-6  # which is float32's rounding of the resampler

    def test_counts_what_is_beyond_full_scale_and_clips_it(self):
        samples = noise(0.1)
        samples[100:103], samples[200:202] = 1.5, -1.5
        data, _, clipped = encode_flac(row(encode(samples, format="WAV", subtype="FLOAT")), 16_000)
        cached = decode_clip(row(data))
        assert clipped == 5
        assert (cached[100:103] == 1 - STEP).all() and (cached[200:202] == -1).all()

    @pytest.mark.parametrize(
        ("audio", "reason"),
        [
            (row(b"no audio"), "unreadable"),
            (row(encode(noise(1.0))[:-2000]), "truncated"),
            (row(encode(np.zeros((16_000, 1)))), "silent"),
            (row(encode(np.full((16_000, 1), 0.5))), "silent"),
            (row(encode(np.full((160, 1), np.nan), format="WAV", subtype="FLOAT")), "non_finite"),
            ({}, "empty"),
        ],
    )
    def test_bad_files(self, audio, reason):
        with pytest.raises(BadClipError) as error:
            encode_flac(audio, 16_000)
        assert error.value.reason == reason

    def test_names(self):
        assert _flac_name("dog/1.WAV") == "dog/1.flac"
        assert _flac_name("/home/me/1.mp3") == _flac_name("https://host/a/1.mp3") == "1.flac"
        assert _flac_name("clip 1.5") == "clip 1.5.flac"


class TestContents:
    def test_keeps_columns_order_and_row_groups(self, tmp_path):
        files = [numbered_clip(n, seconds=0.01) for n in range(150)]
        source = write_parquet(tmp_path / "source", files, shards=1, rows_per_group=150)
        cache_audio(source, tmp_path / "out", split="train", num_workers=2)
        rows = table_of(tmp_path / "out")
        assert list(rows[0]) == ["audio", "video_id", "labels", "human_labels"]
        assert [r["video_id"] for r in rows] == [f"v{n}" for n in range(150)]
        assert [r["audio"]["path"] for r in rows[:2]] == ["v0.flac", "v1.flac"]
        assert rows[7]["labels"] == ["/m/0"] and rows[7]["human_labels"] == ["Noise"]
        assert numbers(decode_clip(r["audio"]) for r in rows) == list(range(150))
        (file,) = (tmp_path / "out/balanced/train/data").glob("*.parquet")
        metadata = pq.ParquetFile(file).metadata
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [64, 64, 22]

    def test_round_trip_through_the_stream(self, tmp_path):
        source = write_parquet(tmp_path / "source", [numbered_clip(n) for n in range(20)])
        report = cache_audio(source, tmp_path / "out")
        assert (report.rows, report.bad_rows, report.config, report.split) == (20, 0, "balanced", "train")
        dataset = load_audio(tmp_path / "out", split="train")
        assert sorted(numbers(load_clips(dataset, 0.25))) == list(range(20))
        batch = next(iter(AudioStream(dataset, 0.25, batch_size=4)))
        assert batch["input_values"].shape == (4, 4000)

    def test_datasets_and_embed_read_it(self, tmp_path):
        source = write_parquet(tmp_path / "source", [numbered_clip(n) for n in range(4)], config="balanced")
        cache_audio(source, tmp_path / "out")
        builder = datasets.load_dataset_builder(str(tmp_path / "out"))
        assert builder.config.name == "balanced"
        features = next(iter(builder.as_streaming_dataset().values())).features
        assert features["audio"].sampling_rate == 16_000
        assert {name: features[name] for name in ("video_id", "labels")} == {
            name: FEATURES[name] for name in ("video_id", "labels")
        }
        opened = open_source(tmp_path / "out", "balanced", "train", columns=["labels"])
        assert sum(len(list(unit.rows(0))) for unit in opened.partitions) == 4

    def test_folders_of_one_name_are_not_taken_for_each_other(self, tmp_path, monkeypatch):
        """datasets keeps what it loaded by the folder's name and README's header."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for count in (2, 3):
            source = write_parquet(tmp_path / f"source-{count}", [numbered_clip(n) for n in range(count)])
            cache_audio(source, tmp_path / str(count) / "audio")
            assert len(datasets.load_dataset(str(tmp_path / str(count) / "audio"), split="train")) == count

    def test_files_with_their_folders_as_labels(self, tmp_path):
        source = write_files(tmp_path / "source", {"dog/1.wav": KINDS["44.1 kHz"], "cat/1.flac": KINDS["8 kHz"]})
        cache_audio(source, tmp_path / "out", shuffle=False)
        rows = table_of(tmp_path / "out")
        assert [(r["file"], r["label"], r["audio"]["path"]) for r in rows] == [
            ("cat/1.flac", "cat", "cat/1.flac"),
            ("dog/1.wav", "dog", "dog/1.flac"),
        ]
        assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()

    def test_files_are_shuffled_unless_told_otherwise(self, tmp_path):
        names = [f"{folder}/{n:02}.wav" for folder in "ab" for n in range(15)]
        source = write_files(tmp_path / "source", {name: numbered_clip(n) for n, name in enumerate(names)})
        shuffled, kept = tmp_path / "shuffled", tmp_path / "kept"
        cache_audio(source, shuffled, rows_per_shard=10)
        cache_audio(source, kept, rows_per_shard=10, shuffle=False)
        orders = [[r["file"] for r in table_of(out)] for out in (shuffled, kept)]
        assert orders[1] == names and sorted(orders[0]) == names
        for start in range(0, 30, 10):  # each shard has files of both folders
            assert {name[0] for name in orders[0][start : start + 10]} == {"a", "b"}
        assert cache_audio(source, shuffled, rows_per_shard=10).computed == 0
        with pytest.raises(ValueError, match="shuffle was True and now is False"):
            cache_audio(source, shuffled, rows_per_shard=10, shuffle=False)

    def test_data_set_object_and_chosen_columns(self, tmp_path):
        table = pq.read_table(
            next(write_parquet(tmp_path / "source", [numbered_clip(3)], shards=1).rglob("*.parquet")),
        )
        cache_audio(datasets.Dataset(table), tmp_path / "out", columns=["labels"], sampling_rate=8_000)
        (only,) = table_of(tmp_path / "out")
        assert set(only) == {"audio", "labels"}
        assert len(decode_clip(only["audio"], sampling_rate=8_000)) == 2000

    def test_bad_rows_are_left_out_and_listed(self, tmp_path):
        files = [numbered_clip(n) for n in range(6)]
        files[1], files[4] = b"no audio", encode(np.zeros((1600, 1)))
        report = cache_audio(write_parquet(tmp_path / "source", files, shards=2), tmp_path / "out")
        assert (report.rows, report.reasons) == (4, {"silent": 1, "unreadable": 1})
        assert [(e["id"], e["reason"]) for e in errors_in(tmp_path / "out")] == [
            ("v4.flac", "silent"),
            ("v1.flac", "unreadable"),
        ]
        assert errors_in(tmp_path / "out")[0]["message"].startswith("v4.flac: under -90 dBFS")
        split = manifest_of(tmp_path / "out")["splits"][0]
        assert (split["rows"], split["bad_rows"], split["clipped_rows"]) == (4, 2, 0)

    def test_shard_without_a_good_row_is_read_as_none(self, tmp_path):
        files = [numbered_clip(0), b"bad", numbered_clip(2), b"bad"]
        cache_audio(write_parquet(tmp_path / "source", files, shards=2), tmp_path / "out")
        assert sorted(numbers(load_clips(load_audio(tmp_path / "out"), 0.25))) == [0, 2]

    def test_counts_clips_beyond_full_scale(self, tmp_path):
        loud = encode(noise(0.1, level=2.0), format="WAV", subtype="FLOAT")
        report = cache_audio(
            write_files(tmp_path / "source", {"a.wav": loud, "b.wav": KINDS["8 kHz"]}), tmp_path / "o"
        )
        assert report.clipped_rows == 1 and report.clipped_samples > 100
        assert "| default | train | 2 | 0.00 | 0 | 1 |" in unpadded((tmp_path / "o/README.md").read_text())


class TestSplits:
    def source(self, tmp_path):
        return write_files(
            tmp_path / "source",
            {f"{split}/{n}.wav": numbered_clip(n) for split, n in (("train", 1), ("train", 2), ("test", 3))},
        )

    def test_two_in_one_folder(self, tmp_path):
        source, out = self.source(tmp_path), tmp_path / "out"
        cache_audio(source, out, split="train")
        cache_audio(source, out, split="test")
        for split, expected in (("train", [1, 2]), ("test", [3])):
            assert sorted(numbers(load_clips(load_audio(out, split=split), 0.25))) == expected
        manifest = manifest_of(out)
        assert [(s["split"], s["rows"]) for s in manifest["splits"]] == [("test", 1), ("train", 2)]
        for split in manifest["splits"]:
            assert all((out / shard["file"]).stat().st_size == shard["bytes"] for shard in split["shards"])
        assert cache_audio(source, out, split="train").computed == 0
        assert manifest_of(out) == manifest

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "train", "rows_per_shard": 5}, "rows_per_shard was 1000 and now is 5"),
            ({"split": "train", "columns": []}, r"columns was \['file', 'label'\] and now is \[\]"),
            ({"split": "test", "sampling_rate": 8000}, "sampling_rate was 16000 and now is 8000"),
        ],
    )
    def test_other_settings(self, tmp_path, options, message):
        source, out = self.source(tmp_path), tmp_path / "out"
        cache_audio(source, out, split="train")
        with pytest.raises(
            ValueError, match=f"holds audio made with other settings: {message}.* Choose another output folder"
        ):
            cache_audio(source, out, **options)

    def test_another_source(self, tmp_path):
        cache_audio(self.source(tmp_path), tmp_path / "out", split="train")
        other = write_files(tmp_path / "other", {"test/1.wav": numbered_clip(1)})
        with pytest.raises(ValueError, match=r"source was '\.\./source' and now is '\.\./other'"):
            cache_audio(other, tmp_path / "out", split="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 0}, r"`sampling_rate` must lie in 1\.\.65535"),
        ({"sampling_rate": 96_000}, r"`sampling_rate` must lie in 1\.\.65535"),
        ({"rows_per_shard": 0}, "`rows_per_shard` must be at least 1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"columns": ["speaker"]}, "has no column 'speaker'"),
        ({"split": "test"}, "there is no 'test'"),
    ],
)
def test_mistakes(tmp_path, options, message):
    source = write_files(tmp_path / "source", {"1.wav": numbered_clip(1)})
    with pytest.raises(ValueError, match=message):
        cache_audio(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_output_in_the_source_or_of_something_else(tmp_path):
    source = write_files(tmp_path / "source", {"1.wav": numbered_clip(1)})
    with pytest.raises(ValueError, match="lies in the source"):
        cache_audio(source, source / "out")
    Path(tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not written by `mtslvr cache`"):
        cache_audio(source, tmp_path / "out")
