"""Markdown tables, and text that Markdown shows as it is."""

import re
from collections.abc import Iterable, Sequence

# Control characters, line and paragraph separators, and marks that change the direction of the text.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
CODE = re.compile("(`[^`]*`)")


def escape_markdown(text: str) -> str:
    """Text on one line and without HTML: names of files, classes and models come from anywhere.

    Control characters become spaces, and `<` becomes `&lt;`; code that holds it becomes text. Text that is no Unicode
    is escaped.
    """
    parts = CODE.split(CONTROLS.sub(" ", text.encode("utf-8", "backslashreplace").decode()))
    parts = [part.strip("`") if CODE.fullmatch(part) and "<" in part else part for part in parts]
    return "".join(parts).replace("<", "&lt;")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown table with aligned columns of texts that are escaped, bars, too."""
    lines = [[escape_markdown(str(cell)).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines
    )


__all__ = ["escape_markdown", "markdown_table"]
