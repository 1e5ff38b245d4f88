"""Report files of an evaluation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from ...files import write_json, write_whole
from .html import to_html
from .markdown import to_markdown
from .plots import heat_map, theme, to_png
from .results import EvaluationReport

REPORT = "report.json"
LONGEST_NAME = 100  # characters of a model's name in a file name


def write_report(report: EvaluationReport, folder: str | Path) -> list[Path]:
    """Paths of the written `report.md`, `report.json`, `report.html`, and heat map `invariance-MODEL.png` per model.

    Existing files are replaced; each file is written completely or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the folder cannot be written.
    """
    contents: dict[str, bytes] = {
        "report.md": f"{to_markdown(report)}\n".encode(),
        "report.html": to_html(report).encode(),
    }
    for model, name in heat_map_names(report.invariance).items():
        with theme("light"):
            contents[name] = to_png(heat_map(report.invariance[model], model))
    folder = Path(folder)
    write_json(folder / REPORT, report.to_dict())  # first: `read_report` makes the others from it
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / REPORT, *(folder / name for name in contents)]


def heat_map_names(models: Iterable[str]) -> dict[str, str]:
    """File names of the models' heat maps, all different, also where a file system does not tell capitals apart."""
    plain = {model: re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-.") for model in models}
    lower = [name.lower() for name in plain.values()]
    names = {}
    for model, name in plain.items():
        if not 0 < len(name) <= LONGEST_NAME or lower.count(name.lower()) > 1:
            digest = hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            name = f"{name[-LONGEST_NAME:]}-{digest}".lstrip("-.")
        names[model] = f"invariance-{name}.png"
    return names


def read_report(path: str | Path) -> EvaluationReport:
    """Report from a `report.json` of [`write_report`].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such report.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no report {path}: `mtslvr evaluate --output FOLDER` writes report.json.")
    try:
        return EvaluationReport.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no report of this version ({error!r}): give the report.json of `mtslvr evaluate --output`."
        ) from error


__all__ = ["read_report", "write_report"]
