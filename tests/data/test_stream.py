"""AudioStream: every row once an epoch, exact resumption, bad rows, held-out rows."""

import copy
import json
import logging
import pickle
import re
import threading
import time
from collections import Counter
from itertools import chain, islice, pairwise

import datasets
import numpy as np
import pytest
import torch
from audio_files import RATE, encode, noise, numbered_clip, numbers, row, write_parquet
from torch.utils.data import DataLoader

from mtslvr_hf.data import (
    AudioStream,
    SkippedRows,
    TooManyBadRowsError,
    decode_clip,
    dequantize_clips,
    load_audio,
    load_clips,
    stream,
)
from mtslvr_hf.data.shuffling import Cursor, ShuffledReader

SECONDS = 0.25  # of a numbered clip
BAD = {3: b"no audio", 11: b"", 19: encode(np.zeros(1000)), 30: numbered_clip(30)[:-400]}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """40 rows in 5 shards, of which 4 are bad."""
    files = [BAD.get(n, numbered_clip(n)) for n in range(40)]
    return write_parquet(tmp_path_factory.mktemp("parquet") / "AudioSet", files, shards=5, rows_per_group=40)


@pytest.fixture
def dataset(parquet):
    return load_audio(parquet)


def loader(dataset, workers=0, **options):
    made = AudioStream(dataset, SECONDS, **({"batch_size": 4, "shuffle_buffer": 6} | options))
    return made, DataLoader(made, batch_size=None, num_workers=workers)


def run(dataset, batches, workers=0, **options):
    """The first batches of a stream, and the stream."""
    made, batches_of = loader(dataset, workers, **options)
    return made, list(islice(batches_of, batches))


def clips_of(batch):
    return dequantize_clips(batch["input_values"], batch["scales"])


def paths(dataset, epoch=0, block_rows=6, consumer=0, consumers=1, seed=0):
    reader = ShuffledReader(dataset, seed, block_rows, consumer, consumers)
    return [row.audio["path"] for row, _ in reader.read(epoch, Cursor())]


@pytest.mark.parametrize("consumers", [1, 2, 3, 5, 7, 12])
def test_consumers_together_read_every_row_once_an_epoch(dataset, consumers):
    for epoch in range(3):
        parts = [paths(dataset, epoch, consumer=consumer, consumers=consumers) for consumer in range(consumers)]
        assert all(parts)
        assert sorted(chain(*parts)) == sorted(f"v{n}.flac" for n in range(40))


@pytest.mark.parametrize("consumers", [2, 3, 7])
def test_each_consumer_gets_to_every_row(dataset, consumers):
    own = chain(*(paths(dataset, epoch, consumer=1, consumers=consumers) for epoch in range(consumers)))
    assert sorted(own) == sorted(f"v{n}.flac" for n in range(40))


def test_order(dataset):
    assert paths(dataset) == paths(dataset)
    assert paths(dataset) != paths(dataset, epoch=1)
    assert paths(dataset) != paths(dataset, seed=1)
    unshuffled = [int(path[1:-5]) for path in paths(dataset, block_rows=1)]
    assert all(b - a == 5 for a, b in pairwise(unshuffled[:8]))  # as in the shard
    mixed = [int(path[1:-5]) % 5 for path in paths(dataset, block_rows=40)[:10]]
    assert len(set(mixed)) > 3  # of five shards


def test_a_block_is_read_in_while_the_one_before_goes_out(dataset):
    """The memory in use is that of one block, and no row is long in coming."""
    reader = ShuffledReader(dataset, 0, 10)
    read = 0
    original = reader._shard

    def counted(*arguments):
        nonlocal read
        for one in original(*arguments):
            read += 1
            yield one

    reader._shard = counted
    for used, _ in enumerate(reader.read(0, Cursor())):
        assert read == min(10 + used, 40)


