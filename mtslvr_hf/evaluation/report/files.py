"""Report files of an evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...files import write_whole
from .html import to_html
from .markdown import to_markdown
from .plots import heat_map, to_png
from .results import EvaluationReport


def write_report(report: EvaluationReport, folder: str | Path) -> list[Path]:
    """Paths of the written `report.md`, `report.json`, `report.html`, and heat map `invariance-MODEL.png` per model.

    Existing files are replaced; each file is written completely or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the folder cannot be written.
    """
    contents: dict[str, bytes] = {
        "report.md": f"{to_markdown(report)}\n".encode(),
        "report.json": f"{json.dumps(report.to_dict(), indent=1)}\n".encode(),
        "report.html": to_html(report).encode(),
    }
    for model, found in report.invariance.items():
        name = re.sub(r"[^\w.-]+", "-", model).strip("-.")
        contents[f"invariance-{name}.png"] = to_png(heat_map(found, model))
    folder = Path(folder)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


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
