"""Graphs for ONNX export: normalization and windows inside the graph, dynamic sizes, replacements of operators.

Decompositions replace four torch operators with wrong or missing ONNX (`benchmarks/onnx_frontend.py`): STFT turns
digital silence into rounding noise; DFT is wrong by about 1e-3 of an embedding if `n_fft` is not a power of 2;
atan2(0, -1) is -pi; hypot has no translation; adaptive pooling keeps the traced number of frames.

Shapes: B batch, S samples, K windows of the longest clip, F mel bands, N frames, D embedding, L labels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..feature_extraction_mtslvr import SMALLEST_STD, MTSLVRFeatureExtractor, normalize_waveforms
from ..modeling_mtslvr import MTSLVRModel

Inputs = dict[str, torch.Tensor]


class ModelGraph(nn.Module, ABC):
    """Base class of a graph from one kind of input to embeddings and, with a classifier, logits.

    Args:
        network: Merged network.
        tasks: Tasks of the embedding, in its order.
        extractor: Source of the normalization.
        classifier: Linear layer from embeddings to logits.

    Attributes:
        dynamic_axes: For each input, the axes that may vary, with their names.
        outputs: Names of the outputs, in their order.
    """

    dynamic_axes: dict[str, dict[int, str]]

    def __init__(
        self,
        network: MTSLVRModel,
        tasks: Sequence[str],
        extractor: MTSLVRFeatureExtractor,
        classifier: nn.Module | None = None,
    ):
        super().__init__()
        self.network = network
        self.tasks = list(tasks)
        self.extractor = extractor
        self.classifier = classifier
        self.outputs = ["embeddings"] if classifier is None else ["logits", "embeddings"]

    @abstractmethod
    def batches(self) -> list[Inputs]:
        """Inputs for the comparison with torch; the last one is traced."""

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings of windows, after the front end: (windows, ...) -> (windows, D)."""
        maps, _ = self.network.encoder(features, self.tasks)
        network = self.network
        embeddings = {task: network.embed(task, network.pool(maps[task])) for task in self.tasks}
        return network.concatenate_parts(embeddings, self.tasks)

    def results(self, embeddings: torch.Tensor, valid: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Outputs of embeddings (B, D), all NaN for clips that are not valid (B,): ONNX graphs cannot raise errors."""
        embeddings = embeddings.masked_fill(~valid[:, None], torch.nan)
        return embeddings if self.classifier is None else (self.classifier(embeddings), embeddings)  # (B, L), (B, D)

    def normalized(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms (B, S), normalized as the extractor does."""
        return normalize_waveforms(waveforms, self.extractor.normalization, self.extractor.mean, self.extractor.std)


class SpectrogramGraph(ModelGraph):
    """Graph from the output of `model.frontend`, of any number of frames. Each item is one window."""

    dynamic_axes = {"input_features": {0: "batch", 3: "frames"}}

    def forward(self, input_features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(B, channels, F, N) -> outputs."""
        return self.results(self.embed(input_features), input_features.isfinite().flatten(1).all(dim=1))

    def batches(self) -> list[Inputs]:
        """Inputs of several shapes: frames of a window, fewer, more, not divisible by 32."""
        config, generator = self.network.config, torch.Generator().manual_seed(1)
        window = 1 + config.window_samples // config.hop_length
        batches = []
        for clips, frames in ((1, window), (3, window), (2, window // 2 + 1), (1, 33), (1, 5), (2, 2 * window + 5)):
            lengths = [max((frames - 1) * config.hop_length, config.n_fft)] * clips
            waveforms = self.normalized(padded_batch(lengths, 0, generator, config.sampling_rate)["waveforms"])
            batches.append({"input_features": self.network.frontend(waveforms)[..., :frames].contiguous()})
        return batches


class WaveformGraph(ModelGraph):
    """Graph from audio that is not normalized, with any number of windows per clip.

    Windows after a clip's end have weight 0, so that shapes do not depend on the mask.

    Args:
        with_mask: Whether there is an input `attention_mask` for clips of different lengths.
    """

    def __init__(
        self,
        network: MTSLVRModel,
        tasks: Sequence[str],
        extractor: MTSLVRFeatureExtractor,
        classifier: nn.Module | None = None,
        with_mask: bool = False,
    ):
        super().__init__(network, tasks, extractor, classifier)
        names = ("waveforms", "attention_mask") if with_mask else ("waveforms",)
        self.dynamic_axes = {name: {0: "batch", 1: "samples"} for name in names}

    def forward(
        self, waveforms: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(B, S) both -> outputs; NaN for clips with a sample that is not finite or a mask that is not 1 1 ... 0 0."""
        size = self.network.config.window_samples
        samples = waveforms.shape[1]
        mask = torch.ones_like(waveforms) != 0 if attention_mask is None else attention_mask != 0
        lengths = mask.sum(dim=1, keepdim=True)  # (B, 1)
        valid = ((torch.arange(samples) < lengths) == mask) & (waveforms.isfinite() | ~mask)  # (B, S)
        count = (samples + size - 1) // size  # K
        starts = torch.arange(count) * size  # (K,)
        left = lengths - starts  # (B, K) samples from each window's start on
        position = torch.arange(size) % left.clamp(1, size)[:, :, None]  # (B, K, size), repeated to fill
        position = (position + starts[:, None]).clamp(max=samples - 1).flatten(1)  # (B, K x size)
        windows = self._normalized_clips(waveforms, mask).gather(1, position).reshape(-1, size)  # (B x K, size)
        embeddings = self.embed(self.network.frontend(windows))  # (B x K, D)
        embeddings = embeddings.reshape(-1, count, embeddings.shape[1])  # (B, K, D)
        weights = (left > 0).to(embeddings.dtype)  # (B, K)
        embeddings = (embeddings * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        return self.results(embeddings, valid.all(dim=1) & (lengths[:, 0] > 0))

    def _normalized_clips(self, waveforms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, S), (B, S) -> (B, S). Statistics of whole clips, without padding, are computed in float64."""
        if self.extractor.normalization != "sample":
            return self.normalized(waveforms)
        count = mask.sum(dim=1, keepdim=True)  # (B, 1)
        mean = torch.where(mask, waveforms.double(), 0.0).sum(dim=1, keepdim=True) / count
        centered = torch.where(mask, waveforms.double() - mean, 0.0)  # (B, S)
        std = (centered.square().sum(dim=1, keepdim=True) / count).sqrt()
        return (centered / std.clamp(min=SMALLEST_STD)).float()

    def batches(self) -> list[Inputs]:
        """Inputs of several shapes: clips below, at and above a window, and extra padding."""
        config, generator = self.network.config, torch.Generator().manual_seed(0)
        size = config.window_samples
        shapes: list[tuple[tuple[int, ...], int]] = [((size,), 0), ((size // 3,), 0)]
        if "attention_mask" in self.dynamic_axes:
            shapes += [((37, size + 1, 2 * size, size // 2 + 1), 0), ((size,) * 3, 0)]
            shapes += [((2 * size + size // 4, size - 1), size)]
        else:
            shapes += [((37,), 0), ((size + 1,), 0), ((size // 2 + 1,) * 2, 0), ((size,) * 3, 0)]
            shapes += [((2 * size + size // 4,) * 2, 0)]
        batches = [padded_batch(lengths, extra, generator, config.sampling_rate) for lengths, extra in shapes]
        return [{name: batch[name] for name in self.dynamic_axes} for batch in batches]


def padded_batch(
    lengths: Sequence[int], extra: int, generator: torch.Generator, sampling_rate: int
) -> dict[str, torch.Tensor]:
    """Test clips, padded with zeros, and their mask: in turn noise, a gliding tone in noise, and digital silence.

    Args:
        lengths: Samples of each clip.
        extra: Samples of padding after the longest clip.
    """
    longest = max(lengths) + extra
    waveforms, mask = torch.zeros(len(lengths), longest), torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        seconds = torch.arange(length) / sampling_rate
        noise = 0.1 * torch.randn(length, generator=generator)
        glide = 0.1 * torch.sin(2 * torch.pi * (300 + 200 * seconds) * seconds)
        waveforms[row, :length] = (noise, 0.1 * noise + glide, torch.zeros(length))[row % 3]
        mask[row, :length] = 1
    return {"waveforms": waveforms, "attention_mask": mask}


def _stft(
    waveforms: torch.Tensor, n_fft: int, hop_length: int, win_length: int, window: torch.Tensor, *_others: Any
) -> torch.Tensor:
    """(batch, samples), padded by torch.stft before it calls this -> (batch, n_fft // 2 + 1, frames), complex.

    The DFT is two matrix products, of n1 x n2 = n_fft points. The first sample of a frame is subtracted before and
    added to bin 0 after, so that the other bins of digital silence (constant frames) are exactly 0, as in torch.

    Source: Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965.
    """
    starts = torch.arange(0, waveforms.shape[1] - n_fft + 1, hop_length)  # (N,)
    frames = waveforms[:, starts[:, None] + torch.arange(n_fft)]  # (B, N, n_fft); `unfold` would be a slice per frame
    frames = frames * window
    offset = frames[..., :1]
    inner = max(divisor for divisor in range(1, math.isqrt(n_fft) + 1) if n_fft % divisor == 0)  # n1
    outer, count = n_fft // inner, n_fft // 2 // inner + 1  # n2, and k2 of the bins up to n_fft / 2
    parts = (frames - offset).unflatten(-1, (inner, outer)).transpose(-1, -2)  # (..., n2, n1)
    cosine, sine = _turns(inner, inner, inner)  # (n1, k1)
    real, imaginary = parts @ cosine, -(parts @ sine)  # (..., n2, k1)
    cosine, sine = _turns(outer, inner, n_fft)  # (n2, k1)
    real, imaginary = real * cosine + imaginary * sine, imaginary * cosine - real * sine
    cosine, sine = _turns(count, outer, outer)  # (k2, n2)
    real, imaginary = cosine @ real + sine @ imaginary, cosine @ imaginary - sine @ real  # (..., k2, k1)
    real, imaginary = (part.flatten(-2)[..., : n_fft // 2 + 1] for part in (real, imaginary))
    return torch.complex(torch.cat([real[..., :1] + n_fft * offset, real[..., 1:]], dim=-1), imaginary).transpose(1, 2)


def _turns(rows: int, columns: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of 2 pi row column / size, (rows, columns), rounded once from float64."""
    angles = (torch.arange(rows)[:, None] * torch.arange(columns) % size).double() * (2 * torch.pi / size)
    return angles.cos().float(), angles.sin().float()


def _hypot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(a * a + b * b)


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    angle = torch.atan(y / torch.where((x == 0) & (y == 0), 1.0, x))
    return torch.where(x < 0, torch.where(y < 0, angle - torch.pi, angle + torch.pi), angle)


def _adaptive_average_pool2d(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Products with averaging matrices: unlike ONNX's pooling kernel, they may have dynamic sizes."""
    sizes = list(zip(features.shape[2:], size))  # ((F, F'), (N, N'))
    if all(isinstance(length, int) and length == 2 * parts for length, parts in sizes):
        return F.avg_pool2d(features, 2)
    bands, frames = (_averaging_matrix(length, parts, features) for length, parts in sizes)
    return bands @ features @ frames.T  # (F', F) (F, N) (N, N')


def _averaging_matrix(length: int, parts: int, like: torch.Tensor) -> torch.Tensor:
    """(parts, length): row i averages positions floor(i length / parts) to ceil((i + 1) length / parts)."""
    part = torch.arange(parts, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    first = part * length // parts
    behind = ((part + 1) * length + parts - 1) // parts
    inside = ((position >= first) & (position < behind)).to(like.dtype)
    return inside / (behind - first).to(like.dtype)


DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.stft.default: _stft,
    torch.ops.aten.hypot.default: _hypot,
    torch.ops.aten.atan2.default: _atan2,
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_average_pool2d,
}

__all__ = ["DECOMPOSITIONS", "ModelGraph", "SpectrogramGraph", "WaveformGraph", "padded_batch"]
