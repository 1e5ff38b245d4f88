"""Local sources of audio: the kind of a folder or file, and the files of each kind."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from datasets.data_files import ALL_DEFAULT_PATTERNS, ALL_SPLIT_PATTERNS, DataFilesList, sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate
from huggingface_hub import DatasetCard

from .folders import FolderLayout, choose_split, split_of, visible_files
from .metadata import METADATA_NAMES, FolderMetadata, foreign_metadata, has_paths, read_metadata

logger = logging.getLogger(__name__)

LIBSNDFILE_SUFFIXES = (
    *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus"),
    *(".rf64", ".snd", ".w64", ".wav", ".wave"),
)
TORCHCODEC_SUFFIXES = (".aac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma")
AUDIO_SUFFIXES = frozenset(LIBSNDFILE_SUFFIXES + TORCHCODEC_SUFFIXES)


class LocalSource(NamedTuple):
    """Folder or file of audio.

    Attributes:
        kind: "dataset" (parquet, or a README.md that lists files), "tar shards" or "audio files".
        files: Tar shards or audio files.
        metadata: Files of metadata beside audio files.
    """

    path: Path
    kind: str
    files: list[Path]
    metadata: list[Path] = []

    def layout(self) -> FolderLayout:
        """Splits and classes of audio files."""
        return FolderLayout(self.path, self.files)

    def read_metadata(self, audio_column: str | None = None, required: bool = False) -> FolderMetadata | None:
        """Rows of the metadata of audio files; None if there are none.

        Files that are only called like metadata get a warning.

        Raises:
            ValueError: If metadata cannot be read, or if `required` and files are only called like metadata.
        """
        sources = [file for file in self.metadata if has_paths(file)]
        if not sources:
            if self.metadata and required:
                raise ValueError(f"{foreign_metadata(self.metadata)}.")
            if self.metadata:
                logger.warning("%s. All audio files are taken.", foreign_metadata(self.metadata))
            return None
        return read_metadata(self.path, sources, self.files, audio_column)

    def tars_of(self, split: str) -> list[Path]:
        """Tar shards of a split: by their top-level folders, or without folders by their names ("train-0001.tar").

        Raises:
            ValueError: If there is no such split.
        """
        if self.path.is_file():
            return self.files
        names = {file: _split_name(file.relative_to(self.path)) for file in self.files}
        if not all(split_of(name) for name in names.values()):
            return FolderLayout(self.path, self.files).files_of(split)
        chosen = choose_split(list(names.values()), split, self.path)
        return [file for file, name in names.items() if name in chosen]


def local_path(name: str | Path) -> Path | None:
    """Path of a local source, or None for the name of a data set on the Hub.

    Raises:
        FileNotFoundError: If the name looks like a path and does not exist.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(f"no such file or folder: {name}.")
    return None


