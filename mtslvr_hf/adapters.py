"""Adapter files: the adapters and head of one task, small to share, exact for the network they were trained in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file, logging

from .files import whole_file
from .fingerprints import tensors_sha256
from .modeling_mtslvr import SHARED, MTSLVRModel, MTSLVRPreTrainedModel

logger = logging.get_logger(__name__)

ADAPTER_FILE = "adapter.safetensors"
PEFT_FILE = "adapter_config.json"
METADATA_KEY = "mtslvr_adapter"
FORMAT_VERSION = 1
FIELDS = {"name": str, "adapter_type": str, "head_size": int, "architecture": dict, "trunk": str}  # of a description
# Fields of the configuration that define the shapes and the meaning of an adapter's tensors.
ARCHITECTURE = (
    *("frontend", "n_fft", "hop_length", "num_mel_bins", "normalize_spectrogram"),
    *("depth", "base_width", "adapter_type"),
)
# More such fields, with their values in files that lack them.
EMBEDDING = {"pooling": "mean", "num_bands": None, "use_heads": True}


def save_adapter(model: MTSLVRPreTrainedModel, folder: str | os.PathLike, name: str) -> str:
    """Writes the adapters, batch normalization and head, if any, of one task to `adapter.safetensors`.

    A classifier that reads only this task is written too, with its labels.

    Args:
        model: Any MT-SLVR model.
        folder: Output folder, made if it is missing. An existing file is replaced as a whole.
        name: A task with adapters and a head of its own; without heads, with adapters.

    Returns:
        Path of the file.

    Raises:
        ValueError: If there is no such task, it shares weights with other tasks, or the model is merged.
    """
    network = model.base_model
    network.check_own_adapter("save", name)
    tensors = _tensors(network, name)
    description = {
        "version": FORMAT_VERSION,
        "name": name,
        "adapter_type": model.config.added_adapters.get(name, model.config.adapter_type),
        "head_size": model.config.head_size,
        "architecture": _architecture(network),
        "trunk": trunk_fingerprint(network),
    }
    classifier = getattr(model, "classifier", None)
    if classifier is not None and model.config.embedding_tasks == [name]:
        tensors |= {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
        description["id2label"] = model.config.id2label
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path = Path(folder) / ADAPTER_FILE
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", METADATA_KEY: json.dumps(description)})
    return str(path)


def load_adapter(
    model: MTSLVRPreTrainedModel, source: str | os.PathLike, name: str | None = None, **options: Any
) -> str:
    """Adds a task from a file of `save_adapter`. Activate it with `set_adapter` or `tasks=`.

    A model with a classifier takes classifier and labels from the file too, and activates the task.

    Args:
        model: Any MT-SLVR model of the same architecture and trunk. (Another trunk causes a warning only, because
            another precision has another trunk too.)
        source: Folder, file, or name of a repository on the Hub.
        name: New name of the task; default: the name in the file.
        options: For the Hub: `revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, `force_download`.

    Returns:
        Name of the task.

    Raises:
        OSError: If there is no such file, or the Hub cannot be reached.
        ValueError: If the file is not an adapter for this architecture, or the name is taken.
    """
    source = os.fspath(source)
    network = model.base_model
    network.refuse_if_wrapped("load an adapter into")
    if os.path.isfile(os.path.join(source, PEFT_FILE)) and not os.path.isfile(os.path.join(source, ADAPTER_FILE)):
        raise ValueError(
            f"{source} holds an adapter of PEFT: load it with `PeftModel.from_pretrained(model, folder)`."
        )
    path = source if os.path.isfile(source) else cached_file(source, ADAPTER_FILE, **options)
    assert path is not None  # `cached_file` raises an OSError
    description, tensors = _read(path)
    _check_architecture(network, description, path)
    _check_classifier(description, tensors, path)
    name = name or description["name"]
    if description["trunk"] != trunk_fingerprint(network):
        logger.warning("The adapter %s was trained in a trunk with other weights than this model's.", path)
    model.add_adapter(name, description["adapter_type"])
    try:
        _fill(network, name, tensors, path)
    except ValueError:
        model.delete_adapter(name)
        raise
    if hasattr(model, "classifier") and "classifier.weight" in tensors:
        _set_classifier(model, name, description["id2label"], tensors)
    return name


def read_adapter(source: str | os.PathLike) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of an adapter's folder or file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `save_adapter` did not write it.
    """
    path = Path(source)
    return _read(str(path / ADAPTER_FILE if path.is_dir() else path))


def trunk_fingerprint(network: MTSLVRModel) -> str:
    """SHA-256 of the weights that all tasks share (stem, layer1, convolutions), the same on every machine."""
    convolutions = [f"encoder.{name}.conv.weight" for name, _ in network.encoder.task_layers()]
    places = ("encoder.stem.", "encoder.layer1.")
    return tensors_sha256(
        (name, tensor.float())
        for name, tensor in sorted(network.encoder.state_dict(prefix="encoder.").items())
        if (name in convolutions or f".{SHARED}." in name or name.startswith(places))
        and not name.endswith("num_batches_tracked")
    )


def _tensors(network: MTSLVRModel, name: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{key}": value
        for prefix, module in network.adapter_modules(name)
        for key, value in module.state_dict().items()
    }


def _architecture(network: MTSLVRModel) -> dict[str, Any]:
    fields = {field: getattr(network.config, field) for field in (*ARCHITECTURE, *EMBEDDING)}
    return fields if fields["pooling"] == "bands" else {**fields, "num_bands": None}


def _read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, not a dictionary)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{path} was not written by `save_adapter`: it lacks the description {METADATA_KEY!r}.")
    description = _description(text, path)
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds values that are NaN or infinite: {', '.join(sorted(broken)[:5])}.")
    return description, tensors


def _description(text: str, path: str) -> dict[str, Any]:
    """Description of an adapter from the text in its file; ValueError if it is another one."""
    try:
        description = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} has a description that is no JSON: {error}") from error
    version = description.get("version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has the format {version!r}; this version reads {FORMAT_VERSION}.")
    for field, kind in FIELDS.items():
        if not isinstance(description.get(field), kind):
            raise ValueError(
                f"{path} has a damaged description: {field!r} is {description.get(field)!r}; expected a "
                f"{kind.__name__}."
            )
    labels = description.get("id2label", {})
    if not isinstance(labels, dict) or not all(key.isdecimal() and isinstance(labels[key], str) for key in labels):
        raise ValueError(f"{path} has a damaged description: 'id2label' must give a name for each number.")
    return description


def _check_architecture(network: MTSLVRModel, description: dict[str, Any], path: str) -> None:
    here = {**_architecture(network), "head_size": network.config.head_size}
    there = {**EMBEDDING, **description["architecture"], "head_size": description["head_size"]}
    different = [field for field, value in here.items() if there.get(field) != value]
    if different:
        values = ", ".join(f"{field} {there.get(field)!r} instead of {here[field]!r}" for field in different)
        raise ValueError(f"{path} is an adapter for another network: it has {values}.")


def _fill(network: MTSLVRModel, name: str, tensors: dict[str, torch.Tensor], path: str) -> None:
    own = _tensors(network, name)
    given = {key for key in tensors if not key.startswith("classifier.")}
    if given != set(own) or any(tensors[key].shape != own[key].shape for key in given):
        odd = sorted(given ^ set(own)) or "shapes"
        raise ValueError(f"{path} does not hold what the adapter needs: {odd} differ.")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])


def _check_classifier(description: dict[str, Any], tensors: dict[str, torch.Tensor], path: str) -> None:
    """Raises a ValueError if a file holds a classifier whose parts do not fit together."""
    found = {key: tuple(value.shape) for key, value in tensors.items() if key.startswith("classifier.")}
    if not found:
        return
    classes = sorted(map(int, description.get("id2label", {})))
    weight, bias = found.get("classifier.weight", ()), found.get("classifier.bias", ())
    if len(found) != 2 or len(weight) != 2 or bias != weight[:1] or classes != list(range(weight[0])):
        raise ValueError(
            f"{path} holds a classifier whose parts do not fit together: {found} for {len(classes)} class names."
        )
    if weight[1] != description["head_size"]:
        raise ValueError(f"{path} holds a classifier of {weight[1]} values for a head of {description['head_size']}.")


def _set_classifier(
    model: MTSLVRPreTrainedModel, name: str, id2label: dict[str, str], tensors: dict[str, torch.Tensor]
) -> None:
    weight = tensors["classifier.weight"]
    old: Any = model.classifier
    model.config.id2label = {int(key): label for key, label in id2label.items()}
    model.config.label2id = {label: key for key, label in model.config.id2label.items()}
    model.classifier = torch.nn.Linear(weight.shape[1], weight.shape[0]).to(old.weight.device, old.weight.dtype)
    model.set_adapter(name)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(tensors["classifier.bias"])


__all__ = ["ADAPTER_FILE", "load_adapter", "read_adapter", "save_adapter"]
