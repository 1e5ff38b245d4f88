"""Cache of decoded audio: mono FLAC at the network's rate, in shards that pre-training streams."""

from .cache_audio import CacheReport, cache_audio

__all__ = ["CacheReport", "cache_audio"]
