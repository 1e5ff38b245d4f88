"""Pool of openly licensed audio for pre-training, from Debian packages.

    python training/open_pool.py --output data/open_pool

The licenses of the audio let anyone share and sell what is made of it. `manifest.csv` names package, file, authors and
license of each clip; `ATTRIBUTION.md` is made from it. Debian 12 (bookworm) has the packages of `open_pool.yaml`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import soundfile
from audio_licenses import LeftOutError, PackageEntry, PackageLicenses, Table, Terms, read_table
from debian_packages import AudioFile, UnpackedPackage, check_available, unpacked_package
from tqdm.auto import tqdm

from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.audio.recording import open_recording
from mtslvr_hf.files import TEMPORARY, temporary_name, write_json, write_whole

RATE = 16_000
CLIP_SECONDS = 10.0
SHORTEST_SECONDS = 0.3  # shorter files are left out
SHORTEST_REST_SECONDS = 2.0  # of a longer file
SILENCE_DB = -50.0  # below the loudest frame of a file
FRAME = RATE // 100
LEAST_POWER = 1e-8  # of a frame, else it is silent
PEAK = 0.9  # of a file
TABLE = Path(__file__).with_name("open_pool.yaml")
SETTINGS, MANIFEST, ATTRIBUTION = "settings.json", "manifest.csv", "ATTRIBUTION.md"
COLUMNS = (
    *("file", "package", "version", "source", "start_seconds", "seconds", "original_rate", "license", "authors"),
    *("homepage", "sha256"),
)
ATTRIBUTION_TEXT = """\
# Attribution

{clips} clips, {hours} hours, from {number} packages of Debian. They were changed: mixed down to one channel, resampled
to 16 kHz, cut into clips of up to 10 s without the silence at both ends of a file, and scaled. `manifest.csv` beside
the clips names package, file, authors and license of each.

{packages}
## Licenses

