"""Invariance and equivariance: movement of embeddings by augmentations, and linear decodability of augmentations.

Shapes: N clips, S samples, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm.auto import tqdm

from ..augmentations import Augmentation, TwoViewAugmentation
from ..markdown import markdown_table

STRENGTHS = (0.25, 0.5, 1.0)
FOLDS = 5
FEWEST_CLIPS = 2 * FOLDS
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge probe, per clip and standardized dimension
# Parameters of the strength of an augmentation, the decoded one first, and their values of least change: None for the
# top of the range.
PARAMETERS: dict[str, dict[str, float | None]] = {
    "pitch_shift": {"semitones": 0.0},
    "fade": {"in_fraction": 0.0, "out_fraction": 0.0},
    "white_noise": {"snr_db": None},
    "mixed_noise": {"snr_db": None},
    "time_stretch": {"rate": 1.0},
    "time_masking": {"length_fraction": 0.0},
    "time_shift": {"shift_fraction": 0.0},
}

Embed = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Displacement:
    """Movement of one embedding by an augmentation of one strength, averaged over clips.

    mahalanobis: Distance between the embeddings of a clip and its augmented copy, by the covariance of originals.
    relative: `mahalanobis` divided by the distance between different clips: 0 is invariant.
    cosine: Cosine similarity of the two embeddings; 1 is invariant.
    presence: Test accuracy of a linear probe for augmented or original; 0.5 is chance.
    """

    augmentation: str
    strength: float
    task: str
    mahalanobis: float
    relative: float
    cosine: float
    presence: float


@dataclass(frozen=True)
class Readability:
    """Linear decodability of an augmentation, with parameters over the whole range of pre-training, on test clips.

    presence: Accuracy of a probe for augmented or original; 0.5 is chance.
    parameter: Decoded parameter of augmented clips.
    r2: Explained share of its variance; 0 is no better than the mean.
    """

    augmentation: str
    task: str
    presence: float
    parameter: str
    r2: float


@dataclass(frozen=True)
class InvarianceReport:
    """Report of `measure_invariance`."""

    displacements: tuple[Displacement, ...]
    readabilities: tuple[Readability, ...]
    clips: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Markdown table with a row per augmentation and embedding."""
        return markdown_table(*self.to_table())

    def to_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table with a row per augmentation and embedding."""
        strengths = sorted({entry.strength for entry in self.displacements})
        columns = [f"distance at {strength:g}" for strength in strengths] + ["cosine", "presence", "parameter", "R2"]
        rows = []
        for reading in self.readabilities:
            own = {
                entry.strength: entry
                for entry in self.displacements
                if (entry.augmentation, entry.task) == (reading.augmentation, reading.task)
            }
            values = [*(own[strength].relative for strength in strengths), own[strengths[-1]].cosine, reading.presence]
            shown = [f"{value:.2f}" for value in values]
            rows.append([reading.augmentation, reading.task, *shown, reading.parameter, f"{reading.r2:.2f}"])
        return ["augmentation", "embedding", *columns], rows


def measure_invariance(
    embed: Embed,
    waveforms: Tensor,
    sampling_rate: int = 16_000,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> InvarianceReport:
    """Invariance of embeddings to each of the seven augmentations, and decodability of the augmentations.

    Args:
        embed: From waveforms (n, S) to embeddings (n, D) by name, such as `{"contrastive": ..., "predictive": ...}`.
        waveforms: (N, S), N >= 10 different clips.
        sampling_rate: In Hz.
        strengths: Shares of the range of each augmentation; 1 is the strongest in pre-training.
        seed: Seed of augmentations and folds.
        show_progress_bar: Default: only if stderr is a terminal.

    Raises:
        ValueError: If there are fewer than 10 clips, or a strength is not in (0, 1].

    Source: Heggan et al. (2023), section on learnt invariance, for the Mahalanobis distance. Divided by the distance
    between clips, it compares embeddings of different sizes. Covariance with fewer clips than dimensions: Ledoit and
    Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004).
    """
    if waveforms.ndim != 2 or len(waveforms) < FEWEST_CLIPS:
        raise ValueError(f"expected (clips, samples) of at least {FEWEST_CLIPS} clips; got {tuple(waveforms.shape)}.")
    if not strengths or not all(0 < strength <= 1 for strength in strengths):
        raise ValueError(f"strengths must lie in (0, 1]; got {tuple(strengths)}.")
    augmentations = TwoViewAugmentation(sampling_rate=sampling_rate).augmentations
    generator = torch.Generator().manual_seed(seed)
    disable = None if show_progress_bar is None else not show_progress_bar
    total = 1 + len(augmentations) * (len(strengths) + 1)
    with tqdm(total=total, desc="invariance", unit="pass", disable=disable) as progress:

        def embed_all(augmentation: Augmentation | None, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
            embedded = _embed_in_batches(embed, waveforms, augmentation, drawn, batch_size)
            progress.update()
            return embedded

        originals = embed_all(None, {})
        metrics = {task: _Metric(embeddings) for task, embeddings in originals.items()}
        folds = torch.randperm(len(waveforms), generator=generator) % FOLDS
        displacements, readabilities = [], []
        for augmentation in augmentations:
            for strength in strengths:
                drawn = draw_strength(augmentation, strength, len(waveforms), generator)
                for task, moved in embed_all(augmentation, drawn).items():
                    figures = metrics[task].displacement(moved)
                    presence = _read_presence(originals[task], moved, folds)
                    displacements.append(Displacement(augmentation.name, strength, task, *figures, presence))
            drawn = augmentation.sample_parameters(len(waveforms), generator)
            for task, moved in embed_all(augmentation, drawn).items():
                readabilities.append(_read(augmentation.name, task, originals[task], moved, drawn, folds))
    return InvarianceReport(tuple(displacements), tuple(readabilities), len(waveforms), seed)


def draw_strength(
    augmentation: Augmentation, strength: float, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters (n,) of one strength: a share of the way from the neutral value to a random end of the range."""
    drawn = augmentation.sample_parameters(n, generator)
    for name, neutral in PARAMETERS[augmentation.name].items():
        low, high = getattr(augmentation, f"min_{name}", 0.0), getattr(augmentation, f"max_{name}")
        neutral = high if neutral is None else neutral
        ends = torch.tensor([end for end in (low, high) if end != neutral], dtype=torch.float32)
        end = ends[torch.randint(0, len(ends), (n,), generator=generator)]
        drawn[name] = neutral + strength * (end - neutral)
    return drawn


