"""Clips per second from FLAC in parquet shards to batches in the trainer's process.

python benchmarks/feed.py                              # the demo's sounds, repeated to 10 s
python benchmarks/feed.py --audio FOLDER --workers 15  # any audio

The baseline is `datasets` streaming with `Audio(sampling_rate=16000)` in a DataLoader with as many workers, if
torchcodec and FFmpeg are installed (pip install -e '.[codecs]'; apt install ffmpeg).
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import torch
from as_published import machine
from torch.utils.data import DataLoader

from mtslvr_hf.data import AudioStream, BadClipError, decode_clip, dequantize_clips, find_audio_files, load_audio
from mtslvr_hf.workers import default_workers

RATE, SECONDS = 16_000, 10.0
ROWS_PER_SHARD = 100  # one row group
SHUFFLE_BUFFER = 256
KINDS = {  # sampling rate, channels, subtype
    "48 kHz, 24 bit, mono": (48_000, 1, "PCM_24"),
    "48 kHz, 24 bit, stereo": (48_000, 2, "PCM_24"),
    "16 kHz, 16 bit, mono": (16_000, 1, "PCM_16"),
}
DEMO = Path(__file__).parent.parent / "demo" / "audio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=DEMO, help="folder of audio files, at any depth")
    parser.add_argument("--clips", type=int, default=256, help="clips per worker and measurement")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=default_workers(on_cpu=False))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a DataLoader worker
    datasets.disable_progress_bars()

    peer_is_missing = why_no_torchcodec()
    print(f"Clips of {SECONDS:g} s, batches of {options.batch_size}, {options.workers} workers; {machine()}")
    print(f"datasets with torchcodec: {peer_is_missing or 'timed'}\n")
    print("| clips/s | kB a clip | decoding alone, one core | stream, same process | of decoding alone |", end="")
    print(f" stream, {options.workers} workers | of {options.workers} x decoding alone |", end="")
    print(f" datasets, {options.workers} workers | ours is x |")
    print("| --- " * 9 + "|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            files = encode(options.audio, kind, ROWS_PER_SHARD * max(4, options.workers))
            write_shards(files, Path(folder))
            check(files, Path(folder))
            ways = ways_to_feed(files, Path(folder), options, with_peer=peer_is_missing is None)
            print_row(kind, files, clips_per_second(ways, options), options)


def encode(folder: Path, kind: str, rows: int) -> list[bytes]:
    """FLAC files of 10 s from the sounds of a folder; short sounds are repeated, silent sounds are left out."""
    rate, channels, subtype = KINDS[kind]
    files: list[bytes] = []
    for path in find_audio_files(folder)[:rows]:
        try:
            clip = decode_clip({"path": str(path)}, SECONDS, rate)
        except BadClipError:
            continue
        sides = [clip, 0.8 * np.roll(clip, 37)][:channels]  # the second channel is delayed, as in a stereo recording
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.9 * np.stack(sides, axis=1), rate, format="FLAC", subtype=subtype)
        files.append(buffer.getvalue())
    if not files:
        raise SystemExit(f"{folder} holds no audio that can be decoded; name a folder that does with --audio.")
    return list(itertools.islice(itertools.cycle(files), rows))


def write_shards(files: list[bytes], folder: Path) -> None:
    """Writes parquet shards of `ROWS_PER_SHARD` files."""
    for n in range(0, len(files), ROWS_PER_SHARD):
        audio = [{"bytes": file, "path": None} for file in files[n : n + ROWS_PER_SHARD]]
        shard = datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio(decode=False))
        shard.to_parquet(folder / f"{n:06d}.parquet", batch_size=ROWS_PER_SHARD)


def check(files: list[bytes], folder: Path) -> None:
    """Asserts that the clips of the stream equal the decoded clips, up to rounding to 16 bits of their peak."""
    batch = next(iter(AudioStream(load_audio(folder), SECONDS, RATE, batch_size=4, shuffle_buffer=8)))
    known = np.stack([decode_clip({"bytes": file}, SECONDS, RATE) for file in dict.fromkeys(files)])
    for clip in dequantize_clips(batch["input_values"], batch["scales"]).numpy():
        assert np.abs(known - clip).max(axis=1).min() <= np.abs(clip).max() / 65534 * 1.01


def ways_to_feed(
    files: list[bytes], folder: Path, options: argparse.Namespace, with_peer: bool
) -> dict[str, Callable[[], Iterator[int]]]:
    """Feeds by name; each yields numbers of clips."""

    def stream(workers: int) -> Iterator[int]:
        made = AudioStream(
            load_audio(folder), SECONDS, RATE, batch_size=options.batch_size, shuffle_buffer=SHUFFLE_BUFFER
        )
        for batch in DataLoader(made, batch_size=None, num_workers=workers):
            yield len(batch["input_values"])

    def decoding() -> Iterator[int]:
        for n, file in enumerate(itertools.cycle(files)):
            decode_clip({"bytes": file}, SECONDS, RATE, crop_seed=n)
            yield 1

    def peer() -> Iterator[int]:
        rows = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
        rows = rows.cast_column("audio", datasets.Audio(sampling_rate=RATE)).repeat(None)
        # One shard at a time; otherwise datasets sleeps five seconds at the end of each pass.
        rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER, max_buffer_input_shards=1)
        loader = DataLoader(rows, options.batch_size, num_workers=options.workers, collate_fn=collate)
        return map(len, loader)

    ways = {"decoding": decoding, "same process": lambda: stream(0), "workers": lambda: stream(options.workers)}
    return {**ways, "peer": peer} if with_peer else ways


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    """Rows of `datasets.Audio` -> (batch, samples)."""
    clips = torch.zeros(len(rows), round(SECONDS * RATE))
    for clip, row in zip(clips, rows):
        samples = row["audio"].get_all_samples().data.mean(0)[: len(clip)]
        clip[: len(samples)] = samples
    return clips


def why_no_torchcodec() -> str | None:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError) as error:  # the last two without FFmpeg's libraries
        return f"not timed, {type(error).__name__}: {str(error).splitlines()[0]}"
    assert AudioDecoder
    return None


def clips_per_second(ways: dict[str, Callable[[], Iterable[int]]], options: argparse.Namespace) -> dict[str, float]:
    """Medians over rounds. Feeds alternate, and each starts again, so that none works while others run."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, start in ways.items():
            counts = iter(start())
            processes = max(1, options.workers) if name in ("workers", "peer") else 1
            take(counts, 3 * processes * options.batch_size)  # clips decoded in advance
            began = time.perf_counter()
            rates[name].append(take(counts, options.clips * processes) / (time.perf_counter() - began))
            del counts  # ends its workers
    return {name: sorted(values)[len(values) // 2] for name, values in rates.items()}


def take(counts: Iterator[int], wanted: int) -> int:
    total = 0
    while total < wanted:
        total += next(counts)
    return total


def print_row(kind: str, files: list[bytes], rates: dict[str, float], options: argparse.Namespace) -> None:
    alone, workers = rates["decoding"], rates["workers"]
    cells = [kind, f"{sum(map(len, files)) / len(files) / 1e3:.0f}", f"{alone:.0f}"]
    cells += [f"{rates['same process']:.0f}", f"{rates['same process'] / alone:.0%}"]
    cells += [f"{workers:.0f}", f"{workers / alone / max(1, options.workers):.0%}"]
    cells += [f"{rates['peer']:.0f}", f"{workers / rates['peer']:.2f}"] if "peer" in rates else ["", ""]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
