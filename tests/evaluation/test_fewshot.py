"""Few-shot tasks and their scores, against closed forms and a slow second version."""

import itertools

import pytest
import torch

from mtslvr_hf.evaluation import (
    Episodes,
    few_shot_accuracy,
    mean_and_interval,
    nearest_centroid,
    sample_episodes,
    score_episodes,
    standardized,
)
from mtslvr_hf.evaluation.fewshot import _splits


def labels_of(classes: int, clips: int) -> list[str]:
    return [f"class {index % classes}" for index in range(classes * clips)]


def gaussian_clusters(labels: list[str], size: int = 8, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = {name: torch.randn(size, generator=generator) for name in sorted(set(labels))}
    noise = torch.randn(len(labels), size, generator=generator)
    return torch.stack([centres[name] for name in labels]) + spread * noise


def slow_accuracies(embeddings: torch.Tensor, episodes: Episodes) -> list[float]:
    """Nearest centroid as one would write it for a single query."""
    accuracies = []
    for support, query in zip(episodes.support.tolist(), episodes.query.tolist()):
        centroids = []
        for shots in support:
            units = [embeddings[clip] / embeddings[clip].norm() for clip in shots]
            centroids.append(sum(units) / len(units))
        right = []
        for way, clips in enumerate(query):
            for clip in clips:
                cosines = [torch.dot(embeddings[clip], centroid) / centroid.norm() for centroid in centroids]
                right.append(max(range(len(cosines)), key=lambda index: cosines[index]) == way)
        accuracies.append(sum(right) / len(right))
    return accuracies


class TestAccuracy:
    @pytest.mark.parametrize("shots", [1, 3])
    @pytest.mark.parametrize("standardize", [True, False])
    def test_one_direction_per_class_is_always_right(self, shots, standardize):
        labels = labels_of(classes=7, clips=10)
        embeddings = torch.eye(7)[torch.arange(70) % 7]
        if not standardize:
            embeddings *= torch.arange(1, 71)[:, None]  # length is no part of it
        result = few_shot_accuracy(embeddings, labels, shots=shots, tasks=300, standardize=standardize)
        assert (result.accuracy, result.interval) == (1.0, 0.0)
        assert str(result) == "100.0 ± 0.0 %"

    def test_unrelated_embeddings_are_at_chance(self):
        embeddings = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        result = few_shot_accuracy(embeddings, labels_of(classes=5, clips=200), tasks=5000)
        assert result.accuracy == pytest.approx(0.2, abs=0.01)

    def test_shuffled_labels_are_at_chance(self):
        labels = labels_of(classes=10, clips=100)
        embeddings = gaussian_clusters(labels, spread=0.1)
        assert few_shot_accuracy(embeddings, labels, tasks=500).accuracy > 0.95
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).tolist()
        shuffled = [labels[index] for index in order]
        assert few_shot_accuracy(embeddings, shuffled, tasks=5000).accuracy == pytest.approx(0.2, abs=0.01)

    def test_equal_embeddings_are_at_chance_exactly(self):
        result = few_shot_accuracy(torch.full((60, 4), 0.3), labels_of(classes=6, clips=10), ways=5, tasks=50)
        assert result.accuracy == pytest.approx(0.2)

    @pytest.mark.parametrize("typical", [30, 20])
    def test_two_classes_of_mixed_points_agree_with_the_closed_form(self, typical):
        """Of a class's 40 clips `typical` lie at the class's own point, the rest at the other's."""
        clips = 40
        own, other = typical / clips, 1 - typical / clips
        both_own = own * (typical - 1) / (clips - 1)  # a class's support and its query
        both_other = other * (clips - typical - 1) / (clips - 1)
        # The other class's support lies elsewhere, or at the same point: then the tie is right for one class of two.
        expected = own * both_own + other * both_other + 0.5 * 2 * own * other
        points = torch.eye(2)
        embeddings = torch.cat([points[[0]].repeat(typical, 1), points[[1]].repeat(clips - typical, 1)])
        embeddings = torch.cat([embeddings, embeddings.flip(1)])
        labels = ["left"] * clips + ["right"] * clips
        result = few_shot_accuracy(embeddings, labels, ways=2, queries=1, tasks=20_000)
        assert result.accuracy == pytest.approx(expected, abs=2 * result.interval)

    @pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 5), (3, 4, 2), (2, 2, 1)])
    def test_agrees_with_the_slow_version_on_every_task(self, ways, shots, queries):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        episodes = sample_episodes(labels, ways, shots, queries, tasks=60)
        accuracies = score_episodes(embeddings, episodes, standardize=False)
        assert accuracies.tolist() == pytest.approx(slow_accuracies(embeddings, episodes))
        assert 1 / ways < accuracies.mean() < 1

    def test_result_is_mean_and_interval_over_tasks(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        result = few_shot_accuracy(embeddings, labels, ways=4, shots=2, queries=3, tasks=700, seed=5)
        accuracies = score_episodes(embeddings, sample_episodes(labels, 4, 2, 3, 700, seed=5))
        assert accuracies.shape == (700,)
        assert result.accuracy == pytest.approx(accuracies.mean().item())
        assert result.interval == pytest.approx(1.96 * accuracies.std().item() / 700**0.5)
        assert (result.ways, result.shots, result.queries, result.tasks, result.seed) == (4, 2, 3, 700, 5)
        assert not result.group_disjoint

    def test_interval_holds_95_percent(self):
        labels = labels_of(classes=8, clips=30)
        embeddings = gaussian_clusters(labels)
        truth = few_shot_accuracy(embeddings, labels, tasks=20_000, seed=1000).accuracy
        results = [few_shot_accuracy(embeddings, labels, tasks=100, seed=seed) for seed in range(200)]
        held = sum(abs(result.accuracy - truth) <= result.interval for result in results)
        assert 180 <= held <= 198  # binomial(200, 0.95): 190 +- 3

    def test_order_of_dimensions_and_scale_do_not_matter(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        episodes = sample_episodes(labels, tasks=200)
        expected = score_episodes(embeddings, episodes)
        assert torch.equal(score_episodes(embeddings.flip(1) * 4, episodes), expected)

    def test_order_of_clips_does_not_matter(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        place = order.argsort()
        episodes = sample_episodes(labels, tasks=200)
        moved = Episodes(place[episodes.support], place[episodes.query], {})
        assert torch.equal(score_episodes(embeddings[order], moved), score_episodes(embeddings, episodes))
        first = few_shot_accuracy(embeddings, labels, tasks=5000)
        second = few_shot_accuracy(embeddings[order], [labels[index] for index in order], tasks=5000)
        assert first.accuracy == pytest.approx(second.accuracy, abs=2 * first.interval)


def test_nearest_centroid_gives_cosines():
    support = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 0.0]]]])  # (E, W, K, D)
    scores = nearest_centroid(support, torch.tensor([[[0.0, 5.0], [2.0, 0.0]]]))
    assert torch.allclose(scores, torch.tensor([[[0.5**0.5, 0.0], [0.5**0.5, 1.0]]]))


