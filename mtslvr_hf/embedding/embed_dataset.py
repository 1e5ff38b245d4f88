"""Embeddings of a whole data set as parquet shards: what `mtslvr embed` runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..cards.embeddings import write_card
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..files import sha256_of, write_json
from ..fingerprints import weights_sha256
from ..shards.folder import ERRORS, FORMAT_VERSION, MANIFEST, ShardFolder
from ..shards.partitions import open_source
from ..shards.run import check_agreement, check_apart, process_state, share_of, source_name
from .embedding_writer import OWN_COLUMNS, EmbeddingWriter, table_features
from .encode import feature_extractor_of
from .faiss_index import INDEX, check_faiss, write_index

EXTRACTOR_KEYS = ("normalization", "mean", "std", "do_resample")


@dataclass(frozen=True)
class EmbedReport:
    """Report of a folder of embeddings.

    Attributes:
        folder: The folder.
        rows: Embeddings in it.
        bad_rows: Rows of the source that have none.
        reasons: How many of them for each reason.
        failures: Parts of the source that could not be read to their end; another run tries again.
        shards: Number of parquet files.
        computed: How many of them were made in this run.
        seconds: Duration of the audio.
        embedding_size: D.
    """

    folder: Path
    rows: int
    bad_rows: int
    reasons: dict[str, int]
    failures: list[str]
    shards: int
    computed: int
    seconds: float
    embedding_size: int

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        bad = f"{self.bad_rows} bad rows ({reasons}; see {ERRORS})" if self.bad_rows else "no bad rows"
        return (
            f"Wrote {self.folder}: {self.rows} embeddings of {self.embedding_size} values, {bad}; {self.computed} of "
            f"{self.shards} shards were made in this run.\n"
            f"Load them with datasets.load_dataset({str(self.folder)!r}, split='train')."
        )


def embed_dataset(
    model: PreTrainedModel,
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    output: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    audio_column: str | None = None,
    columns: Sequence[str] = (),
    id_column: str | None = None,
    tasks: Sequence[str] | str | None = None,
    normalize: bool = False,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    batch_size: int = 32,
    rows_per_shard: int = 1000,
    num_workers: int = 2,
    compile: bool = False,
    faiss: bool = False,
    show_progress_bar: bool | None = None,
) -> EmbedReport:
    """Embeds all audio of a data set into a folder that `datasets.load_dataset` reads.

    The folder gets `data/*.parquet` (columns `id`, `embedding`, `duration` in seconds, `windows`, and those asked
    for), `manifest.json` (counts, settings and every shard with its checksum), `errors.jsonl` (rows that have no
    embedding, and why) and a README.md. A run that was interrupted, however hard, goes on where it was when called
    again: finished shards are verified by size and checksum, and only what is missing, damaged or made from other
    input is computed. Under `accelerate launch`, process p of P takes every P-th unit of work (see `open_source`).

    Args:
        model: An MT-SLVR model of any class.
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub; or a data set object.
        output: The folder to write, new or of an earlier run with the same settings.
        config: Configuration of the data set.
        split: Its split; unless given, all files of a folder, or a data set's only split.
        audio_column: Needed where several columns could be meant.
        columns: Columns to copy. A folder of audio files has `file` and `label`.
        id_column: Column that names the rows; unless given, the path that is stored with the audio, or the place.
        tasks: Tasks to embed for, in the embedding's order; the model's own choice unless given.
        normalize: Whether embeddings get L2 norm 1.
        feature_extractor: Its normalisation applies; unless given, the one beside the model's weights.
        batch_size: Windows that go through the network at once.
        rows_per_shard: Most rows of a parquet file. A stream's shards are not joined, so files may have less.
        num_workers: Threads that decode ahead.
        compile: Whether to compile the network, as for `encode`.
        faiss: Whether to write an index for `get_nearest_examples`, too: by inner product if `normalize`, else by
            Euclidean distance.
        show_progress_bar: Unless given, on a terminal.

    Returns:
        What the folder holds now, the same in all processes.

    Raises:
        FileNotFoundError: If the source is not there, or processes do not share the output folder.
        FileExistsError: If the output folder holds something else.
        ImportError: If an index is asked for and faiss is not installed.
        ValueError: If an option is out of its range, the source lacks what was asked for, or the folder's shards were
            made with other settings, by another model or from another source.
    """
    _check_arguments(source, Path(output), columns, rows_per_shard, faiss)
    opened = open_source(source, config, split, audio_column, columns, id_column, rows_per_shard)
    extractor = feature_extractor_of(model) if feature_extractor is None else feature_extractor
    tasks = model.config.resolve_tasks(tasks)
    settings = {
        "source": {
            "name": source_name(source, opened, Path(output)),
            "config": config,
            "split": split,
            "audio_column": audio_column,
        },
        "columns": list(opened.features),
        "id_column": id_column,
        "rows_per_shard": rows_per_shard,
        "tasks": tasks,
        "normalize": normalize,
    }
    settings = _with_versions(settings, model, extractor)
    folder = ShardFolder(output, "embeddings", "mtslvr embed")
    folder.claim(settings)
    state = process_state()
    check_agreement(gather_object([len(opened.units)]))
    features = table_features(opened.features, model.config.embedding_size_of(tasks))
    options = {"tasks": tasks, "normalize": normalize, "feature_extractor": extractor}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "compile": compile}
    show = (sys.stderr.isatty() if show_progress_bar is None else show_progress_bar) and state.is_main_process
    with tqdm(desc="embedding", total=share_of(opened.rows, state), unit="row", disable=not show) as bar:
        writer = EmbeddingWriter(model, folder, features, rows_per_shard, options, bar)
        for number in range(state.process_index, len(opened.units), state.num_processes):
            writer.write(number, opened.units[number])
    computed = sum(gather_object([writer.computed]))  # waits for all
    if state.is_main_process:
        _finish(folder, len(opened.units), settings, model, features, faiss)
    state.wait_for_everyone()
    return _report(folder, computed)


def _with_versions(
    settings: dict[str, Any], model: PreTrainedModel, extractor: MTSLVRFeatureExtractor
) -> dict[str, Any]:
    """All that the shards depend on."""
    return {
        "format_version": FORMAT_VERSION,
        **settings,
        "model": _fingerprint(model),
        "feature_extractor": {key: getattr(extractor, key) for key in EXTRACTOR_KEYS},
    }


def _fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Changes with whatever of the model changes its embeddings; not with its name."""
    network = model.base_model
    facts = {"weights_sha256": weights_sha256(network), "dtype": str(network.dtype).removeprefix("torch.")}
    return {**facts, **network.config.architecture()}


