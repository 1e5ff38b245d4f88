"""MT-SLVR: one ResNet for audio, pre-trained on a contrastive and a predictive task, with adapters for each.

Shapes: B batch, V views, T tasks, W windows of all clips, S samples, C channels, F mel bands, N frames, D embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_mtslvr import MTSLVRConfig

SHARED = "shared"  # key of an adapter or a head that all tasks use
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EPSILON = 2.220446049250313e-16  # added before the logarithm, float64's epsilon as in librosa-style code
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL = {1: partial(F.max_pool1d, kernel_size=9), 2: partial(F.max_pool2d, kernel_size=3)}
AVERAGE_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}
STEM_KERNEL = {1: 49, 2: 7}
BLOCK_KERNEL = {1: 9, 2: 3}


@dataclass
class MTSLVRModelOutput(ModelOutput):
    """Output of [`MTSLVRModel`].

    Attributes:
        last_hidden_state: (batch, frames, channels x tasks), float. Features over time, the mean over mel bands; one
            frame per `hop_length` * 32 samples. Windows follow each other; frames after a clip's last window are 0.
        pooler_output: (batch, D), float. The chosen tasks' embeddings, concatenated. Tasks that share both trunk and
            head have one embedding between them, and it is here once.
        contrastive_embeds: (batch, head_size), float, or None if that task was not chosen.
        predictive_embeds: (batch, head_size), float, or None if that task was not chosen.
        hidden_states: Feature maps of the windows, float: after the stem and after each of layer1 to layer4, (windows,
            channels x tasks, bands, frames); without the axis of bands on `waveform` input.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    contrastive_embeds: torch.FloatTensor | None = None
    predictive_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MTSLVRForPreTrainingOutput(ModelOutput):
    """Output of [`MTSLVRForPreTraining`]. With a single view the axis of views is absent, and so are the losses.

    Attributes:
        loss: (), float. contrastive + `predictive_weight` * predictive, over the tasks of the configuration.
        contrastive_loss: (), float.
        predictive_loss: (), float.
        augmentation_logits: (batch, views, A), float. Which augmentations a view got, before the sigmoid.
        pooler_output: (batch, views, D), float. As in [`MTSLVRModelOutput`].
        contrastive_embeds: (batch, views, head_size), float.
        predictive_embeds: (batch, views, head_size), float.
        hidden_states: As in [`MTSLVRModelOutput`], the views' windows one after the other.
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    predictive_loss: torch.FloatTensor | None = None
    augmentation_logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    contrastive_embeds: torch.FloatTensor | None = None
    predictive_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class MTSLVRFrontend(nn.Module):
    """Waveforms to what the ResNet sees: a log-mel spectrogram, three spectrograms, or the waveform itself.

    Computes in float32 whatever the model's or autocast's dtype, since bfloat16 cannot hold a phase.

    Source: Al-Tahan and Mohsenzadeh, "CLAR", AISTATS 2021, section 3.2, as the MT-SLVR authors computed it.
    """

    def __init__(self, config: MTSLVRConfig):
        super().__init__()
        self.config = config
        if config.frontend != "waveform":
            self.register_buffer("window", self._hann_window(), persistent=False)  # (n_fft,)
            self.register_buffer("mel_filters", self._mel_filters(), persistent=False)  # (F, n_fft / 2 + 1)

    def _hann_window(self) -> torch.Tensor:
        return torch.hann_window(self.config.n_fft, dtype=torch.float32, device="cpu")

    def _mel_filters(self) -> torch.Tensor:
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
        """Fills the buffers, which are not in checkpoints and come back from `from_pretrained` unset."""
        if self.config.frontend != "waveform":
            init.copy_(self.window, self._hann_window())
            init.copy_(self.mel_filters, self._mel_filters())

    def _apply(self, fn, recurse: bool = True):
        """Moves with the model but stays float32: `model.to(torch.bfloat16)` must not round the mel filters."""
        super()._apply(fn, recurse)
        for name, fresh in (("window", self._hann_window), ("mel_filters", self._mel_filters)):
            moved = getattr(self, name, None)
            if moved is not None and moved.dtype != torch.float32:
                setattr(self, name, moved.float() if moved.is_meta else fresh().to(moved.device))
        return self

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Args:
            waveforms: (batch, samples).

        Returns:
            (batch, 3, mels, frames) for `mel_stft`, (batch, 1, mels, frames) for `mel`, (batch, 1, samples) for
            `waveform`; float32. frames = 1 + samples // hop_length.
        """
        waveforms = waveforms.float()
        if self.config.frontend == "waveform":
            return waveforms[:, None]  # (B, 1, S)
        if waveforms.shape[-1] <= self.config.n_fft // 2:
            raise ValueError(
                f"The frontend got {waveforms.shape[-1]} samples; its reflect padding needs more than "
                f"{self.config.n_fft // 2}. Repeat or pad the clip first."
            )
        with torch.autocast(device_type=waveforms.device.type, enabled=False):
            spectrum = self._stft(waveforms, self.window)  # (B, n_fft / 2 + 1, N)
            power = spectrum.real.square() + spectrum.imag.square()
            channels = [_decibels(self.mel_filters @ power)]  # (B, F, N)
            if self.config.frontend == "mel_stft":
                spectrum = self._stft(waveforms, torch.ones_like(self.window))
                real, imaginary = self.mel_filters @ spectrum.real, self.mel_filters @ spectrum.imag
                channels += [_decibels(torch.hypot(real, imaginary)), torch.atan2(imaginary, real)]
            return torch.stack(channels, dim=1)  # (B, C, F, N)

    def _stft(self, waveforms: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        config = self.config
        return torch.stft(waveforms, config.n_fft, config.hop_length, window=window, return_complex=True)


def _decibels(magnitude: torch.Tensor) -> torch.Tensor:
    return 10.0 * torch.log10(magnitude + EPSILON)


class MTSLVRAdapter(nn.Module):
    """What one task owns at one convolution: batch normalisation, and a 1x1 convolution if in series or parallel."""

    def __init__(self, adapter_type: str, dims: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        if adapter_type == "series":
            self.input_norm = BATCH_NORM[dims](out_channels)
            self.conv = CONVOLUTION[dims](out_channels, out_channels, 1, bias=False)
        elif adapter_type == "parallel":
            self.conv = CONVOLUTION[dims](in_channels, out_channels, 1, stride=stride, bias=False)
        self.norm = BATCH_NORM[dims](out_channels)


class MTSLVRConvLayer(nn.Module):
    """A convolution of the trunk with its adapters. A plain convolution + BN is a `bn` adapter that all tasks share.

    For task t and y = conv(x): bn: BN_t(y); parallel: BN_t(y + A_t x); series: BN_t(A_t BN'_t(y) + y).

    Source: Heggan et al. 2023, section 3.2; Rebuffi et al., "Efficient parametrization of multi-domain deep neural
    networks", CVPR 2018, section 3.
    """

    def __init__(
        self,
        config: MTSLVRConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        adapter_type: str = "bn",
        tasks: Sequence[str] = (SHARED,),
    ):
        super().__init__()
        dims = _dims(config)
        self.adapter_type = adapter_type
        self.conv = CONVOLUTION[dims](
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2 if padding is None else padding,
            bias=False,
        )
        self.adapters = nn.ModuleDict(
            {task: MTSLVRAdapter(adapter_type, dims, in_channels, out_channels, stride) for task in tasks}
        )

    def forward(self, hidden_states: torch.Tensor, task: str = SHARED) -> torch.Tensor:
        adapter = self.adapters[task if task in self.adapters else SHARED]
        if self.adapter_type == "series":
            hidden_states = self.conv(hidden_states)
            return adapter.norm(adapter.conv(adapter.input_norm(hidden_states)) + hidden_states)
        weight = self.conv.weight
        if self.adapter_type == "parallel":  # the centre tap of the larger kernel: one convolution computes both
            weight = weight + F.pad(adapter.conv.weight, [size // 2 for size in weight.shape[2:] for _ in range(2)])
        if adapter.norm.training:
            return adapter.norm(self.conv._conv_forward(hidden_states, weight, None))
        scale = adapter.norm.weight * torch.rsqrt(adapter.norm.running_var + adapter.norm.eps)  # (C,)
        bias = adapter.norm.bias - adapter.norm.running_mean * scale
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))  # with its statistics fixed, BN is affine
        return self.conv._conv_forward(hidden_states, weight, bias)


class MTSLVRBlock(GradientCheckpointingLayer):
    """Residual block: ReLU(branch + shortcut); two 3x3 convolutions, or 1x1, 3x3 and 1x1 in a bottleneck.

    Without adapters the shortcut is torchvision's projection; with adapters it has no parameters: adaptive average
    pooling to the branch's size, and zeros appended for the new channels.
    """

    def __init__(self, config: MTSLVRConfig, in_channels: int, width: int, stride: int, tasks: Sequence[str]):
        super().__init__()
        self.bottleneck = config.depth >= 50
        self.out_channels = width * 4 if self.bottleneck else width
        plain = config.adapter_type == "none"
        layer = partial(MTSLVRConvLayer, config, adapter_type="bn" if plain else config.adapter_type, tasks=tasks)
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
        if plain and (stride > 1 or in_channels != self.out_channels):
            self.shortcut = MTSLVRConvLayer(config, in_channels, self.out_channels, 1)

    def forward(self, hidden_states: torch.Tensor, task: str = SHARED) -> torch.Tensor:
        with _statistics_updated_once(self):
            branch = self.conv2(F.relu(self.conv1(hidden_states, task)), task)
            if self.bottleneck:
                branch = self.conv3(F.relu(branch), task)
            return F.relu(branch + self._shortcut(hidden_states, branch.shape))

    def _shortcut(self, hidden_states: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if self.shortcut is not None:
            # Subsampling and a 1x1 convolution of stride 1 make one of stride 2, whose own backward pass can crash in
            # oneDNN (seen with 4 and 8 channels and 3 clips; torch 2.14, AVX-512, channels last, two threads).
            taken = [slice(None, None, self.stride)] * (hidden_states.ndim - 2)
            return self.shortcut(hidden_states[(..., *taken)])
        if hidden_states.shape[2:] != shape[2:]:
            hidden_states = AVERAGE_POOL[len(shape) - 2](hidden_states, shape[2:])
        missing = shape[1] - hidden_states.shape[1]
        return F.pad(hidden_states, [0, 0] * (len(shape) - 2) + [0, missing]) if missing else hidden_states


@contextmanager
def _statistics_updated_once(block: nn.Module) -> Iterator[None]:
    """Leaves BatchNorm's running statistics alone while gradient checkpointing recomputes a block in the backward."""
    recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if recomputing else []
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # not by `track_running_stats`: the recomputation must save the same tensors as the forward
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class MTSLVREncoder(nn.Module):
    """The ResNet: stem and layer1 run once for all tasks, layer2 to layer4 once per task if they have adapters."""

    def __init__(self, config: MTSLVRConfig):
        super().__init__()
        dims, width = _dims(config), config.base_width
        self.branches = (SHARED,) if config.adapter_type == "none" else tuple(config.tasks)
        in_channels = 3 if config.frontend == "mel_stft" else 1
        self.stem = MTSLVRConvLayer(config, in_channels, width, STEM_KERNEL[dims], stride=2, padding=3)
        channels = width
        for number, blocks in enumerate(BLOCKS[config.depth], start=1):
            layer = nn.ModuleList()
            for index in range(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                tasks = (SHARED,) if number == 1 else self.branches
                layer.append(MTSLVRBlock(config, channels, width * 2 ** (number - 1), stride, tasks))
                channels = layer[-1].out_channels
            self.add_module(f"layer{number}", layer)
        self.final_norms = nn.ModuleDict(
            {task: BATCH_NORM[dims](channels) for task in self.branches if config.adapter_type != "none"}
        )

    def forward(
        self, features: torch.Tensor, tasks: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """Args:
            features: (windows, channels, bands, frames), or (windows, 1, samples).
            tasks: Those to compute.

        Returns:
            Each task's feature map (windows, hidden_size, bands, frames), and the hidden states: after the stem and
            after each layer, tasks side by side on the channels' axis.
        """
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        hidden = F.relu(self.stem(features))
        hidden = MAX_POOL[features.ndim - 2](hidden, stride=2, padding=1)
        hidden_states = [hidden]
        for block in self.layer1:
            hidden = block(hidden)
        hidden_states.append(hidden)
        branches = [task for task in self.branches if task == SHARED or task in tasks]
        maps = dict.fromkeys(branches, hidden)
        for layer in (self.layer2, self.layer3, self.layer4):
            for branch in branches:
                for block in layer:
                    maps[branch] = block(maps[branch], task=branch)
            hidden_states.append(torch.cat(list(maps.values()), dim=1) if len(maps) > 1 else maps[branches[0]])
        if self.final_norms:
            maps = {branch: F.relu(self.final_norms[branch](feature_map)) for branch, feature_map in maps.items()}
        return {task: maps[task if task in maps else SHARED] for task in tasks}, tuple(hidden_states)


def _dims(config: MTSLVRConfig) -> int:
    return 1 if config.frontend == "waveform" else 2


class MTSLVRPreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers asks of every model."""

    config_class = MTSLVRConfig
    base_model_prefix = "mtslvr"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MTSLVRBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MTSLVRFrontend):
            module.reset_buffers()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's own default
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)  # BatchNorm: 1 and 0


class ClipWindows(NamedTuple):
    """Which window belongs to which clip; windows of one clip stand next to each other."""

    clip: torch.Tensor  # (W,) index of the clip
    number: torch.Tensor  # (W,) index of the window within its clip
    counts: torch.Tensor  # (B,) windows of each clip

    @classmethod
    def same_for_all(cls, batch: int, count: int, device: torch.device) -> ClipWindows:
        """`count` windows for each of `batch` clips."""
        number = torch.arange(count, device=device)
        return cls(
            torch.arange(batch, device=device).repeat_interleave(count),
            number.repeat(batch),
            torch.full((batch,), count, device=device),
        )

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of each clip's windows: (windows, D) -> (batch, D)."""
        if len(self.clip) == len(self.counts):
            return values
        total = values.new_zeros(len(self.counts), values.shape[1]).index_add_(0, self.clip, values)
        return total / self.counts[:, None].to(values.dtype)

    def concatenate(self, frames: torch.Tensor) -> torch.Tensor:
        """Each clip's windows in a row, zeros where a clip has fewer: (windows, N, C) -> (batch, frames, C)."""
        if len(self.clip) == len(self.counts):
            return frames
        shape = (len(self.counts), int(self.counts.max()), *frames.shape[1:])
        return frames.new_zeros(shape).index_put((self.clip, self.number), frames).flatten(1, 2)


def cut_windows(
    waveforms: torch.Tensor, attention_mask: torch.Tensor | None, window_samples: int
) -> tuple[torch.Tensor, ClipWindows]:
    """Cuts clips into windows; a short clip, and the last part of a long one, is repeated to fill its window.

    Args:
        waveforms: (batch, samples), padded on the right.
        attention_mask: (batch, samples), 1 for samples and 0 for padding, or None if there is no padding.
        window_samples: Samples of a window.

    Returns:
        The windows (windows, window_samples), and which clip each belongs to.

    Raises:
        ValueError: If shapes do not fit, a clip is empty, or padding stands before samples.
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
        windows = ClipWindows(clip, number, counts)
    start = windows.number * window_samples  # (W,)
    length = (lengths[windows.clip] - start).clamp(max=window_samples)  # (W,)
    position = torch.arange(window_samples, device=waveforms.device) % length[:, None]  # (W, window_samples)
    return waveforms[windows.clip[:, None], start[:, None] + position], windows


def _clip_lengths(attention_mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if attention_mask.shape != shape:
        raise ValueError(f"`attention_mask` has the shape {tuple(attention_mask.shape)}, the clips {tuple(shape)}.")
    mask = attention_mask.bool()
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("`attention_mask` has padding before samples; clips must be padded on the right only.")
    lengths = mask.sum(dim=1)
    if not lengths.all():
        raise ValueError(f"`attention_mask` leaves clip {int(lengths.argmin())} without a sample.")
    return lengths


class MTSLVRModel(MTSLVRPreTrainedModel):
    """Audio to embeddings: frontend, adapter ResNet and one head per task, averaged over a clip's windows.

    Source: Heggan et al., "MT-SLVR: Multi-Task Self-Supervised Learning for Transformation In(Variant)
    Representations", Interspeech 2023, section 3.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(contrastive|predictive)_(projector|predictor)\.", r"^classifier\."]

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.frontend = MTSLVRFrontend(config)
        self.encoder = MTSLVREncoder(config)
        heads = (SHARED,) if config.shared_head else config.tasks
        self.heads = nn.ModuleDict({task: nn.Linear(config.hidden_size, config.head_size) for task in heads})
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        tasks: Sequence[str] | None = None,
        output_hidden_states: bool | None = None,
    ) -> MTSLVRModelOutput:
        """Embeds a batch of clips. A clip's embedding depends on nothing else in the batch, padding included.

        Args:
            input_values: (batch, samples) normalised waveforms at `config.sampling_rate`, padded on the right.
            attention_mask: (batch, samples), 1 for samples and 0 for padding; None if there is no padding.
            input_features: Instead of `input_values`: what `model.frontend` returns, (batch, channels, mels, frames).
                They skip frontend and windows.
            tasks: Tasks to embed for, in the order `pooler_output` shall have; the configuration's unless given.
            output_hidden_states: Whether to return the feature maps after the stem and the layers.

        Raises:
            ValueError: If both or neither kind of input came, its shape is wrong, the mask does not fit or leaves a
                clip empty, or a task is not one of the model's.
        """
        tasks = self._chosen(tasks)
        features, windows = self._features(input_values, attention_mask, input_features)
        maps, hidden_states = self.encoder(features.to(self.encoder.stem.conv.weight.dtype), tasks)
        pooled = {task: maps[task].flatten(2).mean(-1) for task in tasks}  # (W, C)
        embeddings = {task: windows.mean(self._head(task)(pooled[task])) for task in tasks}  # (B, head_size)
        frames = torch.cat([self._over_time(maps[task], features) for task in tasks], dim=-1)  # (W, N, C x T)
        one_for_all = self.config.shared_head and self.config.adapter_type == "none"
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return MTSLVRModelOutput(
            last_hidden_state=windows.concatenate(frames),
            pooler_output=embeddings[tasks[0]] if one_for_all else torch.cat(list(embeddings.values()), dim=-1),
            contrastive_embeds=embeddings.get("contrastive"),
            predictive_embeds=embeddings.get("predictive"),
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def _chosen(self, tasks: Sequence[str] | str | None) -> list[str]:
        tasks = [tasks] if isinstance(tasks, str) else list(self.config.tasks if tasks is None else tasks)
        unknown = [task for task in tasks if task not in self.config.tasks]
        if unknown or not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"`tasks` must name some of {list(self.config.tasks)}, each once; got {tasks}.")
        return tasks

    def _features(
        self, input_values: torch.Tensor | None, attention_mask: torch.Tensor | None, features: torch.Tensor | None
    ) -> tuple[torch.Tensor, ClipWindows]:
        """What the ResNet sees, and the windows it was cut into."""
        if (input_values is None) == (features is None):
            raise ValueError("Give either `input_values` (waveforms) or `input_features` (spectrograms).")
        if features is None:
            waveforms, windows = cut_windows(input_values, attention_mask, self.config.window_samples)
            return self.frontend(waveforms), windows
        axes = 2 + _dims(self.config)
        channels = self.encoder.stem.conv.in_channels
        if features.ndim != axes or features.shape[1] != channels or 0 in features.shape:
            raise ValueError(
                f"`input_features` has the shape {tuple(features.shape)}; a {self.config.frontend!r} model takes "
                f"{axes} axes with {channels} channels on the second, as `model.frontend(waveforms)` returns them."
            )
        return features, ClipWindows.same_for_all(len(features), 1, features.device)

    def _head(self, task: str) -> nn.Linear:
        return self.heads[SHARED if self.config.shared_head else task]

    def _over_time(self, feature_map: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(windows, C, bands, frames) or (windows, C, samples / 32) -> (windows, frames, C)."""
        if feature_map.ndim == 4:
            return feature_map.mean(dim=2).transpose(1, 2)
        frames = max(1, round(features.shape[-1] / (32 * self.config.hop_length)))
        return F.adaptive_avg_pool1d(feature_map, frames).transpose(1, 2)


def _projector(sizes: Sequence[int], normalize: bool, normalize_last: bool = False) -> nn.Sequential:
    """Linear layers with ReLU, and BN if asked, between them."""
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
    """MT-SLVR with the projectors that pre-training puts behind the heads, and its two objectives.

    The contrastive projector is SimCLR's (h-h-256 for a head of size h; 500-500-256 with two heads of 500) or
    SimSiam's (3 x 2048, and a predictor with a bottleneck of 512); the predictive one is 256-64-16-A.

    Source: Heggan et al. 2023, sections 3.1 and 4; Chen et al., "SimCLR", ICML 2020; Chen and He, "SimSiam", CVPR
    2021.
    """

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.mtslvr = MTSLVRModel(config)
        size = config.head_size
        self.contrastive_projector = self.contrastive_predictor = self.predictive_projector = None
        if "contrastive" in config.tasks and config.contrastive_method == "simclr":
            self.contrastive_projector = _projector((size, size, 256), normalize=False)
        elif "contrastive" in config.tasks:
            self.contrastive_projector = _projector((size, 2048, 2048, 2048), normalize=True, normalize_last=True)
            self.contrastive_predictor = _projector((2048, 512, 2048), normalize=True)
        if "predictive" in config.tasks:
            self.predictive_projector = _projector((size, 256, 64, 16, len(config.augmentations)), normalize=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        augmentation_labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> MTSLVRForPreTrainingOutput:
        """Embeds both views of each clip, one view at a time so that BatchNorm sees one at a time, and compares them.

        Args:
            input_values: (batch, 2, samples): two views of each clip; or (batch, samples), which gives no losses.
            attention_mask: (batch, samples), the same for both views.
            input_features: Instead of `input_values`: (batch, 2, channels, mels, frames), or without the views' axis.
            augmentation_labels: (batch, A) multi-hot: which of `config.augmentations` a clip's views got. Without it
                a model with the predictive task returns no `loss`.
            output_hidden_states: Whether to return the feature maps after the stem and the layers.

        Raises:
            ValueError: As [`MTSLVRModel.forward`]; and if there are not one or two views, or the labels do not fit.
        """
        views = self._views(input_values, input_features)
        outputs = [
            self.mtslvr(attention_mask=attention_mask, output_hidden_states=output_hidden_states, **view)
            for view in views
        ]
        contrastive, predictive, pooled = (
            _stack_views([getattr(output, name) for output in outputs])
            for name in ("contrastive_embeds", "predictive_embeds", "pooler_output")
        )
        logits = None
        if predictive is not None:  # one pass over both views: the projector's BN sees them together
            flat = torch.cat([output.predictive_embeds for output in outputs])  # (V x B, head_size)
            logits = _stack_views(list(self.predictive_projector(flat).chunk(len(outputs))))  # (B, V, A)
        contrastive_loss = predictive_loss = None
        if len(views) == 2:
            contrastive_loss, predictive_loss = self._losses(contrastive, logits, augmentation_labels)
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
        )

    def _views(
        self, input_values: torch.Tensor | None, input_features: torch.Tensor | None
    ) -> list[dict[str, torch.Tensor]]:
        """Arguments of the model for each view."""
        name, inputs = ("input_values", input_values) if input_features is None else ("input_features", input_features)
        if inputs is None or (input_values is not None and input_features is not None):
            raise ValueError("Give either `input_values` (waveforms) or `input_features` (spectrograms).")
        single = 2 if name == "input_values" else 2 + _dims(self.config)  # axes without that of the views
        if inputs.ndim == single:
            return [{name: inputs}]
        if inputs.ndim != single + 1 or inputs.shape[1] != 2:
            raise ValueError(
                f"`{name}` has the shape {tuple(inputs.shape)}; two views stand on axis 1 of {single + 1} axes, a "
                f"single view has {single} axes."
            )
        return [{name: inputs[:, 0]}, {name: inputs[:, 1]}]

    def _losses(
        self, embeds: torch.Tensor | None, logits: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        try:
            from mtslvr_hf.losses import AugmentationPredictionLoss, NegativeCosineLoss, NTXentLoss
        except ImportError as error:
            raise ImportError("The pre-training losses need the package: `pip install mtslvr-hf`.") from error
        contrastive_loss = predictive_loss = None
        if embeds is not None:
            z1, z2 = (self.contrastive_projector(embeds[:, view]) for view in (0, 1))
            if self.contrastive_predictor is None:
                contrastive_loss = NTXentLoss(self.config.temperature)(z1, z2)
            else:
                p1, p2 = self.contrastive_predictor(z1), self.contrastive_predictor(z2)
                contrastive_loss = NegativeCosineLoss()(p1, p2, z1, z2)
        if logits is not None and labels is not None:
            if labels.shape != (len(logits), logits.shape[-1]):
                raise ValueError(
                    f"`augmentation_labels` has the shape {tuple(labels.shape)}; expected {len(logits)} clips x "
                    f"{logits.shape[-1]} augmentations ({', '.join(self.config.augmentations)})."
                )
            predictive_loss = AugmentationPredictionLoss()(
                torch.cat([logits[:, 0], logits[:, 1]]), labels.repeat(2, 1)
            )
        return contrastive_loss, predictive_loss

    def _sum(self, contrastive_loss: torch.Tensor | None, predictive_loss: torch.Tensor | None) -> torch.Tensor | None:
        parts = {"contrastive": contrastive_loss, "predictive": predictive_loss}
        weights = {"contrastive": 1.0, "predictive": self.config.predictive_weight}
        if any(parts[task] is None for task in self.config.tasks):
            return None
        return sum(weights[task] * parts[task] for task in self.config.tasks)


def _stack_views(embeds: list[torch.Tensor | None]) -> torch.Tensor | None:
    """[(batch, D)] x V -> (batch, V, D); a single view keeps its shape."""
    if embeds[0] is None:
        return None
    return embeds[0] if len(embeds) == 1 else torch.stack(embeds, dim=1)


class MTSLVRForAudioClassification(MTSLVRPreTrainedModel):
    """MT-SLVR with a linear classifier on the concatenated embeddings."""

    _keys_to_ignore_on_load_unexpected = [r"^(contrastive|predictive)_(projector|predictor)\."]

    def __init__(self, config: MTSLVRConfig):
        super().__init__(config)
        self.mtslvr = MTSLVRModel(config)
        heads = 1 if config.shared_head and config.adapter_type == "none" else len(config.tasks)
        self.classifier = nn.Linear(config.head_size * heads, config.num_labels)
        self._encoder_is_frozen = False
        self.post_init()

    def freeze_feature_encoder(self) -> None:
        """Leaves only the classifier to train; the frozen BatchNorm statistics stay as they are too."""
        self._encoder_is_frozen = True
        self.mtslvr.requires_grad_(False)
        self.mtslvr.eval()

    def train(self, mode: bool = True) -> MTSLVRForAudioClassification:
        super().train(mode)
        if self._encoder_is_frozen:
            self.mtslvr.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classifies clips.

        Args:
            input_values: (batch, samples), as for [`MTSLVRModel.forward`].
            attention_mask: (batch, samples).
            input_features: (batch, channels, mels, frames) instead of `input_values`.
            labels: (batch,) class indices; (batch, num_labels) multi-hot if `config.problem_type` is
                `"multi_label_classification"`.
            output_hidden_states: Whether to return the feature maps after the stem and the layers.

        Returns:
            `loss` if labels came, and `logits` (batch, num_labels).
        """
        outputs = self.mtslvr(input_values, attention_mask, input_features, output_hidden_states=output_hidden_states)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["MTSLVRForAudioClassification", "MTSLVRForPreTraining", "MTSLVRModel", "MTSLVRPreTrainedModel"]
