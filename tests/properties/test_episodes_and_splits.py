"""Properties of episodes, stratified parts and held-out rows, for any numbers of clips, classes and groups."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from audio_files import numbered_clip, numbers, row
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtslvr_hf.data import EncodedAudio, load_clips
from mtslvr_hf.data.skipped import TooManyBadRowsError
from mtslvr_hf.data.splits import divide, make_folds
from mtslvr_hf.evaluation.few_shot.episodes import distinct_numbers, sample_episodes

seeds = st.integers(0, 2**32 - 1)


@st.composite
def labelings(draw, most_clips=60, most_classes=8, groups=True):
    """Class of each clip, and its group or None."""
    count = draw(st.integers(1, most_clips))
    random = np.random.default_rng(draw(seeds))
    labels = random.integers(0, draw(st.integers(1, most_classes)), count).tolist()
    if not groups or not draw(st.booleans()):
        return labels, None
    return labels, [f"speaker {n}" for n in random.integers(0, draw(st.integers(1, 12)), count)]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(1, 10), seeds)
def test_distinct_numbers_are_distinct_and_below_their_sizes(sizes, count, seed):
    sizes = np.maximum(sizes, count)
    drawn = distinct_numbers(sizes, count, np.random.PCG64(seed))
    assert drawn.shape == (len(sizes), count)
    for numbers_of_one, size in zip(drawn.tolist(), sizes):
        assert len(set(numbers_of_one)) == count and 0 <= min(numbers_of_one) <= max(numbers_of_one) < size


def splits_into(groups, shots, queries):
    """Oracle: some division of the groups has enough clips on both sides."""
    counts = list(Counter(groups).values())
    sides = itertools.product([0, 1], repeat=len(counts))
    sums = [sum(count for count, side in zip(counts, chosen) if side) for chosen in sides]
    return any(side >= shots and sum(counts) - side >= queries for side in sums)


@given(labelings(), st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), seeds)
def test_episodes_are_of_distinct_classes_clips_and_groups_or_refused(labelled, ways, shots, queries, seed):
    labels, groups = labelled
    usable = {
        label
        for label, count in Counter(labels).items()
        if count >= shots + queries
        and (groups is None or splits_into([g for g, own in zip(groups, labels) if own == label], shots, queries))
    }
    try:
        drawn = sample_episodes(labels, ways, shots, queries, 20, seed, groups)
    except ValueError as error:
        if "random assignments" not in str(error):  # groups in common leave no episode of so many classes
            assert len(usable) < ways
        return
    assert len(usable) >= ways and set(drawn.left_out) == {str(label) for label in set(labels) - usable}
    assert drawn.support.shape == (20, ways, shots) and drawn.query.shape == (20, ways, queries)
    for support, query in zip(drawn.support, drawn.query):
        clips = torch.cat([support, query], dim=1).tolist()  # (W, K + Q)
        assert len(set(itertools.chain(*clips))) == ways * (shots + queries)
        kinds = [{labels[clip] for clip in own} for own in clips]
        assert all(len(kind) == 1 for kind in kinds) and len(set.union(*kinds)) == ways
        if groups is not None:
            sides = [{groups[clip] for clip in side.flatten().tolist()} for side in (support, query)]
            assert not sides[0] & sides[1]
    again = sample_episodes(labels, ways, shots, queries, 20, seed, groups)
    assert again.sha256 == drawn.sha256


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 4), seeds)
def test_every_class_and_every_clip_comes_equally_often(ways, clips, others, seed):
    classes = ways + others
    drawn = sample_episodes(np.repeat(np.arange(classes), clips), ways, 1, clips - 1, 3_000, seed)
    counts = torch.bincount(drawn.support.flatten(), minlength=classes * clips).double()
    expected = 3_000 * ways / len(counts)
    assert (counts - expected).abs().max() < 6 * expected**0.5
    assert torch.equal(drawn.support.flatten(1).sum(1) + drawn.query.flatten(1).sum(1), per_episode(drawn, clips))


def per_episode(drawn, clips):
    """Sum of the clips' numbers, if an episode takes all clips of its classes: (E,)."""
    kinds = drawn.support[..., 0] // clips
    return (kinds * clips**2 + clips * (clips - 1) // 2).sum(1)


@given(labelings(groups=False), st.integers(2, 6), seeds)
def test_folds_share_each_class_as_equally_as_whole_clips_allow(labelled, folds, seed):
    labels = np.eye(8, dtype=bool)[labelled[0]]
    if len(labels) < folds:
        with pytest.raises(ValueError, match="cannot be divided"):
            make_folds(labels, folds, seed)
        return
    fold = make_folds(labels, folds, seed)
    counts = np.stack([labels[fold == n].sum(0) for n in range(folds)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert counts.sum(1).min() >= 1


@given(labelings(groups=False), st.floats(0.05, 0.95), seeds)
@example(([0, 0, 1, 1, 2, 2], None), 0.8, 0)  # each class alone would give the smaller part no clip
@example(([0, 1, 2, 3, 4], None), 0.8, 0)
def test_two_parts_have_their_share_of_each_class_and_are_never_empty(labelled, share, seed):
    labels = np.eye(8, dtype=bool)[labelled[0]]
    if len(labels) < 2:
        return
    part = divide(labels, (share, 1 - share), seed)
    assert set(part) == {0, 1}
    counts, all_counts = labels[part == 0].sum(0), labels.sum(0)
    if min(share, 1 - share) * all_counts.max() > 0.5:  # else the smaller part takes clips from some classes
        assert (np.abs(counts - share * all_counts) <= 0.5 + 1e-6).all()
    assert np.array_equal(part, divide(labels, (share, 1 - share), seed))


@given(labelings(), st.lists(st.integers(1, 9), min_size=2, max_size=5), seeds, st.floats(0, 0.3))
def test_groups_stay_whole_and_no_part_is_empty(labelled, weights, seed, more):
    labels, groups = labelled
    hot = np.eye(8, dtype=bool)[labels] | (np.random.default_rng(seed).random((len(labels), 8)) < more)
    shares = np.array(weights) / sum(weights)
    if len(set(groups or range(len(labels)))) < len(shares):
        with pytest.raises(ValueError, match="cannot be divided"):
            divide(hot, shares, seed, groups)
        return
    part = divide(hot, shares, seed, groups)
    assert set(part) == set(range(len(shares)))
    if groups is not None:
        assert all(len(set(part[[own == name for own in groups]])) == 1 for name in set(groups))


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(st.integers(0, 3_000), min_size=4, max_size=20), st.floats(0.2, 0.8), st.floats(0.2, 0.8), seeds)
def test_held_out_rows_and_the_others_are_all_rows_whatever_their_order(clips, fraction, other, seed):
    files = {number: numbered_clip(number, 0.002) for number in clips}  # once: libsndfile writes the time into them

    def part(held_out, fraction, order):
        rows = Dataset.from_dict({"audio": [row(files[number]) for number in order]})
        options = {"seed": seed, "held_out_fraction": fraction, "held_out": held_out}
        try:
            return sorted(numbers(load_clips(rows.cast_column("audio", EncodedAudio()), 0.002, **options)))
        except TooManyBadRowsError:  # of no row
            return []

    held_out = part(True, fraction, clips)
    assert sorted(held_out + part(False, fraction, clips)) == sorted(clips)
    assert part(True, fraction, clips[::-1]) == held_out
    assert all(held_out.count(number) in (0, clips.count(number)) for number in clips)
    more = Counter(part(True, other, clips))
    assert Counter(held_out) <= more if fraction <= other else more <= Counter(held_out)
