"""Facts of a model from its configuration and the headers of its weights, which are not loaded."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

from huggingface_hub import ModelCard, get_safetensors_metadata, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, NotASafetensorsRepoError
from safetensors import safe_open
from transformers import AutoConfig

from .cards.pretraining import variant_name
from .configuration_mtslvr import MTSLVRConfig

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "U8": 8, "BOOL": 8}


def describe_model(source: str | Path, revision: str | None = None) -> list[tuple[str, str]]:
    """Facts of an MT-SLVR model as pairs of a name and a value: variant, input, network, embedding, license.

    Args:
        source: Folder, or name on the Hub.
        revision: Commit, branch or tag on the Hub.

    Raises:
        OSError: If there is no model.
        ValueError: If the model is of another type.
    """
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if config.model_type != "mtslvr":
        raise ValueError(f"{source} is a model of type {config.model_type}; expected an MT-SLVR model (type mtslvr).")
    facts = [
        ("model", f"{variant_name(config)}, saved as {', '.join(config.architectures or ['a configuration'])}"),
        ("input", f"{config.sampling_rate} Hz, windows of {config.window_seconds:g} s, {_frontend(config)}"),
        ("network", f"ResNet-{config.depth} of width {config.base_width}, adapters: {config.adapter_type}"),
        ("weights", _weights(source, revision)),
        ("embedding", _embedding(config)),
    ]
    if config.added_adapters:
        added = (f"{name} ({kind})" for name, kind in config.added_adapters.items())
        facts.append(("added adapters", ", ".join(added)))
    if any("Classification" in name for name in config.architectures or []):
        classes = [config.id2label[number] for number in sorted(config.id2label)]
        more = f", ... ({len(classes)} classes)" if len(classes) > 10 else ""
        facts.append(("classes", ", ".join(classes[:10]) + more))
    facts.append(("license", _license(source, revision)))
    return facts


def _frontend(config: MTSLVRConfig) -> str:
    if config.frontend == "waveform":
        return "the waveform itself"
    channels = "log-mel" if config.frontend == "mel" else "log-mel and STFT"
    return f"{channels} spectrogram of {config.num_mel_bins} bands, hop {config.hop_length}"


def _embedding(config: MTSLVRConfig) -> str:
    parts = dict.fromkeys(config.embedding_parts[task] for task in config.embedding_tasks)
    scale = config.embedding_scale or {}
    named = [f"{part} {config.head_size}{f' (scale {scale[part]:g})' if part in scale else ''}" for part in parts]
    pooling = "mean and maximum" if config.pooling == "mean_max" else config.pooling
    pooling += f" ({config.num_bands})" if config.pooling == "bands" else ""
    heads = "with heads" if config.use_heads else "without heads"
    return f"{config.embedding_size_of()} values: {', '.join(named)}; pooling {pooling}, {heads}"


def _weights(source: str | Path, revision: str | None) -> str:
    """Number of parameters by data type, and size, from the headers of the safetensors files."""
    count: Counter[str] = Counter()
    if os.path.isdir(source):
        for file in sorted(Path(source).glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for tensor in map(opened.get_slice, opened.keys()):
                    count[tensor.get_dtype()] += math.prod(tensor.get_shape())
    else:
        try:
            metadata = get_safetensors_metadata(str(source), revision=revision)
        except (NotASafetensorsRepoError, HfHubHTTPError, EntryNotFoundError, OSError) as error:
            return f"not known ({' '.join(str(error).split())})"
        count.update(metadata.parameter_count)
    if not count:
        return "none saved as safetensors"
    size = sum(number * BITS.get(kind, 32) / 8 for kind, number in count.items())
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in count.most_common())
    return f"{sum(count.values()):,} values with statistics ({kinds}), {size / 1e6:.1f} MB"


def _license(source: str | Path, revision: str | None) -> str:
    """License in the model card."""
    try:
        local = os.path.isdir(source)
        card = Path(source) / "README.md" if local else hf_hub_download(str(source), "README.md", revision=revision)
        return ModelCard.load(card).data.license or "none in its card"
    except (OSError, ValueError, EntryNotFoundError, HfHubHTTPError):
        return "no card"


__all__ = ["describe_model"]
