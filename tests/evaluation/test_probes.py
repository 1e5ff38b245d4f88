"""Linear probe and nearest neighbors: their optimum, their numbers, and what they may not see."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from mtslvr_hf.evaluation import probe, probes, split
from mtslvr_hf.evaluation.probes import KINDS


def one_hot(classes, count=None):
    return np.eye(count or max(classes) + 1, dtype=bool)[classes]


def clouds(clips, classes, distance, size=8, seed=0, centers_seed=0):
    """Normal clouds of deviation 1 around centers that lie `distance` apart: (N, D) and classes (N,)."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(centers_seed).standard_normal((size, size)))[0]
    of_clip = np.arange(clips) % classes
    centers = distance / math.sqrt(2) * rotation[:classes]
    return torch.from_numpy(centers[of_clip] + generator.standard_normal((clips, size))).float(), of_clip


def tags(clips, classes=4, size=10, seed=0):
    """Embeddings and labels of clips of several classes or none, each class with a direction of its own."""
    generator = np.random.default_rng(seed)
    labels = generator.random((clips, classes)) < 0.3
    directions = np.random.default_rng(1).standard_normal((classes, size))
    return torch.from_numpy(labels @ directions + generator.standard_normal((clips, size))).float(), labels


def optimum(x, others, c, classes, cross_entropy):
    """Scores of others at the minimum of C x the summed cross-entropy plus half the squared weights."""
    weights = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights, bias], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        search.zero_grad()
        value = c * cross_entropy(x @ weights + bias) + weights.square().sum() / 2
        value.backward()
        return value

    search.step(loss)
    return (others @ weights + bias).detach()


@pytest.mark.parametrize("clips, size, classes", [(200, 12, 4), (60, 100, 3), (80, 20, 2)])
def test_the_linear_probe_is_the_multinomial_optimum(clips, size, classes):
    embeddings, of_clip = clouds(clips, classes, 2.0, size)
    others = clouds(30, classes, 2.0, size, seed=1)[0].double()
    x, target, values = embeddings.double(), torch.from_numpy(of_clip), (1e-3, 0.1, 10.0)
    found = probes._linear_scores(x.numpy(), one_hot(of_clip), others.numpy(), values, False)
    for c, scores in zip(values, found):
        expected = optimum(x, others, c, classes, lambda z: F.cross_entropy(z, target, reduction="sum")).softmax(1)
        assert np.abs(scores - expected.numpy()).max() < 1e-3, c


def test_the_linear_probe_of_several_classes_is_the_optimum_for_each():
    embeddings, labels = tags(200)
    x, target, values = embeddings.double(), torch.from_numpy(labels).double(), (0.01, 1.0)
    found = probes._linear_scores(x.numpy(), labels, x.numpy(), values, True)
    for c, scores in zip(values, found):
        expected = optimum(
            x, x, c, labels.shape[1], lambda z: F.binary_cross_entropy_with_logits(z, target, reduction="sum")
        )
        assert np.abs(scores - expected.numpy()).max() < 1e-3, c


@pytest.mark.parametrize("kind", KINDS)
def test_two_clouds_are_told_apart_as_often_as_can_be(kind):
    embeddings, of_clip = clouds(3000, 2, 2.0, size=4)
    result = probe(embeddings, one_hot(of_clip), kind=kind)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # of the plane between them: each is 1 deviation away
    assert result.interval[0] <= best + (0.01 if kind == "knn" else 0) and result.value == pytest.approx(
        best, abs=0.03
    )
    assert (result.name, result.metric) == (kind, "accuracy")
    assert (result.train_clips, result.test_clips) == (2100, 900)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_are_guessed(kind):
    embeddings, of_clip = clouds(1200, 4, 6.0)
    shuffled = np.random.default_rng(0).permutation(of_clip)
    low, high = probe(embeddings, one_hot(shuffled), kind=kind).interval
    assert low < 0.25 < high
    assert probe(embeddings, one_hot(of_clip), kind=kind).value > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_several_classes_a_clip_are_measured_by_mean_average_precision(kind):
    embeddings, labels = tags(600)
    result = probe(embeddings, labels, multi_label=True, kind=kind)
    guesses = probe(torch.randn(600, 10, generator=torch.Generator().manual_seed(0)), labels, True, kind=kind)
    assert result.metric == "mAP" and result.value > 0.8 and result.interval[0] < result.value < result.interval[1]
    assert guesses.interval[0] < labels.mean() < guesses.interval[1]
    assert "mAP over 4 classes" in result.protocol and "bootstrap over test clips, 500 resamples" in result.protocol


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_scale_and_order_do_not_matter(kind, multi_label):
    embeddings, labels = tags(300, 5) if multi_label else clouds(300, 5, 2.0, 10)
    labels = labels if multi_label else one_hot(labels)
    measured = probe(embeddings, labels, multi_label, kind=kind)
    order, test = np.arange(300), split(labels)[1]
    for row in np.unique(labels[test], axis=0):  # among test clips of equal labels, which leaves the parts as they are
        alike = test[(labels[test] == row).all(1)]
        order[alike] = np.roll(alike, 1)
    changed = embeddings[order] * torch.logspace(-3, 3, 10) + torch.arange(10)
    columns = np.roll(np.arange(5), 2)
    for again in (
        probe(changed, labels, multi_label, kind=kind),
        probe(embeddings, labels[:, columns], multi_label, kind=kind),
    ):
        assert again.value == pytest.approx(measured.value, abs=1e-6) and again.protocol == measured.protocol


