"""Embeddings of audio files, arrays, URLs and data sets of any length, in bounded memory."""

from .embed_dataset import EmbedReport, embed_dataset
from .encode import Encoded, TimedEmbeddings, encode, encode_items

__all__ = ["EmbedReport", "Encoded", "TimedEmbeddings", "embed_dataset", "encode", "encode_items"]