def test_standardized_gives_mean_0_and_deviation_1_and_constants_become_0():
    embeddings = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 100
    embeddings[:, 2] = 0.1
    embeddings[:, 3] = 0.0
    result = standardized(embeddings)
    assert torch.allclose(result.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(result.std(0, correction=0)[:2], torch.ones(2), atol=1e-4)
    assert torch.equal(result[:, 2:], torch.zeros(50, 2))


def test_mean_and_interval():
    mean, interval = mean_and_interval(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert (mean, interval) == (0.5, pytest.approx(1.96 * (1 / 3) ** 0.5 / 2))


class TestSampling:
    labels = labels_of(classes=9, clips=8)

    def test_shapes_and_classes(self):
        episodes = sample_episodes(self.labels, ways=4, shots=2, queries=3, tasks=1100)
        assert episodes.support.shape == (1100, 4, 2)
        assert episodes.query.shape == (1100, 4, 3)
        clips = torch.cat([episodes.support, episodes.query], -1) % 9  # a clip's class in `labels_of`
        assert (clips == clips[..., :1]).all()  # a row holds one class
        assert all(len(set(task)) == 4 for task in clips[..., 0].tolist())

    def test_no_clip_is_in_a_task_twice(self):
        episodes = sample_episodes(self.labels, ways=5, shots=3, queries=5, tasks=600)
        clips = torch.cat([episodes.support, episodes.query], -1).flatten(1).sort(-1).values
        assert (clips.diff(dim=-1) > 0).all()

    def test_every_clip_is_drawn_as_often(self):
        tasks = 9000
        episodes = sample_episodes(self.labels, tasks=tasks, shots=1, queries=1)
        expected = tasks * 5 / len(self.labels)
        for clips in (episodes.support, episodes.query):
            counts = clips.flatten().bincount(minlength=len(self.labels))
            assert (counts - expected).abs().max() < 5 * expected**0.5

    def test_seed_decides(self):
        first, again, other = (sample_episodes(self.labels, tasks=600, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.support, again.support)
        assert torch.equal(first.query, again.query)
        assert not torch.equal(first.support, other.support)

    def test_global_random_state_is_left_alone(self):
        state = torch.get_rng_state()
        sample_episodes(self.labels, tasks=10)
        assert torch.equal(torch.get_rng_state(), state)

    def test_small_classes_are_left_out_and_named(self):
        labels = [*self.labels, *["rare"] * 5]
        episodes = sample_episodes(labels, shots=1, queries=5, tasks=500)
        assert episodes.left_out == {"rare": "5 clips, 6 needed"}
        assert max(episodes.support.max(), episodes.query.max()) < len(self.labels)
        assert few_shot_accuracy(torch.rand(len(labels), 2), labels, tasks=5).left_out == episodes.left_out

    def test_labels_may_be_a_tensor(self):
        numbers = torch.arange(72) % 9
        assert torch.equal(sample_episodes(numbers, tasks=50).query, sample_episodes(self.labels, tasks=50).query)


class TestGroups:
    def test_support_and_query_share_no_group(self):
        generator = torch.Generator().manual_seed(0)
        labels = [f"class {index % 8}" for index in range(240)]
        groups = torch.randint(6, (240,), generator=generator).tolist()
        episodes = sample_episodes(labels, shots=2, queries=5, tasks=1200, groups=groups)
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
        shared = few_shot_accuracy(embeddings, labels, tasks=2000, standardize=False)
        disjoint = few_shot_accuracy(embeddings, labels, tasks=2000, groups=groups, standardize=False)
        assert shared.accuracy > 0.55
        assert disjoint.accuracy == pytest.approx(0.2)
        assert disjoint.group_disjoint

    def test_classes_of_one_group_are_left_out(self):
        labels = labels_of(classes=6, clips=12)
        groups = [label if label == "class 3" else index // 36 for index, label in enumerate(labels)]
        episodes = sample_episodes(labels, tasks=20, groups=groups)
        assert list(episodes.left_out) == ["class 3"]
        assert "do not split" in episodes.left_out["class 3"]

    def test_groups_that_leave_no_task_are_an_error(self):
        # Two groups. Dealt one way only the first class has 1 + 5 clips, dealt the other way only the second.
        labels = ["a"] * 6 + ["b"] * 6
        groups = ["x"] + ["y"] * 5 + ["x"] * 5 + ["y"]
        with pytest.raises(ValueError, match="share too few groups"):
            sample_episodes(labels, ways=2, tasks=5, groups=groups)

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


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"ways": 1}, "ways is 1; expected at least 2"),
            ({"shots": 0}, "shots is 0; expected at least 1"),
            ({"queries": 0}, "queries is 0"),
            ({"tasks": 0}, "tasks is 0"),
            ({"ways": 4}, "4-way tasks need at least 4 classes, and 3 can be drawn from"),
            ({"ways": 3, "queries": 8}, r"0 can be drawn from \(left out: class 0: 8 clips, 9 needed; class 1"),
            ({"ways": 3, "groups": [0, 1]}, "groups has 2 entries and labels has 24"),
        ],
    )
    def test_sampling(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sample_episodes(labels_of(classes=3, clips=8), **arguments)

    def test_numbers_of_embeddings_and_labels_differ(self):
        with pytest.raises(ValueError, match="got 5 embeddings and 24 labels"):
            few_shot_accuracy(torch.rand(5, 2), labels_of(classes=3, clips=8), ways=3)

    @pytest.mark.parametrize(
        ("embeddings", "message"),
        [
            (torch.rand(24), r"shape \(24,\); expected floats of shape \(N, D\)"),
            (torch.zeros(24, 2, dtype=torch.long), "torch.int64"),
            (torch.rand(24, 2).index_fill(0, torch.tensor(7), float("nan")), "the embedding of clip 7 is not finite"),
        ],
    )
    def test_bad_embeddings(self, embeddings, message):
        with pytest.raises(ValueError, match=message):
            few_shot_accuracy(embeddings, labels_of(classes=3, clips=8), ways=3, tasks=5)
