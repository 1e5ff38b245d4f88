"""Embeddings of audio files, arrays, URLs and data sets of any length, in bounded memory."""

from .embed_dataset import EmbedReport, embed_dataset
from .encode import Encoded, TimedEmbeddings, encode, encode_items
from .head_scale import choose_embedding_scale
from .similar import Neighbor, find_similar

__all__ = [
    "EmbedReport",
    "Encoded",
    "Neighbor",
    "TimedEmbeddings",
    "choose_embedding_scale",
    "embed_dataset",
    "encode",
    "encode_items",
    "find_similar",
]
