"""The README.md of a folder of cached audio: how `datasets` and `load_audio` read it, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..files import write_whole
from ..shards.folder import ERRORS, MANIFEST, README, content_of

CARD = """\
---
{header}---

# Audio, decoded once

Audio as 16 bit mono FLAC at {rate} Hz, made by `mtslvr cache` of mtslvr-hf, with the other columns of its source.

| config | split | clips | hours | left out | clipped |
| --- | --- | --- | --- | --- | --- |
{rows}
"Left out" are rows that could not be decoded; `{errors}` beside the split's data says why. "Clipped" are clips with
samples beyond full scale, as resampling may leave them.

```python
from mtslvr_hf.data import load_audio

dataset = load_audio("PATH_OF_THIS_FOLDER", {config!r}, split={split!r})
```

`{manifest}` holds the settings, the counts, and the size and SHA-256 of every shard.
"""
ROW = "| {config} | {split} | {rows} | {hours:.2f} | {bad_rows} | {clipped_rows} |\n"


def write_card(folder: Path, splits: Sequence[Mapping[str, Any]]) -> None:
    """Writes a folder's README.md from its splits' manifests."""
    configs: dict[str, list[dict[str, str]]] = {}
    for split in splits:
        path = f"{split['config']}/{split['split']}/data/*.parquet"
        configs.setdefault(split["config"], []).append({"split": split["split"], "path": path})
    header = {
        "configs": [{"config_name": name, "data_files": files} for name, files in configs.items()],
        "dataset_info": [
            {"config_name": name, "description": content_of(shard for s in splits for shard in s["shards"])}
            for name in configs
        ],
    }
    text = CARD.format(
        header=yaml.safe_dump({**header, "tags": ["audio", "mtslvr"]}, sort_keys=False),
        rate=splits[0]["sampling_rate"],
        rows="".join(ROW.format(**split, hours=split["seconds"] / 3600) for split in splits),
        errors=ERRORS,
        config=splits[0]["config"],
        split=splits[0]["split"],
        manifest=MANIFEST,
    )
    failures = [f"- {s['config']}/{s['split']}: {failure}\n" for s in splits for failure in s["failures"]]
    if failures:
        text += f"\nThe source could not be read to its end; another run tries again:\n\n{''.join(failures)}"
    write_whole(folder / README, text.encode())


__all__ = ["write_card"]
