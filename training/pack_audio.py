"""Packs a folder of audio files into parquet shards that `datasets` streams, in AudioSet's layout.

    python training/pack_audio.py demo/audio packed/drums --classes kick,snare,cymbal
    python training/pack_audio.py recordings packed/all --rows-per-shard 500

Sub-folders are classes; files that lie in none have no label. The shards are in random order, so that each mixes the
classes. The files' bytes go in as they are. Read it with `load_audio("packed/drums")` of mtslvr_hf.data, or with
`datasets.load_dataset("packed/drums", streaming=True, split="train")`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, List, Value
from tqdm.auto import tqdm

from mtslvr_hf.data import find_audio_files

FEATURES = Features(
    {
        "video_id": Value("string"),
        "audio": Audio(),
        "labels": List(Value("string")),
        "human_labels": List(Value("string")),
    }
)
ROWS_PER_GROUP = 64  # what a reader has to hold at once
CARD = """\
---
configs:
- config_name: {config}
  data_files:
  - split: {split}
    path: data/{split}-*.parquet
---

# {title}

{rows} audio files, packed by `training/pack_audio.py` of mtslvr-hf. Columns: `video_id` (path of the file without its
suffix), `audio` (the encoded file), `labels` and `human_labels` (its class, if it has one).
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs what the command line says."""
    options = parse(arguments)
    try:
        files = choose_files(options.source, options.classes, options.exclude_classes)
        check_output(options.output)
    except (OSError, ValueError) as error:
        raise SystemExit(f"pack_audio.py: {error}") from error
    random.Random(options.seed).shuffle(files)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{options.output.name}.", dir=options.output.parent))
    try:
        shards = write_shards(files, options.source, partial / "data", options.split, options.rows_per_shard)
        write_card(partial / "README.md", options, len(files))
        partial.chmod(0o755)
        os.replace(partial, options.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{options.output}: {len(files)} files in {shards} shards, split {options.split!r}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    description, examples, explanation = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}\n\n{explanation}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="folder of audio files, at any depth")
    parser.add_argument("output", type=Path, help="folder to make; must not exist, or be empty")
    parser.add_argument("--classes", type=comma_list, help="pack only these sub-folders (comma-separated)")
    parser.add_argument("--exclude-classes", type=comma_list, help="leave these sub-folders out (comma-separated)")
    parser.add_argument(
        "--rows-per-shard", type=positive, default=256, help="most files in a shard (default: %(default)s)"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--config", default="default", help="name of the configuration (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order (default: %(default)s)")
    return parser.parse_args(arguments)


def comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def choose_files(source: Path, classes: list[str] | None, excluded: list[str] | None) -> list[Path]:
    """Lists the audio files of the classes asked for, sorted.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a class does not exist, or no file is left.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    files = find_audio_files(source)
    present = {class_of(file, source) for file in files} - {None}
    unknown = set(classes or []) | set(excluded or [])
    unknown -= present
    if unknown:
        raise ValueError(
            f"no audio in class {', '.join(sorted(unknown))} of {source}; it has: {', '.join(sorted(present))}"
        )
    if classes is not None:
        files = [file for file in files if class_of(file, source) in classes]
    files = [file for file in files if class_of(file, source) not in (excluded or [])]
    if not files:
        raise ValueError(f"no audio files to pack in {source}")
    return files


def class_of(file: Path, source: Path) -> str | None:
    """The class of a file: the sub-folder of `source` it lies in, at whatever depth."""
    parts = file.relative_to(source).parts
    return parts[0] if len(parts) > 1 else None


def check_output(output: Path) -> None:
    """Raises FileExistsError unless the output is free."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder; choose another or remove it")


def write_shards(files: list[Path], source: Path, folder: Path, split: str, rows_per_shard: int) -> int:
    """Writes `{split}-00000-of-0000n.parquet` files; returns how many."""
    folder.mkdir()
    shards = math.ceil(len(files) / rows_per_shard)
    with tqdm(total=len(files), desc="packing", unit="file") as progress:
        for number in range(shards):
            path = folder / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            with pq.ParquetWriter(path, FEATURES.arrow_schema) as writer:
                shard = files[number::shards]
                for first in range(0, len(shard), ROWS_PER_GROUP):
                    rows = [read_row(file, source) for file in shard[first : first + ROWS_PER_GROUP]]
                    writer.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema))
                    progress.update(len(rows))
    return shards


def read_row(file: Path, source: Path) -> dict:
    """One row of AudioSet's layout."""
    name = file.relative_to(source)
    label = class_of(file, source)
    labels = [] if label is None else [label]
    return {
        "video_id": name.with_suffix("").as_posix(),
        "audio": {"bytes": file.read_bytes(), "path": name.as_posix()},
        "labels": labels,
        "human_labels": labels,
    }


def write_card(path: Path, options: argparse.Namespace, rows: int) -> None:
    """Writes the README.md that tells `load_dataset` where the shards are."""
    text = CARD.format(config=options.config, split=options.split, title=options.output.name, rows=rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
