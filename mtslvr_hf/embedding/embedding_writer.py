"""The shards of `mtslvr embed`: rows are embedded as they are read.

Shapes: R rows of a shard, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..shards.folder import ShardFolder
from ..shards.partitions import SourceRow
from ..shards.writer import ShardWriter
from .encode import Encoded, encode_items

OWN_COLUMNS = ("id", "embedding", "duration", "windows")


class EmbeddingWriter(ShardWriter):
    """Embeds units of work, part by part."""

    def __init__(
        self,
        model: PreTrainedModel,
        folder: ShardFolder,
        features: datasets.Features,
        rows_per_shard: int,
        options: dict[str, Any],
        bar: tqdm,
    ):
        super().__init__(folder, features, rows_per_shard, bar)
        self.model = model
        self.options = options  # of encode_items

    def results(self, audio: Iterator[Any]) -> Iterator[Encoded]:
        return encode_items(self.model, audio, **self.options)

    def totals(self, results: Sequence[Encoded]) -> dict[str, float]:
        return {"seconds": sum(r.seconds for r in results), "windows": sum(r.windows for r in results)}

    def table(self, good: Sequence[tuple[SourceRow, Encoded]]) -> pa.Table:
        schema, size = self.features.arrow_schema, self.features["embedding"].length
        embeddings = (
            np.stack([result.embedding.numpy() for _, result in good]) if good else np.zeros((0, size), np.float32)
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


def table_features(copied: datasets.Features, size: int) -> datasets.Features:
    """A shard's columns: the own ones, and behind them the copied ones."""
    own = {
        "id": datasets.Value("string"),
        "embedding": datasets.List(datasets.Value("float32"), length=size),
        "duration": datasets.Value("float64"),
        "windows": datasets.Value("int32"),
    }
    return datasets.Features({**own, **copied})


__all__ = ["OWN_COLUMNS", "EmbeddingWriter", "table_features"]