def _finish(
    folder: ShardFolder,
    units: int,
    settings: dict[str, Any],
    model: PreTrainedModel,
    features: datasets.Features,
    faiss: bool,
) -> None:
    """Puts together what all processes did: errors, index, README and, last, the manifest."""
    manifest = {
        **settings,
        "model": {"name": _model_name(model), "revision": getattr(model.config, "_commit_hash", None)}
        | settings["model"],
        "embedding_size": features["embedding"].length,
        **folder.finish(units),
    }
    index = _index(folder, manifest, faiss)
    if index is not None:
        manifest["index"] = index
    write_card(folder.path, manifest)
    write_json(folder.path / MANIFEST, manifest)


def _index(folder: ShardFolder, manifest: dict[str, Any], wanted: bool) -> dict[str, Any] | None:
    """Writes the index if it is wanted, keeps an earlier one of the same shards, and removes one of others."""
    file = folder.path / INDEX
    previous = folder.read_manifest()
    known = previous.get("index")
    same = known is not None and previous.get("shards") == manifest["shards"] and file.is_file()
    if same and sha256_of(file) == known["sha256"]:
        return known
    file.unlink(missing_ok=True)
    if not wanted or manifest["rows"] == 0:
        return None
    shards = [folder.path / shard["file"] for shard in manifest["shards"]]
    metric = write_index(file, shards, manifest["embedding_size"], manifest["normalize"])
    return {"file": INDEX, "metric": metric, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _report(folder: ShardFolder, computed: int) -> EmbedReport:
    manifest = folder.read_manifest()
    return EmbedReport(
        folder=folder.path,
        rows=manifest["rows"],
        bad_rows=manifest["bad_rows"],
        reasons=manifest["reasons"],
        failures=manifest["failures"],
        shards=len(manifest["shards"]),
        computed=computed,
        seconds=manifest["seconds"],
        embedding_size=manifest["embedding_size"],
    )


def _model_name(model: PreTrainedModel) -> str:
    """Its name on the Hub, or of its folder without the path to it."""
    name = model.config.name_or_path
    if not name:
        return type(model).__name__
    return Path(name).resolve().name if os.path.isdir(name) else name


def _check_arguments(source: Any, output: Path, columns: Sequence[str], rows_per_shard: int, faiss: bool) -> None:
    if rows_per_shard < 1:
        raise ValueError(f"`rows_per_shard` must be at least 1; got {rows_per_shard}.")
    if faiss:
        check_faiss()
    check_apart(source, output)
    _check_names(columns)


def _check_names(columns: Sequence[str]) -> None:
    taken = [name for name in columns if name in OWN_COLUMNS]
    if taken:
        raise ValueError(
            f"the output has columns {', '.join(OWN_COLUMNS)} of its own, so {', '.join(taken)} cannot be copied: "
            "rename it in the source, or name the rows by it with `id_column`"
        )


__all__ = ["EmbedReport", "embed_dataset"]
