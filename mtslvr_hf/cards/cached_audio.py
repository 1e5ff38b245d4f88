"""Data set card of cached audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..shards.folder import content_of
from .parts import fill_template, save_card


def write_card(folder: Path, splits: Sequence[Mapping[str, Any]]) -> None:
    """Writes README.md into a folder of cached audio, from the manifests of its splits."""
    configs: dict[str, list[dict[str, str]]] = {}
    for split in splits:
        path = f"{split['config']}/{split['split']}/data/*.parquet"
        configs.setdefault(split["config"], []).append({"split": split["split"], "path": path})
    description = content_of(shard for split in splits for shard in split["shards"])
    data = DatasetCardData(
        configs=[{"config_name": name, "data_files": files} for name, files in configs.items()],
        dataset_info=[{"config_name": name, "description": description} for name in configs],
        tags=["audio", "mtslvr"],
    )
    rows = [
        (s["config"], s["split"], s["rows"], f"{s['seconds'] / 3600:.2f}", s["bad_rows"], s["clipped_rows"])
        for s in splits
    ]
    save_card(fill_template(DatasetCard, "cached_audio", data, splits=splits, rows=rows), folder)


__all__ = ["write_card"]
