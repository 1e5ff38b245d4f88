"""Embeddings in the plane."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler, normalize

from mtslvr_hf.evaluation.projection import project

NAMES = {"data": "drums", "model": "a model", "embedding": "both"}


def clouds(classes: int = 3, clips: int = 12, size: int = 8) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    labels = [f"class {clip % classes}" for clip in range(classes * clips)]
    centers = 5 * torch.randn(classes, size, generator=generator)
    noise = torch.randn(classes * clips, size, generator=generator)
    return centers[torch.arange(classes * clips) % classes] + noise, labels


def test_directions_are_those_of_the_largest_variance():
    embeddings, labels = clouds()
    found = project(embeddings, labels, **NAMES)
    prepared = normalize(StandardScaler().fit_transform(embeddings.double().numpy()))
    left, singular, _ = np.linalg.svd(prepared - prepared.mean(0), full_matrices=False)
    expected, points = (left * singular)[:, :2], np.array(found.points)
    expected *= np.sign(expected[np.abs(expected).argmax(0), [0, 1]])  # the farthest clip is on the positive side
    assert np.abs(points - expected).max() <= 1e-4
    assert f"{100 * (singular[:2] ** 2).sum() / (singular**2).sum():.0f} % of the variance" in found.method
    assert (found.data, found.model, found.embedding, found.labels) == ("drums", "a model", "both", labels)


def test_scale_offset_and_sign_change_no_distance():
    embeddings, labels = clouds()
    points = torch.tensor(project(embeddings, labels, **NAMES).points)
    scaled = torch.tensor(project(7 * embeddings + 3, labels, **NAMES).points)
    flipped = torch.tensor(project(-embeddings, labels, **NAMES).points)
    torch.testing.assert_close(points, scaled, atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(flipped, flipped), atol=5e-4, rtol=0)


def test_what_is_shown_is_drawn_by_seed_and_labels_alone():
    embeddings, labels = clouds(classes=12, clips=10)
    first, other = (project(x, labels, **NAMES, max_clips=30) for x in (embeddings, torch.randn(120, 5)))
    assert first.labels == other.labels and len(first.points) == len(first.labels) == 30
    assert len(set(project(embeddings, labels, **NAMES, max_classes=4).labels)) == 4
    again = project(embeddings, labels, **NAMES, max_clips=30, seed=1)
    assert again.labels != first.labels


@pytest.mark.parametrize("embeddings", [torch.ones(6, 4), torch.arange(6.0).unsqueeze(1)])
def test_an_embedding_of_less_than_two_dimensions_is_no_error(embeddings):
    found = project(embeddings, list("aabbcc"), **NAMES)
    assert all(y == 0 for _, y in found.points) and "100 %" in found.method


def test_misuse_is_explained():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) and 2 labels"):
        project(torch.ones(3, 2), ["a", "b"], **NAMES)
    with pytest.raises(ValueError, match="there are 1 clips to show"):
        project(torch.ones(1, 2), ["a"], **NAMES)