def test_rows_that_a_thread_reads_ahead_are_the_same_and_bounded(dataset):
    reader, read = ShuffledReader(dataset, 0, 6, read_ahead=5), []
    original = reader._shard
    reader._shard = lambda *place: (read.append(one) or one for one in original(*place))
    rows = reader.read(0, Cursor())
    taken = list(islice(rows, 9))
    deadline = time.monotonic() + 5
    while len(read) < 6 + 8 + 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == 6 + 8 + 6  # the block, what replaced used rows, and ahead: five and one in the thread's hand
    assert taken + list(rows) == list(ShuffledReader(dataset, 0, 6).read(0, Cursor()))
    rows = reader.read(0, Cursor())
    threads = threading.active_count()
    next(rows)
    assert threading.active_count() == threads + 1
    rows.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_over_ranks_and_workers(dataset, workers):
    seen, skipped = Counter(), SkippedRows()
    for rank in range(2):
        made, batches = loader(dataset, workers, rank=rank, world_size=2, endless=False)
        for batch in batches:
            assert (batch["input_values"].dtype, batch["scales"].dtype) == (torch.int16, torch.float32)
            assert batch["scales"].shape == batch["input_values"].shape[:1]
            assert batch["input_values"].shape[1] == made.samples == 4000
            seen.update(numbers(clips_of(batch)))
            skipped.merge(batch["stream"]["skipped"])
    assert seen == Counter(set(range(40)) - set(BAD))
    # Rows that are bad after the last good one of a pass come with no batch.
    assert 36 <= skipped.rows <= 40 and skipped.skipped == skipped.rows - 36


@pytest.mark.parametrize("level", [1e-4, 0.1, 4.0])
def test_clips_come_as_16_bits_of_their_own_peak(tmp_path, level):
    """Quiet clips keep their precision, and those beyond full scale are not clipped."""
    files = [encode(noise(0.25, seed=n, level=level * (n + 1)), format="WAV", subtype="FLOAT") for n in range(8)]
    dataset = load_audio(write_parquet(tmp_path / "x", files, shards=1))
    batch = next(iter(AudioStream(dataset, SECONDS, batch_size=8, shuffle_buffer=1)))
    for file, values, clip in zip(files, batch["input_values"], clips_of(batch)):
        expected = torch.from_numpy(decode_clip(row(file), SECONDS))
        assert values.abs().max() == 32767
        assert clip.dtype == torch.float32
        assert (clip - expected).abs().max() <= expected.abs().max() / 65534 * 1.01


def test_endless_batches_are_full_and_count_bad_rows(dataset):
    _, batches = run(dataset, 18)  # 72 clips: two epochs
    assert all(len(batch["input_values"]) == 4 for batch in batches)
    clips = numbers(torch.cat([clips_of(batch) for batch in batches]))
    for epoch in (clips[:36], clips[36:]):
        assert sorted(epoch) == sorted(set(range(40)) - set(BAD))
    skipped = SkippedRows()
    for batch in batches:
        skipped.merge(batch["stream"]["skipped"])
    assert skipped.reasons["unreadable"] >= 1 and set(skipped.reasons) == {
        "unreadable",
        "empty",
        "silent",
        "truncated",
    }
    assert skipped.rows == 72 + skipped.skipped
    last = batches[-1]["stream"]
    assert (last["worker"], last["num_workers"], last["batches"], last["epoch"]) == (0, 1, 18, 1)
    assert 36 <= last["rows"] <= 40


@pytest.mark.parametrize(("workers", "total", "stops"), [(0, 22, range(22)), (2, 24, (1, 4, 9, 15, 22))])
def test_interrupted_and_resumed_equals_uninterrupted(dataset, workers, total, stops):
    made, whole = run(dataset, total, workers)
    assert whole[-1]["stream"]["epoch"] >= 1
    for stop in stops:
        state = json.loads(json.dumps(made.state_after(batch["stream"] for batch in whole[:stop])))
        resumed, rest = run(dataset, total - stop, workers, state=state)
        for expected, batch in zip(whole[stop:], rest):
            assert batch["stream"] == expected["stream"]
            assert torch.equal(batch["input_values"], expected["input_values"])
            assert torch.equal(batch["scales"], expected["scales"])
        if stop == 9:  # and once more
            state = resumed.state_after(batch["stream"] for batch in rest[:5])
            _, again = run(dataset, 3, workers, state=state)
            assert [batch["stream"] for batch in again] == [batch["stream"] for batch in whole[14:17]]


