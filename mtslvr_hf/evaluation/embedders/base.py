"""Embedder interface of MT-SLVR models, other models of transformers, and the baselines.

Shapes: N clips, n waveforms, S samples, D embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig

from ...configuration_mtslvr import MTSLVRConfig
from ...embedding import encode
from ...feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ...fingerprints import model_fingerprint, weights_sha256
from ...modeling_mtslvr import MTSLVRPreTrainedModel
from .transformers_models import FAMILIES, TransformersEmbedder

WAVEFORM_RATE = 16_000  # input of `embed_waveforms`, in Hz
READ_AS = ("pooling", "num_bands", "use_heads")  # may differ from those of a checkpoint


@runtime_checkable
class Embedder(Protocol):
    """Interface of a model in an evaluation.

    Attributes:
        name: Name in tables.
        fingerprint: Digest of everything that its embeddings depend on.
    """

    name: str

    @property
    def fingerprint(self) -> str: ...

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress_bar: bool = False) -> dict[str, Tensor]:
        """Embeddings (N, D) of audio by name, float32 on the CPU; the last is the main one, a single one is named "".

        Args:
            audio: N undecoded rows `{"bytes", "path"}`.
            show_progress_bar: Shows a progress bar on standard error.

        Raises:
            BadClipError: If a row cannot be decoded. A ValueError with the name of the row.
        """
        ...

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeddings (n, D) of waveforms (n, S) at 16 kHz, not normalized."""
        ...


@dataclass(eq=False, repr=False)
class MTSLVREmbedder:
    """Embedder by an MT-SLVR model: an embedding per task, and last all of them concatenated.

    Args:
        model: Model of any class. Its mode does not change; each call uses its current weights.
        feature_extractor: Source of the normalization.
        name: Name in tables.
        batch_size: Windows per batch.
    """

    model: MTSLVRPreTrainedModel
    feature_extractor: MTSLVRFeatureExtractor
    name: str = "MT-SLVR"
    batch_size: int = 16

    @property
    def fingerprint(self) -> str:
        """Digest of current weights, configuration (with the tasks of the embedding) and extractor."""
        return model_fingerprint(self.model, self.feature_extractor)

    @property
    def weights(self) -> str:
        """Digest of the current weights, without classifier and projectors."""
        return weights_sha256(self.model.base_model)

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the configuration that the embedding depends on besides weights."""
        return {name: getattr(self.model.config, name) for name in (*READ_AS, "embedding_scale")}

    @property
    def scaled_heads(self) -> list[int] | None:
        """Sizes of the heads in the main embedding, if the configuration has their scales; else None."""
        config = self.model.config
        parts = {config.embedding_parts[task] for task in config.embedding_tasks}
        return None if config.embedding_scale is None else [config.head_size] * len(parts)

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress_bar: bool = False) -> dict[str, Tensor]:
        """Embeddings "contrastive", "predictive" and last "both" (or "all" of three tasks) of undecoded rows."""
        undecoded = (audio[index] for index in range(len(audio)))  # a data set reads each row on access
        rows = tqdm(undecoded, self.name, len(audio), unit="clip", disable=not show_progress_bar)
        return self._named(self._encode(rows, None))

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeddings (n, D) of waveforms (n, S) at 16 kHz, not normalized."""
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
        """Embeddings by task of (N, D); tasks with the same head and adapters have one entry."""
        config = self.model.config
        parts: dict[str, list[str]] = {}  # tasks of each part, in the order of the embedding
        for task in config.embedding_tasks:
            parts.setdefault(config.embedding_parts[task], []).append(task)
        names = [tasks[0] if len(tasks) == 1 else "both" for tasks in parts.values()]
        named = dict(zip(names, embeddings.split(config.head_size, dim=1)))
        if len(parts) > 1:
            named["both" if len(config.embedding_tasks) == 2 else "all"] = embeddings
        return named


def pooling_words(config: MTSLVRConfig) -> str:
    """Pooling of a network in words."""
    bands = f" {config.num_bands}" if config.pooling == "bands" else ""
    return f"pooling {config.pooling}{bands}{'' if config.use_heads else ', no heads'}"


def load_config(
    source: str | Path,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """Configuration of a model for `load_embedder`, with the same arguments and errors."""
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **options, **(overrides or {}))
    if config.model_type != "mtslvr" and config.model_type not in FAMILIES:
        raise ValueError(
            f"{source} is a model of type {config.model_type}; expected an audio model of type "
            f"{', '.join(['mtslvr', *FAMILIES])}. Use embeddings of other models as data."
        )
    return config


def load_embedder(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    name: str | None = None,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Embedder by an MT-SLVR or another audio model of transformers (see `TransformersEmbedder`), in float32.

    Args:
        source, revision: Folder or Hub name of the model with its feature extractor, and commit on the Hub.
        batch_size: Windows per batch.
        name: Name in tables. Default: the source.
        overrides: `pooling`, `num_bands` and `use_heads` of an MT-SLVR model that replace the saved ones; other models
            do not have them.
        trust_remote_code: Run code of the model's folder or repository, if its type needs that.

    Raises:
        OSError: If the model or its feature extractor does not exist.
        ValueError: If the type of the model is not supported; the message lists those that are. Or if the overrides do
            not fit the model, see `MTSLVRConfig.from_dict`.
    """
    config = load_config(source, revision, overrides, trust_remote_code)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    extractor = AutoFeatureExtractor.from_pretrained(source, **options)
    ours = config.model_type == "mtslvr"
    changes = overrides if ours and overrides else {}
    model = AutoModel.from_pretrained(source, dtype=torch.float32, **options, **changes).to(device).eval()
    kind = MTSLVREmbedder if ours else TransformersEmbedder
    return kind(model, extractor, name or str(source), batch_size)


def untrained(
    source: str | Path | PreTrainedConfig,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    name: str = "untrained network",
    overrides: Mapping[str, Any] | None = None,
) -> Embedder:
    """Embedder by an untrained MT-SLVR network: random weights of a seed, BatchNorm statistics of 0 and 1.

    Args:
        source: Model with the architecture and the feature extractor, or a configuration, for the default extractor at
            its sampling rate.
        seed: Seed of the weights; the global random state does not change.
        batch_size: Windows per batch.
        overrides: As for `load_embedder`, for a model that is not a configuration.

    Raises:
        ValueError: If the model is not an MT-SLVR model.
        OSError: If the model or its feature extractor does not exist.
    """
    config = source
    if not isinstance(config, PreTrainedConfig):
        config = AutoConfig.from_pretrained(config, trust_remote_code=False, **(overrides or {}))
    if config.model_type != "mtslvr":
        raise ValueError(f"got a model of type {config.model_type}; expected an MT-SLVR model (type mtslvr).")
    if isinstance(source, PreTrainedConfig):
        extractor = MTSLVRFeatureExtractor(sampling_rate=config.sampling_rate)
    else:
        extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
    if config.embedding_scale is not None:  # of trained heads
        config = copy.deepcopy(config)
        config.embedding_scale = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
    return MTSLVREmbedder(model.to(device), extractor, name, batch_size)


__all__ = ["READ_AS", "Embedder", "MTSLVREmbedder", "load_config", "load_embedder", "pooling_words", "untrained"]