def test_nearest_neighbors_are_scikit_learns():
    embeddings, of_clip = clouds(400, 4, 2.0)
    labels = one_hot(of_clip)
    train, test = split(labels, seed=3)
    result = probe(embeddings, labels, kind="knn", seed=3)
    k = int(result.protocol.split("k = ")[1].split(",")[0])
    values = embeddings.double().numpy()
    values = (values - values[train].mean(0)) / values[train].std(0)
    expected = KNeighborsClassifier(k, metric="cosine", weights=lambda distances: 1 - distances / 2)
    expected.fit(values[train], of_clip[train])
    assert result.value == pytest.approx(expected.score(values[test], of_clip[test]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_clip_changes_nothing_for_the_others(kind):
    embeddings, of_clip = clouds(200, 3, 2.0)
    labels = one_hot(of_clip)
    extreme = embeddings.clone()
    extreme[split(labels)[1][0]] = 1e6
    hits = [60 * probe(values, labels, kind=kind).value for values in (embeddings, extreme)]
    assert abs(round(hits[0]) - round(hits[1])) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_not_recognized_instead_of_classes(kind):
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    of_clip = generator.integers(0, 2, 40)[group]
    voices, noise = generator.standard_normal((40, 60)), generator.standard_normal((400, 60))
    embeddings = torch.from_numpy(5 * voices[group] + noise)
    with_groups = probe(embeddings, one_hot(of_clip), groups=group.tolist(), kind=kind)
    assert probe(embeddings, one_hot(of_clip), kind=kind).value > 0.99  # speakers are known, not what they say
    assert with_groups.interval[0] < 0.5 < with_groups.interval[1] and with_groups.value < 0.8
    assert (
        "280 clips of 28 groups" in with_groups.protocol
        and "120 other clips of 12 other groups" in with_groups.protocol
    )
    assert with_groups.protocol.endswith("bootstrap over test groups, 500 resamples; seed 0")


@pytest.mark.parametrize("kind", KINDS)
def test_two_groups_are_one_to_fit_to_and_one_to_measure_on(kind):
    embeddings, of_clip = clouds(60, 3, 8.0)
    groups = [f"speaker {index // 30}" for index in range(60)]
    result = probe(embeddings, one_hot(of_clip), groups=groups, kind=kind)
    assert (result.train_clips, result.test_clips) == (30, 30)
    assert result.value > 0.9
    assert "6 of these clips held out" in result.protocol


def test_the_split_keeps_shares_and_groups():
    of_clip = np.repeat([0, 1, 2], [100, 50, 20])
    train, test = split(one_hot(of_clip), fraction=0.2, seed=1)
    assert sorted([*train, *test]) == list(range(170))
    assert np.bincount(of_clip[test]).tolist() == [20, 10, 4]
    assert (split(one_hot(of_clip), fraction=0.2, seed=1)[1] == test).all()
    groups = (np.arange(170) // 5).tolist()
    train, test = split(one_hot(of_clip), groups)
    assert not {groups[clip] for clip in train} & {groups[clip] for clip in test}


def test_the_interval_is_wilsons_and_resampled_groups_of_one_clip_agree():
    embeddings, of_clip = clouds(600, 3, 1.5)
    labels = one_hot(of_clip)
    result = probe(embeddings, labels)
    z, n, share = 1.959964, 180, result.value
    roots = np.roots([n + z**2, -(2 * n * share + z**2), n * share**2])  # (share - p)^2 = z^2 p (1 - p) / n
    assert result.interval == pytest.approx(sorted(roots), rel=1e-6) and result.protocol.endswith(
        "Wilson's over test clips; seed 0"
    )
    resampled = probe(embeddings, labels, groups=[f"{clip:03}" for clip in range(600)])
    assert resampled.value == share and resampled.interval == pytest.approx(result.interval, abs=0.02)


def test_a_class_of_all_clips_or_of_none_is_allowed():
    embeddings, labels = tags(300)
    padded = np.insert(np.insert(labels, 0, False, 1), 5, True, 1)
    result = probe(embeddings, padded, True)
    assert result.value > 0.8 and "mAP over 5 classes" in result.protocol
    assert probe(embeddings, np.eye(3, dtype=bool)[np.ones(300, dtype=int)]).value == 1.0


def test_no_wrong_answer_is_no_certainty():
    embeddings, of_clip = clouds(300, 3, 12.0)
    result = probe(embeddings, one_hot(of_clip))
    assert result.value == 1.0 and result.interval == pytest.approx((90 / (90 + 1.959964**2), 1.0))


def test_the_protocol_says_what_was_done():
    embeddings, of_clip = clouds(200, 2, 3.0)
    result = probe(embeddings, one_hot(of_clip))
    assert (
        "multinomial logistic regression (L2) on 140 clips, dimensions standardized by these; C = " in result.protocol
    )
    assert "of 1e-05, 0.0001, 0.001, 0.01, 0.1, 1, 10 the best for 28 of these clips held out" in result.protocol
    assert "accuracy over 2 classes on 60 other clips; 95 % interval: Wilson's" in result.protocol
    assert (
        str(result) == f"{100 * result.value:.1f} % ({100 * result.interval[0]:.1f} to {100 * result.interval[1]:.1f})"
    )


def test_test_clips_of_unknown_classes_are_left_out_and_counted():
    embeddings, of_clip = clouds(180, 6, 8.0)
    later = np.arange(180) >= 126  # 30 % of each class
    kept = later | (of_clip != 5)  # one class has clips in the second group alone
    result = probe(embeddings[kept], one_hot(of_clip[kept]), groups=later[kept].tolist())
    assert (result.train_clips, result.test_clips) == (105, 45) and result.value > 0.95
    assert "9 test clips of other classes left out" in result.protocol


def test_the_strength_is_chosen_for_clips_that_were_held_out():
    generator = np.random.default_rng(0)
    few, of_clip = clouds(60, 2, 1.5, size=2)
    noise = torch.from_numpy(generator.standard_normal((60, 200))).float()
    result = probe(torch.cat([few, noise], 1), one_hot(of_clip))
    c = float(result.protocol.split("C = ")[1].split(",")[0])
    assert c < 10.0  # what fits the noise is not what was chosen


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "tree"}, "'tree'; expected one of linear, knn"),
        ({"embeddings": torch.zeros(20, 3, dtype=torch.int64)}, "torch.int64 of shape"),
        ({"embeddings": torch.full((20, 3), torch.nan)}, "embedding of clip 0 is not finite"),
        ({"labels": one_hot([0, 1] * 5)}, r"shape \(10, 2\); expected \(20, classes\)"),
        ({"labels": np.ones((20, 2), dtype=bool)}, "clip 0 is of 2 classes; expected one"),
        ({"groups": ["a"] * 19}, "19 groups and 20 clips"),
        ({"groups": ["a"] * 20}, "1 groups cannot be divided into 2"),
        ({"labels": np.zeros((20, 2), dtype=bool), "multi_label": True}, "no test clip is of a class"),
    ],
)
def test_what_cannot_be_probed_is_said(changes, message):
    given = {"embeddings": torch.randn(20, 3), "labels": one_hot([0, 1] * 10)}
    with pytest.raises(ValueError, match=message):
        probe(**{**given, **changes})
