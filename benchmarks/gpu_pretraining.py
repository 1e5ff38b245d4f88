"""Benchmarks and checks of pre-training on a GPU, in one command of at most ten minutes.

python benchmarks/gpu_pretraining.py --output gpu.md       # on a machine with a GPU
python benchmarks/gpu_pretraining.py --quick --device cpu  # a rehearsal at small size, in two minutes
PYTHONPATH=. python benchmarks/gpu_pretraining.py          # where the package is not installed

Each section runs in its own process with its own time limit, and prints Markdown at once. Sections that lack a package
are left out; a section that fails or takes too long does not stop the others. Half of the sections need only torch,
transformers and accelerate; feed, trainer and real run also need datasets, soundfile and soxr, and the comparison clip
by clip needs torch_audiomentations.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

SCRIPT = Path(__file__)
DEMO = SCRIPT.parent.parent / "demo" / "audio"
FEED = ("datasets", "soundfile", "soxr")
PACKAGES = ("torch", "transformers", "accelerate", "torchaudio", *FEED, "torch_audiomentations")
# Time limit in seconds and packages of each section. The real run gets the remaining time, at least RUN_SECONDS.
SECTIONS: dict[str, tuple[float, tuple[str, ...]]] = {
    "device": (20, ()),
    "correctness": (50, ()),
    "augmentations": (60, ()),
    "step": (110, ()),
    "feed": (70, FEED),
    "end_to_end": (90, FEED),
    "memory": (90, FEED),
    "compiled": (150, ()),
    "run": (300, FEED),
}
RUN_SECONDS = 150
LEAST_SECONDS = 15  # to start a section


def main() -> None:
    options = parse()
    if options.section:
        run_section(options)
        return
    began = time.monotonic()
    for name, (seconds, needed) in SECTIONS.items():
        left = 60 * options.minutes - (time.monotonic() - began) - (0 if name == "run" else RUN_SECONDS)
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        say = writer(options)
        say(f"\n## {name}\n")
        if missing:
            say(f"Left out: {', '.join(missing)} missing (`pip install` or carry the wheels).")
        elif left < LEAST_SECONDS:
            say("Left out: no time left.")
        else:
            start_section(name, min(seconds, left), say)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small network, batches and clips: a rehearsal")
    parser.add_argument("--audio", type=Path, default=DEMO, help="folder of audio files, at any depth")
    parser.add_argument("--output", type=Path, help="file to which the output is appended too")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for all sections together")
    parser.add_argument("--workers", type=int, help="processes that decode (default: all cores but one)")
    parser.add_argument("--section", choices=SECTIONS, help="only this one")
    parser.add_argument("--seconds-left", type=float, default=300.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; rehearse with --quick --device cpu")
    quick = options.quick
    options.base_width = 4 if quick else 64
    options.samples = 16_000 if quick else 160_000  # of a clip
    options.batch_sizes = (4, 8) if quick else (64, 128, 256)
    options.rounds = 1 if quick else 10
    options.files = 32 if quick else 192  # that are encoded
    options.rows = 32 if quick else 1024  # in the shards, where files repeat
    if options.workers is None:
        options.workers = 1 if quick else max(1, len(os.sched_getaffinity(0)) - 1)
    return options


def writer(options: argparse.Namespace) -> Callable[[str], None]:
    """`print` that also appends to the output file."""

    def say(line: str) -> None:
        print(line, flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    return say


def start_section(name: str, seconds: float, say: Callable[[str], None]) -> None:
    """Runs a section in its own process group until its time limit."""
    began = time.monotonic()
    command = [sys.executable, str(SCRIPT), *sys.argv[1:], "--section", name, "--seconds-left", str(seconds)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        errors = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # also its workers
        errors = process.communicate()[1]
        say(f"\nCut off after {seconds:.0f} s.")
    if process.returncode:
        last = "\n".join(line[:200] for line in errors.splitlines()[-12:])
        say(f"\nEnded with {process.returncode}:\n\n```\n{last}\n```")
    say(f"\n({time.monotonic() - began:.0f} s)")


def run_section(options: argparse.Namespace) -> None:
    """Calls a section, and imports only its packages."""
    say = writer(options)
    if options.section == "device":
        device(options, say)
    elif options.section in ("correctness", "augmentations", "step", "compiled"):
        import gpu_step

        getattr(gpu_step, options.section)(options, say)
    else:
        import gpu_feed

        getattr(gpu_feed, options.section)(options, say)


def device(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Description of the machine, its GPU and its packages."""
    say(f"- {time.strftime('%Y-%m-%d')}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    if options.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        say(f"- {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.multi_processor_count} multiprocessors")
        say(f"- CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    else:
        say("- no GPU: a rehearsal, whose figures mean nothing")
    say(f"- {', '.join(installed(package) for package in PACKAGES)}")


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"


if __name__ == "__main__":
    main()
