"""open_source: the partitions of each kind of source, their rows and hashes, and mistakes."""

import os
from itertools import chain

import datasets
import pytest
from embed_runs import FEATURES, make_dataset, sound_rows, write_parquet, write_sounds

from mtslvr_hf.shards.partitions import open_source


def ids(partition, start=0):
    return [row.id for row in partition.rows(start)]


def test_a_folder_of_files(tmp_path):
    source = open_source(write_sounds(tmp_path / "sounds", count=5), columns=["label"], rows_per_partition=2)
    assert [ids(partition) for partition in source.partitions] == [
        ["even/0.wav", "even/2.wav"],
        ["even/4.wav", "odd/1.wav"],
        ["odd/3.wav"],
    ]
    assert ids(source.partitions[1], start=1) == ["odd/1.wav"]
    assert next(source.partitions[1].rows(1)).columns == {"label": "odd"}
    assert (source.rows, source.split, source.config) == (5, "train", "default")


def test_hashes_change_with_the_files_of_a_partition(tmp_path):
    folder = write_sounds(tmp_path / "sounds", count=4)
    before = [partition.inputs() for partition in open_source(folder, rows_per_partition=2).partitions]
    assert before == [partition.inputs() for partition in open_source(folder, rows_per_partition=2).partitions]
    os.utime(folder / "odd/3.wav", (0, 0))
    after = [partition.inputs() for partition in open_source(folder, rows_per_partition=2).partitions]
    assert after[0] == before[0] and after[1] != before[1]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_data_set_object(streamed):
    dataset = make_dataset(sound_rows(5))
    dataset = dataset.to_iterable_dataset(num_shards=2) if streamed else dataset
    source = open_source(dataset, id_column="name", rows_per_partition=3)
    assert [ids(partition) for partition in source.partitions] == [
        ["clip 0", "clip 1", "clip 2"],
        ["clip 3", "clip 4"],
    ]
    assert ids(source.partitions[0], start=2) == ["clip 2"]
    with pytest.raises(ValueError, match="neither config nor split to choose"):
        open_source(dataset, split="test")


def test_shuffled_rows_are_all_rows_in_one_random_order(tmp_path):
    folder, dataset = write_sounds(tmp_path / "sounds", count=30), make_dataset(sound_rows(30))
    for source, options in ((folder, {}), (dataset, {"id_column": "name"})):
        ordered = [ids(partition) for partition in open_source(source, **options, rows_per_partition=10).partitions]
        options["shuffle"] = True
        shuffled, again = (open_source(source, **options, rows_per_partition=10).partitions for _ in range(2))
        drawn = [ids(partition) for partition in shuffled]
        assert sorted(chain(*drawn)) == sorted(chain(*ordered))
        assert all(len(set(part) & set(whole)) < 8 for part in drawn for whole in ordered)  # of 10
        assert drawn == [ids(partition) for partition in again]
        assert ids(shuffled[1], start=4) == drawn[1][4:]
        assert drawn[0][0] != ordered[0][0]
    stream = dataset.to_iterable_dataset(num_shards=3)
    kept = open_source(stream, id_column="name", shuffle=True).partitions
    assert [ids(partition) for partition in kept] == ordered


def test_rows_without_a_name_keep_their_number_when_shuffled():
    dataset = datasets.Dataset.from_list([{"audio": {"bytes": bytes([n]), "path": None}} for n in range(20)])
    (partition,) = open_source(dataset, shuffle=True).partitions
    assert [row.audio["bytes"][0] for row in partition.rows(0)] == [int(row.id) for row in partition.rows(0)]


def test_columns_that_are_copied(tmp_path):
    source = open_source(write_parquet(tmp_path / "parquet", [sound_rows(2)]), columns=None)
    assert source.features == datasets.Features({name: FEATURES[name] for name in ("name", "kind", "tags")})
    assert next(source.partitions[0].rows(1)).columns == {"name": "clip 1", "kind": 1, "tags": ["loud"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["speaker"]}, "no column 'speaker'; it has: name, audio, kind, tags"),
        ({"id_column": "speaker"}, "no column 'speaker'"),
        ({"columns": ["audio"]}, "the column 'audio' holds Audio and cannot be copied"),
        ({"audio_column": "sound"}, "no column 'sound'"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, options, message):
    source = write_parquet(tmp_path / "parquet", [sound_rows(1)])
    with pytest.raises(ValueError, match=message):
        open_source(source, **options)


def test_splits_of_a_data_set(tmp_path):
    source = write_parquet(tmp_path / "parquet", [sound_rows(1)])
    (source / "train-0.parquet").rename(source / "train.parquet")
    (source / "test.parquet").write_bytes((source / "train.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"has the splits .*: choose one with `split`"):
        open_source(source)
    assert len(open_source(source, split="test").partitions) == 1
