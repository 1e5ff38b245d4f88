"""Data set card of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..shards.folder import content_of
from .parts import fill_template, save_card


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes README.md into a folder of embeddings, from its manifest."""
    description = content_of(manifest["shards"])
    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        dataset_info=[{"config_name": "default", "description": description}],
        tags=["audio-embeddings", "mtslvr"],
    )
    save_card(fill_template(DatasetCard, "embeddings", data, **manifest), folder)


__all__ = ["write_card"]
