"""The classifiers of all episodes at once against scikit-learn's and against formulas, episode by episode."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mtslvr_hf.evaluation import logistic_regression, nearest_centroid

EPISODES = 6


def clips_of(ways: int, shots: int, size: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Support (E, W * K, D) and queries (E, 9, D) whose classes overlap."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(EPISODES, ways, 1, size, generator=generator, dtype=torch.float64)
    noise = torch.randn(EPISODES, ways, shots, size, generator=generator, dtype=torch.float64)
    queries = torch.randn(EPISODES, 9, size, generator=generator, dtype=torch.float64)
    return scale * (centers + noise).flatten(1, 2), scale * queries


def grams(support: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return support @ support.transpose(1, 2), query @ support.transpose(1, 2)


class TestLogisticRegression:
    @pytest.mark.parametrize(
        ("ways", "shots", "size", "scale"),
        [(5, 1, 200, 0.1), (5, 1, 200, 1.0), (5, 5, 20, 1.0), (2, 3, 4, 1.0), (3, 8, 2, 3.0), (7, 2, 3, 0.01)],
    )
    def test_probabilities_are_those_of_scikit_learn(self, ways, shots, size, scale):
        support, query = clips_of(ways, shots, size, scale)
        logs, converged = logistic_regression(*grams(support, query), ways)
        assert converged.all()
        for episode in range(EPISODES):
            model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=10_000)
            if ways == 2:  # given two classes, scikit-learn fits one weight vector, which is penalised twice as much
                model.set_params(C=2.0)
            model.fit(support[episode].numpy(), np.arange(ways).repeat(shots))
            expected = model.predict_proba(query[episode].numpy())
            assert np.abs(logs[episode].exp().numpy() - expected).max() < 1e-6

    def test_gradient_of_the_stated_objective_is_zero(self):
        """Weights and intercepts found by autograd's gradient from the primal objective, not by any solver."""
        support, _ = clips_of(4, 3, 6, 1.0)
        identity = torch.eye(6, dtype=torch.float64).expand(EPISODES, 6, 6)
        probes = torch.cat([torch.zeros(EPISODES, 1, 6, dtype=torch.float64), identity], 1)  # the origin and each axis
        logs, _ = logistic_regression(*grams(support, probes), 4)
        relative = logs - logs.mean(-1, keepdim=True)  # logits, but for what all classes share
        intercepts = relative[:, 0].requires_grad_()  # (E, W)
        weights = (relative[:, 1:] - relative[:, :1]).detach().requires_grad_()  # (E, D, W)
        logits = support @ weights + intercepts[:, None]
        target = torch.arange(4).repeat_interleave(3).expand(EPISODES, -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        (loss + weights.square().sum() / 2).backward()
        assert weights.grad.abs().max() < 1e-7

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
    def test_converges_at_any_scale(self, scale):
        support, query = clips_of(5, 3, 10, scale)
        logs, converged = logistic_regression(*grams(support, query), 5)
        assert converged.all()
        assert torch.allclose(logs.exp().sum(-1), torch.ones(EPISODES, 9, dtype=torch.float64))

    def test_equal_clips_give_equal_probabilities(self):
        logs, converged = logistic_regression(torch.zeros(1, 6, 6).double(), torch.zeros(1, 2, 6).double(), 3)
        assert converged.all()
        assert torch.allclose(logs.exp(), torch.full((1, 2, 3), 1 / 3, dtype=torch.float64))


class TestNearestCentroid:
    def test_gives_cosines(self):
        half = 0.5**0.5
        support = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])  # two classes of two
        scores = nearest_centroid(*grams(support, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])), ways=2, cosine=True)
        assert torch.allclose(scores, torch.tensor([[[half, 0.0], [half, 1.0]]]))

    def test_orders_classes_as_the_euclidean_distance(self):
        support, query = clips_of(5, 4, 6, 1.0)
        scores = nearest_centroid(*grams(support, query), ways=5, cosine=False)
        distances = torch.cdist(query, support.unflatten(1, (5, 4)).mean(2))
        assert torch.equal(scores.argsort(-1, descending=True), distances.argsort(-1))
