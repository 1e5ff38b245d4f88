"""Embeddings of audio files, arrays, URLs and data sets of any length, in bounded memory.

`encode` of a file loads neither `datasets` nor pyarrow: modules that need them are imported at the first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .encode import Encoded, TimedEmbeddings, encode, encode_items

if TYPE_CHECKING:
    from .head_scale import equal_variance_scale
    from .similar import Neighbor, find_similar
    from .whole_dataset import EmbedReport, embed_dataset

_MODULES = {
    "EmbedReport": "whole_dataset",
    "Neighbor": "similar",
    "embed_dataset": "whole_dataset",
    "equal_variance_scale": "head_scale",
    "find_similar": "similar",
}

__all__ = [
    "EmbedReport",
    "Encoded",
    "Neighbor",
    "TimedEmbeddings",
    "embed_dataset",
    "encode",
    "encode_items",
    "equal_variance_scale",
    "find_similar",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
