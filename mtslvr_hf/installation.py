"""Hints for missing packages: how to install an extra of this package."""

from __future__ import annotations


def install_hint(extra: str) -> str:
    """Command that installs an extra of pyproject.toml, for error messages.

    The package is on no index, so the command is one for a clone of the repository. `-e` keeps an editable
    installation as it is.
    """
    return f"`pip install -e '.[{extra}]'` in a clone of the repository"


__all__ = ["install_hint"]
