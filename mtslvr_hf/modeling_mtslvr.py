"""MT-SLVR models: one audio ResNet, pre-trained on a contrastive and a predictive task, with adapters for each.

Shapes: B batch, V views, T tasks, W windows of all clips, S samples, C channels, F mel bands, N frames, D embedding, A
augmentations, P augmentation parameters.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_mtslvr import ADAPTER_TYPES, MTSLVRConfig
from .feature_extraction_mtslvr import AudioInput, MTSLVRFeatureExtractor, module_of_package, split_audio
from .losses_mtslvr import AugmentationPredictionLoss, NegativeCosineLoss, NTXentLoss, ParameterDifferenceLoss

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    # Copied with the model's code, and read by transformers' `pipeline` alone.
    from .pipeline_mtslvr import MTSLVRFeatureExtractionPipeline  # noqa: F401

logger = logging.get_logger(__name__)

_PACKAGE = "more than the model's own code: `pip install -e .` in a clone of the repository of mtslvr-hf"
SHARED = "shared"  # key of an adapter or a head that all tasks use
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Mean and deviation of log-mel decibels, rounded from 200 clips of music, speech and effects with `global`
# normalization. The phase is divided by the same number: with a deviation of 1 it costs accuracy (docs/recipe.md).
SPECTROGRAM_FLOOR = -60.0
SPECTROGRAM_MEAN = (7.0, 7.0, 0.0)  # of log-mel, and of magnitude and phase of the mel STFT
SPECTROGRAM_STD = 26.0
EPSILON = 2.220446049250313e-16  # float64's epsilon, added before the logarithm
CONVOLUTION: dict[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
BatchNorm = nn.modules.batchnorm._BatchNorm
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL = {1: partial(F.max_pool1d, kernel_size=9), 2: partial(F.max_pool2d, kernel_size=3)}
AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}
STEM_KERNEL = {1: 49, 2: 7}
BLOCK_KERNEL = {1: 9, 2: 3}
BATCH_NORM_ONLY = {SHARED: "bn"}  # the adapters of a plain convolution
FRONTEND_SAMPLES = 2**19  # of a part of a batch on a CPU; its spectra take 2 MB each
MERGE_DTYPE = torch.float64  # for the merge of adapters
PROJECTORS = r"^(contrastive|predictive|parameter)_(projector|predictor)\."  # weights of pre-training alone

_inference_networks: weakref.WeakKeyDictionary[MTSLVRModel, tuple[Any, _Weights, MTSLVRModel]] = (
    weakref.WeakKeyDictionary()
)


@dataclass
class MTSLVRModelOutput(ModelOutput):
    """Output of [`MTSLVRModel`].

    Attributes:
        last_hidden_state: (batch, frames, pooled size x tasks), float. Last feature map, pooled over frequency as the
            configuration says: the mean, mean and maximum, or the means of bands from low to high, side by side. One
            frame per `hop_length` * 32 samples. Windows follow each other; frames after a clip's last window are 0.
        pooler_output: (batch, D), float. Embeddings of the chosen tasks, concatenated; once for all tasks that share
            both trunk and head. Without heads, an embedding is the pooled feature map. Each is multiplied by its
            `embedding_scale`.
        contrastive_embeds, predictive_embeds: (batch, head_size), float; None if the task was not chosen.
        added_embeds: Embeddings of the chosen added tasks by name, each (batch, head_size), float; None without any.
        hidden_states: Feature maps of the windows after the stem and after layer1 to layer4, float: (windows, channels
            x tasks, bands, frames); no axis of bands on `waveform` input.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    contrastive_embeds: Tensor | None = None
    predictive_embeds: Tensor | None = None
    added_embeds: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class MTSLVRForPreTrainingOutput(ModelOutput):
    """Output of [`MTSLVRForPreTraining`]. A single view has no axis of views and no losses.

    Attributes:
        loss: (), float. contrastive + `predictive_weight` * predictive, over the tasks of the configuration.
        contrastive_loss, predictive_loss: (), float.
        augmentation_logits: (batch, views, A), float. Augmentations of each view, before the sigmoid; None without
            labels in `predictive_target`.
        pooler_output: (batch, views, D), float. As in [`MTSLVRModelOutput`].
        contrastive_embeds, predictive_embeds: (batch, views, head_size), float.
        hidden_states: As in [`MTSLVRModelOutput`]; windows of the first view, then of the second.
        label_loss, parameter_loss: (), float. Terms of `predictive_loss`; None if `predictive_target` leaves it out.
        predicted_differences: (batch, P), float. Differences of `config.parameter_targets` between the views; None
            without parameters in `predictive_target`.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    predictive_loss: Tensor | None = None
    augmentation_logits: Tensor | None = None
    pooler_output: Tensor | None = None
    contrastive_embeds: Tensor | None = None
    predictive_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    label_loss: Tensor | None = None
    parameter_loss: Tensor | None = None
    predicted_differences: Tensor | None = None


class MTSLVRFrontend(nn.Module):
    """Frontend: waveforms to a log-mel spectrogram, to three spectrograms, or unchanged.

    It always computes in float32, because bfloat16 cannot hold a phase. One STFT with a rectangular window serves all
    channels: the spectrum for the Hann window is its convolution with (-1/4, 1/2, -1/4). The phase of the first frame
    is 0 or pi.

    Source: Al-Tahan and Mohsenzadeh, "CLAR", AISTATS 2021, section 3.2, as the MT-SLVR authors computed it.
    """

    mel_filters: Tensor

    def __init__(self, config: MTSLVRConfig):
        super().__init__()
        self.config = config
        if config.frontend != "waveform":
            filters = self._mel_filters()
            self.register_buffer("mel_filters", filters, persistent=False)  # (F, n_fft / 2 + 1)
            self.bands = list(_bands(filters.numpy()))

    def _mel_filters(self) -> Tensor:
        filters = mel_filter_bank(
            num_frequency_bins=self.config.n_fft // 2 + 1,
            num_mel_filters=self.config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=self.config.sampling_rate / 2,
            sampling_rate=self.config.sampling_rate,
            norm=None,
            mel_scale="htk",
        )
        return torch.tensor(filters.T, dtype=torch.float32, device="cpu").contiguous()

    def reset_buffers(self) -> None:
        """Fills `mel_filters`, which checkpoints do not hold and `from_pretrained` leaves unset."""
        if self.config.frontend != "waveform":
            init.copy_(self.mel_filters, self._mel_filters())

    def _apply(self, fn, recurse: bool = True):
        """Moves the mel filters with the model but keeps them in float32."""
        super()._apply(fn, recurse)
        moved = getattr(self, "mel_filters", None)
        if moved is not None and moved.dtype != torch.float32:
            self.mel_filters = moved.float() if moved.is_meta else self._mel_filters().to(moved.device)
        return self

    def forward(self, waveforms: Tensor) -> Tensor:
        """Features of waveforms (batch, samples), in float32.

        Returns:
            (batch, 3, mels, frames) for `mel_stft`, (batch, 1, mels, frames) for `mel`, (batch, 1, samples) for
            `waveform`; frames = 1 + samples // hop_length.
        """
        waveforms = waveforms.float()
        config = self.config
        if config.frontend == "waveform":
            return waveforms[:, None]  # (B, 1, S)
        if waveforms.shape[-1] <= config.n_fft // 2:
            raise ValueError(
                f"The frontend got {waveforms.shape[-1]} samples; its reflect padding needs more than "
                f"{config.n_fft // 2}. Repeat or pad the clip first."
            )
        with torch.autocast(device_type=waveforms.device.type, enabled=False):
            if waveforms.device.type != "cpu" or torch.compiler.is_compiling():
                return self._spectrograms(waveforms)
            # In parts, each operator finds in the processor's cache what the one before wrote; no bit differs.
            parts = waveforms.split(max(1, FRONTEND_SAMPLES // waveforms.shape[-1]))
            return torch.cat([self._spectrograms(part) for part in parts])

    def _spectrograms(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, channels, mels, frames)."""
        config = self.config
        rectangle = waveforms.new_ones(config.n_fft)
        spectrum = torch.stft(waveforms, config.n_fft, config.hop_length, window=rectangle, return_complex=True)
        spectrum = spectrum.transpose(1, 2)  # (B, N, n_fft / 2 + 1), as it lies in memory
        real, imaginary = spectrum.real.clone(), spectrum.imag.clone()
        power = _four_times_hann(real, 1).square() + _four_times_hann(imaginary, -1).square()
        channels = [decibels(self._mel(power) / 16)]  # (B, N, F)
        if config.frontend == "mel_stft":
            real, imaginary = self._mel(real), self._mel(imaginary)  # (B, N, F)
            # Padding mirrors the first frame, so its imaginary part is 0. A rounding error would choose between pi
            # and -pi and move an embedding by up to a percent.
            imaginary = F.pad(imaginary[:, 1:], (0, 0, 1, 0))
            channels += [decibels(torch.hypot(real, imaginary)), torch.atan2(imaginary, real)]
        if config.normalize_spectrogram:  # the floor is below any phase
            means = zip(channels, SPECTROGRAM_MEAN)
            channels = [(c.clamp(min=SPECTROGRAM_FLOOR) - mean) / SPECTROGRAM_STD for c, mean in means]
        channels = [channel.transpose(1, 2) for channel in channels]  # (B, F, N)
        return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)  # (B, C, F, N) in channels last

    def _mel(self, spectrum: Tensor) -> Tensor:
        """(batch, frames, n_fft / 2 + 1) -> (batch, frames, mels), without products for most zeros of the filters."""
        bands = [spectrum[..., bins] @ self.mel_filters[rows, bins].T for rows, bins in self.bands]
        return torch.cat(bands, dim=-1)


