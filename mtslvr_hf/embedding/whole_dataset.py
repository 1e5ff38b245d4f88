"""Embeddings of a whole data set as parquet shards, and a faiss index of them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..audio.recording import OnTruncated
from ..cards.embeddings import write_card
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..files import sha256_of, whole_file, write_json
from ..fingerprints import weights_sha256
from ..installation import install_hint
from ..modeling_mtslvr import MTSLVRPreTrainedModel, feature_extractor_of
from ..shards import ShardFolder, ShardReport, ShardWriter, Source, SourceRow, report_of, write_shards
from ..shards.folder import ERRORS, FORMAT_VERSION, MANIFEST
from .encode import Encoded, encode_items

INDEX = "embeddings.faiss"
OWN_COLUMNS = ("id", "embedding", "duration", "windows")
EXTRACTOR_KEYS = ("normalization", "mean", "std", "do_resample")


@dataclass(frozen=True)
class EmbedReport(ShardReport):
    """Report of a folder of embeddings."""

    embedding_size: int

    def __str__(self) -> str:
        return (
            f"Wrote {self.folder}: {self.rows} embeddings of {self.embedding_size} values, {self.bad(ERRORS)}; "
            f"{self.computed} of {self.shards} shards were made in this run."
            + (f"\nLoad them with datasets.load_dataset({str(self.folder)!r}, split='train')." if self.rows else "")
        )


def embed_dataset(
    model: MTSLVRPreTrainedModel,
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
    num_workers: int | None = None,
    compile: bool = False,
    faiss: bool = False,
    verify: bool = False,
    allow_row_paths: bool = False,
    show_progress_bar: bool | None = None,
    on_truncated: OnTruncated = "error",
) -> EmbedReport:
    """Embeddings of all audio of a data set, in a folder that `datasets.load_dataset` reads.

    The folder gets `data/*.parquet` (columns `id`, `embedding`, `duration` in seconds, `windows`, and copied ones),
    `manifest.json` (counts, settings, shards with checksums), `errors.jsonl` (bad rows, reasons) and a README.md. An
    interrupted run resumes when it is called again: only shards that are missing, incomplete or made from other input
    are computed. Under `accelerate launch`, process p of P takes every P-th partition of the source (a shard of a
    stream, or `rows_per_shard` rows).

    Args:
        model, tasks, batch_size, normalize, num_workers, compile: As for `encode`.
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub; or a data set object.
        output: The folder to write, new or of an earlier run with the same settings.
        config: Configuration of the data set.
        split: Split of the data set; default: all files of a folder, or the only split.
        audio_column: Name of the audio column; required if it is ambiguous.
        columns: Columns to copy. A folder of audio files has `file` and `label` (its class, as for evaluation), or the
            columns of its metadata.csv.
        id_column: Column that names the rows; default: the path that is stored with the audio, or the position.
        feature_extractor: Sets the normalization; default: the one saved with the model's weights.
        rows_per_shard: Largest number of rows in a parquet file. A stream's shards are not joined.
        faiss: Also write an index for `get_nearest_examples`, by inner product if `normalize`, else by Euclidean
            distance.
        verify: Also compare the checksums of finished shards, which reads all of them, and recompute damaged ones.
        allow_row_paths: Whether rows of a source without bytes may name any file or URL, see `load_audio`.
        show_progress_bar: Default: on a terminal.
        on_truncated: "error" makes a truncated file a bad row, "keep" embeds what it has.

    Returns:
        The folder's report, the same in all processes.

    Raises:
        FileNotFoundError: If the source does not exist, or processes do not share the output folder.
        FileExistsError: If the output folder holds other files.
        ImportError: If `faiss` is true and faiss is not installed.
        ValueError: If an option is out of range, the source lacks the configuration, split or a column, or the
            folder's shards were made with other settings, by another model or from another source.
    """
    output = Path(output)
    _check_arguments(columns, rows_per_shard, faiss)
    extractor = feature_extractor_of(model, feature_extractor)
    tasks = model.config.resolve_tasks(tasks)
    options = {"tasks": tasks, "normalize": normalize, "feature_extractor": extractor}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "compile": compile}
    options |= {"on_truncated": on_truncated}

    def make_writer(opened: Source) -> EmbeddingWriter:
        settings = {
            "format_version": FORMAT_VERSION,
            "source": {"name": opened.name, "config": config, "split": split, "audio_column": audio_column},
            "columns": list(opened.features),
            "id_column": id_column,
            "rows_per_shard": rows_per_shard,
            "tasks": tasks,
            "normalize": normalize,
            "on_truncated": on_truncated,
            "model": model_facts(model),
            "feature_extractor": extractor_facts(extractor),
        }
        folder = ShardFolder(output, "embeddings", "mtslvr embed", verify=verify)
        folder.claim(settings)
        features = _table_features(opened.features, model.config.embedding_size_of(tasks))
        finish = partial(_finish, folder, settings, model, faiss)
        return EmbeddingWriter(folder, features, rows_per_shard, finish, model=model, options=options)

    manifest, computed = write_shards(
        source,
        output,
        make_writer,
        cpu=False,
        description="embedding",
        show_progress_bar=show_progress_bar,
        config=config,
        split=split,
        audio_column=audio_column,
        columns=columns,
        id_column=id_column,
        rows_per_partition=rows_per_shard,
        allow_row_paths=allow_row_paths,
    )
    return report_of(EmbedReport, output, manifest, computed)


class EmbeddingWriter(ShardWriter[Encoded]):
    """Writer of embeddings by `encode_items`. Shapes: R rows of a shard, D embedding size."""

    def __init__(self, *arguments: Any, model: MTSLVRPreTrainedModel, options: dict[str, Any]):
        super().__init__(*arguments)
        self.model = model
        self.options = options

    def results(self, audio: Iterator[Any]) -> Generator[Encoded, None, None]:
        return encode_items(self.model, audio, **self.options)

    def totals(self, results: Sequence[Encoded]) -> dict[str, float]:
        return {"seconds": sum(r.seconds for r in results), "windows": sum(r.windows for r in results)}

    def table(self, good: Sequence[tuple[SourceRow, Encoded]]) -> pa.Table:
        schema, size = self.features.arrow_schema, self.features["embedding"].length
        embeddings = (
            np.stack([np.asarray(result.embedding) for _, result in good]) if good else np.zeros((0, size), np.float32)
        )
        values = {
            "id": [row.id for row, _ in good],
            "duration": [result.seconds for _, result in good],
            "windows": [result.windows for _, result in good],
        }
        for name in self.features:
            if name not in OWN_COLUMNS:
                values[name] = [row.columns[name] for row, _ in good]
        arrays = {name: pa.array(column, schema.field(name).type) for name, column in values.items()}
        flat = pa.array(embeddings.ravel())  # (R x D,)
        arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
        return pa.Table.from_arrays([arrays[name] for name in self.features], schema=schema)


def _table_features(copied: datasets.Features, size: int) -> datasets.Features:
    """Columns of a shard: its own, then the copied ones."""
    own = {
        "id": datasets.Value("string"),
        "embedding": datasets.List(datasets.Value("float32"), length=size),
        "duration": datasets.Value("float64"),
        "windows": datasets.Value("int32"),
    }
    return datasets.Features({**own, **copied})


def model_facts(model: MTSLVRPreTrainedModel) -> dict[str, Any]:
    """Facts of a model that determine its embeddings; its name is none."""
    network = model.base_model
    facts = {"weights_sha256": weights_sha256(network), "dtype": str(network.dtype).removeprefix("torch.")}
    return {**facts, **network.config.architecture()}


def extractor_facts(extractor: MTSLVRFeatureExtractor) -> dict[str, Any]:
    """Settings of a feature extractor that determine embeddings."""
    return {key: getattr(extractor, key) for key in EXTRACTOR_KEYS}


def _finish(
    folder: ShardFolder, settings: dict[str, Any], model: MTSLVRPreTrainedModel, faiss: bool, facts: dict[str, Any]
) -> None:
    """Writes the index, README.md and, last, the manifest."""
    name = {"name": _model_name(model), "revision": getattr(model.config, "_commit_hash", None)}
    size = model.config.embedding_size_of(settings["tasks"])
    manifest = {**settings, "model": name | settings["model"], "embedding_size": size, **facts}
    index = _index(folder, manifest, faiss)
    if index is not None:
        manifest["index"] = index
    write_card(folder.path, manifest)
    write_json(folder.path / MANIFEST, manifest)


def _index(folder: ShardFolder, manifest: dict[str, Any], wanted: bool) -> dict[str, Any] | None:
    """Entry of the index in the manifest. An earlier index is kept if it is of the same shards, else removed."""
    file = folder.path / INDEX
    previous = folder.read_manifest()
    known: Any = previous.get("index")
    same = isinstance(known, dict) and previous.get("shards") == manifest["shards"] and file.is_file()
    if same and sha256_of(file) == known.get("sha256"):
        return known
    file.unlink(missing_ok=True)
    if not wanted or manifest["rows"] == 0:
        return None
    shards = [folder.path / shard["file"] for shard in manifest["shards"]]
    _write_index(file, shards, manifest["normalize"])
    metric = "inner product" if manifest["normalize"] else "squared Euclidean distance"
    return {"file": INDEX, "metric": metric, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _write_index(file: Path, shards: Sequence[Path], normalized: bool) -> None:
    """Writes an exact index of all embeddings, in memory: twice 4 GB for a million of 1,000 values."""
    faiss = _import_faiss()
    # With a fingerprint, datasets does not pickle the whole table to make one.
    dataset = datasets.Dataset(pq.read_table(shards, columns=["embedding"]), fingerprint=INDEX)
    metric = faiss.METRIC_INNER_PRODUCT if normalized else faiss.METRIC_L2
    dataset.add_faiss_index("embedding", string_factory="Flat", metric_type=metric)
    with whole_file(file) as temporary:
        dataset.save_faiss_index("embedding", str(temporary))


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"An index needs faiss: {install_hint('faiss')}. Or leave the index out and add it later with "
            "dataset.add_faiss_index('embedding')."
        ) from error
    return faiss


def _model_name(model: MTSLVRPreTrainedModel) -> str:
    """Name of a model on the Hub, or of its folder without the path."""
    name = model.config.name_or_path
    if not name:
        return type(model).__name__
    return Path(name).resolve().name if os.path.isdir(name) else name


def _check_arguments(columns: Sequence[str], rows_per_shard: int, faiss: bool) -> None:
    if rows_per_shard < 1:
        raise ValueError(f"`rows_per_shard` must be at least 1; got {rows_per_shard}.")
    if faiss:
        _import_faiss()
    taken = [name for name in columns if name in OWN_COLUMNS]
    if taken:
        raise ValueError(
            f"The output has its own columns {', '.join(OWN_COLUMNS)}, so {', '.join(taken)} cannot be copied: rename "
            "it in the source, or use it as `id_column`."
        )


__all__ = ["EmbedReport", "embed_dataset", "extractor_facts", "model_facts"]
