"""Few-shot tasks: all episodes drawn at once, all of them scored at once.

Shapes: N clips, D embedding size, E tasks (episodes), W ways, K shots, Q queries, C classes, G groups,
M clips of the largest class.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

# Tasks drawn or scored at a time: it bounds memory, and is fixed because the order of the random draws depends on it.
_CHUNK = 500
_MAX_REDRAWS = 1000


@dataclass(frozen=True)
class Episodes:
    """Few-shot tasks as indices of clips.

    Attributes:
        support: the labelled examples, int64 (tasks, ways, shots). Row w of a task is its class w.
        query: the clips to be told apart, int64 (tasks, ways, queries).
        left_out: the classes no task can be drawn from, each with the reason.
    """

    support: torch.Tensor
    query: torch.Tensor
    left_out: dict[str, str]


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy over few-shot tasks.

    Attributes:
        accuracy: mean over tasks, 0 to 1.
        interval: half width of the mean's 95 % interval, 1.96 * standard deviation over tasks / sqrt(tasks).
        tasks: how many tasks.
        ways: classes in a task.
        shots: labelled clips of each class.
        queries: clips of each class to be told apart.
        seed: the seed the tasks were drawn with.
        group_disjoint: whether support and query of a task share no group.
        left_out: the classes no task could be drawn from, each with the reason.
    """

    accuracy: float
    interval: float
    tasks: int
    ways: int
    shots: int
    queries: int
    seed: int
    group_disjoint: bool
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.interval:.1f} %"


def sample_episodes(
    labels: Sequence[Hashable],
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    tasks: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Episodes:
    """Draws few-shot tasks: `ways` classes each, of every class `shots` support clips and `queries` others.

    With groups, every task first deals each group to the support or to the query side by a fair coin, then draws its
    classes from those with enough clips on both sides: no group of a query is in its task's support set, be it of the
    same class or another.

    Args:
        labels: the class of each clip, (N,).
        ways: classes in a task.
        shots: support clips of each class.
        queries: query clips of each class.
        tasks: how many tasks.
        seed: same seed, same tasks, whatever the embeddings.
        groups: the group (speaker, recording session) of each clip, (N,); support and query of a task share none.

    Returns:
        The tasks as indices into `labels`.

    Raises:
        ValueError: when a count is below 1, `groups` and `labels` differ in length, fewer than `ways` classes have
            enough clips, or the groups leave no task to be drawn.
    """
    _check_counts(ways=ways, shots=shots, queries=queries, tasks=tasks)
    labels = _as_list(labels)
    groups = None if groups is None else _as_list(groups)
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"groups has {len(groups)} entries and labels has {len(labels)}; expected one group per clip")
    members, left_out = _usable_classes(labels, groups, shots, queries)
    if len(members) < ways:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(
            f"{ways}-way tasks need at least {ways} classes, and {len(members)} can be drawn from"
            + (f" (left out: {reasons})" if reasons else "")
        )
    generator = torch.Generator().manual_seed(seed)
    table = _class_table(members)  # (C, M), -1 where a class has fewer clips
    group_table = None if groups is None else _group_table(groups, table)  # (C, M)
    drawn = []
    for start in range(0, tasks, _CHUNK):
        count = min(_CHUNK, tasks - start)
        if group_table is None:
            drawn.append(_draw(table, ways, shots, queries, count, generator))
        else:
            drawn.append(_draw_group_disjoint(table, group_table, ways, shots, queries, count, generator))
    support, query = (torch.cat(part) for part in zip(*drawn))
    return Episodes(support, query, left_out)