@torch.no_grad()
def _embed_in_batches(
    embed: Embed,
    waveforms: Tensor,
    augmentation: Augmentation | None,
    drawn: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, Tensor]:
    """Embeddings (N, D) by task of clips, augmented unless `augmentation` is None; float64 on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    for begin in range(0, len(waveforms), batch_size):
        clips = waveforms[begin : begin + batch_size]
        if augmentation is not None:
            own = {name: values[begin : begin + batch_size] for name, values in drawn.items()}
            clips = augmentation.apply(clips, own)
        for task, embeddings in embed(clips).items():
            parts.setdefault(task, []).append(embeddings.double().cpu())
    return {task: torch.cat(embeddings) for task, embeddings in parts.items()}


class _Metric:
    """Mahalanobis distance by the shrunk covariance of embeddings (N, D)."""

    def __init__(self, originals: Tensor):
        self.originals = originals
        tiny = torch.finfo(originals.dtype).tiny
        covariance = torch.from_numpy(ledoit_wolf(originals.numpy())[0])
        covariance.diagonal().add_(tiny)  # equal embeddings have covariance 0
        self.factor = torch.linalg.cholesky(covariance)
        self.apart = self._distances(originals - originals.roll(1, dims=0)).mean().clamp(min=tiny)

    def _distances(self, differences: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, differences.T, upper=False).norm(dim=0)

    def displacement(self, moved: Tensor) -> tuple[float, float, float]:
        """Means of Mahalanobis distance, of its ratio to the distance between clips, and of cosine similarity."""
        distance = self._distances(moved - self.originals).mean()
        cosine = torch.cosine_similarity(moved, self.originals).mean()
        return float(distance), float(distance / self.apart), float(cosine)


def _read(
    name: str, task: str, originals: Tensor, moved: Tensor, drawn: Mapping[str, Tensor], folds: Tensor
) -> Readability:
    parameter = next(iter(PARAMETERS[name]))
    truth = drawn[parameter].double()
    r2 = r2_score(truth.numpy(), cross_predict(moved, truth, folds))
    return Readability(name, task, _read_presence(originals, moved, folds), parameter, float(r2))


def _read_presence(originals: Tensor, moved: Tensor, folds: Tensor) -> float:
    """Cross-validated accuracy of probes for augmented (N, D) or original."""
    labels = torch.ones(2, len(moved), dtype=torch.float64)
    labels[0] = -1
    predicted = cross_predict(torch.cat([originals, moved]), labels.flatten(), folds.repeat(2))
    return float((predicted * labels.flatten().numpy() > 0).mean())


def cross_predict(inputs: Tensor, targets: Tensor, folds: Tensor) -> np.ndarray:
    """Cross-validated ridge predictions of targets (N,) from standardized inputs (N, D), one regression per fold.

    Each regression uses the one of PENALTIES with the least leave-one-out error.
    """
    penalties = np.array(PENALTIES) * len(inputs) * (FOLDS - 1) / FOLDS
    ridge = make_pipeline(StandardScaler(), RidgeCV(penalties))
    return cross_val_predict(ridge, inputs.numpy(), targets.numpy(), cv=PredefinedSplit(folds.numpy()))


__all__ = [
    "STRENGTHS",
    "Displacement",
    "InvarianceReport",
    "Readability",
    "cross_predict",
    "draw_strength",
    "measure_invariance",
]
