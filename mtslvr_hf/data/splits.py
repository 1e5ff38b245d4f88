"""Stratified, group-aware splits: each class has the same share in every part, and each group lies in one part.

Shapes: N clips, C classes, P parts, G groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def divide(
    labels: np.ndarray, shares: Sequence[float], seed: int = 0, groups: Sequence[Hashable] | np.ndarray | None = None
) -> np.ndarray:
    """Parts of given shares, with each class divided by these shares as exactly as possible.

    Groups (without `groups`, single clips) are assigned in turn, the largest and those of the rarest classes first.
    Each goes to the part where it adds least to the sum over parts p and classes c of
    (clips of c in p / clips of c)^2 / share of p, which is minimal if every class is divided by the shares. A part
    that stays empty, because its share of each class is too small, then takes groups from the others up to its share.

    Args:
        labels: (N, C), 1 where a clip has a class.
        shares: Share of the clips in each part; the sum is 1.
        seed: Seed of the shuffle before the assignment.
        groups: Group (speaker, recording) of each clip; each group goes to one part as a whole.

    Returns:
        (N,) int64: the part of each clip.

    Raises:
        ValueError: If there are fewer clips or groups than parts, or the shares are not positive with a sum of 1.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the parts' shares must be greater than 0 and add up to 1; got {list(shares)}.")
    names, group = np.unique(range(len(labels)) if groups is None else list(map(str, groups)), return_inverse=True)
    if len(names) < len(shares):
        what = "clips" if groups is None else "groups"
        raise ValueError(f"{len(names)} {what} cannot be divided into {len(shares)} parts, each with one at least.")
    classes = np.maximum(labels.sum(0), 1)  # (C,) clips of each
    counts = np.zeros((len(names), labels.shape[1]))  # (G, C)
    np.add.at(counts, group, labels / classes)
    sizes = np.bincount(group)  # (G,)
    rarest = np.array([classes[row > 0].min(initial=len(labels)) for row in counts])  # (G,)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.lexsort((rarest[shuffled], -sizes[shuffled]))]
    part_of_group = _assign_groups(counts, sizes, order, np.asarray(shares, dtype=float))
    return part_of_group[group]


def _assign_groups(counts: np.ndarray, sizes: np.ndarray, order: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Part of each group, (G,); counts (G, C) are shares of their class."""
    filled = np.zeros((len(shares), counts.shape[1]))  # (P, C)
    clips = np.zeros(len(shares))  # (P,)
    parts = np.zeros(len(counts), dtype=np.int64)
    for group in order:
        here = np.flatnonzero(counts[group])  # a clip has few of all classes
        added = counts[group, here]
        cost = ((2 * filled[:, here] + added) * added).sum(1) / shares  # (P,)
        fullness = (clips + sizes[group]) / shares
        best = np.lexsort((fullness, np.round(cost, 12)))[0]  # of equal parts the emptiest
        parts[group] = best
        filled[best] += counts[group]
        clips[best] += sizes[group]
    for part in np.flatnonzero(clips == 0).tolist():
        _fill(part, parts, counts, sizes, order, shares)
    return parts


def _fill(
    part: int, parts: np.ndarray, counts: np.ndarray, sizes: np.ndarray, order: np.ndarray, shares: np.ndarray
) -> None:
    """Moves groups into an empty part: one at least, and more while they fit into its share."""
    filled = np.stack([counts[parts == other].sum(0) for other in range(len(shares))])  # (P, C)
    room = shares[part] * sizes.sum() + 1e-9
    while True:
        of_several = np.bincount(parts, minlength=len(shares))[parts] > 1  # no other part gets empty
        movable = order[(of_several & (parts != part))[order]]
        if (parts == part).any():
            movable = movable[sizes[movable] <= room]
        if len(movable) == 0:
            return
        own, source = counts[movable], parts[movable]
        added = ((2 * filled[part] + own) * own).sum(1) / shares[part]
        removed = ((2 * filled[source] - own) * own).sum(1) / shares[source]
        group = movable[np.lexsort((sizes[movable], np.round(added - removed, 12)))[0]]
        filled[parts[group]] -= counts[group]
        filled[part] += counts[group]
        room -= sizes[group]
        parts[group] = part


def make_folds(labels: np.ndarray, folds: int, seed: int = 0, groups: Sequence[Hashable] | None = None) -> np.ndarray:
    """Folds for cross-validation, (N,) int64 from 0 to folds - 1: `divide` into equal parts.

    Raises:
        ValueError: If there are fewer than two folds, or more folds than clips or groups.
    """
    if folds < 2:
        raise ValueError(f"cross-validation needs at least 2 folds; got {folds}.")
    return divide(labels, [1 / folds] * folds, seed, groups)


__all__ = ["divide", "make_folds"]