def few_shot_accuracy(
    embeddings: torch.Tensor,
    labels: Sequence[Hashable],
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    tasks: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    standardize: bool = True,
) -> FewShotResult:
    """Accuracy of nearest-centroid classification over few-shot tasks.

    Args:
        embeddings: (N, D).
        labels: the class of each clip, (N,).
        ways: classes in a task.
        shots: support clips of each class.
        queries: query clips of each class.
        tasks: how many tasks.
        seed: same seed, same tasks, whatever the embeddings.
        groups: the group of each clip, (N,); see `sample_episodes`.
        standardize: whether to give every dimension mean 0 and deviation 1 over the N clips first.

    Raises:
        ValueError: as `sample_episodes` and `score_episodes`, or when embeddings and labels differ in length.
    """
    if len(embeddings) != len(labels):
        raise ValueError(f"got {len(embeddings)} embeddings and {len(labels)} labels; expected one label per clip")
    episodes = sample_episodes(labels, ways, shots, queries, tasks, seed, groups)
    accuracies = score_episodes(embeddings, episodes, standardize)
    accuracy, interval = mean_and_interval(accuracies)
    return FewShotResult(
        accuracy, interval, tasks, ways, shots, queries, seed, groups is not None, dict(episodes.left_out)
    )


def score_episodes(embeddings: torch.Tensor, episodes: Episodes, standardize: bool = True) -> torch.Tensor:
    """Each task's accuracy by `nearest_centroid`, (tasks,): what a paired comparison of two embeddings needs.

    Args:
        embeddings: (N, D), float; the episodes index its rows.
        episodes: the tasks.
        standardize: whether to give every dimension mean 0 and deviation 1 over the N clips first. It uses no label,
            but it does use the query clips: a protocol, to be stated and to be the same for all that are compared.

    Raises:
        ValueError: when the embeddings are not a finite (N, D) matrix.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}; expected floats of shape (N, D)"
        )
    if not torch.isfinite(embeddings).all():
        bad = (~torch.isfinite(embeddings)).any(1).nonzero()[0].item()
        raise ValueError(f"the embedding of clip {bad} is not finite")
    embeddings = embeddings.float()
    if standardize:
        embeddings = standardized(embeddings)
    ways, queries = episodes.query.shape[1:]
    target = torch.arange(ways, device=embeddings.device).repeat_interleave(queries)  # (W * Q,)
    accuracies = []
    for support, query in zip(episodes.support.split(_CHUNK), episodes.query.split(_CHUNK)):
        scores = nearest_centroid(embeddings[support], embeddings[query.flatten(1)])  # (E, W * Q, W)
        accuracies.append((scores.argmax(-1) == target).float().mean(-1))  # (E,)
    return torch.cat(accuracies).cpu()


def nearest_centroid(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of each query to each class's centroid of L2-normalised support clips.

    Args:
        support: (E, W, K, D).
        query: (E, queries, D).

    Returns:
        Scores, (E, queries, W).

    Source:
        Wang et al., "SimpleShot: Revisiting nearest-neighbor classification for few-shot learning", 2019
        (arXiv 1911.04623), section 3: nearest centroid on L2-normalised features (L2N).
        Differs from: the centroid is normalised as well, so that the nearest one is the one of largest cosine.
    """
    centroids = normalize(normalize(support, dim=-1).mean(2), dim=-1)  # (E, W, D)
    return normalize(query, dim=-1) @ centroids.transpose(1, 2)  # (E, queries, W)


def standardized(embeddings: torch.Tensor) -> torch.Tensor:
    """Every dimension with mean 0 and deviation 1 over the clips, (N, D); a constant dimension becomes 0."""
    centred = embeddings - embeddings.mean(0)
    deviation = centred.pow(2).mean(0).sqrt()  # (D,)
    # A constant dimension's deviation is not quite 0: float32 rounds its mean.
    constant = deviation <= 1e-6 * embeddings.abs().amax(0)
    return torch.where(constant, 0.0, centred / deviation.clamp(min=torch.finfo(deviation.dtype).tiny))


