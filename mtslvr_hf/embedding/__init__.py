"""Embeddings of audio files, arrays, URLs and data sets of any length, in bounded memory."""

from .embed_dataset import EmbedReport, embed_dataset
from .encode import Encoded, TimedEmbeddings, encode, encode_items
from .head_scale import equal_variance_scale
from .similar import Neighbor, find_similar

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
