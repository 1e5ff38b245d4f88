"""One-vs-all SGD of all episodes at once against scikit-learn's SGDClassifier, episode by episode."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier

from mtslvr_hf.evaluation.few_shot import sgd

MAX_SEED = np.iinfo(np.int32).max


def sklearn_fit(values, ways, **options):
    """Classifier with the paper's settings, fitted to equally many clips of each class."""
    settings = {"max_iter": 20, "tol": 1e-4, "learning_rate": "adaptive", "eta0": 0.1, "alpha": 0}
    classifier = SGDClassifier(loss="log_loss", n_iter_no_change=2, **settings | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(values, np.arange(ways).repeat(len(values) // ways))


def xorshift(state):
    """scikit-learn's random numbers: the next state, and its number."""
    for shift in (13, -17, 5):
        state ^= (state << shift if shift > 0 else state >> -shift) & 0xFFFFFFFF
    return state, state % 2**31


def sklearn_permutations(random_state, ways, clips):
    """Permutation of each one-vs-all classifier of an SGDClassifier with this random_state, (W, S)."""
    permutations = []
    for seed in np.random.RandomState(random_state).randint(MAX_SEED, size=ways):
        generator = np.random.RandomState(seed)
        generator.randint(1, MAX_SEED)  # seed of the data set, which is not used
        state, order = int(generator.randint(MAX_SEED)), list(range(clips))
        for place in range(clips - 1):
            state, number = xorshift(state)
            other = place + number % (clips - place)
            order[place], order[other] = order[other], order[place]
        permutations.append(order)
    return torch.tensor(permutations)


def examples_of(episodes, ways, shots, size, scale):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(episodes, ways * shots, size, generator=generator, dtype=torch.float64)


def fit(examples, permutations, ways):
    dual, intercept = sgd.sgd_one_vs_all(examples @ examples.mT, permutations, ways)
    return dual @ examples, intercept


CASES = [(5, 1, 100, 0.01), (5, 1, 100, 0.1), (5, 1, 100, 1.0), (5, 1, 3, 1.0), (5, 1, 100, 30.0), (3, 4, 5, 0.5)]


@pytest.mark.parametrize(("ways", "shots", "size", "scale"), CASES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_weights_are_those_of_scikit_learn(ways, shots, size, scale, shuffle):
    examples = examples_of(40, ways, shots, size, scale)
    if shuffle:
        permutations = torch.stack([sklearn_permutations(seed, ways, ways * shots) for seed in range(40)])
    else:
        permutations = torch.arange(ways * shots).expand(40, ways, -1)
    weights, intercepts = fit(examples, permutations, ways)
    for episode, values in enumerate(examples.numpy()):
        expected = sklearn_fit(values, ways, shuffle=shuffle, random_state=episode)
        largest = np.abs(expected.coef_).max()
        assert np.abs(weights[episode].numpy() - expected.coef_).max() < 1e-9 * largest
        assert np.abs(intercepts[episode].numpy() - expected.intercept_).max() < 1e-9 * max(1, largest)


def test_finished_classifiers_change_no_more(monkeypatch):
    """With more epochs than the paper's 20, all classifiers end at their lowest learning rate, as in scikit-learn."""
    monkeypatch.setattr(sgd, "MAX_EPOCHS", 200)
    examples = examples_of(20, 5, 1, 100, 1.0)
    permutations = torch.stack([sklearn_permutations(seed, 5, 5) for seed in range(20)])
    weights, _ = fit(examples, permutations, 5)
    epochs = set()
    for episode, values in enumerate(examples.numpy()):
        expected = sklearn_fit(values, 5, random_state=episode, max_iter=200)
        epochs.add(expected.n_iter_)
        assert np.abs(weights[episode].numpy() - expected.coef_).max() < 1e-9 * np.abs(expected.coef_).max()
    assert max(epochs) < 200 and len(epochs) > 1


def test_mean_accuracy_is_within_scikit_learns_own_spread():
    """Classes that overlap; our permutations come from other random numbers than scikit-learn's."""
    episodes, ways, size = 100, 5, 50
    generator = torch.Generator().manual_seed(1)
    centers = 0.6 * torch.randn(episodes, ways, size, generator=generator, dtype=torch.float64)
    noise = 2 * torch.randn(2, episodes, ways, size, generator=generator, dtype=torch.float64)
    support, query = centers + noise
    ours = []
    for _ in range(20):
        weights, intercepts = fit(support, torch.rand(episodes, ways, ways, generator=generator).argsort(-1), ways)
        scores = query @ weights.mT + intercepts[:, None]
        ours.append((scores.argmax(-1) == torch.arange(ways)).double().mean().item())
    theirs = []
    for seed in range(6):
        fitted = [sklearn_fit(values, ways, random_state=1000 * seed + n) for n, values in enumerate(support.numpy())]
        answers = [classifier.predict(values) for classifier, values in zip(fitted, query.numpy())]
        theirs.append(np.mean(np.array(answers) == np.arange(ways)))
    assert 0.25 < np.mean(theirs) < 0.9
    assert abs(np.mean(ours) - np.mean(theirs)) < np.std(theirs, ddof=1)
