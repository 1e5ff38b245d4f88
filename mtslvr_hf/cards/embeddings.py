"""Data set card of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..markdown import escape_markdown
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
    norm = ", L2 norm 1" if manifest["normalize"] else ""
    before_heads = _before_heads(manifest["model"])
    pooled = f"; pooled feature maps, {', '.join(f'{k} {v}' for k, v in before_heads.items())}" if before_heads else ""
    contents = [
        ("`id`", "name of the row in the source"),
        ("`embedding`", f"{manifest['embedding_size']} float32: {', '.join(manifest['tasks'])}{norm}{pooled}"),
        ("`duration`", "duration of the audio in seconds"),
        ("`windows`", f"number of windows of {manifest['model']['window_seconds']:g} s; the embedding is their mean"),
        *((f"`{name.replace('`', ' ')}`", "as in the source") for name in manifest["columns"]),
    ]
    shown = {
        **manifest,
        "model": {**manifest["model"], "name": escape_markdown(manifest["model"]["name"])},
        "failures": list(map(escape_markdown, manifest.get("failures", ()))),
    }
    save_card(
        fill_template(DatasetCard, "embeddings", data, contents=contents, before_heads=before_heads, **shown),
        folder,
    )


def _before_heads(model: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for embeddings without heads, which the model's checkpoint may have."""
    if model["use_heads"]:
        return {}
    names = ["pooling", *(["num_bands"] if model["pooling"] == "bands" else []), "use_heads"]
    return {name: model[name] for name in names}


__all__ = ["write_card"]
