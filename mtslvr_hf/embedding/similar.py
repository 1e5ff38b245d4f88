"""Nearest neighbors of a sound in a folder of audio, or in embeddings of one.

Shapes: N sounds, D embedding size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from ..modeling_mtslvr import MTSLVRPreTrainedModel, feature_extractor_of
from ..shards.folder import DATA, MANIFEST, SETTINGS, ShardFolder
from .encode import encode
from .whole_dataset import embed_dataset, extractor_facts, model_facts


class Neighbor(NamedTuple):
    """Sound of a folder, and its cosine similarity to the query, -1 to 1."""

    id: str
    similarity: float


def find_similar(
    model: MTSLVRPreTrainedModel,
    query: Any,
    source: str | Path,
    *,
    count: int = 5,
    tasks: Sequence[str] | str | None = None,
    **options: Any,
) -> list[Neighbor]:
    """Sounds of a folder with the largest cosine similarity to a query, the nearest first.

    Args:
        model: Model of the embeddings.
        query: File, URL, array, row or decoder, as for `encode`.
        source: Folder of audio or other source of `embed_dataset`, which is embedded for this call; or a folder that
            `mtslvr embed` wrote with the same model, which is read.
        count: Largest number of neighbors. The query is among them if the source holds it.
        tasks: Tasks of the embedding; default: those of the folder of embeddings, or the model's.
        options: Options of `embed_dataset`, such as `batch_size`, for a source of audio.

    Raises:
        ValueError: If `count` is below 1, or the folder's embeddings are of another model, of other tasks or missing.
        FileNotFoundError: If the source does not exist.
        BadClipError: If the query cannot be read.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}; expected at least 1.")
    folder = Path(source)
    if (folder / SETTINGS).is_file() and (folder / DATA).is_dir():
        return _nearest(model, query, folder, count, tasks)
    asked = encode(model, query, tasks=tasks, convert_to="torch")  # a bad query is found before the work
    with tempfile.TemporaryDirectory() as temporary:
        report = embed_dataset(model, source, temporary, tasks=tasks, **options)
        if report.rows == 0:
            raise ValueError(f"no file in {source} could be read: {report}")
        return _search(asked, Path(temporary), count)


def _nearest(
    model: MTSLVRPreTrainedModel, query: Any, folder: Path, count: int, tasks: Sequence[str] | str | None
) -> list[Neighbor]:
    """Neighbors in a folder of embeddings, which must be whole and of this model."""
    manifest = ShardFolder(folder, "embeddings", "mtslvr embed").read_manifest()
    if not manifest.get("shards") or "embedding_size" not in manifest:
        raise ValueError(f"{folder} has no complete {MANIFEST} of embeddings: run `mtslvr embed` again to finish it.")
    made = manifest["model"] | manifest["feature_extractor"]
    facts = json.loads(json.dumps(model_facts(model) | extractor_facts(feature_extractor_of(model))))
    changed = [name for name, value in facts.items() if made.get(name) != value]
    if changed:
        raise ValueError(
            f"the embeddings in {folder} are of another model ({made.get('name')}; different: {', '.join(changed)}). "
            "Take that model, or embed the audio with this one."
        )
    of_folder = manifest["tasks"]
    if tasks is not None and model.config.resolve_tasks(tasks) != of_folder:
        raise ValueError(f"the embeddings in {folder} are of {of_folder}; got `tasks` {tasks}.")
    return _search(encode(model, query, tasks=of_folder, convert_to="torch"), folder, count)


def _search(query: torch.Tensor, folder: Path, count: int) -> list[Neighbor]:
    """Best of each shard, then of all: one shard is in memory at a time."""
    if query.ndim != 1:
        raise ValueError(f"the query gave embeddings of shape {tuple(query.shape)}; expected one sound.")
    best: list[Neighbor] = []
    for shard in sorted((folder / DATA).glob("[!.]*.parquet")):
        table = pq.read_table(shard, columns=["id", "embedding"])
        if not table.num_rows:
            continue
        flat = pa.compute.list_flatten(table["embedding"]).to_numpy()
        embeddings = torch.from_numpy(np.array(flat, dtype=np.float32)).view(table.num_rows, -1)  # (N, D)
        similarities = F.cosine_similarity(embeddings, query.float()[None].cpu())
        top = similarities.topk(min(count, table.num_rows))
        best += [Neighbor(table["id"][row].as_py(), value) for value, row in zip(*(found.tolist() for found in top))]
    return sorted(best, key=lambda neighbor: -neighbor.similarity)[:count]


__all__ = ["Neighbor", "find_similar"]
