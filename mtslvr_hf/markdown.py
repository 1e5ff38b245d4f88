"""Markdown tables and text."""

from collections.abc import Iterable, Sequence
from unicodedata import category


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown table with aligned columns; bars in cells are escaped, line breaks become spaces."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines
    )


def plain_text(text: str) -> str:
    """Text on one line that is no HTML: names come from users, and may hold tags, line breaks, control characters."""
    spaced = "".join(" " if category(character) in ("Cc", "Cs") else character for character in text)
    return " ".join(spaced.split()).replace("<", "&lt;")


__all__ = ["markdown_table", "plain_text"]
