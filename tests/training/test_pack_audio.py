"""training/pack_audio.py, run as a user would, and what it wrote read back."""

import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from audio_files import encode, noise

from mtslvr_hf.data import decode_clip, load_audio

SCRIPT = Path(__file__).parents[2] / "training" / "pack_audio.py"
DEMO = Path(__file__).parents[2] / "demo" / "audio"


@pytest.fixture(scope="module")
def pack():
    """The script's main function, which is what most tests call."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from pack_audio import main
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return main


@pytest.fixture
def source(tmp_path):
    for n in range(12):
        path = tmp_path / "source" / ("cat", "dog", "dog/small", ".")[n % 4] / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(0.2, seed=n), format="WAV"))
    (tmp_path / "source" / "notes.txt").write_text("no audio")
    return tmp_path / "source"


def test_command(tmp_path):
    """The command of the demo: packs, refuses to do it again, explains itself."""
    command = [sys.executable, str(SCRIPT), str(DEMO), str(tmp_path / "packed"), "--classes", "kick,snare"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "22 files in 1 shards" in result.stdout
    assert "22/22" in result.stderr  # the progress bar
    assert len(list(load_audio(tmp_path / "packed"))) == 22


def test_layout(source, tmp_path, pack):
    output = tmp_path / "new" / "packed"
    pack([str(source), str(output), "--rows-per-shard", "5", "--split", "bal_train", "--config", "balanced"])
    shards = [f"bal_train-0000{n}-of-00003.parquet" for n in range(3)]
    assert sorted(path.name for path in output.rglob("*.*")) == ["README.md", *shards]
    dataset = datasets.load_dataset(str(output), "balanced", streaming=True, split="bal_train")
    assert isinstance(dataset.features["audio"], datasets.Audio)
    assert list(dataset.features) == ["video_id", "audio", "labels", "human_labels"]
    rows = {row["video_id"]: row for row in dataset.decode(False)}
    assert len(rows) == 12
    assert rows["dog/1"]["labels"] == rows["dog/small/2"]["human_labels"] == ["dog"]
    assert rows["3"]["labels"] == []
    for name, row in rows.items():
        assert row["audio"]["path"] == f"{name}.wav"
        assert row["audio"]["bytes"] == (source / f"{name}.wav").read_bytes()
        decode_clip(row["audio"], 0.1)


def test_shards_mix_the_classes_in_an_order_of_the_seed(source, tmp_path, pack):
    def order(name, *options):
        pack([str(source), str(tmp_path / name), *options])
        return [row["audio"]["path"] for row in load_audio(tmp_path / name)]

    first = order("a")
    assert first == order("b") != sorted(first)
    assert first != order("c", "--seed", "1")


def test_classes(source, tmp_path, pack):
    def labels(name, *options):
        pack([str(source), str(tmp_path / name), *options])
        table = pq.read_table(tmp_path / name / "data")
        return {label for row in table["labels"].to_pylist() for label in row or ["none"]}

    assert labels("a", "--classes", "dog") == {"dog"}
    assert labels("b", "--exclude-classes", "dog") == {"cat", "none"}
    assert labels("c", "--classes", "dog, cat", "--exclude-classes", "cat") == {"dog"}
    with pytest.raises(SystemExit, match=r"no audio in class cow of .*; it has: cat, dog"):
        pack([str(source), str(tmp_path / "d"), "--classes", "cow"])
    with pytest.raises(SystemExit, match="no audio files to pack"):
        pack([str(source), str(tmp_path / "d"), "--classes", "dog", "--exclude-classes", "dog"])


def test_nothing_is_overwritten_or_left_half_done(source, tmp_path, pack, monkeypatch):
    output = tmp_path / "packed"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not an empty folder"):
        pack([str(source), str(output)])
    (output / "mine.txt").unlink()
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError("disk on fire")))
    with pytest.raises(OSError, match="on fire"):
        pack([str(source), str(output)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "source"] and not any(output.iterdir())
    monkeypatch.undo()
    pack([str(source), str(output)])  # an empty folder is fine
    assert (output / "README.md").is_file()
    with pytest.raises(SystemExit, match="no such folder"):
        pack([str(tmp_path / "nowhere"), str(tmp_path / "x")])
