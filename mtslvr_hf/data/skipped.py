"""Rows that gave no clip: counted by reason, and too many of them an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

MAX_EXAMPLES = 3


class TooManyBadRowsError(RuntimeError):
    """More rows than allowed gave no clip, or none gave one.

    It is built from its message alone, so that DataLoader can raise it again in the main process.
    """


class SkippedRows:
    """Counts rows read, and rows skipped by reason, with up to three examples.

    Each worker of a stream has one for its own check, and sends what happened since its last batch along with the
    next; a Trainer merges these.
    """

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

    def add(self, reason: str | None = None, example: str | None = None) -> None:
        """Counts a row that was read; with a reason, one that was skipped."""
        self.rows += 1
        if reason is None:
            return
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if example is not None and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)

    def merge(self, other: SkippedRows | Mapping[str, Any]) -> None:
        """Adds another count, or the `state_dict` of one."""
        state = other.state_dict() if isinstance(other, SkippedRows) else other
        self.rows += state["rows"]
        for reason, count in state["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples += state["examples"][: MAX_EXAMPLES - len(self.examples)]

    def state_dict(self) -> dict[str, Any]:
        """All counts and examples, in plain Python that JSON can hold."""
        return {"rows": self.rows, "reasons": dict(self.reasons), "examples": list(self.examples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the counts by those of a `state_dict`."""
        self.rows, self.reasons, self.examples = state["rows"], dict(state["reasons"]), list(state["examples"])

    def check(self, max_share: float, after: int) -> None:
        """Raises if too many rows were skipped.

        Args:
            max_share: Largest share of skipped rows that is allowed.
            after: Number of rows from which on the share counts.

        Raises:
            TooManyBadRowsError: If the share is larger; the message has the counts by reason and up to three examples.
        """
        if self.rows >= after and self.share > max_share:
            self.fail(f"More than max_bad_share={max_share:.1%} of the rows gave no clip.")

    def fail(self, message: str) -> NoReturn:
        """Raises TooManyBadRowsError with a message, the counts and the examples."""
        raise TooManyBadRowsError("\n  ".join([f"{message} {self}", *self.examples]))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{self.skipped} of {self.rows} rows skipped ({self.share:.1%}){': ' if reasons else ''}{reasons}."


__all__ = ["SkippedRows", "TooManyBadRowsError"]
