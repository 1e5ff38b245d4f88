"""Encoded signals, whole and damaged, and data sets of them, for the tests of this folder."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Features, List, Value

RATE = 16_000
FEATURES = Features(
    {
        "video_id": Value("string"),
        "audio": Audio(),
        "labels": List(Value("string")),
        "human_labels": List(Value("string")),
    }
)


def noise(seconds, rate=RATE, channels=1, seed=0, level=0.1):
    """Noise, (frames, channels)."""
    return (level * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))).astype("float32")


def encode(samples, rate=RATE, format="FLAC", subtype=None):
    """An encoded file's bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def row(data, path="clip"):
    """An undecoded row."""
    return {"bytes": data, "path": path}


def numbered_clip(number, seconds=0.25):
    """A file whose first sample tells its number (up to 3,000), so that it can be known again after decoding."""
    samples = noise(seconds, seed=number)
    samples[0] = number / 4096
    return encode(samples, format="WAV", subtype="FLOAT")


def numbers(clips):
    """The numbers of decoded `numbered_clip`s, (batch, samples) -> list."""
    return [round(float(clip[0]) * 4096) for clip in clips]


def write_parquet(folder, files, shards=4, config="balanced", split="train", rows_per_group=8):
    """Writes a folder in the layout of agkphysics/AudioSet from a list of bytes."""
    data = Path(folder) / "data" / "bal_train"
    data.mkdir(parents=True)
    rows = [
        {"video_id": f"v{n}", "audio": row(file, f"v{n}.flac"), "labels": ["/m/0"], "human_labels": ["Noise"]}
        for n, file in enumerate(files)
    ]
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards], schema=FEATURES.arrow_schema)
        pq.write_table(table, data / f"{shard:02d}.parquet", row_group_size=rows_per_group)
    (Path(folder) / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
        "    path: data/bal_train/*.parquet\n---\n\nAudio.\n"
    )
    return Path(folder)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def change_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
