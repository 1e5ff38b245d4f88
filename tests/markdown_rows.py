"""Markdown tables in tests."""

import re


def unpadded(text):
    """The text with each table's cells as wide as their content."""
    return re.sub(r"-+ \|", "- |", re.sub(r" +\|", " |", text))