def _bands(filters: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Groups of mel filters (F, n_fft / 2 + 1): their rows, and the range of bins where they are not all 0."""
    for rows in np.array_split(np.arange(len(filters)), min(8, len(filters))):
        bins = np.flatnonzero(filters[rows].any(axis=0)).tolist() or [0]
        yield slice(int(rows[0]), int(rows[-1]) + 1), slice(bins[0], bins[-1] + 1)


def _four_times_hann(part: Tensor, symmetry: int) -> Tensor:
    """Real (symmetry 1) or imaginary (-1) part of a rectangular STFT (..., bins) -> of a Hann STFT, times -4."""
    # Bins beyond either end are mirror images.
    mirrored = torch.cat([symmetry * part[..., 1:2], part, symmetry * part[..., -2:-1]], dim=-1)
    return torch.add(mirrored[..., :-2] + mirrored[..., 2:], part, alpha=-2)


def decibels(magnitude: Tensor) -> Tensor:
    return 10.0 * torch.log10(magnitude + EPSILON)


def _as_affine(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, (C,) each, of batch normalization in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def is_wrapped(module: nn.Module) -> bool:
    """True for a layer that PEFT put in the place of another: its output is not that of its `weight` alone."""
    return "base_layer" in module._modules or "original_module" in module._modules


def _convolve(
    conv: nn.Conv1d | nn.Conv2d, hidden_states: Tensor, folded: tuple[Tensor, Tensor | None] | None = None
) -> Tensor:
    """Output of a convolution, or of one with another kernel and bias.

    In half precision and stride 2, oneDNN's AMX kernels read uninitialized memory if the input has one or two frames
    (torch 2.14). Such input is widened by zeros, which equal the padding.
    """
    plain: Any = conv.base_layer if is_wrapped(conv) else conv
    half = hidden_states.device.type == "cpu" and hidden_states.element_size() == 2
    affected = half and hidden_states.shape[-1] <= 2 and plain.stride[-1] == 2
    if affected:
        hidden_states = F.pad(hidden_states, (0, 4 - hidden_states.shape[-1]))
    output = conv(hidden_states) if folded is None else conv._conv_forward(hidden_states, *folded)
    return output[..., :1] if affected else output


class _AddToCenter(torch.autograd.Function):
    """Sum of a kernel and a 1x1 kernel at its center tap, in one pass over the kernel and none over its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, center: Tensor) -> Tensor:
        kernel = weight.clone()  # keeps the memory layout
        _center(kernel).add_(center)
        return kernel

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, _center(gradient)


