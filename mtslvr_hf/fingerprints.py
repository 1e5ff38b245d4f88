"""Fingerprints (SHA-256) of models and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from . import __version__


def model_fingerprint(model: PreTrainedModel, feature_extractor: Any, **constants: Any) -> str:
    """SHA-256 of all that defines a model's embeddings; `constants` are those of the code."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    return settings_fingerprint(
        transformers=transformers.__version__,
        weights=weights_sha256(model),
        dtype=str(model.dtype),
        config=config,
        extractor=feature_extractor.to_dict(),
        **constants,
    )


def settings_fingerprint(**settings: Any) -> str:
    """SHA-256 of settings and of this package's version."""
    text = json.dumps({"version": __version__, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(network: torch.nn.Module) -> str:
    """SHA-256 of a network's weights."""
    return tensors_sha256(sorted(network.state_dict().items()))


def tensors_sha256(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of tensors with their names, types and shapes, the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = ["model_fingerprint", "settings_fingerprint", "tensors_sha256", "weights_sha256"]
