"""Pieces of clips, which the paper's protocol embeds and classifies one by one.

Shapes: N clips, P pieces, D embedding size.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..audio.pieces import Cuts, read_piece

PIECE_SECONDS = 5.0


@dataclass(frozen=True)
class Pieces(Sequence[Mapping[str, Any]]):
    """Pieces of clips as rows `{"bytes", "path"}`, each of 5 s and read when it is accessed.

    Args:
        audio: Undecoded rows of N clips.
        cuts: Cuts of each clip into pieces.
    """

    audio: Sequence[Mapping[str, Any]]
    cuts: Sequence[Cuts]

    @cached_property
    def bounds(self) -> list[int]:
        """N + 1 places: the pieces of clip n are those from `bounds[n]` to `bounds[n + 1]`."""
        bounds = [0]
        for cut in self.cuts:
            bounds.append(bounds[-1] + len(cut.spans))
        return bounds

    @property
    def silent(self) -> int:
        """Number of silent pieces of all clips, which are left out."""
        return sum(cut.silent for cut in self.cuts)

    @property
    def layout(self) -> str:
        """Text of all cuts, which with the clips determines the pieces."""
        return json.dumps([PIECE_SECONDS, [cut.spans for cut in self.cuts]])

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"there is no piece {index}; expected 0 to {len(self) - 1}.")
        clip = bisect.bisect_right(self.bounds, index) - 1
        return read_piece(self.audio[clip], self.cuts[clip].spans[index - self.bounds[clip]], PIECE_SECONDS)

    def clip_means(self, embeddings: Tensor) -> Tensor:
        """Mean embeddings of clips (N, D) from those of pieces (P, D)."""
        counts = torch.tensor(self.bounds).diff()
        return torch.stack([part.mean(0) for part in embeddings.split(counts.tolist())])


__all__ = ["PIECE_SECONDS", "Pieces"]
