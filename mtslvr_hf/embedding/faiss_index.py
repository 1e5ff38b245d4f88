"""An index over a folder of embeddings that `datasets` loads for `get_nearest_examples`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import temporary_name

INDEX = "embeddings.faiss"


def check_faiss() -> Any:
    """Imports faiss.

    Raises:
        ImportError: If it is not installed; the message says how to.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "an index needs faiss: pip install 'mtslvr-hf[faiss]', or leave the index out and add it later with "
            "dataset.add_faiss_index('embedding')"
        ) from error
    return faiss


def write_index(file: Path, shards: Sequence[Path], size: int, normalized: bool) -> str:
    """Writes an exact index of all embeddings, in the order in which `datasets.load_dataset` gives the rows.

    All embeddings are in memory at once: 4 GB for a million of 1,000.

    Args:
        file: The file to write; it appears whole.
        shards: Parquet files in their order.
        size: Values of an embedding.
        normalized: Whether embeddings have norm 1, so that inner products are cosines.

    Returns:
        The index's metric.
    """
    faiss = check_faiss()
    index = faiss.IndexFlatIP(size) if normalized else faiss.IndexFlatL2(size)
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(columns=["embedding"]):
            flat = batch.column(0).flatten().to_numpy()  # (rows x size,)
            index.add(np.ascontiguousarray(flat.reshape(-1, size)))
    temporary = temporary_name(file)
    faiss.write_index(index, str(temporary))
    os.replace(temporary, file)
    return "inner product" if normalized else "squared Euclidean distance"


__all__ = ["INDEX", "check_faiss", "write_index"]
