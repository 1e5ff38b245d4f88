"""Properties of shards: rows in order, runs that end early, damaged files, and readers that share a data set."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm.auto import tqdm

from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.data import EncodedAudio
from mtslvr_hf.data.shuffling import Cursor, ShuffledReader
from mtslvr_hf.files import sha256_of
from mtslvr_hf.shards.folder import ShardFolder
from mtslvr_hf.shards.partitions import Partition, SourceRow, open_source
from mtslvr_hf.shards.writer import ShardWriter

FEATURES = datasets.Features({"id": datasets.Value("string"), "value": datasets.Value("int64")})
BAR = tqdm(disable=True)
FEWER = settings(max_examples=settings.default.max_examples // 2)


class Outcome(NamedTuple):
    """Result of a row, whose audio is its value; a negative one is bad."""

    index: int
    value: int
    error: BadClipError | None


class Stopped(Exception):
    """End of a run."""


class Writer(ShardWriter[Outcome]):
    """Writer of the values of rows, which stops before it has read more than `rows`."""

    def __init__(self, folder, rows_per_shard, rows_per_group, rows=None):
        super().__init__(folder, FEATURES, rows_per_shard, lambda manifest: None)
        self.rows_per_group, self.rows = rows_per_group, rows

    def results(self, audio):
        for index, row in enumerate(audio):
            if self.rows is not None:
                self.rows -= 1
                if self.rows < 0:
                    raise Stopped
            value = row["value"]
            yield Outcome(index, value, BadClipError("silent", f"Clip {index}: -99 dBFS.") if value < 0 else None)

    def totals(self, results):
        return {"values": sum(result.value for result in results)}

    def table(self, good):
        return pa.table({"id": [row.id for row, _ in good], "value": [result.value for _, result in good]})

    def group_is_full(self, good):
        return len(good) == self.rows_per_group


def partition_of(number, values):
    rows = [SourceRow(f"{number}-{n}", {"value": value, "path": None}, {}) for n, value in enumerate(values)]
    return Partition(lambda: f"hash of {values}", lambda start: iter(rows[start:]))


def run(path, source, rows_per_shard, rows_per_group, rows=None):
    """Writes the missing shards; returns the manifest's facts and the number of shards that were made."""
    folder = ShardFolder(path, "values", "the test")
    folder.claim({"rows_per_shard": rows_per_shard})
    writer = Writer(folder, rows_per_shard, rows_per_group, rows)
    try:
        made = sum(writer.write(number, partition_of(number, own), BAR) for number, own in enumerate(source))
        return folder.finish(len(source), writer.totals([])), made
    finally:
        folder.release()


