"""The networks as graphs that ONNX can hold: windows cut inside, dynamic sizes, no operator that runtimes lack.

Shapes: B batch, S samples, K windows of the longest clip, W windows, F mel bands, N frames, C channels, D embedding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling_mtslvr import MTSLVRModel


class WaveformGraph(nn.Module):
    """Padded waveforms to embeddings: every clip is cut into as many windows as the longest needs.

    Windows behind a clip's end have weight 0, so that no shape depends on the lengths that came.
    """

    input_names = ("input_values", "attention_mask")

    def __init__(self, network: MTSLVRModel, tasks: Sequence[str]):
        super().__init__()
        self.network = network
        self.tasks = list(tasks)

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, samples) both -> (batch, D)."""
        size = self.network.config.window_samples
        samples = input_values.shape[1]
        count = (samples + size - 1) // size  # K
        starts = torch.arange(count, device=input_values.device) * size  # (K,)
        left = attention_mask.sum(dim=1, keepdim=True) - starts  # (B, K) samples from each window's start on
        position = torch.arange(size, device=input_values.device) % left.clamp(1, size)[:, :, None]  # repeated to fill
        position = (position + starts[:, None]).clamp(max=samples - 1).flatten(1)  # (B, K x size)
        windows = input_values.gather(1, position).reshape(-1, size)  # (B x K, size)
        embeddings = _embed(self.network, self.network.frontend(windows), self.tasks)  # (B x K, D)
        embeddings = embeddings.reshape(-1, count, embeddings.shape[1])  # (B, K, D)
        weights = (left > 0).to(embeddings.dtype)  # (B, K)
        return (embeddings * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)

    def example(self) -> tuple[tuple[torch.Tensor, ...], dict[str, dict[int, Any]]]:
        """Inputs to trace with, and which of their axes are dynamic."""
        samples = 3 * self.network.config.window_samples + 100
        inputs = (torch.randn(2, samples), torch.ones(2, samples, dtype=torch.long))
        return inputs, {name: {0: "batch", 1: "samples"} for name in self.input_names}

    def batches(self, model: MTSLVRModel) -> list[dict[str, torch.Tensor]]:
        """Inputs to compare with: lengths below, at and above a window, alone, together and with more padding."""
        size, generator = model.config.window_samples, torch.Generator().manual_seed(0)
        shapes = [((size,), 0), ((size // 3,), 0), ((37, size + 1, 2 * size, size // 2 + 1), 0)]
        shapes += [((2 * size + size // 4, size - 1), size), ((size,) * 3, 0)]
        return [padded_batch(lengths, extra, generator, model.config.sampling_rate) for lengths, extra in shapes]


class SpectrogramGraph(nn.Module):
    """Graph from spectrograms, as `model.frontend` returns them, to embeddings, for any number of frames."""

    input_names = ("input_features",)

    def __init__(self, network: MTSLVRModel, tasks: Sequence[str]):
        super().__init__()
        self.network = network
        self.tasks = list(tasks)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, mels, frames) -> (batch, D)."""
        return _embed(self.network, input_features, self.tasks)

    def example(self) -> tuple[tuple[torch.Tensor, ...], dict[str, dict[int, Any]]]:
        """Inputs to trace with, and which of their axes are dynamic."""
        inputs = self._features(self.network, 2, 77, torch.Generator().manual_seed(0))
        return (inputs,), {"input_features": {0: "batch", 3: "frames"}}

    def batches(self, model: MTSLVRModel) -> list[dict[str, torch.Tensor]]:
        """Inputs to compare with: a window's frames, fewer and more, and numbers that are not divisible by 32."""
        generator = torch.Generator().manual_seed(1)
        window = 1 + model.config.window_samples // model.config.hop_length
        shapes = [(1, window), (3, window), (2, window // 2 + 1), (2, 2 * window + 5), (1, 33), (1, 5)]
        return [{"input_features": self._features(model, *shape, generator)} for shape in shapes]

    def _features(self, model: MTSLVRModel, batch: int, frames: int, generator: torch.Generator) -> torch.Tensor:
        config = model.config
        lengths = [max((frames - 1) * config.hop_length, config.n_fft)] * batch
        waveforms = padded_batch(lengths, 0, generator, config.sampling_rate)["input_values"]
        with torch.no_grad():
            return model.frontend(waveforms)[..., :frames].contiguous()


def _embed(network: MTSLVRModel, features: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
    """Embeddings of windows (windows, D): the model's forward between frontend and the windows' mean."""
    maps, _ = network.encoder(features, tasks)
    heads = {network.config.embedding_parts[task]: task for task in reversed(tasks)}  # the first of those that share
    distinct = [task for task in tasks if task in heads.values()]
    return torch.cat([network.head(task)(maps[task].flatten(2).mean(-1)) for task in distinct], dim=-1)


def padded_batch(
    lengths: Sequence[int], extra: int, generator: torch.Generator, sampling_rate: int
) -> dict[str, torch.Tensor]:
    """Test clips as the extractor would return them, in turn noise, a gliding tone in noise, and digital silence.

    Args:
        lengths: Samples of each clip.
        extra: Samples of padding after the longest.
        generator: Draws the noise.
        sampling_rate: In Hz.
    """
    longest = max(lengths) + extra
    values, mask = torch.zeros(len(lengths), longest), torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        seconds = torch.arange(length) / sampling_rate
        noise = torch.randn(length, generator=generator)
        glide = torch.sin(2 * torch.pi * (300 + 200 * seconds) * seconds)
        silence = torch.full((length,), 0.0025)  # what normalisation by AudioSet's mean makes of zeros
        values[row, :length] = (noise, 0.1 * noise + glide, silence)[row % 3]
        mask[row, :length] = 1
    return {"input_values": values, "attention_mask": mask}


def onnx_decompositions() -> dict[Any, Callable[..., torch.Tensor]]:
    """Decompositions for operators that ONNX lacks, or that torch does not translate; torch has the rest."""
    aten = torch.ops.aten
    return {
        aten.stft.default: _stft,
        aten.hypot.default: _hypot,
        aten.atan2.default: _atan2,
        aten.adaptive_avg_pool1d.default: _adaptive_average_pool1d,
        aten.adaptive_avg_pool2d.default: _adaptive_average_pool2d,
    }


def _stft(
    waveforms: torch.Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: torch.Tensor | None = None,
    *_others: Any,
    **_options: Any,
) -> torch.Tensor:
    """(batch, samples), padded by torch.stft before it calls this -> (batch, n_fft // 2 + 1, frames), complex."""
    starts = torch.arange(0, waveforms.shape[1] - n_fft + 1, hop_length)  # (N,)
    frames = waveforms[:, starts[:, None] + torch.arange(n_fft)]  # (B, N, n_fft); `unfold` would be a slice per frame
    return _real_fft(frames * window).transpose(1, 2)


def _real_fft(frames: torch.Tensor) -> torch.Tensor:
    """The DFT of real frames (..., n) as two products with matrices, of n1 x n2 = n points: (..., n // 2 + 1).

    Needs no DFT operator, which many runtimes lack. A frame's first sample is taken off before and given back to bin
    0, so that the other bins of constant frames, digital silence, are exactly 0 as they are in torch.

    Source: Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965.
    """
    size = int(frames.shape[-1])
    inner = max(divisor for divisor in range(1, math.isqrt(size) + 1) if size % divisor == 0)  # n1
    outer = size // inner  # n2
    offset = frames[..., :1]  # (..., 1)
    parts = (frames - offset).unflatten(-1, (inner, outer)).transpose(-1, -2)  # (..., n2, n1)
    cosine, sine = _turns(torch.arange(inner), torch.arange(inner), inner)  # (n1, n1)
    real, imaginary = parts @ cosine, -(parts @ sine)  # (..., n2, k1)
    cosine, sine = _turns(torch.arange(outer), torch.arange(inner), size)  # (n2, k1)
    real, imaginary = real * cosine + imaginary * sine, imaginary * cosine - real * sine
    count = size // 2 // inner + 1  # k2 of the bins up to n / 2
    cosine, sine = _turns(torch.arange(count), torch.arange(outer), outer)  # (k2, n2)
    real, imaginary = cosine @ real + sine @ imaginary, cosine @ imaginary - sine @ real  # (..., k2, k1)
    real, imaginary = (part.flatten(-2)[..., : size // 2 + 1] for part in (real, imaginary))
    return torch.complex(torch.cat([real[..., :1] + size * offset, real[..., 1:]], dim=-1), imaginary)


def _turns(rows: torch.Tensor, columns: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of 2 pi row column / size, rounded once from float64."""
    angles = (rows[:, None] * columns % size).double() * (2 * torch.pi / size)
    return angles.cos().float(), angles.sin().float()


def _hypot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(a * a + b * b)


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The angle from the octant it lies in; 0 for (0, 0), where torch's translation to ONNX gives 0 / 0."""
    across, along = y.abs(), x.abs()
    larger = torch.maximum(across, along)
    angle = torch.atan(torch.minimum(across, along) / torch.where(larger > 0, larger, torch.ones_like(larger)))
    angle = torch.where(across > along, torch.pi / 2 - angle, angle)
    angle = torch.where(x < 0, torch.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)


def _adaptive_average_pool1d(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return _adaptive_average_pool2d(features[:, :, None], [1, size[0]])[:, :, 0]


def _adaptive_average_pool2d(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """As products with averaging matrices, which may have dynamic sizes where ONNX's pooling has a fixed kernel."""
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


__all__ = ["SpectrogramGraph", "WaveformGraph", "onnx_decompositions", "padded_batch"]
