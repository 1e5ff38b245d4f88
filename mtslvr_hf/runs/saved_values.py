"""Values of a run in its output folder: those that may be published, and those that stay on this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import yaml

from ..files import write_json, write_whole

RECORD = "_run.json"  # transformers publishes no file that begins with _
NOT_SAVED = ("resume_from_checkpoint", "data_changed", "hub_token", "push_to_hub_token")  # of one start, or secret
USER = re.compile(r"(?<=://)[^/@\s]+@")
QUERY = re.compile(r"\?[^#\s:]+")


def mask_secrets(value: Any) -> Any:
    """Value whose URLs have neither user, password nor query (which holds signatures and keys)."""
    if isinstance(value, list):
        return [mask_secrets(one) for one in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    return QUERY.sub("?***", USER.sub("***@", value))


def shareable(value: Any) -> Any:
    """Value without secrets, and with only the name of an absolute path."""
    if isinstance(value, list):
        return [shareable(one) for one in value]
    masked = mask_secrets(value)
    if isinstance(masked, str) and os.path.isabs(os.path.expanduser(masked.removeprefix("file://"))):
        return PurePath(masked).name
    return masked


def save_values(path: Path, values: Mapping[str, Any], **record: Any) -> None:
    """Writes the values of a run as a YAML file that repeats it, and a record beside it that is not published.

    Args:
        path: The YAML file.
        values: Values by field name. Absolute paths are only in the record, secrets in neither.
        record: Further values of the record.
    """
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    plain = {name: mask_secrets(value) for name, value in plain.items() if name not in NOT_SAVED}
    public = {name: shareable(value) for name, value in plain.items()}
    local = {name: value for name, value in plain.items() if value != public[name]}
    text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    write_json(path.with_name(RECORD), {"local": local, **record})
    write_whole(path, f"# Repeats this run: mtslvr {path.stem} {path.name}\n{text}".encode())


def saved_values(path: Path) -> dict[str, Any]:
    """Values that `save_values` wrote; empty if there are none, or they cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {**values, **local_values(path)} if isinstance(values, dict) else {}


def local_values(path: Path) -> dict[str, Any]:
    """Values of the run of a YAML file that are only in the record beside it."""
    return read_record(path.parent).get("local", {})


def read_record(folder: Path) -> dict[str, Any]:
    """Record of a run; empty if there is none, or it cannot be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def update_record(folder: Path, **record: Any) -> None:
    """Changes values of a record."""
    write_json(folder / RECORD, {**read_record(folder), **record})


__all__ = ["local_values", "mask_secrets", "read_record", "save_values", "saved_values", "shareable", "update_record"]
