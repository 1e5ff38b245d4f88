"""Folder of resumable parquet shards: complete shards, and a record of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

try:
    import fcntl
except ImportError:  # Windows has no such locks: temporary files stay there
    fcntl = None  # type: ignore[assignment]

from ..files import TEMPORARY, sha256_of, whole_file, write_json, write_whole

FORMAT_VERSION = 2
SETTINGS, MANIFEST, ERRORS, README = "settings.json", "manifest.json", "errors.jsonl", "README.md"
DATA, RECORDS = "data", "records"
SHARD_NAME = re.compile(r"[a-z]+-\d{6}-\d{4}\.(parquet|json)")
TEMPORARY_NAME = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}")


@dataclass(frozen=True)
class ShardRecord:
    """Record of a complete shard; it is written after the shard."""

    partition: int
    shard: int  # number in the partition
    inputs: str  # hash of the partition's source
    last: bool  # the partition's last shard
    rows: int
    totals: dict[str, float]  # sums over the rows, by name: `seconds` of audio and others
    errors: list[dict[str, Any]] = field(default_factory=list)  # bad rows: id, partition, row, reason, message
    failure: str | None = None  # read error that ended the partition
    bytes: int = 0
    sha256: str = ""


class ShardFolder:
    """Folder of shards and their records, new or of an earlier run.

    A run shares a lock on the folder from `claim` to `finish` or `release`, by which `tidy` knows of other runs.

    Args:
        path: The folder; it need not exist.
        word: Content of the shards; first word of their names.
        command: The command that writes such folders, for messages.
        summaries: Files outside the folder that are removed when a shard is written.
        verify: Compare the checksums of finished shards, too, which reads all of them.
    """

    def __init__(
        self, path: str | Path, word: str, command: str, summaries: Sequence[Path] = (), verify: bool = False
    ):
        self.path = Path(path)
        self.word = word
        self.command = command
        self.summaries = (self.path / MANIFEST, *summaries)
        self.verify = verify
        self.release: Callable[[], Any] = lambda: None  # ends the lock
        self._descriptor = -1

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Starts or resumes a run with these settings, in one or several processes.

        Raises:
            FileExistsError: If the folder holds other files.
            ValueError: If its shards were made with other settings.
        """
        file = self.path / SETTINGS
        if not file.exists():
            # The second look for the file is for another process that was faster.
            if self.path.is_file() or (self.path.exists() and any(self._foreign()) and not file.exists()):
                raise FileExistsError(
                    f"{self.path} exists and was not written by `{self.command}`: choose another output folder, or "
                    "empty this one."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}): choose another output folder, or empty this one."
            ) from error
        self._lock()
        changes = list(_differences(known, json.loads(json.dumps(settings))))
        if changes and not any(self.path.glob(f"**/{RECORDS}/*.json")):  # there are no shards yet
            write_json(file, settings)
        elif changes:
            raise ValueError(
                f"{self.path} holds {self.word} made with other settings: {'; '.join(changes)}. Choose another output "
                "folder, or repeat the earlier settings."
            )

    def finished(self, partition: int, shard: int, inputs: str) -> ShardRecord | None:
        """Record of a shard that is complete and made from the same input; else None.

        The size and the number of rows in the parquet footer must be as recorded; with `verify`, the checksum, too.
        """
        record = self.record(partition, shard)
        if record is None or record.failure is not None or record.inputs != inputs:
            return None
        file = self.path / self.file(partition, shard)
        try:
            complete = file.stat().st_size == record.bytes and pq.read_metadata(file).num_rows == record.rows
        except (OSError, pa.ArrowException):
            return None
        return record if complete and (not self.verify or sha256_of(file) == record.sha256) else None

    def record(self, partition: int, shard: int) -> ShardRecord | None:
        """Record of a shard; None if it is missing, cannot be read or was changed."""
        file = self.path / RECORDS / f"{self._stem(partition, shard)}.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            checksum = content.pop("checksum")
            record = ShardRecord(**content)
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):  # not of this form
            return None
        if checksum != _checksum(content):
            return None
        return record if (record.partition, record.shard) == (partition, shard) else None

    def file(self, partition: int, shard: int) -> str:
        """Path of a shard in the folder; the names have the order of the rows."""
        return f"{DATA}/{self._stem(partition, shard)}.parquet"

    def write(
        self, partition: int, shard: int, schema: pa.Schema, fill: Callable[[pq.ParquetWriter], ShardRecord]
    ) -> ShardRecord:
        """Writes a shard and then its record, each completely or not at all; `fill` writes the row groups."""
        (self.path / RECORDS).mkdir(exist_ok=True)
        with whole_file(self.path / self.file(partition, shard)) as temporary:
            with open(temporary, "wb") as target:
                with pq.ParquetWriter(target, schema) as writer:
                    record = fill(writer)
                target.flush()
                os.fsync(target.fileno())
            record = replace(record, bytes=temporary.stat().st_size, sha256=sha256_of(temporary))
            for summary in self.summaries:
                summary.unlink(missing_ok=True)
        content = asdict(record)
        content["checksum"] = _checksum(content)
        write_json(self.path / RECORDS / f"{self._stem(partition, shard)}.json", content)
        return record

    def finish(self, partitions: int, totals: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Writes the list of errors, removes stale files, and returns the manifest's counts and shards.

        Args:
            partitions: Number of partitions.
            totals: Sums over no rows, to which those of the shards are added.

        Raises:
            FileNotFoundError: If a shard is missing, because processes wrote to different folders.
        """
        records = self._collect(partitions)
        self.tidy(records)
        errors = [error for record in records for error in record.errors]
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
        write_whole(self.path / ERRORS, lines.encode("utf-8", "backslashreplace"))
        sums: Counter[str] = Counter(totals or {})
        for record in records:
            sums.update(record.totals)
        return {
            "rows": sum(record.rows for record in records),
            "bad_rows": len(errors),
            "reasons": dict(sorted(Counter(error["reason"] for error in errors).items())),
            "failures": [f"partition {record.partition} {record.failure}" for record in records if record.failure],
            **sums,
            "bytes": sum(record.bytes for record in records),
            "shards": [
                {
                    "file": self.file(r.partition, r.shard),
                    "rows": r.rows,
                    "bad_rows": len(r.errors),
                    "bytes": r.bytes,
                    "sha256": r.sha256,
                }
                for r in records
            ],
        }

    def _collect(self, partitions: int) -> list[ShardRecord]:
        """Records of all partitions' shards, in order."""
        records = []
        for partition in range(partitions):
            shard, last = 0, False
            while not last:
                record = self.record(partition, shard)
                if record is None or not (self.path / self.file(partition, shard)).is_file():
                    raise FileNotFoundError(
                        f"{self.path} lacks the shard {self._stem(partition, shard)}. Let all processes write to one "
                        "folder on a shared file system, and run the command again."
                    )
                records.append(record)
                shard, last = shard + 1, record.last
        return records

    def tidy(self, records: list[ShardRecord]) -> None:
        """Removes shards without a record, and temporary files of interrupted runs, unless another run is at work."""
        alone = self._alone()
        kept = {self._stem(record.partition, record.shard) for record in records}
        for folder in (self.path, self.path / DATA, self.path / RECORDS):
            for file in folder.iterdir() if folder.is_dir() else ():
                stale = SHARD_NAME.fullmatch(file.name) and file.stem not in kept
                if stale or (alone and TEMPORARY_NAME.fullmatch(file.name)):
                    file.unlink(missing_ok=True)
        if alone:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)  # other runs may begin

    def read_manifest(self) -> dict[str, Any]:
        """Manifest of a complete run; empty if there is none, or it is none."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("shards"), list) else {}

    def _foreign(self) -> Iterator[Path]:
        """Files in the folder that are not hidden."""
        return (file for file in self.path.iterdir() if not file.name.startswith("."))

    def _lock(self) -> None:
        """Shares a lock on the folder with other runs; the system ends it with the process."""
        self.release()
        if fcntl is None:
            return
        self._descriptor = os.open(self.path, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, self._descriptor)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def _alone(self) -> bool:
        """True if no other run holds a lock."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError):  # or not claimed
            return False
        return True

    def _stem(self, partition: int, shard: int) -> str:
        return f"{self.word}-{partition:06d}-{shard:04d}"


def _checksum(record: Mapping[str, Any]) -> str:
    """Checksum of a record, by which a changed one is told."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def content_of(shards: Iterable[Mapping[str, Any]]) -> str:
    """Content hash of a folder, for `description` in a README's `dataset_info`.

    `datasets` caches data by a folder's name and header: without the hash, two folders of one name could be confused.
    """
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def _differences(known: Any, given: Any, name: str = "") -> Iterator[str]:
    """Names of the settings that differ, with both values."""
    if isinstance(known, dict) and isinstance(given, dict):
        for key in dict.fromkeys((*known, *given)):
            yield from _differences(known.get(key), given.get(key), f"{name}.{key}" if name else key)
    elif known != given:
        yield f"{name} was {known!r} and now is {given!r}"


__all__ = ["ShardFolder", "ShardRecord", "content_of"]