{licenses}
"""


class Source(NamedTuple):
    """Audio file that may be used: the file, its length in seconds, and its terms."""

    file: AudioFile
    seconds: float
    terms: Terms


def main(argv: Sequence[str] | None = None) -> None:
    """Builds the pool; the same command goes on after an interruption."""
    options = parse(argv)
    table = read_table(options.table)
    entries = choose_packages(table, options.packages)
    check_settings(options.output, table, entries, options.hours_per_package)
    unfinished = [entry.name for entry in entries if not (options.output / entry.name / MANIFEST).is_file()]
    check_available(unfinished, options.downloads)
    known: set[str] = set()
    for entry in entries:
        folder = options.output / entry.name
        if entry.name in unfinished:
            remove_remains(folder)
            with unpacked_package(entry.name, options.downloads, options.output) as package:
                build_package(package, entry, table, folder, options.hours_per_package, known)
        known |= {row["sha256"] for row in read_manifest(folder)}
    rows = [row for entry in entries for row in read_manifest(options.output / entry.name)]
    if not rows:
        raise SystemExit("No package has audio that may be used.")
    write_whole(options.output / ATTRIBUTION, attribution(rows, table).encode())
    write_manifest(options.output, rows)
    print(f"{options.output}: {len(rows):,} clips, {hours(rows):.2f} hours, {len(entries)} packages.")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--packages", nargs="+", metavar="NAME", help="packages of the table (default: all)")
    parser.add_argument(
        "--hours-per-package", type=float, default=2.0, help="most hours of a package (default: %(default)s)"
    )
    parser.add_argument("--downloads", type=Path, help="folder of the packages (default: OUTPUT_packages)")
    parser.add_argument("--table", type=Path, default=TABLE, help="packages and licenses (default: %(default)s)")
    options = parser.parse_args(argv)
    if not options.hours_per_package > 0:
        parser.error(f"--hours-per-package must be more than 0, not {options.hours_per_package}")
    options.downloads = options.downloads or options.output.with_name(f"{options.output.name}_packages")
    return options


def choose_packages(table: Table, names: Sequence[str] | None) -> list[PackageEntry]:
    """Entries of the chosen packages, sorted by name.

    Raises:
        SystemExit: If a package is refused, or not in the table.
    """
    for name in names or ():
        if name in table.refused:
            raise SystemExit(f"{name} is refused: {table.refused[name]}.")
        if name not in table.packages:
            raise SystemExit(f"{name} is not in the table. It has {', '.join(table.packages)}.")
    return [table.packages[name] for name in sorted(set(names or table.packages))]


def check_settings(output: Path, table: Table, entries: Sequence[PackageEntry], hours_per_package: float) -> None:
    """Writes the settings of a new pool, or compares those of a started one, since other settings give other clips.

    Raises:
        SystemExit: If the folder holds a pool of other settings, or something else.
    """
    used = repr((sorted(table.licenses.items()), entries))
    settings = {
        "hours_per_package": hours_per_package,
        "packages": [entry.name for entry in entries],
        "table_sha256": hashlib.sha256(used.encode()).hexdigest(),
    }
    path = output / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} ({before.get(name)}, now {value})"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise SystemExit(
                f"{output} holds a pool of other settings: {'; '.join(changed)}. Choose another --output."
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SystemExit(f"{output} exists and holds no pool: choose a new or empty folder for --output.")
    write_json(path, settings)


def remove_remains(folder: Path) -> None:
    """Removes what an interrupted run left of a package."""
    for remains in folder.parent.glob(f".{folder.name}.*{TEMPORARY}"):
        shutil.rmtree(remains)


def build_package(
    package: UnpackedPackage,
    entry: PackageEntry,
    table: Table,
    folder: Path,
    most_hours: float,
    known: Container[str] = (),
) -> None:
    """Writes the clips of an unpacked package, their manifest and the package's copyright file, whole or not at all.

    Args:
        package: The package.
        entry: Its entry in the table.
        table: The table, for the allowed licenses.
        folder: Folder to write; must not exist.
        most_hours: Most hours of clips.
        known: Checksums of clips of other packages, which are left out.
    """
    licenses = PackageLicenses(package, entry, table.licenses)
    left_out: Counter[str] = Counter()
    sources = find_sources(package, licenses, left_out)
    pieces = choose_pieces({source.file.path: source.seconds for source in sources}, most_hours * 3600, entry.name)
    unfinished = temporary_name(folder)
    try:
        unfinished.mkdir(parents=True)
        rows: dict[str, dict[str, Any]] = {}
        used = [source for source in sources if pieces[source.file.path]]
        for source in tqdm(used, desc=entry.name, unit="file", disable=None):
            for start, clip, rate in read_clips(source.file, pieces[source.file.path], left_out):
                checksum = hashlib.sha256(clip.tobytes()).hexdigest()
                if checksum in rows or checksum in known:
                    left_out["same samples as another clip"] += 1
                    continue
                stem = re.sub(r"[^A-Za-z0-9]+", "_", PurePosixPath(source.file.path).stem)[:40]
                name = f"{len(rows):05d}_{stem}.flac"
                soundfile.write(unfinished / name, clip, RATE, subtype="PCM_16")
                rows[checksum] = {
                    "file": f"{entry.name}/{name}",
                    "package": package.name,
                    "version": package.version,
                    "source": source.file.path,
                    "start_seconds": f"{start:.2f}",
                    "seconds": f"{len(clip) / RATE:.2f}",
                    "original_rate": rate,
                    "license": source.terms.license,
                    "authors": source.terms.authors,
                    "homepage": licenses.homepage,
                    "sha256": checksum,
                }
        (unfinished / "copyright").write_text(licenses.copyright_text, encoding="utf-8")
        write_manifest(unfinished, list(rows.values()))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    report(entry.name, list(rows.values()), left_out)


def find_sources(package: UnpackedPackage, licenses: PackageLicenses, left_out: Counter[str]) -> list[Source]:
    """Audio files of a package that may be used and can be read; counts the others by reason."""
    sources = []
    for file in package.audio_files():
        try:
            terms = licenses.terms(file.path)
            if terms is not None:
                sources.append(Source(file, length(file), terms))
        except LeftOutError as error:
            left_out[str(error)] += 1
        except BadClipError as error:
            left_out[error.reason] += 1
    return sources


def length(file: AudioFile) -> float:
    """Length of a file in seconds."""
    with open_recording({"bytes": file.read(), "path": file.path}) as recording:
        frames = sum(map(len, recording.read())) if recording.frames is None else recording.frames
        return frames / recording.rate


def choose_pieces(lengths: Mapping[str, float], most_seconds: float, seed: str) -> dict[str, set[int]]:
    """Numbers of the pieces of `CLIP_SECONDS` that are taken of each file, chosen at random if there are too many."""
    pieces = [(path, number) for path in sorted(lengths) for number in range(math.ceil(lengths[path] / CLIP_SECONDS))]
    random.Random(seed).shuffle(pieces)
    chosen: dict[str, set[int]] = {path: set() for path in lengths}
    for path, number in pieces:
        most_seconds -= min(CLIP_SECONDS, lengths[path] - number * CLIP_SECONDS)
        if most_seconds < 0:
            break
        chosen[path].add(number)
    return chosen


def read_clips(
    file: AudioFile, pieces: Container[int], left_out: Counter[str]
) -> Iterator[tuple[float, np.ndarray, int]]:
    """Clips of a file: start in seconds, 16-bit samples (samples,) at `RATE`, sampling rate of the file in Hz.

    Silence at both ends is cut off, and the peak of the file is scaled to `PEAK`. Counts by reason what is left out.
    """
    try:
        with open_recording({"bytes": file.read(), "path": file.path}) as recording:
            rate, waveform = recording.rate, np.concatenate(list(recording.blocks(RATE)))
    except BadClipError as error:
        left_out[error.reason] += 1
        return
    begin, end = sounding(waveform)
    if end - begin < SHORTEST_SECONDS * RATE:
        left_out["shorter than 0.3 s"] += 1
        return
    peak = float(np.abs(waveform).max())
    size = round(CLIP_SECONDS * RATE)
    for number, first in enumerate(range(begin, end, size)):
        clip = waveform[first : min(first + size, end)]
        if number not in pieces or (number and len(clip) < SHORTEST_REST_SECONDS * RATE):
            continue
        if np.abs(clip).max() < peak * 10 ** (SILENCE_DB / 20):
            left_out["silent"] += 1
            continue
        yield first / RATE, np.round(clip * (PEAK / peak * 32767)).astype(np.int16), rate


def sounding(waveform: np.ndarray) -> tuple[int, int]:
    """First and last sample (exclusive) of a waveform (samples,) without silence at its ends; (0, 0) of silence."""
    frames = len(waveform) // FRAME
    power = np.square(waveform[: frames * FRAME].reshape(frames, FRAME)).mean(axis=1)
    loud = np.flatnonzero(power > max(power.max(initial=0.0) * 10 ** (SILENCE_DB / 10), LEAST_POWER))
    return (int(loud[0]) * FRAME, int(loud[-1] + 1) * FRAME) if len(loud) else (0, 0)


def report(name: str, rows: Sequence[Mapping[str, Any]], left_out: Counter[str]) -> None:
    """Prints what was taken of a package, and what was not and why."""
    print(f"{name}: {len(rows):,} clips, {60 * hours(rows):.1f} minutes.")
    for reason, number in left_out.most_common():
        print(f"  left out, {reason}: {number:,}")


def hours(rows: Iterable[Mapping[str, Any]]) -> float:
    """Hours of clips."""
    return sum(float(row["seconds"]) for row in rows) / 3600


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the manifest of a folder's clips, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / MANIFEST, text.getvalue().encode())


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Rows of a folder's manifest."""
    with open(folder / MANIFEST, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def attribution(rows: Sequence[Mapping[str, str]], table: Table) -> str:
    """Text that names the packages, licenses and authors of clips, from the rows of their manifest."""
    packages: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        packages[row["package"]].append(row)
    used = {name for row in rows for name in row["license"].split(" and ")}
    urls = {license.name: license.url for license in table.licenses.values()}
    return ATTRIBUTION_TEXT.format(
        clips=f"{len(rows):,}",
        hours=f"{hours(rows):.1f}",
        number=len(packages),
        packages="\n".join(describe_package(name, packages[name]) for name in sorted(packages)),
        licenses="\n".join(f"- {name}: <{urls[name]}>" for name in sorted(used)),
    )


def describe_package(name: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Section of a package: version, homepage, and files and minutes by license and authors."""
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["license"], row["authors"]].append(row)
    homepage = f"<{rows[0]['homepage']}>. " if rows[0]["homepage"] else ""
    lines = [
        f"- {license}, by {authors}: files {len({row['source'] for row in group}):,}, minutes {60 * hours(group):.1f}"
        for (license, authors), group in sorted(groups.items())
    ]
    return "\n".join(
        [
            f"## {name} {rows[0]['version']}\n",
            f"{homepage}The package states its terms in `/usr/share/doc/{name}/copyright`.\n",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
