"""Resumable parquet shards of a source of audio."""

from .folder import ShardFolder
from .partitions import Source, SourceRow
from .run import ShardReport, report_of, write_shards
from .writer import ShardWriter

__all__ = ["ShardFolder", "ShardReport", "ShardWriter", "Source", "SourceRow", "report_of", "write_shards"]
