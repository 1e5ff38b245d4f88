"""The folder that `mtslvr embed` writes: shards that are whole or not there, and a record of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1
SETTINGS, MANIFEST, ERRORS, README = "settings.json", "manifest.json", "errors.jsonl", "README.md"
DATA, RECORDS = "data", "records"
SHARD_NAME = re.compile(r"embeddings-\d{6}-\d{4}\.(parquet|json)")
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard. It is written after the shard, so that it vouches for it.

    Attributes:
        unit: Number of the unit of work.
        part: Which part of the unit's rows it is.
        inputs: Hash of what the unit was read from.
        last: Whether it is the unit's last part.
        rows: Rows in the shard.
        seconds: Their audio's duration.
        windows: Their windows.
        errors: The rows that have no embedding: `id`, `unit`, `row`, `reason` and `message` of each.
        failure: Why the source could not be read to its end, or None.
        bytes: Size of the shard's file.
        sha256: Its checksum.
    """

    unit: int
    part: int
    inputs: str
    last: bool
    rows: int
    seconds: float
    windows: int
    errors: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    bytes: int = 0
    sha256: str = ""

    @property
    def stem(self) -> str:
        """The names of its files, without their endings; their order is that of the rows."""
        return _stem(self.unit, self.part)

    @property
    def file(self) -> str:
        """The shard's path in the folder."""
        return f"{DATA}/{self.stem}.parquet"


class ShardFolder:
    """Writes shards and records, and finds those of an earlier run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

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
                    f"{self.path} is there and was not written by `mtslvr embed`: choose another output folder, or "
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
        if changes and not any((self.path / RECORDS).glob("*.json")):  # nothing was made yet
            write_json(file, settings)
        elif changes:
            raise ValueError(
                f"{self.path} holds embeddings made otherwise: {'; '.join(changes)}. Choose another output folder, "
                "or repeat the earlier settings"
            )
        for folder in (DATA, RECORDS):
            (self.path / folder).mkdir(exist_ok=True)

    def finished(self, unit: int, part: int, inputs: str) -> ShardRecord | None:
        """The record of a shard that is there, whole and from the same input; else None."""
        record = self.record(unit, part)
        if record is None or record.failure is not None or record.inputs != inputs:
            return None
        file = self.path / record.file
        if not file.is_file() or file.stat().st_size != record.bytes or sha256_of(file) != record.sha256:
            return None
        return record

    def record(self, unit: int, part: int) -> ShardRecord | None:
        """Reads a record; None if there is none, or none that can be read."""
        try:
            values = json.loads((self.path / RECORDS / f"{_stem(unit, part)}.json").read_text(encoding="utf-8"))
            checksum = values.pop("checksum")
            return ShardRecord(**values) if checksum == _checksum(values) else None
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):  # not of this form
            return None

    def write(self, table: pa.Table, record: ShardRecord) -> ShardRecord:
        """Writes a shard, and then its record; each appears whole under its name or not at all."""
        (self.path / MANIFEST).unlink(missing_ok=True)  # it no longer tells what is here
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        facts = {**asdict(record), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_whole(self.path / record.file, data)
        write_json(self.path / RECORDS / f"{record.stem}.json", {**facts, "checksum": _checksum(facts)})
        return ShardRecord(**facts)

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
                if record is None or not (self.path / record.file).is_file():
                    raise FileNotFoundError(
                        f"{self.path} lacks the shard {_stem(unit, part)}: all processes must write to one folder, on "
                        "a file system that they share; then run it again"
                    )
                records.append(record)
                part, last = part + 1, record.last
        return records

    def tidy(self, records: list[ShardRecord]) -> None:
        """Removes shards that the source no longer has, and what interrupted runs left half-written."""
        kept = {record.stem for record in records}
        for folder in (self.path, self.path / DATA, self.path / RECORDS):
            for file in folder.iterdir():
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
        """What lies in the folder beside half-written settings."""
        return (file for file in self.path.iterdir() if not file.name.endswith(TEMPORARY))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name and renames it, so that nobody ever finds half of it."""
    temporary = temporary_name(path)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def temporary_name(path: Path) -> Path:
    """A hidden name beside a file's, of no other process."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


def sha256_of(file: Path) -> str:
    """A file's checksum."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _checksum(facts: Mapping[str, Any]) -> str:
    """A record's own."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _stem(unit: int, part: int) -> str:
    return f"embeddings-{unit:06d}-{part:04d}"


def _differences(known: Any, given: Any, name: str = "") -> Iterator[str]:
    """Names each setting that differs, with both values."""
    if isinstance(known, dict) and isinstance(given, dict):
        for key in dict.fromkeys((*known, *given)):
            yield from _differences(known.get(key), given.get(key), f"{name}.{key}" if name else key)
    elif known != given:
        yield f"{name} was {known!r} and now is {given!r}"


__all__ = ["ShardFolder", "ShardRecord", "sha256_of", "temporary_name", "write_json", "write_whole"]