def mean_and_interval(accuracies: torch.Tensor) -> tuple[float, float]:
    """Mean of per-task accuracies (tasks,) and the half width of its 95 % interval (NaN for a single task)."""
    accuracies = accuracies.double()
    return accuracies.mean().item(), (1.96 * accuracies.std() / len(accuracies) ** 0.5).item()


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        least = 2 if name == "ways" else 1
        if count < least:
            raise ValueError(f"{name} is {count}; expected at least {least}")


def _as_list(values: Sequence[Hashable]) -> list[Hashable]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _usable_classes(
    labels: list[Hashable], groups: list[Hashable] | None, shots: int, queries: int
) -> tuple[list[list[int]], dict[str, str]]:
    """The clips of each class that tasks can be drawn from, and why the other classes are left out."""
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
    """Whether whole groups can be dealt so that one side has `shots` clips at least and the other `queries`."""
    sums = 1  # bit n: some choice of groups has n clips
    for count in Counter(groups).values():
        sums |= sums << count
    return any(sums >> side & 1 for side in range(shots, len(groups) - queries + 1))


def _class_table(members: list[list[int]]) -> torch.Tensor:
    table = torch.full((len(members), max(map(len, members))), -1)  # (C, M)
    for row, indices in zip(table, members):
        row[: len(indices)] = torch.tensor(indices)
    return table


def _group_table(groups: list[Hashable], table: torch.Tensor) -> torch.Tensor:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of_clip = torch.tensor([numbers[group] for group in groups])  # (N,)
    return group_of_clip[table.clamp(min=0)]  # (C, M); what stands where a class has no clip is never used


def _choose(allowed: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` places of the last axis, drawn without replacement from the allowed ones; (..., count)."""
    keys = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, 2.0)
    return keys.argsort(-1)[..., :count]


def _draw(
    table: torch.Tensor, ways: int, shots: int, queries: int, tasks: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Support (tasks, ways, shots) and query (tasks, ways, queries) of tasks without groups."""
    classes = _choose(torch.ones(tasks, len(table), dtype=torch.bool), ways, generator)  # (E, W)
    clips = table[classes]  # (E, W, M)
    chosen = clips.gather(-1, _choose(clips >= 0, shots + queries, generator))  # (E, W, K + Q)
    return chosen[..., :shots], chosen[..., shots:]


def _draw_group_disjoint(
    table: torch.Tensor,
    group_table: torch.Tensor,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_draw`, but support and query of a task share no group; deals that leave too few classes are redrawn."""
    present = table >= 0  # (C, M)
    found_support, found_query, missing = [], [], tasks
    for _ in range(_MAX_REDRAWS):
        sides = torch.rand(tasks, int(group_table.max()) + 1, generator=generator) < 0.5  # (E, G): in the support?
        on_support_side = sides[:, group_table] & present  # (E, C, M)
        on_query_side = ~sides[:, group_table] & present
        enough = (on_support_side.sum(-1) >= shots) & (on_query_side.sum(-1) >= queries)  # (E, C)
        drawable = (enough.sum(-1) >= ways).nonzero()[:missing, 0]  # (E',)
        classes = _choose(enough[drawable], ways, generator)  # (E', W)
        rows = drawable[:, None]
        support = _choose(on_support_side[rows, classes], shots, generator)  # (E', W, K), places in the table's rows
        query = _choose(on_query_side[rows, classes], queries, generator)
        found_support.append(table[classes].gather(-1, support))
        found_query.append(table[classes].gather(-1, query))
        missing -= len(drawable)
        if not missing:
            return torch.cat(found_support), torch.cat(found_query)
    raise ValueError(
        f"{_MAX_REDRAWS} attempts to deal the groups to support and query left fewer than {ways} classes with "
        f"{shots} and {queries} clips: the classes share too few groups for group-disjoint {ways}-way tasks"
    )


__all__ = [
    "Episodes",
    "FewShotResult",
    "few_shot_accuracy",
    "mean_and_interval",
    "nearest_centroid",
    "sample_episodes",
    "score_episodes",
    "standardized",
]
