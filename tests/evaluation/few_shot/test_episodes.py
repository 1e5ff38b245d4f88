"""Few-shot episodes: what they hold, what they never share, and that a seed fixes them."""

import itertools

import numpy as np
import pytest
import torch

from mtslvr_hf.evaluation import Episodes, few_shot_accuracy, sample_episodes
from mtslvr_hf.evaluation.few_shot.episodes import _splits, distinct_numbers


def labels_of(classes: int, clips: int) -> list[str]:
    return [f"class {index % classes}" for index in range(classes * clips)]


class TestSampling:
    labels = labels_of(classes=9, clips=8)

    def test_shapes_and_classes(self):
        episodes = sample_episodes(self.labels, ways=4, shots=2, queries=3, episodes=1100)
        assert episodes.support.shape == (1100, 4, 2)
        assert episodes.query.shape == (1100, 4, 3)
        clips = torch.cat([episodes.support, episodes.query], -1) % 9  # a clip's class in `labels_of`
        assert (clips == clips[..., :1]).all()  # a row holds one class
        assert all(len(set(episode)) == 4 for episode in clips[..., 0].tolist())

    def test_no_clip_is_in_an_episode_twice(self):
        episodes = sample_episodes(self.labels, ways=5, shots=3, queries=5, episodes=600)
        clips = torch.cat([episodes.support, episodes.query], -1).flatten(1).sort(-1).values
        assert (clips.diff(dim=-1) > 0).all()

    def test_every_clip_is_drawn_as_often(self):
        episodes = sample_episodes(self.labels, episodes=9000, shots=1, queries=1)
        expected = 9000 * 5 / len(self.labels)
        for clips in (episodes.support, episodes.query):
            counts = clips.flatten().bincount(minlength=len(self.labels))
            assert (counts - expected).abs().max() < 5 * expected**0.5

    def test_seed_decides(self):
        first, again, other = (sample_episodes(self.labels, episodes=600, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.support, again.support)
        assert torch.equal(first.query, again.query)
        assert not torch.equal(first.support, other.support)

    def test_global_random_state_is_left_alone(self):
        state = torch.get_rng_state()
        sample_episodes(self.labels, episodes=10)
        assert torch.equal(torch.get_rng_state(), state)

    def test_small_classes_are_left_out_and_named(self):
        labels = [*self.labels, *["rare"] * 5]
        episodes = sample_episodes(labels, shots=1, queries=5, episodes=500)
        assert episodes.left_out == {"rare": "5 clips, 6 needed"}
        assert max(episodes.support.max(), episodes.query.max()) < len(self.labels)
        assert few_shot_accuracy(torch.rand(len(labels), 2), labels, episodes=5).left_out == episodes.left_out

    def test_labels_may_be_a_tensor(self):
        numbers = torch.arange(72) % 9
        assert torch.equal(
            sample_episodes(numbers, episodes=50).query, sample_episodes(self.labels, episodes=50).query
        )


class TestGroups:
    def test_support_and_query_share_no_group(self):
        generator = torch.Generator().manual_seed(0)
        labels = [f"class {index % 8}" for index in range(240)]
        groups = torch.randint(6, (240,), generator=generator).tolist()
        episodes = sample_episodes(labels, shots=2, queries=5, episodes=1200, groups=groups)
        assert episodes.support.shape == (1200, 5, 2)
        group_of = torch.tensor(groups)
        support, query = group_of[episodes.support].flatten(1), group_of[episodes.query].flatten(1)
        assert not (support[:, :, None] == query[:, None, :]).any()
        clips = torch.cat([episodes.support, episodes.query], -1)
        assert (clips % 8 == clips[..., :1] % 8).all()
        assert (clips.flatten(1).sort(-1).values.diff(dim=-1) > 0).all()

    def test_embedding_that_knows_only_the_group_helps_without_the_rule_and_not_with_it(self):
        """Classes with two sessions of their own; the embedding is the session, and nothing else."""
        labels = [f"class {index % 6}" for index in range(240)]
        groups = [f"{label}, session {index // 120}" for index, label in enumerate(labels)]
        names = sorted(set(groups))
        embeddings = torch.eye(len(names))[[names.index(group) for group in groups]]
        shared = few_shot_accuracy(embeddings, labels, episodes=2000, standardize=False)
        disjoint = few_shot_accuracy(embeddings, labels, episodes=2000, groups=groups, standardize=False)
        assert shared.accuracy > 0.55
        assert disjoint.accuracy == pytest.approx(0.2)
        assert disjoint.group_disjoint

    def test_classes_of_one_group_are_left_out(self):
        labels = labels_of(classes=6, clips=12)
        groups = [label if label == "class 3" else index // 36 for index, label in enumerate(labels)]
        episodes = sample_episodes(labels, episodes=20, groups=groups)
        assert list(episodes.left_out) == ["class 3"]
        assert "do not split" in episodes.left_out["class 3"]

    def test_groups_that_leave_no_episode_are_an_error(self):
        # Two groups. Dealt one way only the first class has 1 + 5 clips, dealt the other way only the second.
        labels = ["a"] * 6 + ["b"] * 6
        groups = ["x"] + ["y"] * 5 + ["x"] * 5 + ["y"]
        with pytest.raises(ValueError, match="share too few groups"):
            sample_episodes(labels, ways=2, episodes=5, groups=groups)

    def test_split_is_decided_as_by_trying_all(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            counts = torch.randint(1, 6, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator)
            groups = [group for group, count in enumerate(counts.tolist()) for _ in range(count)]
            shots, queries = torch.randint(1, 8, (2,), generator=generator).tolist()
            sides = itertools.product([0, 1], repeat=len(counts))
            sums = [sum(count for side, count in zip(choice, counts.tolist()) if side) for choice in sides]
            expected = any(shots <= chosen <= len(groups) - queries for chosen in sums)
            assert _splits(groups, shots, queries) == expected


class TestEpisodeList:
    labels = labels_of(classes=9, clips=8)

    def test_is_the_same_everywhere(self):
        """Written down once: another machine, another numpy or torch must draw these very episodes."""
        episodes = sample_episodes(self.labels, episodes=600, seed=7)
        assert episodes.sha256 == "9b2919323bd7234d16569e761bd9eb354c08f930ecfc61f85580fc8278099897"
        groups = [index // 9 % 4 for index in range(72)]
        assert (
            sample_episodes(self.labels, queries=2, episodes=600, seed=7, groups=groups).sha256
            == "86d9371312ed2c52585d2f5f5e40d9bd796199366d35f210ba0bbeb6fa14449b"
        )

    def test_digest_tells_lists_apart(self):
        episodes = sample_episodes(self.labels, episodes=20)
        swapped = Episodes(episodes.support, episodes.query.flip(0), {})
        reshaped = Episodes(episodes.support.reshape(10, 10, 1), episodes.query, {})
        assert len({episodes.sha256, swapped.sha256, reshaped.sha256}) == 3
        assert Episodes(episodes.support.clone(), episodes.query.clone(), {"x": "y"}).sha256 == episodes.sha256

    def test_distinct_numbers_are_every_ordered_choice_as_often(self):
        drawn = distinct_numbers(np.full(24_000, 4), 3, np.random.PCG64(0))
        counts = np.unique(drawn, axis=0, return_counts=True)[1]
        assert len(counts) == 4 * 3 * 2
        assert abs(counts - 1000).max() < 5 * 1000**0.5


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"ways": 1}, "ways is 1; expected at least 2"),
            ({"shots": 0}, "shots is 0; expected at least 1"),
            ({"queries": 0}, "queries is 0"),
            ({"episodes": 0}, "episodes is 0"),
            ({"ways": 4}, "4-way episodes need at least 4 classes, and 3 can be drawn from"),
            ({"ways": 3, "queries": 8}, r"0 can be drawn from \(left out: class 0: 8 clips, 9 needed; class 1"),
            ({"ways": 3, "groups": [0, 1]}, "groups has 2 entries and labels has 24"),
        ],
    )
    def test_sampling(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sample_episodes(labels_of(classes=3, clips=8), **arguments)
