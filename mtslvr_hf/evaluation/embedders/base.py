"""Embedders under one interface: MT-SLVR models, other models of transformers, and the baselines.

Shapes: N clips, n waveforms, S samples, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig

from ...embedding import encode
from ...feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ...fingerprints import model_fingerprint
from ...modeling_mtslvr import MTSLVRPreTrainedModel
from .transformers_models import FAMILIES, TransformersEmbedder

WAVEFORM_RATE = 16_000  # of what `embed_waveforms` takes, in Hz


@runtime_checkable
class Embedder(Protocol):
    """Interface of a model in an evaluation.

    Attributes:
        name: Its rows' name in tables.
        fingerprint: A digest of all that decides its embeddings.
    """

    name: str

    @property
    def fingerprint(self) -> str: ...

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress: bool = False) -> dict[str, Tensor]:
        """Embeds encoded files.

        Args:
            audio: N undecoded rows, `{"bytes", "path"}`.
            show_progress: Whether to show a progress bar on standard error.

        Returns:
            (N, D) float32 on the CPU by the embedding's name; the last one stands for the model. A single one's name
            is empty.

        Raises:
            BadClipError: A ValueError that names the row that cannot be decoded.
        """
        ...

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeds waveforms (n, S) at 16 kHz, not normalized, as `embed` does files."""
        ...


class MTSLVREmbedder:
    """An MT-SLVR model: an embedding for each task, and the model's own, which is all of them concatenated.

    Args:
        model: A model of any class; it stays in its mode. What it has learnt since shows in the next call.
        feature_extractor: Its normalization applies.
        name: In tables.
        batch_size: Windows that go through the network at once.
    """

    def __init__(
        self,
        model: MTSLVRPreTrainedModel,
        feature_extractor: MTSLVRFeatureExtractor,
        name: str = "MT-SLVR",
        batch_size: int = 16,
    ):
        self.model = model
        self.feature_extractor = feature_extractor
        self.name = name
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """Of the weights as they are now, the configuration (the embedding's tasks among it) and the extractor."""
        return model_fingerprint(self.model, self.feature_extractor)

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress: bool = False) -> dict[str, Tensor]:
        """Embeds rows: "contrastive", "predictive" and "both" (or "all" of three tasks), the model's own one last."""
        undecoded = (audio[index] for index in range(len(audio)))  # a data set's are read as they are needed
        rows = tqdm(undecoded, self.name, len(audio), unit="clip", disable=not show_progress)
        return self._named(self._encode(rows, None))

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeds waveforms (n, S) at 16 kHz, not normalized, as `embed` does files."""
        return self._named(self._encode(list(waveforms), WAVEFORM_RATE))

    def _encode(self, items: Iterable[Any], sampling_rate: int | None) -> Tensor:
        return encode(
            self.model,
            items,
            sampling_rate,
            feature_extractor=self.feature_extractor,
            batch_size=self.batch_size,
            convert_to="torch",
            show_progress_bar=False,
        )

    def _named(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Splits (N, D) into tasks; tasks that share head and adapters have one entry between them."""
        config = self.model.config
        parts: dict[str, list[str]] = {}  # in the embedding's order, with the tasks that each belongs to
        for task in config.embedding_tasks:
            parts.setdefault(config.embedding_parts[task], []).append(task)
        names = [tasks[0] if len(tasks) == 1 else "both" for tasks in parts.values()]
        named = dict(zip(names, embeddings.split(config.head_size, dim=1)))
        if len(parts) > 1:
            named["both" if len(config.embedding_tasks) == 2 else "all"] = embeddings
        return named


def load_config(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model that `load_embedder` takes; errors are the same."""
    config = AutoConfig.from_pretrained(source, revision=revision)
    if config.model_type != "mtslvr" and config.model_type not in FAMILIES:
        raise ValueError(
            f"{source} is a model of type {config.model_type}; expected an audio model of type "
            f"{', '.join(['mtslvr', *FAMILIES])}. Embeddings of others can be evaluated as data."
        )
    return config


def load_embedder(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    name: str | None = None,
    revision: str | None = None,
) -> Embedder:
    """Loads an MT-SLVR model, or another audio model of transformers (see `TransformersEmbedder`), in float32.

    Args:
        source: The model's folder, or its name on the Hub, with its feature extractor.
        device: Where it runs.
        batch_size: Windows embedded at once.
        name: In tables; the source unless given.
        revision: Commit on the Hub.

    Raises:
        OSError: If there is no such model, or no feature extractor beside it.
        ValueError: If it is of a kind whose audio embedding is not known; the message lists those that are.
    """
    config = load_config(source, revision)
    extractor = AutoFeatureExtractor.from_pretrained(source, revision=revision)
    model = AutoModel.from_pretrained(source, revision=revision, dtype=torch.float32).to(device).eval()
    kind = MTSLVREmbedder if config.model_type == "mtslvr" else TransformersEmbedder
    return kind(model, extractor, name or str(source), batch_size)


def untrained(
    source: str | Path | PreTrainedConfig,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    name: str = "untrained network",
) -> Embedder:
    """An MT-SLVR network with the weights that a seed gives, and BatchNorm statistics of 0 and 1.

    Args:
        source: The model whose architecture and feature extractor it has, or a configuration, for which it gets the
            default extractor at the configuration's sampling rate.
        seed: Draws the weights; the caller's random state stays as it is.
        device: Where it runs.
        batch_size: Windows embedded at once.
        name: In tables.

    Raises:
        ValueError: If the model is not an MT-SLVR model.
        OSError: If there is no such model, or no feature extractor beside it.
    """
    config = source if isinstance(source, PreTrainedConfig) else AutoConfig.from_pretrained(source)
    if config.model_type != "mtslvr":
        raise ValueError(f"got a model of type {config.model_type}; expected an MT-SLVR model (type mtslvr).")
    if isinstance(source, PreTrainedConfig):
        extractor = MTSLVRFeatureExtractor(sampling_rate=config.sampling_rate)
    else:
        extractor = AutoFeatureExtractor.from_pretrained(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
    return MTSLVREmbedder(model.to(device), extractor, name, batch_size)


__all__ = ["Embedder", "MTSLVREmbedder", "load_config", "load_embedder", "untrained"]
