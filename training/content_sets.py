"""Labelled sets that ask for content: notes by pitch, notes by instrument, and words spoken by synthetic voices.

Development sets of docs/recipe.md. What is to be recognized differs between the clips of one source, so that sources
alone (a voice, a room, an instrument) do not help. Needs Debian's `flite`, `espeak-ng` and `timgm6mb-soundfont`, and
`pip install --no-deps tinysoundfont`.

    python training/content_sets.py --output FOLDER_OF_THE_LABELLED_SETS
    mtslvr evaluate --model MODEL --data content --data-root FOLDER_OF_THE_LABELLED_SETS

Every set has a folder for each class, and `manifest.csv` (file, label, group).
"""

import argparse
import csv
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mtslvr_hf.files import TEMPORARY

RATE = 16_000
SOUND_FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
FONT_RATE = 44_100

# General MIDI programs that hold or ring a clear pitch, one of each kind.
PROGRAMS = {
    0: "grand_piano", 4: "electric_piano", 6: "harpsichord", 9: "glockenspiel", 11: "vibraphone", 12: "marimba",
    14: "tubular_bells", 16: "drawbar_organ", 19: "church_organ", 21: "accordion", 22: "harmonica",
    24: "nylon_guitar", 25: "steel_guitar", 27: "clean_guitar", 30: "distorted_guitar", 32: "acoustic_bass",
    36: "slap_bass", 38: "synth_bass", 40: "violin", 42: "cello", 45: "pizzicato", 46: "harp", 48: "strings",
    52: "choir", 56: "trumpet", 57: "trombone", 60: "french_horn", 61: "brass", 65: "alto_sax", 68: "oboe",
    70: "bassoon", 71: "clarinet", 73: "flute", 75: "pan_flute", 78: "whistle", 79: "ocarina", 80: "square_lead",
    81: "saw_lead", 104: "sitar", 105: "banjo", 107: "koto", 109: "bagpipe",
}  # fmt: skip
PITCHES = range(45, 79, 3)  # MIDI keys, a minor third apart: A2 to F#5

WORDS = [
    "yes", "no", "left", "right", "stop", "go", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "zero", "house", "water", "garden", "window", "yellow", "music", "paper", "butterfly",
]  # fmt: skip
FLITE_VOICES = ["kal16", "awb", "rms", "slt"]
ESPEAK_VOICES = [
    "en-us+m1", "en-us+m3", "en-us+f2", "en-us+f4", "en-gb-x-rp+m2", "en-gb-scotland+f3", "en-gb-scotland+m4",
    "en-us+croak",
]  # fmt: skip


class Clip(NamedTuple):
    """Clip of a set: label, group, and samples at 16 kHz."""

    label: str
    group: str
    samples: np.ndarray


class Synthesizer:
    """Single notes of a sound font, held for 1.2 s."""

    def __init__(self, path: Path):
        import tinysoundfont

        self.synth = tinysoundfont.Synth(samplerate=FONT_RATE, gain=-6)
        self.font = self.synth.sfload(str(path))

    def note(self, program: int, key: int) -> np.ndarray:
        """Samples of a note at 16 kHz."""
        self.synth.sounds_off()
        self.synth.program_select(0, self.font, 0, program)
        self.synth.noteon(0, key, 96)
        held = self._samples(1.2)
        self.synth.noteoff(0, key)
        stereo = np.concatenate([held, self._samples(0.5)])
        return soxr.resample(stereo.mean(axis=1), FONT_RATE, RATE)

    def _samples(self, seconds: float) -> np.ndarray:
        raw = self.synth.generate(int(seconds * FONT_RATE))
        return np.frombuffer(bytes(raw), dtype=np.float32).reshape(-1, 2)


def notes(label: str) -> Iterator[Clip]:
    """Every pitch of every instrument; the label is `pitch` or `instrument`, the group the other one."""
    synthesizer = Synthesizer(SOUND_FONT)
    for program, instrument in PROGRAMS.items():
        for key in PITCHES:
            names = {"pitch": f"key{key}", "instrument": instrument}
            (group,) = (value for name, value in names.items() if name != label)
            yield Clip(names[label], group, synthesizer.note(program, key))


def spoken_words() -> Iterator[Clip]:
    """Every word by every voice; the group is the voice."""
    for voice in FLITE_VOICES + ESPEAK_VOICES:
        for word in WORDS:
            yield Clip(word, voice, spoken(word, voice))


def spoken(text: str, voice: str) -> np.ndarray:
    """Samples at 16 kHz of a text spoken by a voice of flite or espeak-ng."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        if voice in FLITE_VOICES:
            command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
        else:
            command = ["espeak-ng", "-v", voice, text, "-w", str(path)]
        subprocess.run(command, check=True)
        samples, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate, RATE)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Samples without silence at either end (below 1 % of the peak), with a peak of 0.9."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return 0.9 * samples / np.abs(samples).max()


def write_set(clips: Iterator[Clip], folder: Path) -> int:
    """Writes the clips of a set and its manifest, whole or not at all; returns their number.

    Raises:
        SystemExit: If two clips are the same: flite and espeak-ng replace an unknown voice without an error.
    """
    rows: list[dict[str, str]] = []
    seen: dict[bytes, str] = {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=TEMPORARY, dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        for number, clip in enumerate(clips):
            key = clip.samples.tobytes()
            if key in seen:
                raise SystemExit(
                    f"{clip.label} of {clip.group} is the same as that of {seen[key]}: choose other voices."
                )
            seen[key] = clip.group
            path = whole / clip.label / f"{number:04d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, trimmed(clip.samples), RATE)
            rows.append({"file": str(path.relative_to(whole)), "label": clip.label, "group": clip.group})
        with (whole / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        whole.replace(folder)
    return len(rows)


def check_requirements() -> None:
    """Checks that programs, sound font and library are there, and raises SystemExit with what is missing."""
    missing = [name for name in ("flite", "espeak-ng") if shutil.which(name) is None]
    missing += [] if SOUND_FONT.is_file() else ["timgm6mb-soundfont"]
    if missing:
        raise SystemExit(f"Debian packages are missing: `apt-get install {' '.join(missing)}`.")
    if importlib.util.find_spec("tinysoundfont") is None:
        raise SystemExit("Notes are made with tinysoundfont: `pip install --no-deps tinysoundfont`.")


def main() -> None:
    """Writes the sets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the sets")
    folder = parser.parse_args().output
    check_requirements()
    sets = {"note_pitches": notes("pitch"), "note_instruments": notes("instrument"), "spoken_words": spoken_words()}
    for name, clips in sets.items():
        if (folder / name).exists():
            print(f"{name}: already there, not made again")
            continue
        print(f"{name}: {write_set(clips, folder / name)} clips")


if __name__ == "__main__":
    main()
