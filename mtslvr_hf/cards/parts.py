"""Parts that several cards share: templates, versions of libraries, names on the Hub."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

CARD_LIBRARIES = ("mtslvr-hf", "torch", "transformers", "accelerate", "datasets")


def read_template(name: str) -> str:
    """Text of a card's template in `templates/`."""
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def library_versions() -> dict[str, str]:
    """Versions of the libraries a checkpoint depends on, by name; those not installed are left out."""
    found = {}
    for name in CARD_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_hub_name(name: str) -> bool:
    """True if a name is `owner/name` as on the Hub, and not an existing folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


__all__ = ["is_hub_name", "library_versions", "read_template"]
