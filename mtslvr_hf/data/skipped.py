"""Counts of skipped rows by reason, and the error for too many of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

MAX_EXAMPLES = 3


class TooManyBadRowsError(RuntimeError):
    """Error for too many rows without a clip; takes only a message, so that DataLoader can raise it again."""


class SkippedRows:
    """Counts of rows read, and of rows skipped by reason, with up to three examples."""

    def __init__(self) -> None:
        self.rows = 0
        self.reasons: dict[str, int] = {}
        self.examples: list[str] = []

    @property
    def skipped(self) -> int:
        """Number of rows that gave no clip."""
        return sum(self.reasons.values())

    @property
    def good(self) -> int:
        """Number of rows that gave a clip."""
        return self.rows - self.skipped

    @property
    def share(self) -> float:
        """Share of the rows read that gave no clip."""
        return self.skipped / self.rows if self.rows else 0.0

    def add(self, reason: str | None = None, example: str | None = None, rows: int = 1) -> None:
        """Counts a row, or several; with a reason, they count as skipped."""
        self.rows += rows
        if reason is None:
            return
        self.reasons[reason] = self.reasons.get(reason, 0) + rows
        if example is not None and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)

    def merge(self, other: SkippedRows | Mapping[str, Any]) -> None:
        """Adds other counts or their `state_dict`."""
        state = other.state_dict() if isinstance(other, SkippedRows) else other
        self.rows += state["rows"]
        for reason, count in state["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples += state["examples"][: MAX_EXAMPLES - len(self.examples)]

    def state_dict(self) -> dict[str, Any]:
        """Counts and examples, for JSON."""
        return {"rows": self.rows, "reasons": dict(self.reasons), "examples": list(self.examples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict`."""
        self.rows, self.reasons, self.examples = state["rows"], dict(state["reasons"]), list(state["examples"])

    def check(self, max_share: float, after: int) -> None:
        """Raises TooManyBadRowsError if more than `max_share` of at least `after` rows were skipped."""
        if self.rows >= after and self.share > max_share:
            self.fail(f"More than max_bad_share={max_share:.1%} of the rows gave no clip.")

    def fail(self, message: str) -> NoReturn:
        """Raises TooManyBadRowsError with the message, the counts and the examples."""
        raise TooManyBadRowsError("\n  ".join([f"{message} {self}", *self.examples]))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{self.skipped} of {self.rows} rows skipped ({self.share:.1%}){': ' if reasons else ''}{reasons}."


__all__ = ["SkippedRows", "TooManyBadRowsError"]
