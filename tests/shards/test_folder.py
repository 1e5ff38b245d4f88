"""ShardFolder: claims, complete shards and records, and files that are no longer needed."""

import errno

import pyarrow as pa
import pytest

from mtslvr_hf.shards.folder import ShardFolder, ShardRecord

SCHEMA = pa.schema({"number": pa.int64()})


def write(folder, partition, shard=0, last=True, failure=None):
    def fill(file):
        file.write_table(pa.table({"number": [partition, shard]}, schema=SCHEMA))
        return ShardRecord(partition, shard, "inputs", last, 2, {"seconds": 1.0}, [], failure)

    return folder.write(partition, shard, SCHEMA, fill)


@pytest.fixture
def folder(tmp_path):
    folder = ShardFolder(tmp_path / "out", "numbers", "the test")
    folder.claim({"rate": 1})
    return folder


def test_a_complete_shard_is_found(folder):
    record = write(folder, 0)
    assert folder.finished(0, 0, "inputs") == record
    assert (folder.path / folder.file(0, 0)).stat().st_size == record.bytes
    assert folder.finished(0, 0, "other inputs") is None
    assert folder.finished(1, 0, "inputs") is None


def test_a_shard_whose_source_broke_off_is_made_again(folder):
    write(folder, 0, failure="connection lost")
    assert folder.finished(0, 0, "inputs") is None


def test_a_record_of_another_shard_does_not_count(folder):
    write(folder, 0)
    write(folder, 1)
    records = folder.path / "records"
    (records / "numbers-000001-0000.json").write_bytes((records / "numbers-000000-0000.json").read_bytes())
    assert folder.finished(1, 0, "inputs") is None


def test_facts_of_all_shards(folder):
    for partition, shard, last in ((0, 0, False), (0, 1, True), (1, 0, True)):
        write(folder, partition, shard, last)
    facts = folder.finish(2)
    assert (facts["rows"], facts["bad_rows"], facts["seconds"]) == (6, 0, 3.0)
    assert [shard["file"] for shard in facts["shards"]] == [
        "data/numbers-000000-0000.parquet",
        "data/numbers-000000-0001.parquet",
        "data/numbers-000001-0000.parquet",
    ]
    assert facts["bytes"] == sum(shard["bytes"] for shard in facts["shards"])


def test_shards_of_partitions_that_are_gone_are_removed(folder):
    write(folder, 0)
    write(folder, 1)
    folder.finish(1)
    assert [file.name for file in (folder.path / "data").iterdir()] == ["numbers-000000-0000.parquet"]
    assert [file.name for file in (folder.path / "records").iterdir()] == ["numbers-000000-0000.json"]


def test_a_missing_shard_is_an_error(folder):
    write(folder, 0)
    with pytest.raises(FileNotFoundError, match="lacks the shard numbers-000001-0000"):
        folder.finish(2)


def test_other_settings(folder):
    other = ShardFolder(folder.path, "numbers", "the test")
    other.claim({"rate": 2})  # nothing was made yet
    write(folder, 0)
    with pytest.raises(ValueError, match="rate was 2 and now is 3"):
        other.claim({"rate": 3})


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="was not written by `the test`"):
        ShardFolder(tmp_path, "numbers", "the test").claim({})


def test_a_record_that_was_changed_does_not_count(folder):
    write(folder, 0)
    file = folder.path / "records" / "numbers-000000-0000.json"
    whole = file.read_text()
    for forged in (whole.replace('"seconds": 1.0', '"seconds": 9.0'), "[]", "{}", whole[:40], '"text"'):
        file.write_text(forged)
        assert folder.finished(0, 0, "inputs") is None
    file.write_text(whole)
    assert folder.finished(0, 0, "inputs") is not None


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"shards": 3}', '{"rows": 1}'])
def test_a_manifest_that_is_none(folder, content):
    (folder.path / "manifest.json").write_text(content)
    assert folder.read_manifest() == {}


def test_temporary_files_of_a_run_at_work_stay(folder):
    name = f".numbers-000000-0000.parquet.{'0' * 32}.tmp"
    (folder.path / "data").mkdir()
    (folder.path / "data" / name).touch()
    (folder.path / ".mine.tmp").touch()
    other = ShardFolder(folder.path, "numbers", "the test")
    other.claim({"rate": 1})
    other.tidy([])
    assert (folder.path / "data" / name).is_file()
    folder.release()
    other.tidy([])
    assert [file.name for file in (folder.path / "data").iterdir()] == []
    assert (folder.path / ".mine.tmp").is_file()


def test_another_run_may_begin_while_one_finishes(folder):
    folder.tidy([])
    ShardFolder(folder.path, "numbers", "the test").claim({"rate": 1})  # would wait for ever


def test_hidden_files_in_a_new_folder(tmp_path):
    (tmp_path / ".DS_Store").touch()
    ShardFolder(tmp_path, "numbers", "the test").claim({})


def test_nothing_half_written_stays_on_a_full_disk(folder):
    def fill(file):
        file.write_table(pa.table({"number": [1]}, schema=SCHEMA))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no room on the disk.*run the command again: '.*numbers-000000-0000.parquet'"):
        folder.write(0, 0, SCHEMA, fill)
    assert list((folder.path / "data").iterdir()) == []