def find_audio_files(folder: Path, suffixes: frozenset[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Visible files of a folder with one of the suffixes, at any depth, sorted. Links to folders are followed."""
    return [file for file in visible_files(folder) if file.suffix.lower() in suffixes]


def look_into(path: Path, config: str | None = None) -> LocalSource:
    """Kind and files of a local source. Hidden files do not count.

    Raises:
        ValueError: If it has no known kind, or `config` is given and it has no configurations.
    """
    source = _look_into_file(path) if path.is_file() else _look_into_folder(path)
    if source.kind != "dataset" and config is not None:
        raise ValueError(f"{path} holds {source.kind} and has no configuration {config!r}. Omit the configuration.")
    return source


def _look_into_file(path: Path) -> LocalSource:
    if path.suffix.lower() == ".parquet":
        return LocalSource(path, "dataset", [])
    if _is_tar(path):
        return LocalSource(path, "tar shards", [path])
    hint = ""
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx"):
        hint = " For labels of audio files, write metadata.csv with the columns file_name and label into their folder."
    elif path.suffix.lower() in AUDIO_SUFFIXES:
        hint = " For a single audio file, give its folder."
    raise ValueError(f"{path} is neither a folder nor a parquet or tar file.{hint}")


def _look_into_folder(path: Path) -> LocalSource:
    files = visible_files(path)
    audio = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    metadata = [file for file in files if file.name in METADATA_NAMES]
    parquet = [file for file in files if file.suffix.lower() == ".parquet" and not (audio and file in metadata)]
    if parquet or _card_configs(path):
        if parquet:
            _card_configs(path, required=True)
        return LocalSource(path, "dataset", parquet)
    tars = [file for file in files if _is_tar(file)]
    if tars:
        return LocalSource(path, "tar shards", tars)
    if audio:
        return LocalSource(path, "audio files", audio, metadata)
    found = ", ".join(f"{n} x {suffix}" for suffix, n in Counter(f.suffix for f in files if f.suffix).most_common(5))
    raise ValueError(
        f"{path} holds neither parquet shards nor tar shards nor audio files; found: {found or 'nothing'}."
    )


def _card_configs(folder: Path, required: bool = False) -> dict[str, dict[str, Any]]:
    """Configurations in a folder's README.md, by name. Without `required`, a README.md that is no card has none.

    Raises:
        ValueError: If `required` and README.md cannot be read as a card.
    """
    card = folder / "README.md"
    if not card.is_file():
        return {}
    try:
        data = DatasetCard.load(card).data
        return {name: values for name, values in MetadataConfigs.from_dataset_card_data(data).items() if values}
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        if not required:
            return {}
        raise ValueError(
            f"{card} cannot be read as the card of a data set, which stands beside its parquet files: "
            f"{' '.join(str(error).split())[:200]}. Mend what stands between its lines ---, or move it."
        ) from error


def data_files_of(source: LocalSource, config: str | None, split: str) -> Mapping[str, DataFilesList] | None:
    """Files of each split of a local data set, found as `datasets` does; None if `datasets` can find them itself.

    It cannot if the path holds characters of patterns (`take[1]`), or folders are links.
    """
    if source.path.is_file():
        return {split: _listed([source.path])}
    real = source.path.resolve()
    folders = {file.parent for file in source.files}
    linked = any(folder.resolve() != real / folder.relative_to(source.path) for folder in folders)
    if not source.files or not (linked or has_magic(str(real))):
        return None
    files = {file.relative_to(source.path).as_posix(): file for file in source.files}
    patterns = _patterns(source.path, config, list(files))
    found = {split: _listed([files[name] for name in _matches(own, list(files))]) for split, own in patterns.items()}
    return {split: listed for split, listed in found.items() if listed}


def _listed(files: Sequence[Path]) -> DataFilesList:
    """Files with their times, as `datasets` lists them."""
    return DataFilesList([str(file.absolute()) for file in files], [(str(file.stat().st_mtime),) for file in files])


def _patterns(folder: Path, config: str | None, names: list[str]) -> Mapping[str, list[str]]:
    """Patterns of the splits' files, from README.md or by the rules of `datasets`."""
    configs = _card_configs(folder)
    if config is not None and config not in configs:
        raise ValueError(f"{folder} has no configuration {config!r}; it has: {', '.join(configs) or 'default'}.")
    config = config or MetadataConfigs(configs).get_default_config_name()
    if config is None and configs:
        raise ValueError(f"{folder} has the configurations {', '.join(configs)}: choose one.")
    chosen = configs.get(config or "", {})
    if "data_files" in chosen:
        return sanitize_patterns(chosen["data_files"])
    if "data_dir" in chosen:
        return {"train": [f"{chosen['data_dir']}/**"]}
    for pattern in ALL_SPLIT_PATTERNS:
        text = re.escape(pattern.replace("{split}", "@")).replace("@", r"(\w+)")
        text = text.replace(re.escape("[0-9]"), "[0-9]").replace(r"\*", "[^/]*")
        splits = dict.fromkeys(match[1] for name in names if (match := re.fullmatch(text, name)))
        if splits:
            return {split: [pattern.format(split=split)] for split in splits}
    for patterns in ALL_DEFAULT_PATTERNS:
        found = {str(split): own for split, own in patterns.items() if _matches(own, names)}
        if found:
            return found
    return {"train": ["**"]}


def _matches(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that match a pattern, each once."""
    expressions = [re.compile(glob_translate(pattern)) for pattern in patterns]
    return [name for name in names if any(expression.match(name) for expression in expressions)]


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _split_name(file: PurePath) -> str:
    """First folder of a tar shard's relative path; without folders, the split in its name, or ""."""
    return file.parts[0] if len(file.parts) > 1 else split_of(file.name.partition(".tar")[0]) or ""


__all__ = ["AUDIO_SUFFIXES", "LocalSource", "data_files_of", "find_audio_files", "local_path", "look_into"]