def test_state_needs_only_the_last_record_of_each_worker_in_any_order(dataset):
    made, batches = run(dataset, 9, workers=2)
    records = [batch["stream"] for batch in batches]
    assert made.state_after(records) == made.state_after(records[:6:-1])
    assert len(json.dumps(made.state_after(records))) < 500
    assert made.state_after([]) is None


def test_resuming_decodes_nothing_again(dataset, monkeypatch):
    made, batches = run(dataset, 8)
    decoded = []
    monkeypatch.setattr(stream, "decode_clip", lambda audio, *_: decoded.append(audio) or np.ones(4000, "float32"))
    run(dataset, 1, state=made.state_after(batch["stream"] for batch in batches))
    assert len(decoded) == 4


def test_resuming_reads_at_most_two_blocks_again(dataset, monkeypatch):
    reader = ShuffledReader(dataset, 0, 6)
    whole = list(reader.read(0, Cursor()))
    read = []
    original = reader._shard
    reader._shard = lambda *place: (read.append(one) or one for one in original(*place))
    for stop in (5, 20, 35):
        read.clear()
        rest = reader.read(0, whole[stop][1])
        assert next(rest) == whole[stop + 1]
        assert len(read) <= 12
        assert list(rest) == whole[stop + 2 :]


def test_a_state_of_another_stream_is_refused(dataset):
    made, batches = run(dataset, 3)
    state = made.state_after(batch["stream"] for batch in batches)
    for options in ({"seed": 1}, {"shuffle_buffer": 5}, {"world_size": 2}, {"rank": 1, "world_size": 2}):
        with pytest.raises(ValueError, match=f"another stream.*{next(iter(options))}"):
            run(dataset, 1, state=state, **options)
    with pytest.raises(ValueError, match="2 DataLoader workers, this one has 1"):
        run(dataset, 1, state=state | {"num_workers": 2})
    with pytest.raises(ValueError, match="endless"):
        run(dataset, 1, state=state, endless=False)
    with pytest.raises(ValueError, match="endless"):
        run(dataset, 1, endless=False)[0].state_after([])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"shuffle_buffer": 0},
        {"rank": 2, "world_size": 2},
        {"held_out_fraction": 1.5},
        {"held_out": True},
        {"crops": 0},
    ],
)
def test_arguments_out_of_range(dataset, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loader(dataset, **options)


def test_crops_depend_on_seed_epoch_and_row_alone(tmp_path):
    files = [encode(noise(2, seed=n)) for n in range(12)]
    dataset = load_audio(write_parquet(tmp_path / "x", files, shards=4))

    def crops(batches=3, **options):
        made = AudioStream(dataset, SECONDS, batch_size=4, **options)
        return {tuple(clip.tolist()) for batch in islice(made, batches) for clip in batch["input_values"]}

    first = crops()
    assert crops(shuffle_buffer=3) == first
    assert crops(endless=False, rank=0, world_size=2) | crops(endless=False, rank=1, world_size=2) == first
    assert not crops(seed=1) & first
    both = crops(batches=6)
    assert len(both) == 24 and first < both


def test_two_crops_of_each_row(tmp_path):
    files = [*(encode(noise(2, seed=n)) for n in range(7)), encode(noise(0.1, seed=7))]
    dataset = load_audio(write_parquet(tmp_path / "x", files, shards=2))
    single, double = (next(iter(AudioStream(dataset, SECONDS, batch_size=8, crops=crops))) for crops in (1, 2))
    assert double["input_values"].shape == (8, 2, RATE // 4) and double["scales"].shape == (8, 2)
    assert torch.equal(double["input_values"][:, 0], single["input_values"])
    assert torch.equal(double["scales"][:, 0], single["scales"])
    first, second = clips_of(double).unbind(1)
    same = [torch.equal(*pair) for pair in zip(first, second)]
    assert same.count(True) == 1  # the short file, which is repeated to the length of a crop
    whole = [decode_clip(row(file)) for file in files[:7]]
    assert all(any(holds(file, crop) for file in whole) for crop, equal in zip(second.numpy(), same) if not equal)
    clips = load_clips(dataset, SECONDS, crops=2)
    assert clips.shape == (8, 2, RATE // 4) and not torch.equal(clips[:, 0], clips[:, 1])
    assert torch.equal(clips[:, 0], load_clips(dataset, SECONDS))


def holds(clip, crop):
    """Whether a crop is a part of a clip, up to rounding to 16 bits."""
    windows = np.lib.stride_tricks.sliding_window_view(clip, len(crop))
    near = windows[np.abs(windows[:, 0] - crop[0]) < 1e-3]
    return bool((np.abs(near - crop).max(axis=1) < 1e-3).any())


def test_held_out_rows(tmp_path):
    files = [numbered_clip(n) for n in range(300)]
    dataset = load_audio(write_parquet(tmp_path / "x", files))

    def part(held_out, seed=0):
        made = AudioStream(dataset, SECONDS, seed=seed, endless=False, held_out_fraction=0.2, held_out=held_out)
        return numbers(torch.cat([clips_of(batch) for batch in made]))

    held_out, rest = part(True), part(False)
    assert sorted(held_out + rest) == list(range(300))
    assert 40 <= len(held_out) <= 80
    assert set(part(True, seed=5)) == set(held_out)


def test_too_many_bad_rows(dataset):
    made, _ = loader(dataset, max_bad_share=0.05, bad_share_after=30)
    with pytest.raises(TooManyBadRowsError, match=r"More than max_bad_share=5.0%.* of \d+ rows skipped") as caught:
        list(islice(made, 20))
    assert str(caught.value).count("\n  ") == 3
    assert {"v3.flac", "v11.flac", "v19.flac", "v30.flac"} >= set(re.findall(r"v\d+.flac", str(caught.value)))
    run(dataset, 40, max_bad_share=0.14, bad_share_after=30)
    run(dataset, 20, max_bad_share=0.05, bad_share_after=1000)


@pytest.mark.parametrize(("workers", "endless"), [(0, True), (0, False), (1, True)])
def test_a_pass_without_a_clip_is_an_error(tmp_path, workers, endless):
    dataset = load_audio(write_parquet(tmp_path / "x", [b"no audio"] * 20, shards=4))
    with pytest.raises(TooManyBadRowsError, match="gave no clip") as caught:
        run(dataset, 1, workers, endless=endless)
    assert str(caught.value).count("flac: ") == 3


def test_one_pass_of_several_workers_without_a_clip_is_empty(tmp_path):
    """A worker that finds no clip in its share cannot know of the others."""
    dataset = load_audio(write_parquet(tmp_path / "x", [b"no audio"] * 20, shards=4))
    assert run(dataset, 1, workers=2, endless=False)[1] == []


def test_a_worker_without_a_clip_goes_on_to_the_next_epoch(tmp_path):
    files = [b"no audio"] * 20
    files[3::4] = [numbered_clip(n) for n in range(5)]  # the last of four shards
    dataset = load_audio(write_parquet(tmp_path / "x", files, shards=4, rows_per_group=5))
    assert dataset.num_shards == 4
    clips = []
    for rank in range(2):
        made, _ = loader(dataset, rank=rank, world_size=2, max_bad_share=1.0, batch_size=5)
        clips += [sorted(numbers(clips_of(batch))) for batch in islice(made, 4)]
    assert clips == [[0, 1, 2, 3, 4]] * 8


def test_a_held_out_part_without_rows_is_an_error(tmp_path):
    dataset = load_audio(write_parquet(tmp_path / "x", [numbered_clip(n) for n in range(9)]))
    with pytest.raises(TooManyBadRowsError, match="0 of 0 rows"):
        run(dataset, 1, held_out_fraction=1e-9, held_out=True)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_broken_shard_is_skipped(tmp_path, kind):
    from test_sources import write_tar

    files = [numbered_clip(n) for n in range(40)]
    if kind == "parquet":
        write_parquet(tmp_path / "x", files, shards=4)
        shards = sorted((tmp_path / "x").rglob("*.parquet"))
    else:
        for n in range(4):
            write_tar(tmp_path / "x" / f"{n}.tar", {f"{i}.wav": files[i] for i in range(n, 40, 4)})
        shards = sorted((tmp_path / "x").rglob("*.tar"))
    broken = shards[2]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 3 // 4])
    made, _ = loader(load_audio(tmp_path / "x"), endless=False)
    seen, skipped = [], SkippedRows()
    for batch in made:
        seen += numbers(clips_of(batch))
        skipped.merge(batch["stream"]["skipped"])
    assert len(seen) == len(set(seen)) >= 30
    assert skipped.reasons.get("unreadable_shard", 1) in (1, 40 - len(seen))  # 1 before another shard was read


@pytest.mark.parametrize("consumers", [1, 3])
def test_a_lost_shard_counts_as_all_of_its_rows(tmp_path, consumers):
    write_parquet(tmp_path / "x", [numbered_clip(n) for n in range(40)], shards=4)
    lost = sorted((tmp_path / "x").rglob("*.parquet"))[2]
    dataset = load_audio(tmp_path / "x")
    readers = [ShuffledReader(dataset, 0, 6, consumer, consumers) for consumer in range(consumers)]
    rows = [list(reader.read(epoch, Cursor())) for reader in readers for epoch in range(2 * consumers)]
    assert all(row.error is None for row, _ in chain(*rows))
    lost.unlink()
    for epoch in range(consumers):
        rows = [row for reader in readers for row, _ in reader.read(epoch, Cursor())]
        errors = [row for row in rows if row.error is not None]
        assert sum(row.lost for row in errors) == 40 - (len(rows) - len(errors)), epoch


def test_a_shard_that_was_never_read_counts_as_the_others_in_the_mean():
    reader = ShuffledReader(Unreliable({}), 0, 6)
    assert reader._lost(0, 0, 1) == 1
    reader._rows_of.update({1: 10, 2: 20})
    assert reader._lost(0, 0, 1) == 15 and reader._lost(0, 5, 2) == 5 and reader._lost(0, 99, 1) == 1


def test_too_many_rows_of_lost_shards_stop_a_stream(tmp_path):
    write_parquet(tmp_path / "x", [numbered_clip(n) for n in range(40)], shards=4)
    dataset = load_audio(tmp_path / "x")
    made, _ = loader(dataset, max_bad_share=0.1, bad_share_after=60)
    batches = iter(made)
    assert len(list(islice(batches, 10))) == 10
    sorted((tmp_path / "x").rglob("*.parquet"))[2].unlink()
    with pytest.raises(TooManyBadRowsError, match="unreadable_shard"):
        list(islice(batches, 100))


class Unreliable:
    """A data set of one shard of five rows whose server fails: errors by the number of the try."""

    num_shards = 1

    def __init__(self, errors):
        self.errors = errors
        self.tries = 0

    def shard(self, num_shards, index):
        return self

    def skip(self, rows):
        self.start = rows
        return self

    def iter(self, batch_size):
        self.tries += 1
        for number in range(getattr(self, "start", 0), 5):
            if number == 2 and self.tries in self.errors:
                raise self.errors[self.tries]
            yield {"audio": [{"path": f"{number}"}]}


@pytest.mark.parametrize(
    ("errors", "seconds", "pauses", "rows"),
    [
        ({1: ConnectionError("reset"), 2: TimeoutError()}, 60, [1, 2], "01234"),
        ({n: ConnectionError("reset") for n in range(1, 99)}, 10, [1, 2, 4, 3], "01"),
        ({1: ConnectionError("reset")}, 0, [], "01"),
        ({1: FileNotFoundError("404")}, 60, [], "01"),
    ],
)
def test_a_server_that_fails_is_asked_again(monkeypatch, caplog, errors, seconds, pauses, rows):
    waited = []
    monkeypatch.setattr("mtslvr_hf.data.shuffling.time.sleep", waited.append)
    reader = ShuffledReader(Unreliable(errors), 0, 1, retry_seconds=seconds)
    found = [row for row, _ in reader.read(0, Cursor())]
    assert "".join(row.audio["path"] for row in found if row.audio) == rows and waited == pauses
    assert [row.error is None for row in found] == [True] * len(rows) + [False] * (len(rows) < 5)
    assert caplog.text.count("trying again in") == len(pauses)


@pytest.mark.parametrize("streaming", [True, False])
def test_any_data_set_with_audio(tmp_path, parquet, streaming):
    for n in range(10):
        (tmp_path / f"{n}.wav").write_bytes(numbered_clip(n))
    made, _ = loader(load_audio(tmp_path, streaming=streaming), endless=False)
    again = pickle.loads(pickle.dumps(made))  # what a DataLoader that spawns its workers does
    assert sorted(numbers(torch.cat([clips_of(batch) for batch in again]))) == list(range(10))
    table = [row(numbered_clip(n)) for n in range(10)]
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    mapped = datasets.Dataset.from_dict({"sound": table}, features=datasets.Features(sound=kind))
    mapped = mapped.to_iterable_dataset(num_shards=3) if streaming else mapped
    made, batches = loader(mapped, 2, endless=False)
    assert sorted(chain(*(numbers(clips_of(batch)) for batch in batches))) == list(range(10))


def test_an_empty_data_set_is_an_error():
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    empty = datasets.Dataset.from_dict({"audio": []}, features=datasets.Features(audio=kind))
    with pytest.raises(ValueError, match="no rows"):
        AudioStream(empty, SECONDS)


def test_a_row_without_audio_is_empty(tmp_path):
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    table = [row(numbered_clip(1)), None, {"bytes": None, "path": None}]
    dataset = datasets.Dataset.from_dict({"audio": table}, features=datasets.Features(audio=kind))
    _, batches = run(dataset, 3, batch_size=1, max_bad_share=1.0)
    assert [numbers(clips_of(batch)) for batch in batches] == [[1], [1], [1]]
    assert set(batches[-1]["stream"]["skipped"]["reasons"]) == {"empty"}


def test_skipped_rows():
    count = SkippedRows()
    for n in range(10):
        count.add()
        count.add("silent" if n % 2 else "empty", f"row {n}")
    assert (count.rows, count.skipped, count.good, count.share) == (20, 10, 10, 0.5)
    assert count.examples == ["row 0", "row 1", "row 2"]
    state = json.loads(json.dumps(count.state_dict()))
    other = SkippedRows()
    other.load_state_dict(state)
    other.merge(count)
    other.merge(copy.deepcopy(state))
    assert (other.rows, other.reasons, len(other.examples)) == (60, {"empty": 15, "silent": 15}, 3)
    assert str(count) == "10 of 20 rows skipped (50.0%): 5 empty, 5 silent."
    count.check(0.5, 0)
    count.check(0.1, 21)
    with pytest.raises(
        TooManyBadRowsError, match=r"max_bad_share=10.0%.*5 empty, 5 silent.\n  row 0\n  row 1\n  row 2"
    ):
        count.check(0.1, 20)
    assert SkippedRows().share == 0


def test_truncated_files_can_be_kept(dataset):
    assert sorted(numbers(load_clips(dataset, SECONDS, on_truncated="keep"))) == sorted(
        set(range(40)) - {n for n in BAD if n != 30}
    )


def test_load_clips(dataset, caplog):
    with caplog.at_level(logging.WARNING, logger="mtslvr_hf"):
        clips = load_clips(dataset, SECONDS)
    assert sorted(numbers(clips)) == sorted(set(range(40)) - set(BAD))
    assert "rows skipped" in caplog.text
    some = load_clips(dataset, SECONDS, limit=10)
    assert some.shape == (10, RATE // 4)
    assert torch.equal(some, clips[:10]) and torch.equal(some, load_clips(dataset, SECONDS, limit=10))
    shares = [load_clips(dataset, SECONDS, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(numbers(torch.cat(shares))) == sorted(numbers(clips))
