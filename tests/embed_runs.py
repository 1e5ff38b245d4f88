"""Sounds, models and what a folder of embeddings holds, for the tests of `mtslvr embed`."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

RATE = 16_000
SIZE = 8


def make_model(seed=0):
    torch.manual_seed(seed)
    return MTSLVRModel(MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=SIZE)).eval()


def save_model(folder, seed=0):
    make_model(seed).save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    return folder


def wav(seed, seconds=0.4):
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def write_sounds(folder, count=7, bad=()):
    """Files 0.wav, 1.wav, ... in the folders even and odd, 0.4 to 1.6 s long; those in `bad` are no audio."""
    for number in range(count):
        file = folder / ("odd" if number % 2 else "even") / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no audio" if number in bad else wav(number, 0.4 * (1 + number % 4)))
    return folder


FEATURES = datasets.Features(
    {
        "name": datasets.Value("string"),
        "audio": datasets.Audio(),
        "kind": datasets.ClassLabel(names=["dog", "cat"]),
        "tags": datasets.List(datasets.Value("string")),
    }
)


def sound_rows(count):
    return [
        {
            "name": f"clip {number}",
            "audio": {"bytes": wav(number), "path": f"{number}.wav"},
            "kind": number % 2,
            "tags": ["loud"] * (number % 3),
        }
        for number in range(count)
    ]


def make_dataset(rows):
    """A data set without torchcodec, which `Dataset.from_list` asks for."""
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema))


def write_parquet(folder, files, rows_per_group=100):
    """Writes rows, a list for each parquet file."""
    folder.mkdir()
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=rows_per_group)
    return folder


def shard_files(folder):
    return sorted((folder / "data").glob("*.parquet"))


def rows_in(folder):
    """All rows in the order of the files, as dictionaries."""
    return [row for file in shard_files(folder) for row in pq.read_table(file).to_pylist()]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def errors_in(folder):
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
