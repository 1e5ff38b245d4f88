"""The README.md of a folder of embeddings: how `datasets` reads it, what is in it, and how to search it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..shards.folder import ERRORS, MANIFEST, README, content_of

CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
dataset_info:
- config_name: default
  description: {content}
tags:
- audio-embeddings
- mtslvr
---

# Audio embeddings

{rows} embeddings of {size} values ({parts}), {hours:.2f} hours of audio, made by `mtslvr embed` of mtslvr-hf
with the model {model}. {bad}

```python
from datasets import load_dataset

dataset = load_dataset("PATH_OF_THIS_FOLDER", split="train").with_format("numpy")
dataset[0]["embedding"]  # ({size},) float32
```

| column | what it holds |
| --- | --- |
| `id` | the row's name in the source |
| `embedding` | {size} float32: {parts}{norm} |
| `duration` | of the audio, in seconds |
| `windows` | of {window:g} s that the network saw; the embedding is their mean |
{columns}
`{manifest}` holds the settings, the counts, and the SHA-256 of the model's weights and of every shard.
"""

SEARCH = """
## The most similar clips

```python
from datasets import load_dataset
from transformers import AutoModel
import mtslvr_hf

dataset = load_dataset("PATH_OF_THIS_FOLDER", split="train")
dataset.load_faiss_index("embedding", "PATH_OF_THIS_FOLDER/{index}")
model = AutoModel.from_pretrained("{model}")
query = model.encode("query.wav", tasks={tasks}, normalize={normalize})
scores, examples = dataset.get_nearest_examples("embedding", query, k=5)
examples["id"]
```

Scores are {metric}: {better} is more similar. Needs `pip install 'mtslvr-hf[faiss]'`.
"""


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a folder's README.md from its manifest."""
    tasks, model = manifest["tasks"], manifest["model"]
    bad = f"{manifest['bad_rows']} rows of the source have none; `{ERRORS}` says why."
    text = CARD.format(
        rows=manifest["rows"],
        size=manifest["embedding_size"],
        parts=", ".join(tasks),
        hours=manifest["seconds"] / 3600,
        model=model["name"],
        bad=bad if manifest["bad_rows"] else "Every row of the source has one.",
        norm=", L2 norm 1" if manifest["normalize"] else "",
        window=model["window_seconds"],
        content=content_of(manifest["shards"]),
        columns="".join(f"| `{name}` | as in the source |\n" for name in manifest["columns"]),
        manifest=MANIFEST,
    )
    if manifest["failures"]:
        failures = "\n".join(f"- {failure}" for failure in manifest["failures"])
        text += f"\nThe source could not be read to its end; another run tries again:\n\n{failures}\n"
    if "index" in manifest:
        text += SEARCH.format(
            index=manifest["index"]["file"],
            model=model["name"],
            tasks=tasks,
            normalize=manifest["normalize"],
            metric=manifest["index"]["metric"],
            better="more" if manifest["normalize"] else "less",
        )
    write_whole(folder / README, text.encode())


__all__ = ["write_card"]
