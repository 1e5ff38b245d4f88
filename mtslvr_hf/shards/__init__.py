"""Resumable parquet shards of any source of audio."""
