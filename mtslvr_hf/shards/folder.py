"""The folder that `mtslvr embed` and others write: shards that are whole or not there, and a record of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import TEMPORARY, sha256_of, temporary_name, write_json, write_whole

FORMAT_VERSION = 2
SETTINGS, MANIFEST, ERRORS, README = "settings.json", "manifest.json", "errors.jsonl", "README.md"
DATA, RECORDS = "data", "records"
SHARD_NAME = re.compile(r"[a-z]+-\d{6}-\d{4}\.(parquet|json)")


@dataclass(frozen=True)
class ShardRecord:
    """Record of a finished shard. It is written last: its presence marks the shard complete.

    Attributes:
        unit: Number of the unit of work.
        part: Which part of the unit's rows it is.
        inputs: Hash of what the unit was read from.
        last: Whether it is the unit's last part.
        rows: Rows in the shard.
        totals: Sums over them, by name: `seconds` of audio and what else the run counts.
        errors: The rows that were left out: `id`, `unit`, `row`, `reason` and `message` of each.
        failure: Why the source could not be read to its end, or None.
        bytes: Size of the shard's file.
        sha256: Its checksum.
    """

    unit: int
    part: int
    inputs: str
    last: bool
    rows: int
    totals: dict[str, float]
    errors: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    bytes: int = 0
    sha256: str = ""


class ShardFolder:
    """Writes shards and records, and finds those of an earlier run.

    Args:
        path: The folder; it need not exist.
        word: What its shards hold; their names begin with it.
        command: What writes such folders.
        summaries: Files outside of it that no longer tell what is here once a shard is written.
    """

    def __init__(self, path: str | Path, word: str, command: str, summaries: Sequence[Path] = ()):
        self.path = Path(path)
        self.word = word
        self.command = command
        self.summaries = (self.path / MANIFEST, *summaries)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Begins or resumes a run with these settings. Several processes may do so at once.

        Raises:
            FileExistsError: If the folder holds something else.
            ValueError: If its shards were made with other settings; the message says which.
        """
        file = self.path / SETTINGS
        if not file.exists():
            # Looked for again, as another process may have been faster.
            if self.path.is_file() or (self.path.exists() and any(self._foreign()) and not file.exists()):
                raise FileExistsError(
                    f"{self.path} is there and was not written by `{self.command}`: choose another output folder, or "
                    "empty this one"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}): choose another output folder, or empty this one"
            ) from error
        changes = list(_differences(known, json.loads(json.dumps(settings))))
        if changes and not any(self.path.glob(f"**/{RECORDS}/*.json")):  # nothing was made yet
            write_json(file, settings)
        elif changes:
            raise ValueError(
                f"{self.path} holds {self.word} made otherwise: {'; '.join(changes)}. Choose another output folder, "
                "or repeat the earlier settings"
            )

    def finished(self, unit: int, part: int, inputs: str) -> ShardRecord | None:
        """The record of a shard that is there, whole and from the same input; else None."""
        record = self.record(unit, part)
        if record is None or record.failure is not None or record.inputs != inputs:
            return None
        file = self.path / self.file(unit, part)
        if not file.is_file() or file.stat().st_size != record.bytes or sha256_of(file) != record.sha256:
            return None
        return record

    def record(self, unit: int, part: int) -> ShardRecord | None:
        """Reads a record; None if there is none, or none that can be read."""
        try:
            values = json.loads((self.path / RECORDS / f"{self._stem(unit, part)}.json").read_text(encoding="utf-8"))
            checksum = values.pop("checksum")
            return ShardRecord(**values) if checksum == _checksum(values) else None
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):  # not of this form
            return None

    def file(self, unit: int, part: int) -> str:
        """A shard's path in the folder; the order of the names is that of the rows."""
        return f"{DATA}/{self._stem(unit, part)}.parquet"

    def write(
        self, unit: int, part: int, schema: pa.Schema, fill: Callable[[pq.ParquetWriter], ShardRecord]
    ) -> ShardRecord:
        """Writes a shard, and then its record; each appears whole under its name or not at all.

        Args:
            unit: Number of the unit of work.
            part: Which part of the unit's rows it is.
            schema: The shard's columns.
            fill: Writes the rows, one row group after the other, and tells what is known of them.
        """
        for folder in (DATA, RECORDS):
            (self.path / folder).mkdir(exist_ok=True)
        file = self.path / self.file(unit, part)
        temporary = temporary_name(file)
        with open(temporary, "wb") as target:
            with pq.ParquetWriter(target, schema) as writer:
                record = fill(writer)
            target.flush()
            os.fsync(target.fileno())
        facts = {**asdict(record), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
        for summary in self.summaries:
            summary.unlink(missing_ok=True)
        os.replace(temporary, file)
        write_json(self.path / RECORDS / f"{self._stem(unit, part)}.json", {**facts, "checksum": _checksum(facts)})
        return ShardRecord(**facts)

    def finish(self, units: int) -> dict[str, Any]:
        """Writes the list of errors, tidies, and puts together what a manifest says of rows and shards.

        Raises:
            FileNotFoundError: If a shard is not there, as when processes write to different folders.
        """
        records = self.collect(units)
        self.tidy(records)
        errors = [error for record in records for error in record.errors]
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
        write_whole(self.path / ERRORS, lines.encode())
        totals: Counter[str] = Counter()
        for record in records:
            totals.update(record.totals)
        return {
            "rows": sum(record.rows for record in records),
            "bad_rows": len(errors),
            "reasons": dict(sorted(Counter(error["reason"] for error in errors).items())),
            "failures": [f"unit {record.unit} {record.failure}" for record in records if record.failure],
            **totals,
            "shards": [
                {
                    "file": self.file(r.unit, r.part),
                    "rows": r.rows,
                    "bad_rows": len(r.errors),
                    "bytes": r.bytes,
                    "sha256": r.sha256,
                }
                for r in records
            ],
        }

    def collect(self, units: int) -> list[ShardRecord]:
        """Records of all units' parts, in order.

        Raises:
            FileNotFoundError: If one is not there, as when processes write to different folders.
        """
        records = []
        for unit in range(units):
            part, last = 0, False
            while not last:
                record = self.record(unit, part)
                if record is None or not (self.path / self.file(unit, part)).is_file():
                    raise FileNotFoundError(
                        f"{self.path} lacks the shard {self._stem(unit, part)}: all processes must write to one "
                        "folder, on a file system that they share; then run it again"
                    )
                records.append(record)
                part, last = part + 1, record.last
        return records

    def tidy(self, records: list[ShardRecord]) -> None:
        """Removes shards that the source no longer has, and what interrupted runs left half-written."""
        kept = {self._stem(record.unit, record.part) for record in records}
        for folder in (self.path, self.path / DATA, self.path / RECORDS):
            for file in folder.iterdir() if folder.is_dir() else ():
                stale = SHARD_NAME.fullmatch(file.name) and file.stem not in kept
                if stale or (file.name.startswith(".") and file.name.endswith(TEMPORARY)):
                    file.unlink(missing_ok=True)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest of a run that ended; empty if there is none."""
        try:
            return json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def _foreign(self) -> Iterator[Path]:
        """Files in the folder, half-written settings aside."""
        return (file for file in self.path.iterdir() if not file.name.endswith(TEMPORARY))

    def _stem(self, unit: int, part: int) -> str:
        return f"{self.word}-{unit:06d}-{part:04d}"


def content_of(shards: Iterable[Mapping[str, Any]]) -> str:
    """Content hash of a folder, for `description` in a README's `dataset_info`.

    `datasets` keeps what it loaded under the name and the header of a folder: of two folders called `embeddings`, with
    the same header, the second would load as the first.
    """
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def _checksum(facts: Mapping[str, Any]) -> str:
    """A record's own."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _differences(known: Any, given: Any, name: str = "") -> Iterator[str]:
    """Names each setting that differs, with both values."""
    if isinstance(known, dict) and isinstance(given, dict):
        for key in dict.fromkeys((*known, *given)):
            yield from _differences(known.get(key), given.get(key), f"{name}.{key}" if name else key)
    elif known != given:
        yield f"{name} was {known!r} and now is {given!r}"


__all__ = ["ShardFolder", "ShardRecord", "content_of"]
