"""Embeddings of any audio: files, arrays, URLs and data sets of any length, in bounded memory."""

from .pipeline import Encoded, TimedEmbeddings, encode, encode_items

__all__ = ["Encoded", "TimedEmbeddings", "encode", "encode_items"]
