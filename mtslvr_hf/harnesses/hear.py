"""HEAR API. HEAR's evaluation and validator need the name of this module, and a model's folder or Hub name.

Scene embeddings are those of the model. A frame of the network is about a second, but HEAR scores events to 50 ms. So
a timestamp embedding is the embedding of the second of audio around it, one every 50 ms. That costs 20 times a scene
embedding: use a GPU for timestamp tasks. Neighbors share most of their audio, so the embeddings show the sounds around
a time better than their onsets. `load_model` has options for other distances and lengths.

Source: Turian et al., "HEAR: Holistic Evaluation of Audio Representations", PMLR 176, 2022;
https://hearbenchmark.com/hear-api.html.

Shapes: B sounds, S samples, T timestamps, D embedding, W windows of a batch, L samples of a window.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel

from ..embedding import encode
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor, normalize_waveforms
from ..modeling_mtslvr import MTSLVRModel


class HEARModel(nn.Module):
    """Model with the attributes that HEAR needs.

    Attributes:
        sample_rate: Sampling rate of the input in Hz.
        scene_embedding_size, timestamp_embedding_size: D of an embedding.
    """

    def __init__(
        self,
        model: MTSLVRModel,
        feature_extractor: MTSLVRFeatureExtractor,
        tasks: Sequence[str] | str | None = None,
        hop_milliseconds: float = 50.0,
        context_seconds: float = 1.0,
        batch_size: int = 32,
    ):
        super().__init__()
        config = model.config
        shortest = 0.0 if config.frontend == "waveform" else config.n_fft / 2 / config.sampling_rate
        if hop_milliseconds <= 0 or batch_size < 1 or context_seconds <= shortest:
            raise ValueError(
                "`hop_milliseconds` and `batch_size` must be greater than 0 and `context_seconds` greater than "
                f"{shortest}; got {hop_milliseconds}, {batch_size} and {context_seconds}."
            )
        self.model = model
        self.feature_extractor = feature_extractor
        self.tasks = config.resolve_tasks(tasks)
        self.hop_milliseconds = hop_milliseconds
        self.context_samples = round(context_seconds * config.sampling_rate)
        self.batch_size = batch_size
        self.sample_rate = config.sampling_rate
        self.scene_embedding_size = self.timestamp_embedding_size = config.embedding_size_of(tasks)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """As [`get_scene_embeddings`]."""
        return get_scene_embeddings(audio, self)


def load_model(
    model_file_path: str = "",
    tasks: Sequence[str] | str | None = None,
    hop_milliseconds: float = 50.0,
    context_seconds: float = 1.0,
) -> HEARModel:
    """Loads a model for HEAR, on the CPU.

    Args:
        model_file_path: A model's folder or its name on the Hub, with its feature extractor.
        tasks: Tasks of the embedding, in its order; default: the active tasks.
        hop_milliseconds: Distance of two timestamps; HEAR suggests 50 or less.
        context_seconds: Length of the audio around a timestamp.

    Raises:
        ValueError: If no model is named (there is no default model yet), or an option is out of range.
        OSError: If there is no such model.
    """
    if not model_file_path:
        raise ValueError("There is no default model: pass `model_file_path`, a model's folder or its name on the Hub.")
    model = AutoModel.from_pretrained(model_file_path)
    extractor = AutoFeatureExtractor.from_pretrained(model_file_path)
    return HEARModel(model.eval(), extractor, tasks, hop_milliseconds, context_seconds)


def get_scene_embeddings(audio: torch.Tensor, model: HEARModel) -> torch.Tensor:
    """Embeddings of sounds, (n_sounds, scene_embedding_size) float32, on the audio's device.

    Args:
        audio: (n_sounds, n_samples) mono at `model.sample_rate`, within -1 to 1.
        model: Model from [`load_model`], on any device.

    Raises:
        ValueError: If the shape is wrong, or samples are missing or not finite.
    """
    _check(audio)
    embeddings = encode(
        model.model,
        list(audio.detach().float().cpu()),
        model.sample_rate,
        feature_extractor=model.feature_extractor,
        tasks=model.tasks,
        batch_size=model.batch_size,
        convert_to="torch",
        num_workers=0,
        show_progress_bar=False,
    )
    return embeddings.to(audio.device)


@torch.no_grad()
def get_timestamp_embeddings(audio: torch.Tensor, model: HEARModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings at 0, 50, 100, ... milliseconds, each of the second of audio around it.

    At the ends of a sound the shorter audio is repeated, as in the last window of a clip.

    Args:
        audio, model: As for [`get_scene_embeddings`], with the same errors.

    Returns:
        Embeddings (n_sounds, n_timestamps, timestamp_embedding_size), and the timestamps in milliseconds (n_sounds,
        n_timestamps); float32, on the audio's device.
    """
    _check(audio)
    extractor = model.feature_extractor
    waveforms = normalize_waveforms(
        audio.float().to(model.model.device), extractor.normalization, extractor.mean, extractor.std
    )
    sounds, samples = waveforms.shape
    network = model.model.inference_network(model.tasks)
    timestamps = _timestamps(samples, model).to(waveforms.device)  # (T,) float64
    windows = _window_positions(timestamps, samples, model)  # (T, 2)
    embeddings = waveforms.new_empty(sounds, len(timestamps), model.timestamp_embedding_size)
    flat = embeddings.view(-1, model.timestamp_embedding_size)  # (B x T, D)
    for rows in torch.arange(len(flat), device=flat.device).split(model.batch_size):
        first, length = windows[rows % len(timestamps)].unbind(1)  # (W,)
        position = first[:, None] + torch.arange(model.context_samples, device=flat.device) % length[:, None]  # (W, L)
        batch = waveforms[(rows // len(timestamps))[:, None], position]  # (W, L)
        features = network.frontend(batch).to(network.dtype)
        flat[rows] = network(input_features=features, tasks=model.tasks).pooler_output.float()
    timestamps = timestamps.float().expand(sounds, -1).contiguous()
    return embeddings.to(audio.device), timestamps.to(audio.device)


def _check(audio: torch.Tensor) -> None:
    if audio.ndim != 2 or 0 in audio.shape or not audio.is_floating_point():
        raise ValueError(
            f"`audio` must be floats (n_sounds, n_samples), not empty; got {audio.dtype}, shape {tuple(audio.shape)}."
        )
    bad = ~torch.isfinite(audio).all(dim=1)
    if bad.any():
        raise ValueError(f"Sound {int(bad.int().argmax())} has samples that are NaN or infinite.")


def _timestamps(samples: int, model: HEARModel) -> torch.Tensor:
    """Timestamps in milliseconds, (T,) float64, without accumulated rounding errors."""
    count = int(samples * 1000 / model.sample_rate / model.hop_milliseconds) + 1
    return torch.arange(count, dtype=torch.float64) * model.hop_milliseconds


def _window_positions(timestamps: torch.Tensor, samples: int, model: HEARModel) -> torch.Tensor:
    """First sample and length of the audio around each timestamp, (T, 2)."""
    centers = (timestamps * model.sample_rate / 1000).round().long()
    half = model.context_samples // 2
    first = (centers - half).clamp(0, samples - 1)
    behind = (centers - half + model.context_samples).clamp(max=samples)
    return torch.stack([first, behind - first], dim=1)


__all__ = ["HEARModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
