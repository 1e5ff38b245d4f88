"""Batch size, held-out files and steps of a run, chosen from the amount of audio."""

from __future__ import annotations

from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..audio.errors import BadClipError
from ..audio.recording import open_recording
from ..data import load_audio
from ..data.local import local_path

MOST_HOURS = 50.0  # more audio does not change the choice
BATCH = {"cpu": 64, "gpu": 256}
CLIPS = {"cpu": 128_000, "gpu": 600_000}  # of a run: about 20 minutes on two cores at width 16, 10 minutes on a GPU
PASSES = 100  # most passes over all clips of the audio
SMALLEST_BATCH = 4
FEWEST_STEPS = 200


SIZES = (
    *("held_out_fraction", "eval_clips", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("max_steps", "warmup_steps", "eval_steps", "logging_steps"),
)


class Amount(NamedTuple):
    """Amount of audio: number of usable files, and hours; both stop at `MOST_HOURS`."""

    files: int
    hours: float


def measure_audio(source: str, **options: Any) -> Amount:
    """Amount of audio in a local data set; the arguments are those of `load_audio`.

    Raises:
        SystemExit: If the data are not local, or no file is audio.
    """
    if options.get("data_files") is None and local_path(source) is None:
        raise SystemExit(
            f"`size_to_data` reads the length of each file, and {source} is not on this machine: cache it first with "
            "`mtslvr cache`, or set batch size, held_out_fraction and max_steps."
        )
    files, seconds = 0, 0.0
    for row in tqdm(load_audio(source, **options), desc="measuring", unit="file", disable=None):
        try:
            with open_recording(row["audio"]) as recording:
                frames = recording.frames
                seconds += (sum(map(len, recording.read())) if frames is None else frames) / recording.rate
                files += 1
        except BadClipError:
            continue
        if seconds >= MOST_HOURS * 3600:
            break
    if not files:
        raise SystemExit(f"{source} has no file that can be read as audio.")
    return Amount(files, seconds / 3600)


def choose_sizes(amount: Amount, clip_seconds: float, on_gpu: bool, processes: int = 1) -> dict[str, Any]:
    """Fields of pre-training for an amount of audio.

    A twentieth of the files is held out, of less than 1000 files a tenth, of less than 100 a fifth. The batch of all
    processes has at most half of the other files, so that a pass has several batches. A run is as long as the budget
    of the machine allows, but at most `PASSES` passes over all clips.

    Raises:
        SystemExit: If there are too few files for two batches.
    """
    device = "gpu" if on_gpu else "cpu"
    fraction = 0.05 if amount.files >= 1000 else 0.1 if amount.files >= 100 else 0.2
    held_out = round(amount.files * fraction)
    training = amount.files - held_out
    batch = min(BATCH[device], _power_of_two(training // 2))
    if batch < SMALLEST_BATCH * processes:
        fewest = 3 * SMALLEST_BATCH * processes
        raise SystemExit(f"{amount.files} files are too few to pre-train on; expected at least {fewest}.")
    clips = max(amount.files, amount.hours * 3600 / clip_seconds) * (1 - fraction)
    steps = max(FEWEST_STEPS, round(min(CLIPS[device], PASSES * clips) / batch))
    return {
        "held_out_fraction": fraction,
        "eval_clips": min(4 * batch, held_out),
        "per_device_train_batch_size": batch // processes,
        # The held-out files are drawn by their checksums, so their number varies: half of it is nearly always there.
        "per_device_eval_batch_size": min(batch, max(2 * processes, _power_of_two(held_out // 2))) // processes,
        "max_steps": steps,
        "warmup_steps": max(10, steps // 30),
        "eval_steps": max(1, steps // 5),
        "logging_steps": max(1, steps // 50),
    }


def describe(amount: Amount, sizes: dict[str, Any], clip_seconds: float) -> str:
    """Line that says what was chosen, and from what."""
    batch = sizes["per_device_train_batch_size"]
    heard = sizes["max_steps"] * batch * clip_seconds / 3600
    more = " or more" if amount.hours >= MOST_HOURS else ""
    return (
        f"{amount.files:,} files, {amount.hours:.1f} hours{more}: {sizes['max_steps']:,} steps of {batch} clips "
        f"of {clip_seconds:g} s a process ({heard:.1f} hours heard), {100 * sizes['held_out_fraction']:.0f} % of the "
        "files held out for evaluation."
    )


def _power_of_two(number: int) -> int:
    """Largest power of two that is not larger than a number; 0 of 0."""
    return 0 if number < 1 else 1 << (number.bit_length() - 1)


__all__ = ["SIZES", "Amount", "choose_sizes", "describe", "measure_audio"]
