"""Registry of evaluation data sets on the Hub (those of the paper) and on disk; class lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """Labeled data set of the registry.

    Attributes:
        paper_name: Data set of the paper that it is or replaces, or "".
        repository: Name on the Hub, or "" for a folder `ROOT/name` on disk.
        split: Split, or several joined by "+".
        audio_column, label_column, group_column: See `load_labelled_audio`.
        clips: Number of clips, from the source named below.
        classes: Number of classes; 0 if unknown.
        group_disjoint: Default of `FewShotProtocol.group_disjoint`.
        note: Difference from the paper's data set.
    """

    name: str
    paper_name: str = ""
    repository: str = ""
    revision: str | None = None
    split: str = "train"
    audio_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    clips: int = 0
    classes: int = 0
    group_disjoint: bool = False
    note: str = ""


# Names of the ten data sets of the paper: the authors' evaluation code (MetaAudio's seven and three of speech). Their
# repositories, revisions, columns, splits and counts: audio tasks of mteb 2.26, except for all of voxceleb1 and
# watkins, the label and group columns of esc50 and the label column of nsynth, which are from the repositories' pages.
_ALL = (
    Benchmark(
        "esc50",
        paper_name="ESC-50",
        repository="mteb/esc50",
        revision="31ea534771aaf92c116698355e5cdc2ffda4bb6d",
        audio_column="audio",
        label_column="category",  # names, as in MetaAudio's lists of classes
        group_column="src_file",
        clips=2000,
        classes=50,
        note="all 50 classes; the paper keeps to MetaAudio's test classes, see --class-list",
    ),
    Benchmark(
        "nsynth",
        paper_name="NSynth",
        repository="mteb/nsynth-mini",
        revision="e32dfe9b65e121e64229a821fe1ff177e8962635",
        split="test",
        audio_column="audio",
        label_column="instrument_str",  # what MetaAudio's lists of classes name
        clips=3002,
        note="a part of NSynth, with all instruments in it; the paper keeps to MetaAudio's test instruments",
    ),
    Benchmark(
        "fsdkaggle18",
        paper_name="FSDKaggle18",
        repository="artist/FSDKaggle2018",
        revision="f1fa466b5a226463d5b6ba1f8ecbe05f2f74262f",
        split="test",
        audio_column="audio",
        label_column="label",
        clips=1600,
        classes=41,
        note="the verified test split alone, and all 41 classes",
    ),
    Benchmark(
        "birdclef25",
        paper_name="BirdClef2020 (pruned)",
        repository="mteb/birdclef25-mini",
        revision="582215665b247604b555da7ff4e071f82d3617db",
        audio_column="recording",
        label_column="primary_label",
        clips=1000,
        classes=50,
        note="another set: 50 species of the edition of 2025, 20 recordings each, in place of the pruned one of 2020",
    ),
    Benchmark(
        "voxceleb1",
        paper_name="VoxCeleb1",
        repository="asahi417/voxceleb1-test-split",
        revision="04d4f200a317e04f1dc45bb5cc891aa89bd93ccf",
        split="test",
        audio_column="audio",
        label_column="speaker_id",
        clips=4874,
        classes=40,
        note="the 40 speakers of the verification test, of VoxCeleb1's 1,251; their interviews are not kept apart",
    ),
    Benchmark(
        "watkins",
        paper_name="Watkins Marine Mammal Sounds",
        repository="confit/wmms-parquet",
        revision="6ced8671022a429fa67952cdd312b9976399e94e",
        split="train+test",
        audio_column="audio",
        label_column="species",
        clips=1697,
        classes=32,
        note="all species; nothing says which clips are of one recording session",
    ),
    Benchmark(
        "speech_commands",
        paper_name="SpeechCommandsV2",
        repository="mteb/speech-commands-mini",
        revision="3ac713aa0829eeadda73182f38bbbd788d21254b",
        split="test",
        audio_column="audio",
        label_column="label",
        clips=4890,
        classes=36,
        note="the test split alone, and with silence as a 36th class",
    ),
    Benchmark(
        "crema_d",
        paper_name="CREMA-D",
        repository="mteb/crema-d",
        revision="a9d0821955c418752248b8310438854e56a1cf34",
        audio_column="audio",
        label_column="label",
        clips=7442,
        classes=6,
        note="classes are emotions, and speakers are not kept apart",
    ),
    Benchmark(
        "vctk_accents",
        paper_name="Speech Accent Archive",
        repository="mteb/cstr-vctk-accent-mini",
        revision="ceb854ae5018298bd1b5edb5983b78515ef8ded6",
        audio_column="audio",
        label_column="accents",
        clips=12_000,
        classes=13,
        note="another set: accents of VCTK's speakers, who are not kept apart, in place of the Speech Accent Archive; "
        "one of the 13 is 'Unknown'",
    ),
    Benchmark(
        "common_language",
        paper_name="Common Voice v12 Delta",
        repository="mteb/commonlanguage-lang-mini",
        revision="445bd662ffd3883ac662e2f1df18724c10688304",
        split="test",
        audio_column="audio",
        label_column="language",
        clips=2000,
        classes=44,
        note="another set: languages of CommonLanguage, an earlier part of Common Voice",
    ),
    Benchmark("drum_hits", clips=449, classes=15, group_disjoint=True),
    Benchmark("game_effects", clips=628, classes=21),
    Benchmark("gm_instruments", clips=1140, classes=95),
    Benchmark("digit_speakers", clips=165, classes=17),
    Benchmark("languages", clips=592, classes=11, group_disjoint=True),
    Benchmark("mandarin_tones", clips=503, classes=5, group_disjoint=True),
)
# Made by training/content_sets.py: what is to be recognized differs between the clips of one source.
_CONTENT = (
    Benchmark("note_pitches", clips=504, classes=12, group_disjoint=True),
    Benchmark("note_instruments", clips=504, classes=42, group_disjoint=True),
    Benchmark("spoken_words", clips=288, classes=24, group_disjoint=True),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL + _CONTENT}
SUITES = {
    "paper": [benchmark.name for benchmark in _ALL if benchmark.paper_name],
    "labelled": [benchmark.name for benchmark in _ALL if not benchmark.paper_name],
    "content": [benchmark.name for benchmark in _CONTENT],
}


def read_class_list(path: str | Path) -> list[str]:
    """Unique class names of a UTF-8 text file with one name per line, in order; empty lines are ignored.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not UTF-8 text or has no names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected a list of classes, one name per line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; expected one class name per line.") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise ValueError(f"{path} names no class; expected one name per line.")
    return names


def expand(specs: Iterable[str | Path]) -> list[str | Path]:
    """Specifications with suites replaced by their members, unless a file or folder has the suite's name."""
    return [
        member for spec in specs for member in (SUITES[spec] if spec in SUITES and not Path(spec).exists() else [spec])
    ]


def describe_registry() -> str:
    """Text with one line per data set, by suite."""
    lines = []
    for suite, names in SUITES.items():
        lines.append(f"{suite}:")
        for name in names:
            benchmark = BENCHMARKS[name]
            where = benchmark.repository or "ROOT/" + name
            size = f"{benchmark.clips:,} clips" + (f" of {benchmark.classes} classes" if benchmark.classes else "")
            paper = f", for the paper's {benchmark.paper_name}" if benchmark.paper_name else ""
            lines.append(f"  {name}: {where}, {size}{paper}{'; ' + benchmark.note if benchmark.note else ''}")
    lines.append("ROOT is --data-root or the environment variable MTSLVR_EVALUATION_DATA.")
    return "\n".join(lines)


__all__ = ["BENCHMARKS", "SUITES", "Benchmark", "describe_registry", "expand", "read_class_list"]
