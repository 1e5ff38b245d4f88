"""Few-shot episodes, drawn in bulk; a seed gives the same episodes on every machine.

Shapes: E episodes, W ways, K shots, Q queries, C classes, G groups, M clips of the largest class.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

# Episodes per draw: bounds memory; a constant, because the order of random draws depends on it.
_CHUNK = 500
_MAX_REDRAWS = 1000


@dataclass(frozen=True)
class Episodes:
    """Few-shot episodes as indices of clips.

    Attributes:
        support: Labeled examples, int64 (episodes, ways, shots). Row w of an episode is its class w.
        query: Clips to classify, int64 (episodes, ways, queries).
        left_out: Reason for each class without episodes.
    """

    support: torch.Tensor
    query: torch.Tensor
    left_out: dict[str, str]

    @property
    def sha256(self) -> str:
        """Digest of the episodes, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for clips in (self.support, self.query):
            digest.update(repr(tuple(clips.shape)).encode())
            digest.update(np.ascontiguousarray(clips.cpu().numpy(), dtype="<i8").tobytes())
        return digest.hexdigest()


def sample_episodes(
    labels: Sequence[Hashable],
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    episodes: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Episodes:
    """Few-shot episodes, as indices into `labels`.

    With groups, each episode assigns every group to support or query with equal probability, then draws its classes
    from those with enough clips on both sides. Support and query share no group, not even of different classes.

    Args:
        labels: (N,) class of each clip.
        ways, shots, queries: Classes per episode, support clips per class, and query clips per class.
        seed: Alone decides the draws: machine and versions of torch and numpy do not matter.
        groups: (N,) group (speaker, recording session) of each clip.

    Raises:
        ValueError: If a count is too small, `groups` and `labels` differ in length, fewer than `ways` classes have
            enough clips, or the groups allow no episodes.
    """
    _check_counts(ways=ways, shots=shots, queries=queries, episodes=episodes)
    labels = _as_list(labels)
    groups = None if groups is None else _as_list(groups)
    if groups is not None and len(groups) != len(labels):
        raise ValueError(
            f"groups has {len(groups)} entries and labels has {len(labels)}; expected one group per clip."
        )
    members, left_out = _usable_classes(labels, groups, shots, queries)
    if len(members) < ways:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(
            f"{ways}-way episodes need at least {ways} classes, and {len(members)} can be drawn from"
            + (f" (left out: {reasons})." if reasons else ".")
        )
    draws = np.random.PCG64(seed)
    table = _class_table(members)  # (C, M), -1 where a class has fewer clips
    group_table = None if groups is None else _group_table(groups, table)  # (C, M)
    drawn = []
    for start in range(0, episodes, _CHUNK):
        count = min(_CHUNK, episodes - start)
        draw = _draw if group_table is None else partial(_draw_group_disjoint, group_table)
        drawn.append(draw(table, ways, shots, queries, count, draws))
    support, query = (torch.from_numpy(np.concatenate(part)) for part in zip(*drawn))
    return Episodes(support, query, left_out)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        least = 2 if name == "ways" else 1
        if count < least:
            raise ValueError(f"{name} is {count}; expected at least {least}.")


def _as_list(values: Sequence[Hashable]) -> list[Hashable]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _usable_classes(
    labels: list[Hashable], groups: list[Hashable] | None, shots: int, queries: int
) -> tuple[list[list[int]], dict[str, str]]:
    """Clips of each class that has enough for episodes, and the reasons that exclude the others."""
    clips: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        clips.setdefault(label, []).append(index)
    members, left_out = [], {}
    for label in sorted(clips, key=str):
        indices = clips[label]
        if len(indices) < shots + queries:
            left_out[str(label)] = f"{len(indices)} clips, {shots + queries} needed"
        elif groups is not None and not _splits([groups[index] for index in indices], shots, queries):
            left_out[str(label)] = f"its groups do not split into {shots} and {queries} clips"
        else:
            members.append(indices)
    return members, left_out


def _splits(groups: list[Hashable], shots: int, queries: int) -> bool:
    """True if whole groups can form one side of `shots` clips or more and another of `queries` or more."""
    sums = 1  # bit n: some choice of groups has n clips
    for count in Counter(groups).values():
        sums |= sums << count
    return any(sums >> side & 1 for side in range(shots, len(groups) - queries + 1))


def _class_table(members: list[list[int]]) -> np.ndarray:
    table = np.full((len(members), max(map(len, members))), -1)  # (C, M)
    for row, indices in zip(table, members):
        row[: len(indices)] = indices
    return table


def _group_table(groups: list[Hashable], table: np.ndarray) -> np.ndarray:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of_clip = np.array([numbers[group] for group in groups])  # (N,)
    return group_of_clip[table.clip(min=0)]  # (C, M); values at missing clips are not used


def distinct_numbers(sizes: np.ndarray, count: int, draws: np.random.PCG64) -> np.ndarray:
    """`count` different numbers below each size, in random order; (..., count) of sizes (...).

    Drawn from raw words of the bit generator: numpy keeps these over versions, unlike the methods of its Generator. A
    number can be more likely than another by a factor of 1 + size / 2^32.
    """
    chosen: list[np.ndarray] = []  # in ascending order
    drawn = []
    for already in range(count):
        words = draws.random_raw(sizes.size).reshape(sizes.shape) >> np.uint64(32)
        number = ((words * (sizes - already).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        for taken in chosen:  # skips numbers already taken
            number += number >= taken
        drawn.append(number)
        chosen = list(np.sort(np.stack([*chosen, number]), axis=0))
    return np.stack(drawn, -1)


def _chosen(allowed: np.ndarray, count: int, draws: np.random.PCG64) -> np.ndarray:
    """`count` indices of the last axis, drawn without replacement from the allowed ones; (..., count)."""
    places = np.argsort(~allowed, axis=-1, kind="stable")  # allowed ones first, in order
    return np.take_along_axis(places, distinct_numbers(allowed.sum(-1), count, draws), -1)


def _draw(
    table: np.ndarray, ways: int, shots: int, queries: int, episodes: int, draws: np.random.PCG64
) -> tuple[np.ndarray, np.ndarray]:
    """Support (episodes, ways, shots) and query (episodes, ways, queries) of episodes without groups."""
    classes = distinct_numbers(np.full(episodes, len(table)), ways, draws)  # (E, W)
    clips = distinct_numbers((table >= 0).sum(-1)[classes], shots + queries, draws)  # (E, W, K+Q), places in the rows
    clips = table[classes[..., None], clips]
    return clips[..., :shots], clips[..., shots:]


def _draw_group_disjoint(
    group_table: np.ndarray,
    table: np.ndarray,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    draws: np.random.PCG64,
) -> tuple[np.ndarray, np.ndarray]:
    """`_draw` without shared groups; assignments with too few classes are drawn again."""
    present = table >= 0  # (C, M)
    group_count = int(group_table.max()) + 1
    found_support, found_query, missing = [], [], episodes
    for _ in range(_MAX_REDRAWS):
        coins = draws.random_raw(episodes * group_count).reshape(episodes, group_count)
        on_support_side = (coins >> np.uint64(63)).astype(bool)[:, group_table]  # (E, C, M)
        on_support_side, on_query_side = on_support_side & present, ~on_support_side & present
        enough = (on_support_side.sum(-1) >= shots) & (on_query_side.sum(-1) >= queries)  # (E, C)
        drawable = (enough.sum(-1) >= ways).nonzero()[0][:missing]  # (E',)
        classes = _chosen(enough[drawable], ways, draws)  # (E', W)
        rows = drawable[:, None]
        support = _chosen(on_support_side[rows, classes], shots, draws)  # (E', W, K), places in the table's rows
        query = _chosen(on_query_side[rows, classes], queries, draws)
        found_support.append(table[classes[..., None], support])
        found_query.append(table[classes[..., None], query])
        missing -= len(drawable)
        if not missing:
            return np.concatenate(found_support), np.concatenate(found_query)
    raise ValueError(
        f"{_MAX_REDRAWS} random assignments of groups to support and query left fewer than {ways} classes with "
        f"{shots} and {queries} clips: classes share too few groups for group-disjoint {ways}-way episodes; use fewer "
        "ways, shots or queries."
    )


__all__ = ["Episodes", "distinct_numbers", "sample_episodes"]
