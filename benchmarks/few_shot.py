"""Seconds and accuracy of few-shot episodes: all at once, compared with scikit-learn episode by episode.

python benchmarks/few_shot.py

Classes are Gaussian. scikit-learn gets the first episodes, and its seconds are scaled to all of them. Our classifiers
run on the first episodes too, so that accuracies can be compared. The last two rows are the paper's protocol on raw
embeddings, with clips of one piece and --seeds seeds of scikit-learn: the mean of the accuracies, and their deviation
over seeds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from as_published import machine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from torch.nn.functional import normalize

from mtslvr_hf.evaluation import Episodes, mean_and_interval, sample_episodes, score_episodes
from mtslvr_hf.evaluation.few_shot.paper import paper_episodes, score_paper_episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=5, help="of each class")
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=500, help="episodes for scikit-learn")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--clips", type=int, default=40, help="of each class")
    parser.add_argument("--size", type=int, default=1000, help="of an embedding")
    parser.add_argument("--distance", type=float, default=0.25, help="deviation of class means (of clips: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="of scikit-learn in the paper's protocol")
    arguments = parser.parse_args()
    embeddings, labels = make_embeddings(arguments)
    start = time.perf_counter()
    episodes = sample_episodes(
        labels, arguments.ways, arguments.shots, arguments.queries, arguments.episodes, arguments.seed
    )
    print(
        f"{arguments.episodes:,} episodes, {arguments.ways}-way {arguments.shots}-shot, {arguments.queries} queries a "
        f"class, list {episodes.sha256[:12]}, drawn in {time.perf_counter() - start:.2f} s; {len(labels)} embeddings "
        f"of {arguments.size} numbers, length 1; {machine()}\n"
    )
    print("| classifier | episodes run | accuracy % | seconds, all episodes | of SGDClassifier's |")
    print("| --- | --- | --- | --- | --- |")
    measure(
        embeddings, episodes, Episodes(episodes.support[: arguments.sample], episodes.query[: arguments.sample], {})
    )
    measure_paper(embeddings, labels, arguments)


def make_embeddings(arguments: argparse.Namespace) -> tuple[torch.Tensor, list[int]]:
    """Gaussian embeddings, (classes * clips, size), and their classes."""
    generator = torch.Generator().manual_seed(arguments.seed)
    labels = torch.arange(arguments.classes).repeat_interleave(arguments.clips)
    means = arguments.distance * torch.randn(arguments.classes, arguments.size, generator=generator)
    return means[labels] + torch.randn(len(labels), arguments.size, generator=generator), labels.tolist()


def measure(embeddings: torch.Tensor, episodes: Episodes, sample: Episodes) -> None:
    """Prints a row for each classifier; the first, SGDClassifier, is the baseline."""

    def ours(classifier: str) -> Callable[[Episodes], torch.Tensor]:
        return lambda some: score_episodes(embeddings, some, standardize=False, classifier=classifier)

    def theirs(make: Callable[[], SGDClassifier | LogisticRegression]) -> Callable[[Episodes], torch.Tensor]:
        units = normalize(embeddings, dim=-1).numpy()
        return lambda some: one_by_one(units, some, make)

    sgd = theirs(lambda: SGDClassifier(loss="log_loss", random_state=0))
    runs = [
        ("scikit-learn SGDClassifier(log_loss)", sgd, False),
        ("scikit-learn LogisticRegression", theirs(LogisticRegression), False),
        ("ours, logistic", ours("logistic"), True),
        ("ours, centroid", ours("centroid"), True),
    ]
    slowest = None
    for name, score, all_at_once in runs:
        for some in (sample, episodes) if all_at_once else (sample,):
            start = time.perf_counter()
            accuracy, interval = mean_and_interval(score(some))
            seconds = (time.perf_counter() - start) * len(episodes.query) / len(some.query)
            slowest = slowest or seconds
            whole = f"{seconds:.2f} | {seconds / slowest:.4f}" if some is episodes or not all_at_once else "|"
            print(f"| {name} | {len(some.query):,} | {100 * accuracy:.2f} ± {100 * interval:.2f} | {whole} |")


def measure_paper(embeddings: torch.Tensor, labels: list[int], arguments: argparse.Namespace) -> None:
    """Prints a table of the paper's protocol: seconds, and accuracy over seeds of the order of clips."""

    def draw(episodes: int, seed: int) -> Callable[[], torch.Tensor]:
        some = sample_episodes(labels, queries=1, episodes=episodes, seed=arguments.seed)
        return lambda: score_paper_episodes(embeddings, paper_episodes(some, range(len(labels) + 1), seed))

    def theirs(seed: int) -> Callable[[], torch.Tensor]:
        some = sample_episodes(labels, queries=1, episodes=arguments.sample, seed=arguments.seed)
        random = np.random.RandomState(seed)
        settings = {"max_iter": 20, "tol": 1e-4, "learning_rate": "adaptive", "eta0": 0.1, "alpha": 0}
        return lambda: one_by_one(
            embeddings.double().numpy(),
            some,
            lambda: SGDClassifier(loss="log_loss", n_iter_no_change=2, random_state=random, **settings),
        )

    print("\n| the paper's protocol | episodes run | accuracy % | seconds, all episodes | of SGDClassifier's |")
    print("| --- | --- | --- | --- | --- |")
    slowest = None
    for name, make, episodes, seeds in (
        ("scikit-learn SGDClassifier", theirs, arguments.sample, arguments.seeds),
        ("ours", lambda seed: draw(arguments.sample, seed), arguments.sample, arguments.seeds),
        ("ours", lambda seed: draw(arguments.episodes, seed), arguments.episodes, 1),
    ):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            means = 100 * np.array([make(seed)().mean().item() for seed in range(seeds)])
        seconds = (time.perf_counter() - start) / seeds * arguments.episodes / episodes
        slowest = slowest or seconds
        spread = f"{means.mean():.2f}, deviation {means.std(ddof=1):.2f}" if seeds > 1 else f"{means[0]:.2f}"
        print(f"| {name} | {episodes:,} | {spread} | {seconds:.2f} | {seconds / slowest:.4f} |")


def one_by_one(
    embeddings: np.ndarray, episodes: Episodes, make: Callable[[], SGDClassifier | LogisticRegression]
) -> torch.Tensor:
    """Accuracy of a scikit-learn classifier on each episode, (episodes,)."""
    ways, shots = episodes.support.shape[1:]
    classes, target = np.arange(ways).repeat(shots), np.arange(ways).repeat(episodes.query.shape[2])
    accuracies = []
    for support, query in zip(episodes.support.flatten(1).numpy(), episodes.query.flatten(1).numpy()):
        model = make().fit(embeddings[support], classes)
        accuracies.append(float((model.predict(embeddings[query]) == target).mean()))
    return torch.tensor(accuracies)


__all__ = ["main"]

if __name__ == "__main__":
    main()
