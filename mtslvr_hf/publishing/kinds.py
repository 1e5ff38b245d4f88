"""Kinds of folders that can be published: their files, and their place on the Hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..adapters import ADAPTER_FILE
from ..cards.results import RESULTS
from ..data.folders import visible_files
from ..shards.folder import DATA, ERRORS, MANIFEST, SETTINGS

OF_MODELS = (
    *(
        "README.md",
        "config.json",
        "preprocessor_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "*_mtslvr.py",
    ),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", RESULTS),
    *("pretrain.yaml", "finetune.yaml", "all_results.json", "eval_results.json", "trainer_state.json"),
)
LINKED = (".md", ".txt", ".png", ".jpg", ".svg")
OF_SHARDS = (
    "README.md",
    f"**/{MANIFEST}",
    f"**/{SETTINGS}",
    f"**/{ERRORS}",
    "**/data/*.parquet",
    "**/records/*.json",
    "*.faiss",
)


@dataclass(frozen=True)
class Kind:
    """Kind of folder.

    Attributes:
        name: In words.
        repo_type: "model" or "dataset".
        files: Patterns of the files that are published, beside texts and images that the card links to.
        use: Code that loads it, with the repository's name for {}.
    """

    name: str
    repo_type: str
    files: tuple[str, ...]
    use: str


PRETRAINED = Kind("pre-trained model", "model", OF_MODELS, 'AutoModel.from_pretrained("{}")')
CLASSIFIER = Kind("classifier", "model", OF_MODELS, 'pipeline("audio-classification", "{}")')
ADAPTER = Kind("adapter", "model", ("README.md", ADAPTER_FILE), 'model.load_adapter("{}")')
EMBEDDINGS = Kind("embeddings", "dataset", OF_SHARDS, 'datasets.load_dataset("{}", split="train")')
CACHED_AUDIO = Kind("cached audio", "dataset", OF_SHARDS, 'mtslvr_hf.data.load_audio("{}")')


def kind_of(folder: Path) -> Kind:
    """Kind of a folder, from its files.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is none of the kinds, or its shards are not complete.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    if (folder / "config.json").is_file():
        config = _read(folder / "config.json")
        if config.get("model_type") != "mtslvr":
            raise ValueError(f"{folder} is a model of type {config.get('model_type')!r}; expected an MT-SLVR model.")
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} has a configuration, but no weights (*.safetensors).")
        return CLASSIFIER if "Classification" in str(config.get("architectures")) else PRETRAINED
    if (folder / ADAPTER_FILE).is_file():
        return ADAPTER
    visible = visible_files(folder)
    shard = next((file for file in visible if file.parent.name == DATA and file.suffix == ".parquet"), None)
    if shard is None:
        raise ValueError(
            f"{folder} holds nothing to publish: expected a model, a classifier, an adapter, or a folder of `mtslvr "
            "embed` or `mtslvr cache`."
        )
    folders = {file.parents[1] for file in visible if file.parent.name == DATA}
    unfinished = sorted(parent for parent in folders if not (parent / MANIFEST).is_file())
    if unfinished:
        raise ValueError(f"{unfinished[0]} has no {MANIFEST}: run the command that writes it again to finish it.")
    try:
        columns = pq.read_schema(shard).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shard} is damaged: {error} Run the command that writes it again.") from error
    return EMBEDDINGS if "embedding" in columns else CACHED_AUDIO


def files_of(folder: Path, kind: Kind) -> list[Path]:
    """Files that are published, relative to the folder, sorted: those of the kind, and those that the card shows."""
    found = {path for pattern in kind.files for path in folder.glob(pattern)}.intersection(visible_files(folder))
    return sorted({path.relative_to(folder) for path in found}.union(_linked(folder)))


def _linked(folder: Path) -> list[Path]:
    """Texts and images in the folder that its card links to, such as ATTRIBUTION.md."""
    card = folder / "README.md"
    links = re.findall(r"\]\(([\w./-]+)\)", card.read_text(encoding="utf-8")) if card.is_file() else []
    paths = [Path(link) for link in links]
    inside = [path for path in paths if not path.is_absolute() and ".." not in path.parts]
    return [path for path in inside if path.suffix in LINKED and (folder / path).is_file()]


def left_out(folder: Path, published: list[Path]) -> list[str]:
    """Files and folders at the top that stay, sorted by name."""
    taken = {path.parts[0] for path in published}
    return sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir() if path.name not in taken)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


__all__ = [
    "ADAPTER",
    "CACHED_AUDIO",
    "CLASSIFIER",
    "EMBEDDINGS",
    "PRETRAINED",
    "Kind",
    "files_of",
    "kind_of",
    "left_out",
]
