"""Episodes of the paper's protocol: pieces, votes and weight shares, against slow second versions."""

from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.stats import mode

from mtslvr_hf.evaluation.few_shot.episodes import sample_episodes
from mtslvr_hf.evaluation.few_shot.paper import PaperEpisodes, paper_episodes, score_paper_episodes
from mtslvr_hf.evaluation.few_shot.sgd import sgd_one_vs_all
from mtslvr_hf.evaluation.few_shot.weight_shares import paper_weight_shares

CLASSES, CLIPS = 7, 6
LABELS = [clip % CLASSES for clip in range(CLASSES * CLIPS)]
COUNTS = np.array([1 + 3 * clip % 5 for clip in range(len(LABELS))])  # pieces of each clip
BOUNDS = [0, *np.cumsum(COUNTS).tolist()]


def drawn(episodes=60, seed=3, bounds=BOUNDS) -> PaperEpisodes:
    return paper_episodes(sample_episodes(LABELS, queries=1, episodes=episodes, seed=seed), bounds, seed)


def pieces_of(size=20, spread=1.5, seed=0) -> torch.Tensor:
    """Embeddings (P, D): a place for each class, with noise for clips and pieces."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, size, generator=generator)[torch.tensor(LABELS)]
    clips = centers + 0.5 * spread * torch.randn(len(LABELS), size, generator=generator)
    pieces = clips.repeat_interleave(torch.tensor(COUNTS), 0)
    return pieces + 0.5 * spread * torch.randn(pieces.shape, generator=generator)


def weights_of(embeddings, episodes, number):
    """Weights and intercepts of one episode."""
    examples = embeddings.double()[episodes.support[number].flatten()][None]
    dual, intercepts = sgd_one_vs_all(examples @ examples.mT, episodes.permutations[number : number + 1], 5)
    return (dual @ examples)[0], intercepts[0]


class TestEpisodes:
    def test_support_is_a_piece_of_its_clip_and_every_piece_is_drawn_as_often(self):
        clips = sample_episodes(LABELS, queries=1, episodes=4000, seed=3)
        episodes = paper_episodes(clips, BOUNDS, 3)
        assert torch.equal(episodes.query, clips.query)
        number = episodes.support - torch.tensor(BOUNDS)[clips.support]
        assert (number >= 0).all() and (number < torch.tensor(COUNTS)[clips.support]).all()
        expected = torch.tensor(1 / (COUNTS * len(LABELS)).repeat(COUNTS)) * 4000 * 5
        found = episodes.support.flatten().bincount(minlength=BOUNDS[-1])
        assert ((found - expected).abs() < 5 * expected.sqrt()).all()

    def test_permutations_differ_between_classifiers_and_are_equally_likely(self):
        permutations = drawn(episodes=4800).permutations
        assert permutations.shape == (4800, 5, 5)
        counts = permutations.flatten(0, 1).unique(dim=0, return_counts=True)[1]
        assert len(counts) == 120
        assert (counts - 200).abs().max() < 5 * 200**0.5

    def test_digest_is_the_same_everywhere_and_covers_the_pieces(self):
        """Written down once: another machine, another numpy or torch must draw these very episodes."""
        assert drawn().sha256 == "1ddcfd6f59171ec04b2936af3de679dd948d6c6fcc75b25fb2fec878e9dc832c"
        other = drawn()
        support = other.support.clone()
        support[0, 0, 0] += 1
        changed = PaperEpisodes(support, other.query, other.bounds, other.permutations, {})
        shuffled = PaperEpisodes(other.support, other.query, other.bounds, other.permutations.flip(0), {})
        digests = {drawn().sha256, changed.sha256, shuffled.sha256, drawn(seed=4).sha256}
        assert len(digests | {drawn(bounds=list(range(len(LABELS) + 1))).sha256}) == 5

    def test_clips_of_one_piece_are_the_episodes_of_whole_clips(self):
        clips = sample_episodes(LABELS, queries=1, episodes=60, seed=3)
        assert torch.equal(drawn(bounds=list(range(len(LABELS) + 1))).support, clips.support)


class TestAccuracy:
    def test_agrees_with_one_query_at_a_time(self):
        embeddings, episodes = pieces_of(), drawn()
        expected = []
        for number, query in enumerate(episodes.query.flatten(1).tolist()):
            weights, intercepts = weights_of(embeddings, episodes, number)
            answers = []
            for clip in query:
                pieces = embeddings[BOUNDS[clip] : BOUNDS[clip + 1]].double()
                answers.append(mode((pieces @ weights.T + intercepts).argmax(-1).numpy()).mode)
            expected.append(np.mean(np.array(answers) == np.arange(5)))
        found = score_paper_episodes(embeddings, episodes)
        assert found.tolist() == pytest.approx(expected)
        assert 0.3 < found.mean() < 0.95

    def test_majority_of_the_pieces_decides_and_ties_go_to_the_first_class(self):
        """Support pieces lie at the five unit vectors; the queries are votes for these."""
        votes = [[0, 1, 1], [1, 0], [2, 3], [4, 3], [4, 0, 4, 0]]
        flat = [0, 1, 2, 3, 4, *(vote for query in votes for vote in query)]
        bounds = torch.tensor([0, 1, 2, 3, 4, 5, *(5 + np.cumsum([len(query) for query in votes]))])
        permutations = torch.arange(5).expand(1, 5, 5)
        support, query = torch.arange(5).view(1, 5, 1), torch.arange(5, 10).view(1, 5, 1)
        episodes = PaperEpisodes(support, query, bounds, permutations, {})
        # By rows: 1 (wrong), 0 (wrong), 2 (right), 3 (right), 0 (wrong).
        assert score_paper_episodes(10 * torch.eye(5)[flat], episodes).tolist() == [pytest.approx(2 / 5)]

    def test_embeddings_are_used_as_they_are(self):
        """Neither a shift of all dimensions nor a scale of one is taken out."""
        embeddings, episodes = pieces_of(spread=3.0), drawn(400)
        accuracies = score_paper_episodes(embeddings, episodes)
        scales = torch.ones(20).index_fill(0, torch.arange(5), 20.0)
        for other in (embeddings + 10, embeddings * scales):
            assert not torch.equal(score_paper_episodes(other, episodes), accuracies)

    def test_unrelated_embeddings_are_at_chance(self):
        embeddings = torch.randn(BOUNDS[-1], 30, generator=torch.Generator().manual_seed(1))
        assert score_paper_episodes(embeddings, drawn(3000)).mean() == pytest.approx(0.2, abs=0.02)

    def test_the_number_of_episodes_at_once_changes_nothing(self, monkeypatch):
        embeddings, episodes = pieces_of(), drawn()
        expected = score_paper_episodes(embeddings, episodes)
        monkeypatch.setattr(import_module("mtslvr_hf.evaluation.few_shot.paper"), "_BLOCK_NUMBERS", 1000)
        assert torch.equal(score_paper_episodes(embeddings, episodes), expected)

    def test_bad_embeddings(self):
        with pytest.raises(ValueError, match="the embedding of clip 4 is not finite"):
            score_paper_episodes(pieces_of().index_fill(0, torch.tensor(4), float("nan")), drawn())


class TestWeightShares:
    def test_shares_are_of_the_average_absolute_weight_per_dimension(self):
        heads, episodes = {"contrastive": pieces_of(20), "predictive": pieces_of(5, seed=1)}, drawn()
        embeddings = torch.cat(list(heads.values()), 1)
        expected = []
        for number in range(60):
            weights = weights_of(embeddings, episodes, number)[0].abs()
            means = weights[:, :20].mean(), weights[:, 20:].mean()
            expected.append(float(means[0] / sum(means)))
        found = paper_weight_shares(heads, episodes)
        assert found.shares["contrastive"] == pytest.approx(np.mean(expected))
        assert found.intervals["contrastive"] == pytest.approx(1.96 * np.std(expected, ddof=1) / 60**0.5)
        assert sum(found.shares.values()) == pytest.approx(1)
        assert found.sizes == {"contrastive": 20, "predictive": 5} and found.episodes == 60

    def test_a_share_reflects_the_scale_of_a_head(self):
        values, episodes = pieces_of(), drawn()
        assert paper_weight_shares({"one": values, "other": values}, episodes).shares["other"] == pytest.approx(0.5)
        found = paper_weight_shares({"one": values, "other": 3 * values}, episodes)
        assert found.shares["other"] == pytest.approx(0.75)

    def test_misuse_is_explained(self):
        with pytest.raises(ValueError, match="the heads are all; expected two or more"):
            paper_weight_shares({"all": pieces_of()}, drawn())