def _center(kernel: Tensor) -> Tensor:
    """Center tap of a kernel (O, I, sizes), (O, I, ones)."""
    taps: tuple[Any, ...] = (..., *[slice(size // 2, size // 2 + 1) for size in kernel.shape[2:]])
    return kernel[taps]


class MTSLVRAdapter(nn.Module):
    """Adapter of one task at one convolution. This type, `bn`, is batch normalization alone: BN_t(conv(x)).

    Other types are subclasses; add yours with [`register_adapter_type`].

    Args:
        dims: Axes of the convolution, 1 or 2.
        in_channels, out_channels, stride: Those of the convolution.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm = BATCH_NORM[dims](out_channels)

    def forward(self, conv: nn.Conv1d | nn.Conv2d, hidden_states: Tensor) -> Tensor:
        """Output of convolution and adapter."""
        if self._is_wrapped(conv):
            return self.norm(self.unfolded(conv, hidden_states))
        if self.norm.training:
            return self.norm(_convolve(conv, hidden_states, (self.kernel(conv.weight), None)))
        return _convolve(conv, hidden_states, self.folded(conv.weight))

    def _is_wrapped(self, conv: nn.Module) -> bool:
        return is_wrapped(conv) or any(is_wrapped(part) for part in self.children())

    def training_kernel(self, conv: nn.Conv1d | nn.Conv2d) -> Tensor | None:
        """Kernel in training mode, in the dtype of autocast; None if `forward` uses none, or only the trunk's."""
        own_kernel = type(self).forward is MTSLVRAdapter.forward and type(self).kernel is not MTSLVRAdapter.kernel
        if not own_kernel or not self.norm.training or self._is_wrapped(conv):
            return None
        kernel, device = self.kernel(conv.weight), conv.weight.device.type
        casts = device != "meta" and torch.is_autocast_enabled(device)  # which does not know `meta`
        return kernel.to(torch.get_autocast_dtype(device)) if casts else kernel

    def unfolded(self, conv: nn.Conv1d | nn.Conv2d, hidden_states: Tensor) -> Tensor:
        """Output of trunk and adapter before batch normalization, each layer by its own forward, as for PEFT.

        Raises:
            ValueError: If the type defines only a kernel.
        """
        if type(self).kernel is not MTSLVRAdapter.kernel:
            raise ValueError(
                f"{type(self).__name__} adds its weights to the kernel of a convolution, and PEFT replaced that "
                "convolution or a part of the adapter: give the class a method `unfolded`, or leave these layers out "
                "of PEFT's `target_modules`."
            )
        return _convolve(conv, hidden_states)

    def kernel(self, weight: Tensor) -> Tensor:
        """Kernel of trunk and adapter before batch normalization; `weight` is the trunk's."""
        return weight

    def folded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel and bias of a convolution that equals trunk and adapter in eval mode, in `weight`'s dtype."""
        scale, bias = _as_affine(self.norm, weight.dtype)  # (C,)
        return self.kernel(weight) * scale.view(-1, *[1] * (weight.ndim - 1)), bias

    @torch.no_grad()
    def start_from(self, other: MTSLVRAdapter) -> None:
        """Copies the values of another task's adapter; parts that the other type lacks add nothing at first."""
        if type(self) is type(other):
            self.load_state_dict(other.state_dict())
        else:
            self.norm.load_state_dict(other.norm.state_dict())
            self.add_nothing(other)

    def add_nothing(self, other: MTSLVRAdapter) -> None:
        """Sets all parts but `norm` so that the output equals that of batch normalization alone."""


class MTSLVRParallelAdapter(MTSLVRAdapter):
    """Adapter in parallel: BN_t(conv(x) + A_t x), where A_t is a 1x1 convolution."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, stride: int):
        super().__init__(dims, in_channels, out_channels, stride)
        self.conv = CONVOLUTION[dims](in_channels, out_channels, 1, stride=stride, bias=False)

    def kernel(self, weight: Tensor) -> Tensor:
        """Trunk's kernel with the adapter added to its center tap."""
        return cast(Tensor, _AddToCenter.apply(weight, self.conv.weight.to(weight.dtype)))

    def unfolded(self, conv: nn.Conv1d | nn.Conv2d, hidden_states: Tensor) -> Tensor:
        return _convolve(conv, hidden_states) + _convolve(self.conv, hidden_states)

    def add_nothing(self, other: MTSLVRAdapter) -> None:
        self.conv.weight.zero_()


class MTSLVRSeriesAdapter(MTSLVRAdapter):
    """Adapter in series: BN_t(A_t BN'_t(y) + y) of y = conv(x), where A_t is a 1x1 convolution."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, stride: int):
        super().__init__(dims, in_channels, out_channels, stride)
        self.input_norm = BATCH_NORM[dims](out_channels)
        self.conv = CONVOLUTION[dims](out_channels, out_channels, 1, bias=False)

    def forward(self, conv: nn.Conv1d | nn.Conv2d, hidden_states: Tensor) -> Tensor:
        hidden_states = _convolve(conv, hidden_states)
        return self.norm(self.conv(self.input_norm(hidden_states)) + hidden_states)

    def folded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale, bias = _as_affine(self.norm, weight.dtype)
        inner_scale, inner_bias = _as_affine(self.input_norm, weight.dtype)
        matrix = self.conv.weight.to(weight.dtype).flatten(1)  # (C, C)
        identity = torch.eye(len(scale), dtype=weight.dtype, device=scale.device)
        mixing = scale[:, None] * (matrix * inner_scale + identity)
        return (mixing @ weight.flatten(1)).view_as(weight), bias + scale * (matrix @ inner_bias)

    def add_nothing(self, other: MTSLVRAdapter) -> None:
        self.conv.weight.zero_()
        self.input_norm.load_state_dict(other.norm.state_dict())
        self.input_norm.weight.fill_(1.0)
        self.input_norm.bias.zero_()


Kernels = Mapping[MTSLVRAdapter, Tensor]  # of trunk and adapter, by adapter

_ADAPTERS: dict[str, type[MTSLVRAdapter]] = {
    "bn": MTSLVRAdapter,
    "series": MTSLVRSeriesAdapter,
    "parallel": MTSLVRParallelAdapter,
}


def register_adapter_type(name: str, adapter: type[MTSLVRAdapter]) -> None:
    """Registers an adapter type for `MTSLVRConfig(adapter_type=name)` and `model.add_adapter(..., name)`.

    Each process must register it before it loads a model that has it.

    Raises:
        ValueError: If the name is taken.
    """
    if name in ADAPTER_TYPES:
        raise ValueError(f"There is an adapter type {name!r} already: choose another name.")
    ADAPTER_TYPES.append(name)
    _ADAPTERS[name] = adapter


class MTSLVRConvLayer(nn.Module):
    """Convolution of the trunk with its adapters. A plain convolution + BN has one `bn` adapter that all tasks share.

    Source: Heggan et al. 2023, section 3.2; Rebuffi et al., "Efficient parametrization of multi-domain deep neural
    networks", CVPR 2018, section 3.
    """

    def __init__(
        self, config: MTSLVRConfig, *sizes: int, adapters: Mapping[str, str] = BATCH_NORM_ONLY, **options: Any
    ):
        super().__init__()
        self.conv = _convolution(config, *sizes, **options)
        self.adapters = nn.ModuleDict()
        for task, adapter_type in adapters.items():
            self.add_adapter(task, adapter_type)

    def add_adapter(self, task: str, adapter_type: str, init_from: str | None = None) -> None:
        """Adds a task's adapter, which starts from the adapter of `init_from` if one is named."""
        conv = self.conv
        adapter = _ADAPTERS[adapter_type](conv.weight.ndim - 2, conv.in_channels, conv.out_channels, conv.stride[0])
        if init_from is not None:
            adapter.start_from(self._adapter(init_from))
            adapter.to(conv.weight.device, conv.weight.dtype)
        self.adapters[task] = adapter

    def _adapter(self, task: str) -> MTSLVRAdapter:
        return cast(MTSLVRAdapter, self.adapters[task])

    def forward(self, hidden_states: Tensor, task: str = SHARED, kernels: Kernels | None = None) -> Tensor:
        adapter = self._adapter(task if task in self.adapters else SHARED)
        if kernels and adapter in kernels:
            return adapter.norm(_convolve(self.conv, hidden_states, (kernels[adapter], None)))
        return adapter(self.conv, hidden_states)

    def folded(self, task: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Kernel and bias of a convolution that equals this layer in eval mode."""
        return self._adapter(task).folded(self.conv.weight.to(dtype))


class MTSLVRMergedConvLayer(nn.Module):
    """Convolution with merged adapters: one convolution with a bias for each task."""

    def __init__(
        self, config: MTSLVRConfig, *sizes: int, adapters: Mapping[str, str] = BATCH_NORM_ONLY, **options: Any
    ):
        super().__init__()
        self.convs = nn.ModuleDict({task: _convolution(config, *sizes, bias=True, **options) for task in adapters})

    def forward(self, hidden_states: Tensor, task: str = SHARED, kernels: Kernels | None = None) -> Tensor:
        conv = cast(nn.Conv2d, self.convs[task if task in self.convs else SHARED])
        return _convolve(conv, hidden_states)


class MTSLVRMergedNorm(nn.Module):
    """Merged batch normalization without a convolution next to it."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = (-1, *[1] * (hidden_states.ndim - 2))
        return hidden_states * self.weight.view(shape) + self.bias.view(shape)


def _convolution(
    config: MTSLVRConfig,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    padding: int | None = None,
    bias: bool = False,
) -> nn.Conv1d | nn.Conv2d:
    padding = kernel_size // 2 if padding is None else padding
    return CONVOLUTION[_dims(config)](in_channels, out_channels, kernel_size, stride, padding, bias=bias)


def _conv_layer(config: MTSLVRConfig) -> type[nn.Module]:
    return MTSLVRConvLayer if config.merged_adapters is None else MTSLVRMergedConvLayer


class MTSLVRBlock(GradientCheckpointingLayer):
    """Residual block: ReLU(branch + shortcut); two 3x3 convolutions, or 1x1, 3x3 and 1x1 in a bottleneck.

    Without adapters the shortcut is torchvision's projection; with adapters it has no parameters: adaptive average
    pooling to the branch's size, and zeros appended for the new channels.
    """

    def __init__(self, config: MTSLVRConfig, in_channels: int, width: int, stride: int, adapters: Mapping[str, str]):
        super().__init__()
        self.bottleneck = config.depth >= 50
        self.out_channels = width * 4 if self.bottleneck else width
        layer = partial(_conv_layer(config), config, adapters=adapters)
        kernel_size = BLOCK_KERNEL[_dims(config)]
        if self.bottleneck:
            self.conv1 = layer(in_channels, width, 1)
            self.conv2 = layer(width, width, kernel_size, stride=stride)
            self.conv3 = layer(width, self.out_channels, 1)
        else:
            self.conv1 = layer(in_channels, width, kernel_size, stride=stride)
            self.conv2 = layer(width, width, kernel_size)
        self.stride = stride
        self.shortcut = None
        if config.adapter_type == "none" and (stride > 1 or in_channels != self.out_channels):
            self.shortcut = _conv_layer(config)(config, in_channels, self.out_channels, 1)

    def conv_layers(self) -> list[nn.Module]:
        """Convolutions with adapters."""
        return [self.conv1, self.conv2, self.conv3] if self.bottleneck else [self.conv1, self.conv2]

    def forward(self, hidden_states: Tensor, task: str = SHARED, kernels: Kernels | None = None) -> Tensor:
        with _statistics_updated_once(self):
            branch = self.conv2(F.relu(self.conv1(hidden_states, task, kernels), inplace=True), task, kernels)
            if self.bottleneck:
                branch = self.conv3(F.relu(branch, inplace=True), task, kernels)
            return F.relu(branch.add_(self._shortcut(hidden_states, branch.shape)), inplace=True)

    def _shortcut(self, hidden_states: Tensor, shape: torch.Size) -> Tensor:
        if self.shortcut is not None:
            # Subsampling before a 1x1 convolution equals stride 2, whose backward pass can crash in oneDNN (seen with
            # 4 and 8 channels and 3 clips; torch 2.14, AVX-512, channels last, two threads).
            taken: tuple[Any, ...] = (..., *[slice(None, None, self.stride)] * (hidden_states.ndim - 2))
            return self.shortcut(hidden_states[taken])
        if hidden_states.shape[2:] != shape[2:]:
            hidden_states = AVERAGE_POOL[len(shape) - 2](hidden_states, shape[2:])
        missing = shape[1] - hidden_states.shape[1]
        return F.pad(hidden_states, [0, 0] * (len(shape) - 2) + [0, missing]) if missing else hidden_states


@contextmanager
def _statistics_updated_once(block: nn.Module) -> Iterator[None]:
    """Keeps BatchNorm's running statistics while gradient checkpointing recomputes a block in the backward pass."""
    recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    norms = [m for m in block.modules() if isinstance(m, BatchNorm)] if recomputing else []
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # `track_running_stats` stays: the recomputation must save the same tensors as the forward
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class MTSLVREncoder(nn.Module):
    """ResNet: stem and layer1 run once for all tasks, layer2 to layer4 once per task if they have adapters."""

    def __init__(self, config: MTSLVRConfig):
        super().__init__()
        dims, width = _dims(config), config.base_width
        kind = "bn" if config.adapter_type == "none" else config.adapter_type
        kinds = {task: config.added_adapters.get(task, kind) for task in config.available_tasks}
        if config.adapter_type == "none":  # the tasks of pre-training share one adapter, those added have their own
            kinds = {task if task in config.added_adapters else SHARED: kind for task, kind in kinds.items()}
        self.branches = tuple(kinds)
        self.stem = _conv_layer(config)(config, _input_channels(config), width, STEM_KERNEL[dims], stride=2, padding=3)
        channels, layers = width, []
        for number, blocks in enumerate(BLOCKS[config.depth], start=1):
            layer = nn.ModuleList()
            for index in range(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                adapters = {SHARED: kind} if number == 1 else kinds
                block = MTSLVRBlock(config, channels, width * 2 ** (number - 1), stride, adapters)
                layer.append(block)
                channels = block.out_channels
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        norm = BATCH_NORM[dims] if config.merged_adapters is None else MTSLVRMergedNorm
        with_norms = self.branches if config.adapter_type != "none" else ()
        self.final_norms = nn.ModuleDict({task: norm(channels) for task in with_norms})

    def forward(
        self,
        features: Tensor,
        tasks: Sequence[str],
        output_hidden_states: bool = False,
        kernels: Kernels | None = None,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...] | None]:
        """Feature maps of features (windows, channels, bands, frames) or (windows, 1, samples).

        `kernels` are those of [`training_kernels`], if several passes share them.

        Returns:
            Feature map of each task (windows, hidden_size, bands, frames), and the hidden states after the stem and
            after each layer, tasks side by side on the channel axis.
        """
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        # ReLU behind the pooling: the same values and gradients, with a quarter of the work.
        hidden = MAX_POOL[features.ndim - 2](self.stem(features, kernels=kernels), stride=2, padding=1)
        hidden = F.relu(hidden, inplace=True)
        hidden_states = [hidden]
        for block in self.layer1:
            hidden = block(hidden, kernels=kernels)
        hidden_states.append(hidden)
        wanted = [self.branch(task) for task in tasks]
        branches = [branch for branch in self.branches if branch in wanted]
        maps = dict.fromkeys(branches, hidden)
        for layer in (self.layer2, self.layer3, self.layer4):
            for branch in branches:
                for block in layer:
                    maps[branch] = block(maps[branch], task=branch, kernels=kernels)
            if output_hidden_states:
                hidden_states.append(torch.cat(list(maps.values()), dim=1) if len(maps) > 1 else maps[branches[0]])
        if len(self.final_norms) > 0:
            maps = {branch: F.relu(self.final_norms[branch](maps[branch]), inplace=True) for branch in maps}
        maps = {task: maps[self.branch(task)] for task in tasks}
        return maps, tuple(hidden_states) if output_hidden_states else None

    def training_kernels(self, tasks: Sequence[str]) -> Kernels:
        """Kernels of trunk and adapters of these tasks, once for several forward passes; none in eval mode."""
        branches, kernels = {SHARED, *(self.branch(task) for task in tasks)}, {}
        for layer in self.modules():
            if isinstance(layer, MTSLVRConvLayer):
                for task, adapter in layer.adapters.items():
                    if task in branches and isinstance(adapter, MTSLVRAdapter):
                        kernels[adapter] = adapter.training_kernel(layer.conv)
        return {adapter: kernel for adapter, kernel in kernels.items() if kernel is not None}

    def branch(self, task: str) -> str:
        """Name of the adapters that a task uses in layer2 to layer4."""
        return task if task in self.branches else SHARED

    def task_layers(self) -> Iterator[tuple[str, MTSLVRConvLayer]]:
        """Convolutions in layer2 to layer4, where each task has adapters of its own, by name."""
        for number in (2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{number}")):
                for position, layer in enumerate(block.conv_layers(), start=1):
                    yield f"layer{number}.{index}.conv{position}", layer

    def add_adapter(self, task: str, adapter_type: str, init_from: str) -> None:
        """Adds a task's adapters, which start from those of `init_from`."""
        for _, layer in self.task_layers():
            layer.add_adapter(task, adapter_type, self.branch(init_from))
        if len(self.final_norms) > 0:
            self.final_norms[task] = copy.deepcopy(self.final_norms[init_from])
        self.branches += (task,)

    def delete_adapter(self, task: str) -> None:
        """Removes a task's adapters."""
        for _, layer in self.task_layers():
            del layer.adapters[task]
        if task in self.final_norms:
            del self.final_norms[task]
        self.branches = tuple(branch for branch in self.branches if branch != task)


def _dims(config: MTSLVRConfig) -> int:
    return 1 if config.frontend == "waveform" else 2


def _input_channels(config: MTSLVRConfig) -> int:
    return 3 if config.frontend == "mel_stft" else 1


def _of_package(name: str) -> ModuleType:
    """Module of the package that is not downloaded with the model's code."""
    module = module_of_package(name)
    if module is None:
        raise ImportError(f"This needs {_PACKAGE}.")
    return module


def feature_extractor_of(
    model: MTSLVRPreTrainedModel, given: MTSLVRFeatureExtractor | None = None
) -> MTSLVRFeatureExtractor:
    """Feature extractor that `from_pretrained` found with the model's weights; the default one for a model without.

    Args:
        model: An MT-SLVR model of any class.
        given: Taken instead, if it fits.

    Raises:
        ValueError: If `given` has another sampling rate than the model.
        OSError: If there is none with the model's weights.
    """
    if given is not None:
        if given.sampling_rate != model.config.sampling_rate:
            raise ValueError(
                f"The feature extractor gives {given.sampling_rate} Hz and the model takes "
                f"{model.config.sampling_rate} Hz: pass the model's own extractor."
            )
        return given
    loaded = model.base_model.loaded_extractor
    if loaded is None:
        return MTSLVRFeatureExtractor(sampling_rate=model.config.sampling_rate)
    if isinstance(loaded, str):
        raise OSError(
            f"{model.config.name_or_path} had no feature extractor that could be loaded with the model: pass "
            "`feature_extractor`, or save one there with `MTSLVRFeatureExtractor().save_pretrained(...)` and load the "
            f"model again ({loaded})."
        )
    return feature_extractor_of(model, loaded)


def _load_extractor(source: str | os.PathLike, options: Mapping[str, Any]) -> MTSLVRFeatureExtractor | str:
    """Feature extractor beside a model's weights, loaded with the same options; or the reason why there is none."""
    try:
        extractor = MTSLVRFeatureExtractor.from_pretrained(
            source, **{name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
        )
    except (OSError, TypeError, ValueError) as error:  # no file, no connection; a file of other content
        return " ".join(str(error).split())
    return extractor


HUB_OPTIONS = ("subfolder", "cache_dir", "revision", "token", "local_files_only", "force_download")
PUSH_OPTIONS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class MTSLVRPreTrainedModel(PreTrainedModel):
    """Base class of the models: initialization, loading, adapters and `encode`."""

    config: MTSLVRConfig
    config_class = MTSLVRConfig
    base_model_prefix = "mtslvr"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MTSLVRBlock"]

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        if not config.use_heads:  # a checkpoint that was trained with heads still has them
            ignored = self._keys_to_ignore_on_load_unexpected or ()
            self._keys_to_ignore_on_load_unexpected = [*ignored, r"(^|\.)heads\."]

    @property
    def base_model(self) -> MTSLVRModel:
        """Network without classifier and projectors."""
        return cast(MTSLVRModel, super().base_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MTSLVRFrontend):
            module.reset_buffers()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:  # of a merged network
                init.zeros_(module.bias)
        elif isinstance(module, MTSLVRMergedNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's own default
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)  # BatchNorm: 1 and 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Loads a model as in transformers, and the feature extractor beside its weights, which `encode` takes.

        `pooling`, `num_bands` and `use_heads` may differ from those of the checkpoint: see [`MTSLVRConfig.from_dict`].

        Raises:
            OSError: If there is no model, or a file of weights is damaged.
            ValueError: If the pooling differs, and the checkpoint has projectors or a classifier, which would not fit.
        """
        cls._check_embedding(pretrained_model_name_or_path, kwargs)
        from safetensors import SafetensorError

        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"{pretrained_model_name_or_path} has weights that cannot be read ({error}): download or save the "
                "model again."
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        config = model.config
        if getattr(config, "_commit_hash", None) is None:  # transformers 5.0 sets it, 5.23 does not; neither saves it
            config._commit_hash = kwargs.get("revision")
        if config.name_or_path:
            options = {**kwargs, "revision": config._commit_hash}
            model.base_model.loaded_extractor = _load_extractor(config.name_or_path, options)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Saves the model as in transformers, and a model card, README.md.

        A card that exists stays, with `library_name`, `pipeline_tag` and tags where they are missing.

        Args:
            save_directory: Folder; it is made if it does not exist.
            is_main_process, state_dict, args, kwargs: As in transformers.
            push_to_hub: Also publishes the model as `repo_id` (default: the folder's name), with the arguments of
                [`push_to_hub`]. A card that was in the folder replaces that on the Hub.

        Raises:
            ValueError: If PEFT replaced layers, which its own `save_pretrained` writes.
        """
        if any(is_wrapped(module) for module in self.modules()):
            raise ValueError(
                "PEFT replaced layers of this model: save the model that `get_peft_model` or "
                "`PeftModel.from_pretrained` returned, or its `merge_and_unload()`."
            )
        push = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
        card = Path(save_directory) / "README.md"
        existed = card.is_file()
        super().save_pretrained(save_directory, is_main_process, state_dict, False, *args, **kwargs)
        if not is_main_process:
            return
        for weights in card.parent.glob("*.safetensors"):  # safetensors writes them for the owner alone
            shutil.copymode(card.parent / "config.json", weights)
        self._write_card(card.parent, repo_id if push_to_hub else None, push.get("tags"))
        if push_to_hub:
            text = card.read_text(encoding="utf-8") if existed else None
            self._push(
                repo_id, push, lambda to: self.save_pretrained(to, True, state_dict, False, *args, **kwargs), text
            )

    def push_to_hub(  # type: ignore[override]  # transformers does not name the arguments
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] | str | None = None,
    ) -> CommitInfo:
        """Publishes the model on the Hub as in transformers, with a model card; returns the commit.

        A card that is on the Hub stays, with `library_name`, `pipeline_tag` and tags where they are missing. The card
        names no license. `mtslvr publish` also checks what it publishes, and needs a license.

        Args:
            repo_id: Repository, OWNER/NAME; it is made if it does not exist.
            commit_message, commit_description: Default message: "Upload model".
            private: Make a new repository private.
            token: Token of the Hub; default: that of `hf auth login`, or HF_TOKEN.
            revision: Branch, made if it does not exist; default: main.
            create_pr: Open a pull request instead of a commit.
            max_shard_size: Largest file of weights.
            tags: Further tags of the card.
        """
        options = {
            "commit_message": commit_message,
            "commit_description": commit_description,
            "private": private,
            "token": token,
            "revision": revision,
            "create_pr": create_pr,
            "tags": tags,
        }
        return self._push(repo_id, options, lambda folder: self.save_pretrained(folder, max_shard_size=max_shard_size))

    def _push(
        self, repo_id: str, options: Mapping[str, Any], save: Callable[[str], None], card: str | None = None
    ) -> CommitInfo:
        """Publishes what `save` writes, with a card: the given text, or the one on the Hub, or a new one.

        `options` are those of `push_to_hub`, named in PUSH_OPTIONS.
        """
        from huggingface_hub import HfApi

        # transformers' own method would replace the card of `save_pretrained` by a template.
        api = HfApi(token=options.get("token"))
        revision, create_pr = options.get("revision"), options.get("create_pr", False)
        repo_id = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if card is None and api.file_exists(repo_id, "README.md", revision=revision):
            file = api.hf_hub_download(repo_id, "README.md", revision=revision)
            card = Path(file).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            if card is not None:
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            self._write_card(Path(folder), repo_id, options.get("tags"))
            save(folder)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=options.get("commit_message") or "Upload model",
                commit_description=options.get("commit_description"),
            )

    def _write_card(self, folder: Path, repo_id: str | None = None, tags: Sequence[str] | str | None = None) -> None:
        """Writes or completes a folder's model card; without the package, writes a short one if there is none."""
        further = [*([tags] if isinstance(tags, str) else tags or ()), *(self.model_tags or ())]
        module = module_of_package("cards.saved")
        if module is not None:
            module.write_card(self, folder, repo_id, further)
        elif not (folder / "README.md").exists():
            from huggingface_hub import ModelCardData

            classifies = isinstance(self, MTSLVRForAudioClassification)
            data = ModelCardData(
                library_name="transformers",
                pipeline_tag="audio-classification" if classifies else "feature-extraction",
                tags=list(dict.fromkeys(["mtslvr", "audio", *further])),
            )
            name = "AutoModelForAudioClassification" if classifies else "AutoModel"
            load = f'{name}.from_pretrained("{repo_id or "THIS_FOLDER"}", trust_remote_code=True)'
            text = f"# MT-SLVR audio {'classifier' if classifies else 'embeddings'}\n\n`{load}` loads the model.\n"
            (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")

    @classmethod
    def _check_embedding(cls, source: Any, options: Mapping[str, Any]) -> None:
        """Raises a ValueError if this class has more than an embedding, trained on another one than asked for."""
        config = options.get("config")
        if issubclass(cls, MTSLVRModel):
            return
        if not isinstance(config, PreTrainedConfig):
            if not options.keys() & {"pooling", "num_bands", "use_heads"}:
                return
            config = cls.config_class.from_pretrained(config or source, **{**options, "config": None})
        trained = set(getattr(config, "architectures", None) or ()) & {base.__name__ for base in cls.__mro__}
        if getattr(config, "_other_embedding", False) and trained:
            raise ValueError(
                f"{source} was saved as {trained.pop()}, trained on another embedding than that of `pooling` "
                f"{config.pooling!r} with `use_heads` {config.use_heads}: load it as saved, or with AutoModel for the "
                "embedding alone."
            )

    def encode(
        self,
        audio: AudioInput | Iterable[Any],
        sampling_rate: int | None = None,
        *,
        feature_extractor: MTSLVRFeatureExtractor | None = None,
        tasks: Sequence[str] | str | None = None,
        batch_size: int = 32,
        normalize: bool = False,
        return_timestamps: bool = False,
        convert_to: Literal["numpy", "torch"] = "numpy",
        on_error: Literal["raise", "skip"] = "raise",
        num_workers: int | None = None,
        compile: bool = False,
        show_progress_bar: bool | None = None,
        channels_first: bool = False,
        on_truncated: Literal["error", "keep"] = "error",
    ) -> Any:
        """Embeddings of audio of any kind, rate and length: files, URLs, arrays, data set rows, iterators of them.

        Audio is cut into windows, whose embeddings are averaged. soxr resamples it, as in pre-training. Memory does
        not grow with an item's length, and the model does not change. Silence has an embedding.

        Without the package (`trust_remote_code=True`), it embeds arrays, and files that soundfile reads, one after
        another and each whole in memory; `num_workers` and `show_progress_bar` have no effect.

        Args:
            audio: One item or several (list, tuple, iterator, `datasets.Dataset` or `IterableDataset`, or an array or
                tensor (batch, samples)). An item is a path; a URL that fsspec opens; an array, tensor or list of
                numbers, (samples,); a dictionary with `array`, (samples,) or (channels, samples), and `sampling_rate`,
                or with `bytes` or `path` of an encoded file; an encoded file's bytes; a data set's row with an audio
                column; or a decoder of datasets or torchcodec. Integers are converted as by `MTSLVRFeatureExtractor`,
                and channels are averaged.
            sampling_rate: Rate in Hz of arrays without one. Default: every item has its own.
            feature_extractor: Sets normalization, sampling rate and `do_resample`. Default: the one saved with the
                model's weights; for a model that was not loaded, the standard one.
            tasks: Tasks of the embedding, in its order. Default: the model's active ones.
            batch_size: Windows that go through the network at once. Default: 32; on a CPU at most 80 seconds of audio.
            normalize: Give embeddings the L2 norm 1. Default: False.
            return_timestamps: Return embeddings over time. Default: False.
            convert_to: `"numpy"` (default), or `"torch"` for tensors on the CPU.
            on_error: `"raise"` (default), or `"skip"`: a bad item's row is NaN (with timestamps: no frames), with a
                warning.
            num_workers: Threads that decode ahead; 0 decodes between batches. On a CPU, as many threads run the
                network, each on one core. Default: one for each core of the process; 2 for an accelerator.
            compile: Compile the network with `torch.compile`, once for this `batch_size`: takes about ten seconds,
                saves more over thousands of windows. Needs a C++ compiler on a CPU. Default: False.
            show_progress_bar: Default: on a terminal, for more than 10 items or an unknown number.
            channels_first: True if a 2-D array is one clip (channels, samples); a 3-D array is then a batch of them.
                Default: False.
            on_truncated: `"error"` (default), or `"keep"` to embed what a truncated file has.

        Returns:
            (D,) float32 for one item, (items, D) for several. With timestamps, a named tuple of `embeddings`
            (frames, D) and `seconds` (frames,), the centers of the frames, or a list of them.

        Raises:
            BadClipError: A ValueError that names the bad item, the reason and a remedy.
            TypeError: If `audio` is neither one item nor several.
            ValueError: If an option is out of range, the extractor does not fit the model, or an array may be read in
                two ways.
            OSError: If there is no feature extractor with the model's weights.
            ImportError: If the package is missing, and `return_timestamps`, `compile`, `on_error="skip"` or
                `on_truncated="keep"` was asked.
        """
        package = module_of_package("embedding")
        if package is None:
            if return_timestamps or compile or on_error != "raise" or on_truncated != "error":
                raise ImportError(f"`return_timestamps`, `compile`, `on_error` and `on_truncated` need {_PACKAGE}.")
            if convert_to not in ("numpy", "torch"):
                raise ValueError(f"`convert_to` must be one of 'numpy', 'torch'; got {convert_to!r}.")
            embeddings = self._encode_alone(
                audio, sampling_rate, feature_extractor, tasks, batch_size, channels_first, normalize
            )
            return embeddings.numpy() if convert_to == "numpy" else embeddings
        return package.encode(
            self.base_model,
            audio,
            sampling_rate,
            feature_extractor=feature_extractor,
            tasks=tasks,
            batch_size=batch_size,
            normalize=normalize,
            return_timestamps=return_timestamps,
            convert_to=convert_to,
            on_error=on_error,
            num_workers=num_workers,
            compile=compile,
            show_progress_bar=show_progress_bar,
            channels_first=channels_first,
            on_truncated=on_truncated,
        )

    def _encode_alone(
        self,
        audio: Any,
        sampling_rate: int | None,
        feature_extractor: MTSLVRFeatureExtractor | None,
        tasks: Sequence[str] | str | None,
        batch_size: int,
        channels_first: bool,
        normalize: bool,
    ) -> Tensor:
        """Embeddings by the model's own code, (D,) for one clip or (clips, D) for several."""
        clips, single = split_audio(audio, channels_first)
        extractor = feature_extractor_of(self, feature_extractor)
        rows = [torch.zeros(0, self.config.embedding_size_of(tasks))]
        for number, clip in enumerate(clips):
            waveform = extractor.prepare(clip, sampling_rate, number, channels_first)
            embedding = self.base_model.embed_waveform(waveform, tasks, batch_size)
            if not embedding.isfinite().all():
                raise ValueError(
                    f"Clip {number}: its embedding is not finite; samples should lie within -1 to 1, and the model's "
                    "weights should be finite."
                )
            rows.append(embedding[None])
        embeddings = torch.cat(rows)
        embeddings = F.normalize(embeddings, dim=-1) if normalize else embeddings
        return embeddings[0] if single else embeddings

    @staticmethod
    def similarity(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Cosine similarities of all pairs of embeddings, as in sentence-transformers.

        Args:
            a, b: Embeddings (n, D) and (m, D), or (D,) for a single one.

        Returns:
            (n, m) float32.

        Raises:
            ValueError: If the shapes are others, or the sizes of the embeddings differ.
        """
        a, b = torch.as_tensor(a).float(), torch.as_tensor(b).float()
        if a.ndim not in (1, 2) or b.ndim not in (1, 2) or a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"Embeddings have the shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (n, D) and (m, D)."
            )
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        return torch.atleast_2d(a) @ torch.atleast_2d(b).T

    def add_adapter(self, name: str, adapter_type: str | None = None, init_from: str | None = None) -> None:
        """Adds a task with adapters and a head of its own; the embeddings of other tasks do not change.

        The task starts as a copy of `init_from`; a 1x1 convolution that the other adapter type lacks starts at 0.
        Train it with [`train_adapter`], use it with [`set_adapter`] or `tasks=`.

        Args:
            name: Name of the task: letters, digits, _ and -.
            adapter_type: `"bn"`, `"series"` or `"parallel"`; default: the model's own (`"bn"` if it has none).
            init_from: Task to start from; default: the first task of pre-training.

        Raises:
            ValueError: If the name is taken or not allowed, the type or task is unknown, or the model is merged.
        """
        config, model = self.config, self.base_model
        if not isinstance(name, str):
            raise ValueError(
                f"`name` is a {type(name).__name__}; expected the name of a new task. For an adapter of PEFT, call "
                "`peft.get_peft_model(model, config)`."
            )
        model.refuse_if_merged("add an adapter to")
        model.refuse_if_wrapped("add an adapter to")
        adapter_type = adapter_type or (config.adapter_type if config.adapter_type != "none" else "bn")
        config.check_new_adapter(name, adapter_type)
        if name in config.added_adapters:
            raise ValueError(f"There is an adapter {name!r} already: delete it first, or choose another name.")
        init_from = config.tasks[0] if init_from is None else init_from
        config.check_tasks([init_from])
        model.encoder.add_adapter(name, adapter_type, init_from)
        if config.use_heads:
            model.heads[name] = copy.deepcopy(model.head(init_from)).requires_grad_(True)
        config.added_adapters = {**config.added_adapters, name: adapter_type}
        model.keep_frozen()

    def delete_adapter(self, name: str) -> None:  # type: ignore[override]  # other arguments than PEFT's
        """Removes a task that [`add_adapter`] added; if it was the whole embedding, activates those of pre-training.

        Raises:
            ValueError: If the task was not added, or the model is merged.
        """
        self.base_model.refuse_if_merged("delete an adapter of")
        self.base_model.refuse_if_wrapped("delete an adapter of")
        if name not in self.config.added_adapters:
            added = list(self.config.added_adapters) or "none"
            raise ValueError(f"{name!r} is not among the adapters that were added: {added}.")
        remaining = [task for task in self.config.embedding_tasks if task != name]
        self.set_adapter(remaining or self.config.tasks)
        self.base_model.encoder.delete_adapter(name)
        if name in self.base_model.heads:
            del self.base_model.heads[name]
        self.config.added_adapters = {k: v for k, v in self.config.added_adapters.items() if k != name}
        if self.config.embedding_scale is not None:
            self.config.embedding_scale = {k: v for k, v in self.config.embedding_scale.items() if k != name}

    def set_adapter(self, names: Sequence[str] | str) -> None:
        """Sets the active tasks: the tasks of the embedding, in its order. They are saved with the model.

        Raises:
            ValueError: If the model has no such task.
        """
        names = self.config.resolve_tasks(names)
        self.config.active_adapters = None
        if names != self.config.embedding_tasks:
            self.config.active_adapters = names

    def active_adapters(self) -> list[str]:
        """Tasks of the embedding, in its order. (A method, as in every transformers model.)"""
        return list(self.config.embedding_tasks)

    def train_adapter(self, name: str) -> None:
        """Activates a task, and freezes all but its adapters, its head and a classifier.

        Statistics of batch normalization are frozen too, so the embeddings of other tasks stay the same to the bit. To
        train everything again, reload the model.

        Raises:
            ValueError: If there is no such task, it shares weights with other tasks, or the model is merged.
        """
        self.base_model.check_own_adapter("train", name)
        self.set_adapter(name)
        self.base_model.train_only((name,))

    def save_adapter(self, folder: str, name: str) -> str:
        """Writes one task's adapters and head to a file, and returns its path.

        Needs the package; see [`mtslvr_hf.adapters.save_adapter`].
        """
        return _of_package("adapters").save_adapter(self, folder, name)

    def load_adapter(  # type: ignore[override]  # other arguments than PEFT's
        self, source: str, name: str | None = None, **options: Any
    ) -> str:
        """Adds a task that [`save_adapter`] wrote, from a folder, a file or the Hub, and returns its name.

        Needs the package; see [`mtslvr_hf.adapters.load_adapter`]. (`from_pretrained` of a folder of PEFT passes
        `adapter_name` and further options: these load PEFT's layers.)
        """
        if "adapter_name" in options:
            return super().load_adapter(source, **options)  # type: ignore[return-value]
        return _of_package("adapters").load_adapter(self, source, name, **options)

    def print_trainable_parameters(self) -> None:
        """Prints the number of trainable parameters, as PEFT does."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        total, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    def merge_adapters(self, tasks: Sequence[str] | str | None = None) -> MTSLVRPreTrainedModel:
        """Merges adapters and batch normalization into plain convolutions, in place: same embeddings in less time.

        Args:
            tasks: Tasks to keep; default: all. A merged model computes no others.

        Returns:
            The model itself. It saves and loads like any other; [`unmerge_adapters`] works until then.

        Raises:
            ValueError: If the model is merged already, a task is unknown, or a classifier or projector needs more
                tasks.
        """
        model = self.base_model
        model.refuse_if_merged("merge")
        model.refuse_if_wrapped("merge the adapters of")
        tasks = self.config.resolve_tasks(self.config.available_tasks if tasks is None else tasks)
        missing = [task for task in self._needed_tasks() if task not in tasks]
        if missing:
            raise ValueError(f"{type(self).__name__} reads {self._needed_tasks()}, so {missing} must be merged too.")
        merged = model.merged_copy(tasks)
        model.unmerged = (model.encoder, model.heads, self.config.active_adapters)
        model.encoder, model.heads = merged.encoder, merged.heads
        active = [task for task in self.config.embedding_tasks if task in tasks]
        self.config.merged_adapters = tasks
        self.config.active_adapters = None
        self.set_adapter(active or tasks)
        return self

    def unmerge_adapters(self) -> MTSLVRPreTrainedModel:
        """Undoes [`merge_adapters`] exactly.

        Raises:
            ValueError: If the model is not merged, or was merged before it was saved.
        """
        model = self.base_model
        if self.config.merged_adapters is None:
            raise ValueError("The model is not merged.")
        if model.unmerged is None:
            raise ValueError(
                "This model was merged before it was saved, so its trunk, adapters and batch normalization are gone: "
                "load the checkpoint that it was made from."
            )
        device, dtype = model.device, model.dtype
        encoder, heads, active = model.unmerged
        model.unmerged = None
        model.encoder, model.heads = encoder.to(device, dtype), heads.to(device, dtype)
        self.config.merged_adapters, self.config.active_adapters = None, active
        model.keep_frozen()
        return self

    def _needed_tasks(self) -> list[str]:
        """Tasks that classifier or projectors need."""
        return []


class ClipWindows(NamedTuple):
    """Map of windows to clips; the windows of a clip are neighbors."""

    clip: Tensor  # (W,) index of the clip
    number: Tensor  # (W,) index of the window within its clip
    counts: Tensor  # (B,) windows of each clip
    most: int  # windows of the longest clip

    @classmethod
    def same_for_all(cls, batch: int, count: int, device: torch.device) -> ClipWindows:
        """`count` windows for each of `batch` clips."""
        clip = torch.arange(batch, device=device).repeat_interleave(count)
        number = torch.arange(count, device=device).repeat(batch)
        return cls(clip, number, torch.full((batch,), count, device=device), count)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each clip's windows: (windows, D) -> (batch, D)."""
        if len(self.clip) == len(self.counts):
            return values
        total = values.new_zeros(len(self.counts), values.shape[1]).index_add_(0, self.clip, values)
        return total / self.counts[:, None].to(values.dtype)

    def concatenate(self, frames: Tensor) -> Tensor:
        """Frames of each clip's windows, then zeros if it has fewer: (windows, N, C) -> (batch, frames, C)."""
        if len(self.clip) == len(self.counts):
            return frames
        shape = (len(self.counts), self.most, *frames.shape[1:])
        return frames.new_zeros(shape).index_put((self.clip, self.number), frames).flatten(1, 2)


def cut_windows(waveforms: Tensor, attention_mask: Tensor | None, window_samples: int) -> tuple[Tensor, ClipWindows]:
    """Windows of clips; a short clip, and the last part of a long clip, is repeated to fill its window.

    Args:
        waveforms: (batch, samples), padded on the right.
        attention_mask: (batch, samples), 1 for samples and 0 for padding; None if there is no padding.
        window_samples: Samples of a window.

    Returns:
        Windows (windows, window_samples), and their map to clips.

    Raises:
        ValueError: If shapes do not fit, a clip is empty, or padding comes before samples.
    """
    if waveforms.ndim != 2 or 0 in waveforms.shape:
        raise ValueError(
            f"`input_values` must be (batch, samples), not empty; got the shape {tuple(waveforms.shape)}."
        )
    batch, samples = waveforms.shape
    if attention_mask is None:
        windows = ClipWindows.same_for_all(batch, -(-samples // window_samples), waveforms.device)
        if samples == window_samples:
            return waveforms, windows
        lengths = torch.full((batch,), samples, device=waveforms.device)
    else:
        lengths = _clip_lengths(attention_mask, waveforms.shape)
        counts = -(-lengths // window_samples)  # (B,)
        clip = torch.arange(batch, device=waveforms.device).repeat_interleave(counts)  # (W,)
        number = torch.arange(len(clip), device=waveforms.device) - (counts.cumsum(0) - counts)[clip]
        windows = ClipWindows(clip, number, counts, int(counts.max()))
    start = windows.number * window_samples  # (W,)
    length = (lengths[windows.clip] - start).clamp(max=window_samples)  # (W,)
    position = torch.arange(window_samples, device=waveforms.device) % length[:, None]  # (W, window_samples)
    return waveforms[windows.clip[:, None], start[:, None] + position], windows


def _clip_lengths(attention_mask: Tensor, shape: torch.Size) -> Tensor:
    if attention_mask.shape != shape:
        raise ValueError(f"`attention_mask` has the shape {tuple(attention_mask.shape)}, the clips {tuple(shape)}.")
    mask = attention_mask.bool()
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("`attention_mask` has padding before samples; clips must be padded on the right only.")
    lengths = mask.sum(dim=1)
    if not lengths.all():
        raise ValueError(f"`attention_mask` leaves clip {int(lengths.argmin())} without a sample.")
    return lengths


class _Weights:
    """State of parameters and buffers, to find out later whether they are the same, without a look at all values.

    Version counters show all changes but those through `.data`. For these, it holds a sample of the values: all of a
    vector, and of other tensors one of each row (the first axis) and one of each column (the other axes).
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.counters = self._counters(tensors)
        floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        self.whole = [tensor.flatten() for tensor in floating if tensor.ndim < 2]  # views, as all of these
        self.parts = [self._part(tensor) for tensor in floating if tensor.ndim >= 2]
        self.sample = self._sample()

    def are_those_of(self, tensors: Sequence[Tensor]) -> bool:
        return self._counters(tensors) == self.counters and torch.equal(self._sample(), self.sample)

    @staticmethod
    def _counters(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
        return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]

    @staticmethod
    def _part(tensor: Tensor) -> Tensor:
        """View of values at equal distances in memory."""
        flat = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
        rows, columns = len(tensor), tensor.numel() // len(tensor)
        # If step and columns have no common divisor, `columns` steps meet each column.
        step = next(step for step in range(min(rows, columns), 0, -1) if math.gcd(step, columns) == 1)
        return flat.view(-1)[::step] if flat.is_contiguous() else tensor

    def _sample(self) -> Tensor:
        """Bits of the sample, so that NaN equals itself."""
        sample = torch.cat([torch.cat(self.whole), *map(torch.flatten, self.parts)])
        return sample.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[sample.element_size()])


class MTSLVRModel(MTSLVRPreTrainedModel):
    """MT-SLVR from audio to embeddings: frontend, ResNet with adapters, heads, mean over a clip's windows.

    Source: Heggan et al., "MT-SLVR: Multi-Task Self-Supervised Learning for Transformation In(Variant)
    Representations", Interspeech 2023, section 3.
    """

    _keys_to_ignore_on_load_unexpected = [PROJECTORS, r"^classifier\."]

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.frontend = MTSLVRFrontend(config)
        self.encoder = MTSLVREncoder(config)
        heads = [SHARED if config.shared_head and task in config.tasks else task for task in config.available_tasks]
        heads = heads if config.use_heads else []
        self.heads = nn.ModuleDict({task: nn.Linear(config.pooled_size, config.head_size) for task in heads})
        self._trained: tuple[str, ...] | None = None  # tasks whose adapters train; None: everything trains
        # From the place of the weights, or the reason why there is none; None for a model that was not loaded.
        self.loaded_extractor: MTSLVRFeatureExtractor | str | None = None
        # Encoder, heads and active tasks before the merge; in a tuple, so that they are no submodules and not saved.
        self.unmerged: tuple[MTSLVREncoder, nn.ModuleDict, list[str] | None] | None = None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        output_hidden_states: bool | None = None,
        kernels: Kernels | None = None,
    ) -> MTSLVRModelOutput:
        """Embeds a batch of clips. The embedding of a clip does not depend on other clips or on padding.

        Args:
            input_values: (batch, samples) normalized waveforms at `config.sampling_rate`, padded on the right.
            attention_mask: (batch, samples), 1 for samples and 0 for padding; None if there is no padding.
            input_features: Output of `model.frontend` instead of `input_values`, (batch, channels, mels, frames). Each
                item is one window.
            tasks: Tasks to compute, in the order of `pooler_output`; default: the active tasks.
            output_hidden_states: Whether to return the feature maps after the stem and the layers.
            kernels: Output of `encoder.training_kernels(tasks)`, if several passes of a training step share it.

        Raises:
            ValueError: If both or no inputs came, a shape is wrong, the mask leaves no samples, or a task is unknown.
        """
        tasks = self.config.resolve_tasks(tasks)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        features, windows = self._features(input_values, attention_mask, input_features)
        features = features.to(next(self.encoder.parameters()).dtype)
        maps, hidden_states = self.encoder(features, tasks, output_hidden_states, kernels)
        embeddings = {task: windows.mean(self.embed(task, self.pool(maps[task]))) for task in tasks}  # (B, head_size)
        frames = torch.cat([self._over_time(maps[task], features) for task in tasks], dim=-1)  # (W, N, P x T)
        return MTSLVRModelOutput(
            last_hidden_state=windows.concatenate(frames),
            pooler_output=self.concatenate_parts(embeddings, tasks),
            contrastive_embeds=embeddings.get("contrastive"),
            predictive_embeds=embeddings.get("predictive"),
            added_embeds={task: embeddings[task] for task in tasks if task in self.config.added_adapters} or None,
            hidden_states=hidden_states,
        )

    @torch.no_grad()
    def embed_waveform(
        self, waveform: Tensor, tasks: Sequence[str] | str | None = None, batch_size: int = 32
    ) -> Tensor:
        """Embedding (D,) float32, on the CPU, of a normalized waveform (samples,) of any length.

        Args:
            waveform: As the feature extractor gives it.
            tasks: Tasks of the embedding, in its order; default: the active tasks.
            batch_size: Windows that go through the network at once.

        Raises:
            ValueError: If the batch size is less than 1, or there is no such task.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        network, samples = self.inference_network(tasks), self.config.window_samples
        total, count = torch.zeros((), dtype=torch.float64), 0
        for part in waveform.to(self.device).split(batch_size * samples):
            windows, _ = cut_windows(part[None], None, samples)
            total = total + network(windows, tasks=tasks).pooler_output.cpu().double().sum(dim=0)  # (D,)
            count += len(windows)
        return (total / count).float()

    def concatenate_parts(self, embeddings: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
        """Embeddings (..., head_size) of tasks -> (..., D), each multiplied by its scale."""
        scale = self.config.embedding_scale or {}
        scaled = {task: values * scale[task] if task in scale else values for task, values in embeddings.items()}
        return torch.cat([scaled[task] for task in self._distinct(tasks)], dim=-1)

    def refuse_if_wrapped(self, act: str) -> None:
        """Raises a ValueError if PEFT put its layers in the place of the network's."""
        if any(is_wrapped(module) for module in self.modules()):
            raise ValueError(
                f"Cannot {act} a model whose layers PEFT replaced: call `merge_and_unload` or `unload` of the PEFT "
                "model first."
            )

    def refuse_if_merged(self, act: str) -> None:
        """Raises a ValueError if the adapters were merged."""
        if self.config.merged_adapters is not None:
            raise ValueError(f"Cannot {act} a merged model: its adapters are gone. Call `unmerge_adapters` first.")

    def check_own_adapter(self, act: str, name: str) -> None:
        """Raises a ValueError unless the task has adapters and, with heads, a head of its own; not merged, no PEFT."""
        self.refuse_if_merged(f"{act} an adapter of")
        self.refuse_if_wrapped(f"{act} an adapter of")
        self.config.check_tasks([name])
        if self.encoder.branch(name) == SHARED or (self.config.use_heads and name not in self.heads):
            raise ValueError(
                f"{name!r} shares adapters or head with other tasks and has nothing of its own to {act}: "
                "call `add_adapter` first."
            )

    def train_only(self, tasks: Sequence[str]) -> None:
        """Freezes all but the adapters, final norms and heads of these tasks; statistics of BatchNorm too."""
        self._trained = tuple(tasks)
        self.keep_frozen()

    def keep_frozen(self) -> None:
        """Freezes again what `train_only` froze, after modules were replaced."""
        if self._trained is not None:
            self.requires_grad_(False)
            for task in self._trained:
                for _, module in self.adapter_modules(task):
                    module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> MTSLVRModel:
        """Sets the mode of all modules, but frozen modules stay in eval mode.

        Of a model with layers of PEFT, so does batch normalization that is not trained: PEFT saves no statistics.
        """
        if mode and any(is_wrapped(module) for module in self.modules()):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, BatchNorm) and not any(value.requires_grad for value in module.parameters()):
                    module.train(False)
            return self
        if self._trained is None or self.config.merged_adapters is not None:  # a merged model has no modes
            return super().train(mode)
        super().train(False)
        self.training = mode
        for task in self._trained:
            for _, module in self.adapter_modules(task):
                module.train(mode)
        return self

    def adapter_modules(self, task: str) -> Iterator[tuple[str, nn.Module]]:
        """Modules of one task, by names that do not contain the task."""
        for name, layer in self.encoder.task_layers():
            if task in layer.adapters:
                yield f"encoder.{name}", layer.adapters[task]
        if task in self.encoder.final_norms:
            yield "encoder.final_norm", self.encoder.final_norms[task]
        if task in self.heads:
            yield "head", self.heads[task]

    @torch.no_grad()
    def merged_copy(self, tasks: Sequence[str]) -> MTSLVRModel:
        """Copy for inference of `tasks`: no adapters, no batch normalization, convolutions in channels last."""
        config = copy.deepcopy(self.config)
        config.merged_adapters, config.active_adapters = list(tasks), None
        with torch.device("meta"):
            merged = type(self)(config)
        dtype, device = self.dtype, self.device
        encoder = self.encoder if device.type == "cpu" else copy.deepcopy(self.encoder).cpu()  # for float64
        modules: dict[str, Any] = dict(encoder.named_modules())
        state = {name: tensor.clone() for name, tensor in self.heads.state_dict(prefix="heads.").items()}
        for name, module in merged.encoder.named_modules():
            folded: dict[str, tuple[Tensor, Tensor]] = {}
            if isinstance(module, MTSLVRMergedConvLayer):
                folded = {f"{name}.convs.{task}": modules[name].folded(task, MERGE_DTYPE) for task in module.convs}
            elif isinstance(module, MTSLVRMergedNorm):
                folded = {name: _as_affine(modules[name], MERGE_DTYPE)}
            for place, (weight, bias) in folded.items():
                layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
                state[f"encoder.{place}.weight"] = weight.to(dtype, copy=True, memory_format=layout)
                state[f"encoder.{place}.bias"] = bias.to(dtype, copy=True)
        state = {name: state[name] for name in merged.state_dict()}
        merged.load_state_dict(state, assign=True)
        merged.frontend = copy.deepcopy(self.frontend)
        return merged.requires_grad_(False).eval().to(device)

    def inference_network(self, tasks: Sequence[str] | str | None = None, compile: bool = False) -> MTSLVRModel:
        """Merged copy that `encode` runs, cached until a parameter or a statistic changes.

        A change through `.data`, which torch does not count, is noticed if it affects a channel of a kernel, a row or
        column of a matrix, or any value of a vector; change single values under `torch.no_grad()` instead. A model
        with layers of PEFT is copied as it is, at each call: these may change without their weights.

        Args:
            tasks: Tasks to compute; default: the active tasks.
            compile: Whether `torch.compile` compiles it, at the first call with each shape.
        """
        tasks = self.config.resolve_tasks(tasks)
        merged = self.config.merged_adapters is not None
        modules: list[nn.Module] = [self]
        for module in modules:  # grows; several times faster than `self.modules()`, which makes names
            modules += filter(None, module._modules.values())
        if any(map(is_wrapped, modules)):
            network = copy.deepcopy(self).requires_grad_(False).eval()
            if compile:
                network.compile()
            return network
        if merged and not compile:
            return self
        key = (tasks, compile, copy.copy(self.config.embedding_scale))
        held = (tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values()))
        tensors = [tensor for tensor in held if tensor is not None]
        cached = _inference_networks.get(self)
        if cached is None or cached[0] != key or not cached[1].are_those_of(tensors):
            weights = _Weights(tensors)
            network = copy.deepcopy(self) if merged else self.merged_copy(tasks)
            if compile:
                network.compile()
            _inference_networks[self] = cached = (key, weights, network)
        return cached[2]

    def frame_embeddings(self, last_hidden_state: Tensor, tasks: Sequence[str] | None = None) -> Tensor:
        """Embeddings of frames, (batch, frames, D) in the order of `pooler_output`.

        Their mean over a window is the window's embedding; on `waveform` input only nearly, because frames there
        average unequal numbers of values. With the pooling `"mean_max"` a frame has its own maximum, which the mean
        does not keep: the maximum over the frames is the window's.

        Args:
            last_hidden_state: (batch, frames, pooled size x tasks), from a forward for `tasks`.
            tasks: Tasks of that forward; default: the active tasks.
        """
        tasks = self.config.resolve_tasks(tasks)
        parts = dict(zip(tasks, last_hidden_state.chunk(len(tasks), dim=-1)))
        return self.concatenate_parts({task: self.embed(task, part) for task, part in parts.items()}, tasks)

    def frame_centers(self, frames: int) -> Tensor:
        """Centers of a window's frames in seconds from its start, (frames,).

        Strided convolutions center frame n on STFT frame 32 n. (Pooled shortcuts of networks with adapters look up to
        14 STFT frames further; measured by gradients of a trained network, frames look 7 further, 0.2 s.) On
        `waveform` input, frames are equal parts of the window.
        """
        number = torch.arange(frames, dtype=torch.float64)
        if self.config.frontend == "waveform":
            return (number + 0.5) * self.config.window_samples / frames / self.config.sampling_rate
        return number * 32 * self.config.hop_length / self.config.sampling_rate

    def _distinct(self, tasks: Sequence[str]) -> list[str]:
        """Tasks without those that have the embedding of an earlier task."""
        parts = self.config.embedding_parts
        return [task for place, task in enumerate(tasks) if parts[task] not in [parts[t] for t in tasks[:place]]]

    def _features(
        self, input_values: Tensor | None, attention_mask: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, ClipWindows]:
        """Features for the ResNet, and the map of their windows to clips."""
        if input_values is not None and features is None:
            waveforms, windows = cut_windows(input_values, attention_mask, self.config.window_samples)
            return self.frontend(waveforms), windows
        if features is None or input_values is not None:
            raise ValueError("Give either `input_values` (waveforms) or `input_features` (spectrograms).")
        axes, channels = 2 + _dims(self.config), _input_channels(self.config)
        if features.ndim != axes or features.shape[1] != channels or 0 in features.shape:
            raise ValueError(
                f"`input_features` has the shape {tuple(features.shape)}; a {self.config.frontend!r} model takes "
                f"{axes} axes with {channels} channels on the second, as `model.frontend(waveforms)` returns them."
            )
        if self.config.pooling == "bands" and features.shape[2] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` has {features.shape[2]} mel bands; the pooling 'bands' takes "
                f"{self.config.num_mel_bins}, as the configuration says."
            )
        return features, ClipWindows.same_for_all(len(features), 1, features.device)

    def head(self, task: str) -> nn.Linear:
        """Head of a task."""
        return cast(nn.Linear, self.heads[task if task in self.heads else SHARED])

    def pool(self, feature_map: Tensor) -> Tensor:
        """Pooled feature maps, (windows, C, rows, frames) or (windows, C, samples / 32) -> (windows, pooled size)."""
        if self.config.pooling == "bands":
            bands = feature_map.unflatten(2, (self.config.num_bands, -1))  # (W, C, bands, rows / bands, N)
            return bands.flatten(3).mean(-1).transpose(1, 2).flatten(1)  # (W, bands x C)
        flat = feature_map.flatten(2)  # (W, C, rows x N)
        if self.config.pooling == "mean_max":
            return torch.cat([flat.mean(-1), flat.amax(-1)], dim=-1)  # (W, 2 x C)
        return flat.mean(-1)  # (W, C)

    def embed(self, task: str, pooled: Tensor) -> Tensor:
        """Embedding of a task from its pooled feature map: (..., pooled size) -> (..., head_size)."""
        return self.head(task)(pooled) if self.config.use_heads else pooled

    def _over_time(self, feature_map: Tensor, features: Tensor) -> Tensor:
        """(windows, C, rows, frames) or (windows, C, samples / 32) -> pooled frames (windows, frames, pooled size)."""
        if feature_map.ndim == 4 and self.config.pooling == "bands":
            bands = feature_map.unflatten(2, (self.config.num_bands, -1)).mean(dim=3)  # (W, C, bands, N)
            return bands.permute(0, 3, 2, 1).flatten(2)  # (W, N, bands x C)
        maximum = self.config.pooling == "mean_max"
        if feature_map.ndim == 4:
            pooled = [feature_map.mean(dim=2), *([feature_map.amax(dim=2)] if maximum else [])]  # (W, C, N) each
        else:
            frames = max(1, round(features.shape[-1] / (32 * self.config.hop_length)))
            pooled = [F.adaptive_avg_pool1d(feature_map, frames)]
            pooled += [F.adaptive_max_pool1d(feature_map, frames)] if maximum else []
        return torch.cat(pooled, dim=1).transpose(1, 2)


def _projector(sizes: Sequence[int], normalize: bool, normalize_last: bool = False) -> nn.Sequential:
    """Linear layers with ReLU, and BN if asked for, between them."""
    layers: list[nn.Module] = []
    for number, (size_in, size_out) in enumerate(itertools.pairwise(sizes), start=1):
        last = number == len(sizes) - 1
        layers.append(nn.Linear(size_in, size_out))
        if normalize_last if last else normalize:
            layers.append(nn.BatchNorm1d(size_out))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class MTSLVRForPreTraining(MTSLVRPreTrainedModel):
    """MT-SLVR for pre-training: projectors behind the heads, and the two objectives.

    The contrastive projector is SimCLR's (h-h-256 for embeddings of size h) or SimSiam's (3 x 2048, and a predictor
    with a bottleneck of 512); the predictive projector is 256-64-16-A. The parameter projector, 256-256-P, reads the
    predictive embeddings of both views, 2h.

    Source: Heggan et al. 2023, sections 3.1, 4; Chen et al., "SimCLR", ICML 2020; Chen and He, "SimSiam", CVPR 2021;
    Lee et al., "AugSelf", NeurIPS 2021 (parameters).
    """

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.mtslvr = MTSLVRModel(config)
        size = config.head_size
        self.contrastive_projector: nn.Sequential | None = None
        self.contrastive_predictor: nn.Sequential | None = None
        self.predictive_projector: nn.Sequential | None = None
        self.parameter_projector: nn.Sequential | None = None
        if "contrastive" in config.tasks and config.contrastive_method == "simclr":
            self.contrastive_projector = _projector((size, size, 256), normalize=False)
        elif "contrastive" in config.tasks:
            self.contrastive_projector = _projector((size, 2048, 2048, 2048), normalize=True, normalize_last=True)
            self.contrastive_predictor = _projector((2048, 512, 2048), normalize=True)
        if "predictive" in config.tasks and config.predictive_target != "parameters":
            self.predictive_projector = _projector((size, 256, 64, 16, len(config.augmentations)), normalize=True)
        if config.parameter_targets:
            self.parameter_projector = _projector((2 * size, 256, 256, len(config.parameter_targets)), normalize=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        augmentation_labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        parameter_differences: Tensor | None = None,
    ) -> MTSLVRForPreTrainingOutput:
        """Embeddings and losses of two views of each clip. BatchNorm sees one view at a time.

        Args:
            input_values: (batch, 2, samples), two views of each clip; or (batch, samples), without losses.
            attention_mask: (batch, samples), the same for both views.
            input_features: (batch, 2, channels, mels, frames) instead of `input_values`, or without the axis of views.
            augmentation_labels: (batch, A) multi-hot, which of `config.augmentations` the views of a clip got. Without
                them a model with the predictive task returns no `loss`.
            output_hidden_states: Whether to return the feature maps after the stem and the layers.
            parameter_differences: (batch, P) differences of `config.parameter_targets` between the views, as
                `AugmentationDraw.differences` computes them. Without them a model that predicts parameters returns no
                `loss`. They count where `augmentation_labels` has their augmentation.

        Raises:
            ValueError: As [`MTSLVRModel.forward`]; or if there are more than two views, the labels or differences do
                not fit, or differences came for a model that predicts none or without labels.
        """
        views, tasks = self._views(input_values, input_features), self.config.tasks
        kernels = None if self.config.merged_adapters else self.mtslvr.encoder.training_kernels(tasks)
        options = {"tasks": tasks, "output_hidden_states": output_hidden_states, "kernels": kernels}
        outputs = [self.mtslvr(attention_mask=attention_mask, **view, **options) for view in views]
        contrastive, predictive, pooled = (
            _stack_views([getattr(output, name) for output in outputs])
            for name in ("contrastive_embeds", "predictive_embeds", "pooler_output")
        )
        logits = None
        if self.predictive_projector is not None:  # one pass: the BN of this projector sees both views together
            flat = torch.cat([output.predictive_embeds for output in outputs])  # (V x B, head_size)
            logits = _stack_views(list(self.predictive_projector(flat).chunk(len(outputs))))  # (B, V, A)
        differences = contrastive_loss = label_loss = parameter_loss = None
        if len(views) == 2:
            if self.parameter_projector is not None and predictive is not None:
                differences = self.parameter_projector(predictive.flatten(1))  # (B, 2 x head_size) -> (B, P)
            contrastive_loss = self._contrastive_loss(contrastive)
            label_loss = self._label_loss(logits, augmentation_labels)
            parameter_loss = self._parameter_loss(differences, parameter_differences, augmentation_labels)
        predictive_loss = self._predictive_loss(label_loss, parameter_loss)
        hidden_states = None
        if outputs[0].hidden_states is not None:
            hidden_states = tuple(torch.cat(states) for states in zip(*(output.hidden_states for output in outputs)))
        return MTSLVRForPreTrainingOutput(
            loss=self._sum(contrastive_loss, predictive_loss),
            contrastive_loss=contrastive_loss,
            predictive_loss=predictive_loss,
            augmentation_logits=logits,
            pooler_output=pooled,
            contrastive_embeds=contrastive,
            predictive_embeds=predictive,
            hidden_states=hidden_states,
            label_loss=label_loss,
            parameter_loss=parameter_loss,
            predicted_differences=differences,
        )

    def _needed_tasks(self) -> list[str]:
        return self.config.tasks

    def _views(self, input_values: Tensor | None, input_features: Tensor | None) -> list[dict[str, Tensor]]:
        """Arguments of the model for each view."""
        name, inputs = ("input_values", input_values) if input_features is None else ("input_features", input_features)
        if inputs is None or (input_values is not None and input_features is not None):
            raise ValueError("Give either `input_values` (waveforms) or `input_features` (spectrograms).")
        single = 2 if name == "input_values" else 2 + _dims(self.config)  # axes without that of the views
        if inputs.ndim == single:
            return [{name: inputs}]
        if inputs.ndim != single + 1 or inputs.shape[1] != 2:
            raise ValueError(
                f"`{name}` has the shape {tuple(inputs.shape)}; expected {single + 1} axes with two views on axis 1, "
                f"or {single} axes for a single view."
            )
        return [{name: inputs[:, 0]}, {name: inputs[:, 1]}]

    def _contrastive_loss(self, embeds: Tensor | None) -> Tensor | None:
        if embeds is None or self.contrastive_projector is None:
            return None
        z1, z2 = (self.contrastive_projector(embeds[:, view]) for view in (0, 1))
        return self.contrastive_objective(z1, z2)

    def _label_loss(self, logits: Tensor | None, labels: Tensor | None) -> Tensor | None:
        if logits is None or labels is None:
            return None
        self._check_labels(labels, len(logits))
        flat = logits.transpose(0, 1).flatten(0, 1)  # (V x B, A)
        return AugmentationPredictionLoss()(flat, labels.repeat(2, 1))

    def _check_labels(self, labels: Tensor, clips: int) -> None:
        augmentations = self.config.augmentations
        if labels.shape != (clips, len(augmentations)):
            raise ValueError(
                f"`augmentation_labels` has the shape {tuple(labels.shape)}; expected {clips} clips x "
                f"{len(augmentations)} augmentations ({', '.join(augmentations)})."
            )

    def _parameter_loss(self, predicted: Tensor | None, actual: Tensor | None, labels: Tensor | None) -> Tensor | None:
        if actual is None:
            return None
        if predicted is None:
            raise ValueError(
                "`parameter_differences` came for a model that predicts none: leave them out, or set "
                "`predictive_target` to 'parameters' or 'both'."
            )
        if actual.shape != predicted.shape:
            raise ValueError(
                f"`parameter_differences` has the shape {tuple(actual.shape)}; expected {len(predicted)} clips x "
                f"{predicted.shape[1]} parameters ({', '.join(self.config.parameter_targets)})."
            )
        if labels is None:
            raise ValueError("`parameter_differences` came without `augmentation_labels`: give both.")
        return ParameterDifferenceLoss()(predicted, actual, self.parameter_mask(labels))

    def parameter_mask(self, augmentation_labels: Tensor) -> Tensor:
        """Mask (batch, P) of the clips that got the augmentation of each parameter, from labels (batch, A).

        Raises:
            ValueError: If the labels do not fit, or the model predicts no parameters.
        """
        if not self.config.parameter_targets:
            raise ValueError("The model predicts no parameters: its `predictive_target` is 'labels'.")
        self._check_labels(augmentation_labels, len(augmentation_labels))
        columns = dict(zip(self.config.augmentations, augmentation_labels.unbind(dim=1)))
        return torch.stack([columns[name.partition(".")[0]] for name in self.config.parameter_targets], dim=1)

    def contrastive_objective(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Contrastive loss of the projections of two views, (B, D) each; a subclass may override it."""
        if self.contrastive_predictor is None:
            return NTXentLoss(self.config.temperature)(z1, z2)
        return NegativeCosineLoss()(self.contrastive_predictor(z1), self.contrastive_predictor(z2), z1, z2)

    def _predictive_loss(self, label_loss: Tensor | None, parameter_loss: Tensor | None) -> Tensor | None:
        terms = [label_loss] if self.predictive_projector is not None else []
        terms += [parameter_loss] if self.parameter_projector is not None else []
        known = [term for term in terms if term is not None]
        return sum(known[1:], known[0]) if known and len(known) == len(terms) else None

    def _sum(self, contrastive_loss: Tensor | None, predictive_loss: Tensor | None) -> Tensor | None:
        losses = {"contrastive": contrastive_loss, "predictive": predictive_loss}
        weights = {"contrastive": 1.0, "predictive": self.config.predictive_weight}
        found = {task: losses[task] for task in self.config.tasks}
        terms = [weights[task] * loss for task, loss in found.items() if loss is not None]
        return sum(terms[1:], terms[0]) if len(terms) == len(self.config.tasks) else None


def _stack_views(embeds: list[Tensor | None]) -> Tensor | None:
    """[(batch, D)] x V -> (batch, V, D); a single view keeps its shape."""
    views = [view for view in embeds if view is not None]
    return torch.stack(views, dim=1) if len(views) > 1 else views[0] if views else None


def _classifier(config: MTSLVRConfig) -> nn.Linear:
    assert config.num_labels is not None  # the configuration has default labels
    return nn.Linear(config.embedding_size_of(), config.num_labels)


class MTSLVRForAudioClassification(MTSLVRPreTrainedModel):
    """MT-SLVR with a linear classifier on the concatenated embeddings of the active tasks."""

    _keys_to_ignore_on_load_unexpected = [PROJECTORS]

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.mtslvr = MTSLVRModel(config)
        self.classifier = _classifier(config)
        self.post_init()

    def _needed_tasks(self) -> list[str]:
        return self.config.embedding_tasks

    def freeze_feature_encoder(self) -> None:
        """Freezes all but the classifier, with the statistics of batch normalization."""
        self.mtslvr.train_only(())

    def set_adapter(self, names: Sequence[str] | str) -> None:
        """Sets the active tasks, as in [`MTSLVRModel.set_adapter`]; another embedding size gets a new classifier."""
        super().set_adapter(names)
        size = self.config.embedding_size_of()
        if size != self.classifier.in_features:
            logger.warning("The embedding now has %d dimensions: the classifier is initialized again.", size)
            old, self.classifier = self.classifier, _classifier(self.config)
            self.classifier.to(old.weight.device, old.weight.dtype)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classifies clips.

        Args:
            input_values, attention_mask, input_features, output_hidden_states: As for [`MTSLVRModel.forward`].
            labels: (batch,) class indices; (batch, num_labels) multi-hot if `config.problem_type` is
                `"multi_label_classification"`.

        Returns:
            `loss` if labels came, and `logits` (batch, num_labels).
        """
        outputs = self.mtslvr(input_values, attention_mask, input_features, output_hidden_states=output_hidden_states)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = [
    "MTSLVRAdapter",
    "MTSLVRForAudioClassification",
    "MTSLVRForPreTraining",
    "MTSLVRModel",
    "MTSLVRPreTrainedModel",
    "register_adapter_type",
]
