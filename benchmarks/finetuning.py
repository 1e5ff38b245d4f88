"""Cross-validated accuracy of three methods of fine-tuning, compared with logistic regression on log-mel statistics.

python benchmarks/finetuning.py --model demo/output/model
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from as_published import machine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForPreTraining

from mtslvr_hf import finetune
from mtslvr_hf.classification import make_folds
from mtslvr_hf.data import LabelledAudio, load_labelled_audio
from mtslvr_hf.evaluation import LogMelStatistics

ROWS = {
    "linear probe": ("linear_probe", True),
    "adapters only": ("adapters", True),
    "everything": ("everything", True),
    "everything, from random weights": ("everything", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a pre-trained model")
    parser.add_argument("--data", default="demo/audio", help="folder with a folder of audio files per class")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_labelled_audio(arguments.data)
    folds = make_folds(data.labels, arguments.folds, arguments.split_seed, data.groups)
    sizes = np.bincount(folds)
    groups = "no groups" if data.groups is None else "groups kept together"
    print(
        f"{len(data)} clips of {len(data.classes)} classes in {Path(arguments.data)}, {arguments.folds} stratified "
        f"folds ({groups}, split seed {arguments.split_seed}), seed {arguments.seed}; model {Path(arguments.model)}; "
        f"{machine()}\n"
    )
    print("| | accuracy % | macro F1 % | s a fold |\n| --- | --- | --- | --- |")
    report("logistic regression on log-mel statistics", *log_mel(data, folds), sizes)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.rows:
            method, pre_trained = ROWS[name]
            model = arguments.model if pre_trained else untrained(arguments.model, arguments.seed, Path(folder))
            report(name, *fine_tuned(model, method, arguments, Path(folder)), sizes)


def report(name: str, results: list[tuple[float, float]], seconds: float, sizes: np.ndarray) -> None:
    """Prints a row: means over all clips, with the 95 % interval of as many independent clips."""
    accuracy, f1 = np.average(results, axis=0, weights=sizes)
    interval = 1.96 * math.sqrt(accuracy * (1 - accuracy) / sizes.sum())
    print(
        f"| {name} | {100 * accuracy:.1f} ± {100 * interval:.1f} | {100 * f1:.1f} | {seconds / len(sizes):.1f} |",
        flush=True,
    )


def timed(run: Callable[[int], tuple[float, float]], folds: int) -> tuple[list[tuple[float, float]], float]:
    start = time.perf_counter()
    return [run(fold) for fold in range(folds)], time.perf_counter() - start


def log_mel(data: LabelledAudio, folds: np.ndarray) -> tuple[list[tuple[float, float]], float]:
    """Accuracy and macro F1 on each fold, and the seconds of all folds."""
    start = time.perf_counter()
    features = LogMelStatistics().embed(data.audio)[""].numpy()
    labels = data.labels.argmax(1)
    results = []
    for fold in range(folds.max() + 1):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        classifier.fit(features[folds != fold], labels[folds != fold])
        predicted, expected = classifier.predict(features[folds == fold]), labels[folds == fold]
        results.append(((predicted == expected).mean(), f1_score(expected, predicted, average="macro")))
    return results, time.perf_counter() - start


def fine_tuned(
    model: str | Path, method: str, arguments: argparse.Namespace, folder: Path
) -> tuple[list[tuple[float, float]], float]:
    """Same results for `mtslvr finetune`, with its defaults."""
    options = ["--model", model, "--data", arguments.data, "--method", method, "--folds", arguments.folds]
    options += ["--split_seed", arguments.split_seed, "--seed", arguments.seed, "--disable_tqdm", "true"]
    options += ["--logging_strategy", "no", "--save_strategy", "no"]
    start = time.perf_counter()
    results = []
    for fold in range(arguments.folds):
        output = folder / f"{method}-{fold}"
        with muted():
            metrics = finetune.main([str(o) for o in [*options, "--fold", fold, "--output_dir", output]])
        results.append((metrics["eval_accuracy"], metrics["eval_macro_f1"]))
    return results, time.perf_counter() - start


class muted:
    """Context without output of Trainer and log of the script; warnings stay."""

    def __enter__(self) -> None:
        self.stdout, sys.stdout = sys.stdout, sys.stderr
        logging.disable(logging.INFO)

    def __exit__(self, *error: object) -> None:
        sys.stdout = self.stdout
        logging.disable(logging.NOTSET)


def untrained(model: str, seed: int, folder: Path) -> Path:
    """Saved model of the same configuration with random weights, and its feature extractor."""
    destination = folder / "untrained"
    torch.manual_seed(seed)
    AutoModelForPreTraining.from_config(AutoConfig.from_pretrained(model)).save_pretrained(destination)
    AutoFeatureExtractor.from_pretrained(model).save_pretrained(destination)
    return destination


if __name__ == "__main__":
    main()
