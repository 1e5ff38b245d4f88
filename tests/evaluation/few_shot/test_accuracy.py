"""Accuracies over few-shot episodes, against closed forms, a slow second version and scikit-learn."""

import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mtslvr_hf.evaluation import (
    Episodes,
    few_shot_accuracy,
    mean_and_interval,
    sample_episodes,
    score_episodes,
    standardized,
)
from mtslvr_hf.evaluation.few_shot import accuracy as fewshot
from mtslvr_hf.evaluation.few_shot import solvers


def labels_of(classes: int, clips: int) -> list[str]:
    return [f"class {index % classes}" for index in range(classes * clips)]


def gaussian_clusters(labels: list[str], size: int = 8, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = {name: torch.randn(size, generator=generator) for name in sorted(set(labels))}
    noise = torch.randn(len(labels), size, generator=generator)
    return torch.stack([centers[name] for name in labels]) + spread * noise


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
        result = few_shot_accuracy(embeddings, labels, shots=shots, episodes=300, standardize=standardize)
        assert (result.accuracy, result.interval) == (1.0, 0.0)
        assert str(result) == "100.0 ± 0.0 %"

    def test_unrelated_embeddings_are_at_chance(self):
        embeddings = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        result = few_shot_accuracy(embeddings, labels_of(classes=5, clips=200), episodes=5000)
        assert result.accuracy == pytest.approx(0.2, abs=0.01)

    def test_equal_embeddings_are_at_chance_exactly(self):
        result = few_shot_accuracy(torch.full((60, 4), 0.3), labels_of(classes=6, clips=10), ways=5, episodes=50)
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
        result = few_shot_accuracy(embeddings, labels, ways=2, queries=1, episodes=20_000)
        assert result.accuracy == pytest.approx(expected, abs=2 * result.interval)

    @pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 5), (3, 4, 2), (2, 2, 1)])
    def test_agrees_with_the_slow_version_on_every_episode(self, ways, shots, queries):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        episodes = sample_episodes(labels, ways, shots, queries, episodes=60)
        accuracies = score_episodes(embeddings, episodes, standardize=False)
        assert accuracies.tolist() == pytest.approx(slow_accuracies(embeddings, episodes))
        assert 1 / ways < accuracies.mean() < 1

    def test_result_is_mean_and_interval_over_episodes(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        result = few_shot_accuracy(embeddings, labels, ways=4, shots=2, queries=3, episodes=700, seed=5)
        accuracies = score_episodes(embeddings, sample_episodes(labels, 4, 2, 3, 700, seed=5))
        assert accuracies.shape == (700,)
        assert result.accuracy == pytest.approx(accuracies.mean().item())
        assert result.interval == pytest.approx(1.96 * accuracies.std().item() / 700**0.5)
        assert (result.ways, result.shots, result.queries, result.episodes, result.seed) == (4, 2, 3, 700, 5)
        assert not result.group_disjoint

    def test_interval_holds_95_percent(self):
        labels = labels_of(classes=8, clips=30)
        embeddings = gaussian_clusters(labels)
        truth = few_shot_accuracy(embeddings, labels, episodes=20_000, seed=1000).accuracy
        results = [few_shot_accuracy(embeddings, labels, episodes=100, seed=seed) for seed in range(200)]
        held = sum(abs(result.accuracy - truth) <= result.interval for result in results)
        assert 180 <= held <= 198  # binomial(200, 0.95): 190 +- 3

    def test_order_of_dimensions_and_scale_do_not_matter(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        episodes = sample_episodes(labels, episodes=200)
        expected = score_episodes(embeddings, episodes)
        assert torch.equal(score_episodes(embeddings.flip(1) * 4, episodes), expected)

    def test_order_of_clips_does_not_matter(self):
        labels = labels_of(classes=6, clips=12)
        embeddings = gaussian_clusters(labels)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        place = order.argsort()
        episodes = sample_episodes(labels, episodes=200)
        moved = Episodes(place[episodes.support], place[episodes.query], {})
        assert torch.equal(score_episodes(embeddings[order], moved), score_episodes(embeddings, episodes))
        first = few_shot_accuracy(embeddings, labels, episodes=5000)
        second = few_shot_accuracy(embeddings[order], [labels[index] for index in order], episodes=5000)
        assert first.accuracy == pytest.approx(second.accuracy, abs=2 * first.interval)


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


class TestClassifiers:
    labels = labels_of(classes=8, clips=12)

    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize(("ways", "shots"), [(5, 1), (3, 4)])
    def test_logistic_decides_as_scikit_learn_episode_by_episode(self, ways, shots, normalize):
        embeddings = gaussian_clusters(self.labels, size=50, spread=3.0)
        episodes = sample_episodes(self.labels, ways, shots, queries=5, episodes=40)
        accuracies = score_episodes(embeddings, episodes, False, "logistic", normalize)
        values = embeddings.double()
        values = (values / values.norm(dim=1, keepdim=True) if normalize else values).numpy()
        expected = []
        for support, query in zip(episodes.support.flatten(1), episodes.query.flatten(1)):
            model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
            model.fit(values[support], np.arange(ways).repeat(shots))
            expected.append((model.predict(values[query]) == np.arange(ways).repeat(5)).mean())
        assert accuracies.tolist() == pytest.approx(expected)
        assert 1 / ways < accuracies.mean() < 0.95

    def test_euclidean_centroid_reaches_the_closed_form(self):
        """Two Gaussian classes at distance d, as many shots as make centroids exact: the error is Phi(-d / 2)."""
        clips, distance = 4000, 2.0
        labels = ["left"] * clips + ["right"] * clips
        embeddings = torch.randn(2 * clips, 3, generator=torch.Generator().manual_seed(0))
        embeddings[clips:, 0] += distance
        result = few_shot_accuracy(
            embeddings, labels, ways=2, shots=400, queries=100, episodes=300, standardize=False, normalize=False
        )
        expected = torch.special.ndtr(torch.tensor(distance / 2)).item()  # 0.841
        assert result.accuracy == pytest.approx(expected, abs=0.01)

    @pytest.mark.parametrize("classifier", fewshot.CLASSIFIERS)
    def test_shuffled_labels_are_at_chance(self, classifier):
        labels = labels_of(classes=8, clips=200)
        embeddings = gaussian_clusters(labels, spread=0.1)
        assert few_shot_accuracy(embeddings, labels, episodes=200, classifier=classifier).accuracy > 0.95
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)).tolist()
        labels = [labels[index] for index in order]
        result = few_shot_accuracy(embeddings, labels, episodes=3000, classifier=classifier)
        assert result.accuracy == pytest.approx(0.2, abs=0.01)

    @pytest.mark.parametrize("classifier", fewshot.CLASSIFIERS)
    def test_order_of_classes_clips_and_dimensions_does_not_matter(self, classifier):
        embeddings = gaussian_clusters(self.labels, spread=2.0)
        episodes = sample_episodes(self.labels, shots=2, episodes=100)
        expected = score_episodes(embeddings, episodes, classifier=classifier)
        turned = Episodes(episodes.support.flip(1), episodes.query.flip(1), {})
        shuffled = Episodes(episodes.support.flip(2), episodes.query.flip(2), {})
        assert torch.equal(score_episodes(embeddings, turned, classifier=classifier), expected)
        assert torch.equal(score_episodes(embeddings, shuffled, classifier=classifier), expected)
        assert torch.equal(score_episodes(embeddings.flip(1), episodes, classifier=classifier), expected)

    @pytest.mark.parametrize("classifier", fewshot.CLASSIFIERS)
    def test_blocks_and_products_per_episode_give_the_same(self, classifier, monkeypatch):
        embeddings = gaussian_clusters(self.labels, spread=2.0)
        episodes = sample_episodes(self.labels, shots=2, episodes=100)
        expected = score_episodes(embeddings, episodes, classifier=classifier)
        monkeypatch.setattr(fewshot, "_MOST_CLIPS", 0)
        monkeypatch.setattr(fewshot, "_BLOCK_NUMBERS", 5_000)
        assert len(list(fewshot._inner_products(embeddings, episodes))) > 5
        assert torch.equal(score_episodes(embeddings, episodes, classifier=classifier), expected)

    def test_result_names_the_classifier_and_the_episode_list(self):
        embeddings = gaussian_clusters(self.labels)
        result = few_shot_accuracy(embeddings, self.labels, episodes=30, classifier="logistic")
        assert result.classifier == "logistic"
        assert result.episodes_sha256 == sample_episodes(self.labels, episodes=30).sha256

    def test_what_did_not_converge_is_told(self, monkeypatch, caplog):
        monkeypatch.setattr(solvers, "_MAX_STEPS", 1)
        with caplog.at_level(logging.WARNING):
            few_shot_accuracy(gaussian_clusters(self.labels), self.labels, episodes=30, classifier="logistic")
        assert "30 of 30 logistic regressions did not converge" in caplog.text


class TestErrors:
    def test_unknown_classifier(self):
        with pytest.raises(ValueError, match="classifier is 'forest'; expected one of centroid, logistic"):
            few_shot_accuracy(torch.rand(24, 2), labels_of(classes=3, clips=8), ways=3, classifier="forest")

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
            few_shot_accuracy(embeddings, labels_of(classes=3, clips=8), ways=3, episodes=5)