def contents(path):
    """Bytes of every file but those of the settings, by name."""
    return {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


sources = st.lists(st.lists(st.integers(-5, 20), max_size=12), min_size=1, max_size=4)


@given(sources, st.integers(1, 6), st.integers(1, 4))
def test_shards_hold_the_good_rows_in_order_and_the_list_of_errors_the_others(source, rows_per_shard, rows_per_group):
    with tempfile.TemporaryDirectory() as base:
        facts, made = run(Path(base) / "out", source, rows_per_shard, rows_per_group)
        files = [Path(base) / "out" / shard["file"] for shard in facts["shards"]]
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        errors = [json.loads(line) for line in (Path(base) / "out" / "errors.jsonl").read_text().splitlines()]
        assert [sha256_of(file) for file in files] == [shard["sha256"] for shard in facts["shards"]]
        assert [file.stat().st_size for file in files] == [shard["bytes"] for shard in facts["shards"]]
    flat = [(f"{number}-{n}", value) for number, own in enumerate(source) for n, value in enumerate(own)]
    assert [(row["id"], row["value"]) for row in rows] == [(name, value) for name, value in flat if value >= 0]
    assert (facts["rows"], facts["bad_rows"]) == (len(rows), len(flat) - len(rows))
    assert facts["values"] == sum(row["value"] for row in rows)
    assert made == len(files) == sum(max(1, -(-len(own) // rows_per_shard)) for own in source)
    bad = [(number, n) for number, own in enumerate(source) for n, value in enumerate(own) if value < 0]
    assert [(error["partition"], error["row"]) for error in errors] == bad
    assert [error["id"] for error in errors] == [f"{number}-{n}" for number, n in bad]
    assert all(error["message"] == f"{error['id']}: -99 dBFS." for error in errors)


def damaged(file, damage):
    """Bytes of a file, cut, without its end, or with one byte more that its format allows."""
    data = file.read_bytes()
    if damage == "longer":
        return data.replace(b'"values": ', b'"values": 1', 1) if file.suffix == ".json" else b"x" + data
    return data[: len(data) // 2] if damage == "cut" else data[:-9] + bytes(9)


@FEWER
@given(
    sources,
    st.integers(1, 5),
    st.lists(st.integers(0, 20), max_size=3),
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["removed", "cut", "zeros", "longer"])), max_size=4),
)
def test_a_run_that_was_stopped_and_damaged_ends_as_one_that_was_not(source, rows_per_shard, stops, damages):
    with tempfile.TemporaryDirectory() as base:
        whole, path = Path(base) / "whole", Path(base) / "stopped"
        facts, _ = run(whole, source, rows_per_shard, 2)
        for rows in stops:
            try:
                run(path, source, rows_per_shard, 2, rows)
            except Stopped:
                assert not [file for file in path.rglob("*") if file.name.endswith(".tmp")]
        run(path, source, rows_per_shard, 2)
        assert run(path, source, rows_per_shard, 2) == (facts, 0)
        files = sorted((path / "data").iterdir()) + sorted((path / "records").iterdir())
        chosen = {files[place % len(files)]: damage for place, damage in damages}
        for file, damage in chosen.items():
            if damage == "removed":
                file.unlink()
            else:
                file.write_bytes(damaged(file, damage))
        assert run(path, source, rows_per_shard, 2) == (facts, len({file.stem for file in chosen}))
        assert contents(path) == contents(whole)


def audio_rows(count):
    rows = {
        "audio": [{"bytes": b"%d" % n, "path": None} for n in range(count)],
        "name": [f"n{n}" for n in range(count)],
    }
    return datasets.Dataset.from_dict(rows).cast_column("audio", EncodedAudio())


@FEWER
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 30), st.booleans(), st.booleans())
def test_partitions_are_all_rows_once_and_can_be_read_from_any_row(count, size, start, shuffle, streamed):
    data = audio_rows(count)
    data = data.to_iterable_dataset(num_shards=min(size, count)) if streamed else data
    source = open_source(data, columns=["name"], id_column="name", rows_per_partition=size, shuffle=shuffle)
    parts = [list(partition.rows(0)) for partition in source.partitions]
    names = [row.id for part in parts for row in part]
    expected = [f"n{n}" for n in range(count)]
    assert sorted(names) == sorted(expected) and (names == expected or (shuffle and not streamed))
    for partition, rows in zip(source.partitions, parts):
        begin = start % len(rows)
        assert list(partition.rows(begin)) == rows[begin:]
        assert all(row.audio["bytes"] == row.columns["name"][1:].encode() for row in rows)
        assert streamed or len(rows) <= size
    assert len({partition.inputs() for partition in source.partitions}) == len(parts)


@FEWER
@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 9), st.data())
def test_readers_share_all_rows_once_in_each_epoch_and_go_on_at_any_row(count, shards, block, consumers, epoch, data):
    stream = audio_rows(count).to_iterable_dataset(num_shards=min(shards, count))
    readers = [ShuffledReader(stream, 5, block, consumer, consumers) for consumer in range(consumers)]
    read = [list(reader.read(epoch, Cursor())) for reader in readers]
    values = [int(row.audio["bytes"]) for rows in read for row, _ in rows]
    assert sorted(values) == list(range(count))
    rows, reader = data.draw(st.sampled_from(list(zip(read, readers))))
    if rows:
        place = data.draw(st.integers(0, len(rows) - 1))
        assert list(reader.read(epoch, rows[place][1])) == rows[place + 1 :]
    again = [row for reader in readers for row, _ in reader.read(epoch, Cursor())]
    assert again == [row for row, _ in itertools.chain(*read)]
