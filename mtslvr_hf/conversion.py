"""Conversion of original MT-SLVR checkpoints (a pickled state dict) to a folder that `from_pretrained` loads.

The names and shapes in the file define the model. Each target tensor needs one source tensor of the same shape, and
each source tensor is used once; otherwise the conversion fails and writes nothing.

    original                                   here
    conv1, bn1                                 encoder.stem.conv, encoder.stem.adapters.shared.norm
    layerL.I.convK, layerL.I.bnK               encoder.layerL.I.convK.conv, .adapters.shared.norm    (no adapters)
    layerL.I.downsample.{0,1}                  encoder.layerL.I.shortcut.conv, .adapters.shared.norm (no adapters)
    layerL.I.convK.conv                        encoder.layerL.I.convK.conv                           (adapters)
    layerL.I.convK.bns.T                       encoder.layerL.I.convK.adapters.TASK.norm             (bn, parallel)
    layerL.I.convK.parallel_conv.T.conv        encoder.layerL.I.convK.adapters.TASK.conv             (parallel)
    layerL.I.convK.bns.T.0.conv.{0,1}, .1      encoder.layerL.I.convK.adapters.TASK.{input_norm,conv}, .norm (series)
    end_bns.T.0                                encoder.final_norms.TASK                              (adapters)
    fc, fc_layers.T                            heads.shared, heads.TASK
    {cont,predict}_projector, cont_predictor   {contrastive,predictive}_projector, contrastive_predictor
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch

from .configuration_mtslvr import AUGMENTATIONS, TASKS, MTSLVRConfig
from .feature_extraction_mtslvr import MTSLVRFeatureExtractor
from .files import open_regular
from .modeling_mtslvr import BLOCKS, SHARED, MTSLVRForPreTraining, MTSLVRModel

logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]

SIGNATURES = (b"PK\x03\x04", b"\x80")  # torch.save's zip archive, and the plain pickle before torch 1.6
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError)  # damaged file
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "backbone")
FRAMEWORK_PREFIXES = ("backbone.", "cont_projector.", "cont_predictor.", "predict_projector.")
SHOWN_KEYS = 8  # per kind of error

# Our module in a Sequential -> the original's module of that projector.
PROJECTORS = {
    "simclr": {"contrastive_projector": ("cont_projector", {0: "layer1.0", 2: "layer2"})},
    "simsiam": {
        "contrastive_projector": (
            "cont_projector",
            {0: "layer1.0", 1: "layer1.1", 3: "layer2.0", 4: "layer2.1", 6: "layer3.0", 7: "layer3.1"},
        ),
        "contrastive_predictor": ("cont_predictor", {0: "layer1.0", 1: "layer1.1", 3: "layer2"}),
    },
}
PREDICTIVE_PROJECTOR = (
    "predict_projector",
    {0: "layer1.0", 1: "layer1.1", 3: "layer2.0", 4: "layer2.1", 6: "layer3.0", 7: "layer3.1", 9: "layer4.0"},
)


def convert_checkpoint(
    source: str | os.PathLike, destination: str | os.PathLike, tasks: Sequence[str] | None = None
) -> MTSLVRModel | MTSLVRForPreTraining:
    """Converts an original checkpoint into a folder with model, configuration, code and feature extractor.

    A backbone becomes an [`MTSLVRModel`], a whole framework (`backbone.*` and projectors) an
    [`MTSLVRForPreTraining`]. Settings that the file lacks get the defaults of [`MTSLVRConfig`] and
    [`MTSLVRFeatureExtractor`]: window, temperature, weight of the predictive loss, normalization (`"global"`).

    Args:
        source: Original checkpoint: a state dict, or a dictionary that holds one as `state_dict`, `model` or similar.
        destination: Folder to make; it must be missing or empty.
        tasks: Training tasks of a network with a single head, which its file lacks: `("contrastive",)` (the default,
            with a warning), `("predictive",)`, or both for MT-Simple. Other files contain them; `tasks` must agree.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: If there is no `source`.
        FileExistsError: If `destination` is not an empty folder.
        ValueError: If the file is not an original checkpoint; the message names the tensors that are missing, left
            over or of another shape.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise FileExistsError(f"The destination {destination} exists and is not an empty folder: choose another.")
    model = model_from_state_dict(read_state_dict(source), tasks)
    _save_all_or_nothing(model, destination)
    return model


def read_state_dict(source: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Reads the tensors of an original checkpoint, without running code from the file.

    Args:
        source: File from `torch.save`.

    Returns:
        Tensors on the CPU by name, without prefixes of `DataParallel`, and without `backbone.` if all names have it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `torch.save` did not write it, it holds more than tensors, or no state dict.
    """
    with open_regular(source) as file:
        if not file.read(4).startswith(SIGNATURES):
            raise ValueError(f"{source} is not a file that `torch.save` wrote.")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source} could not be read as tensors only ({reason}); expected a state dict. If it holds a whole "
            "model, load it with the code that wrote it and save `model.state_dict()`."
        ) from error
    state = _find_state_dict(content, source)
    plain = {re.sub(r"(^|\.)module\.", r"\1", key): value for key, value in state.items()}
    if len(plain) != len(state):
        raise ValueError(f"{source} holds tensors twice: with and without the prefix `module.`. Keep one of each.")
    if all(key.startswith("backbone.") for key in plain):
        plain = {key.removeprefix("backbone."): value for key, value in plain.items()}
    return plain


def _find_state_dict(content: object, source: str | os.PathLike) -> dict[str, torch.Tensor]:
    if _is_state_dict(content):
        return dict(content)
    found = content if isinstance(content, Mapping) else {}
    candidates = [key for key in WRAPPERS if _is_state_dict(found.get(key))]
    if len(candidates) != 1:
        holds = ", ".join(map(repr, list(found)[:SHOWN_KEYS])) or f"a {type(content).__name__}"
        raise ValueError(
            f"{source} holds {holds}; expected a state dict (tensors by name), or a dictionary with one state dict "
            f"under one of {', '.join(WRAPPERS)}."
        )
    return dict(found[candidates[0]])


def _is_state_dict(content: object) -> TypeGuard[StateDict]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def model_from_state_dict(state: StateDict, tasks: Sequence[str] | None = None) -> MTSLVRModel | MTSLVRForPreTraining:
    """Model of an original state dict, in eval mode.

    Args:
        state: Original tensors by name.
        tasks: As for [`convert_checkpoint`].

    Raises:
        ValueError: If tensors are missing, left over or of another shape; or if `tasks` contradicts the file.
    """
    config = infer_config(state, tasks)
    model = (MTSLVRForPreTraining if _is_framework(state) else MTSLVRModel)(config)
    targets = model.state_dict()
    sources = {name: _original_name(name, config, state) for name in targets}
    _check_complete(state, targets, sources)
    model.load_state_dict({name: state[sources[name]] for name in targets})
    return model.eval()


def infer_config(state: StateDict, tasks: Sequence[str] | None = None) -> MTSLVRConfig:
    """Configuration from the names and shapes of an original state dict.

    Args:
        state: Original tensors by name.
        tasks: As for [`convert_checkpoint`].

    Raises:
        ValueError: If these are not the tensors of an original network, or `tasks` contradicts them.
    """
    backbone, prefix = state, "backbone."
    if _is_framework(state):
        backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    stem = backbone.get("conv1.weight")
    if stem is None or stem.ndim not in (3, 4) or not any(key.startswith("layer1.0.") for key in backbone):
        shown = ", ".join(list(state)[:SHOWN_KEYS])
        raise ValueError(f"No original MT-SLVR network: `conv1.weight` and `layer1.0` are not among {shown}, ...")
    frontend = {(3, 1): "waveform", (4, 1): "mel", (4, 3): "mel_stft"}.get((stem.ndim, stem.shape[1]))
    if frontend is None:
        raise ValueError(
            f"`conv1.weight` has the shape {tuple(stem.shape)}, {stem.shape[1]} channels in {stem.ndim - 2} "
            "dimensions; expected 1 in 1 (waveform), 1 in 2 (mel) or 3 in 2 (mel_stft)."
        )
    method, known_tasks = _objectives(state)
    return MTSLVRConfig(
        frontend=frontend,
        depth=_depth(backbone),
        base_width=stem.shape[0],
        adapter_type=_adapter_type(backbone),
        contrastive_method=method,
        **_heads(backbone, known_tasks, tasks),
    )


def _is_framework(state: StateDict) -> bool:
    return any(key.startswith(FRAMEWORK_PREFIXES) for key in state)


def _adapter_type(backbone: StateDict) -> str:
    if any(".parallel_conv." in key for key in backbone):
        return "parallel"
    if any(re.search(r"\.bns\.\d+\.0\.conv\.", key) for key in backbone):
        return "series"
    return "bn" if any(".bns." in key for key in backbone) else "none"


def _depth(backbone: StateDict) -> int:
    blocks = tuple(_count(backbone, rf"layer{number}\.(\d+)\.") for number in range(1, 5))
    bottleneck = any(key.startswith("layer1.0.conv3.") for key in backbone)
    for depth, of_depth in BLOCKS.items():
        if of_depth == blocks and bottleneck == (depth >= 50):
            return depth
    kind = "bottleneck" if bottleneck else "basic"
    raise ValueError(f"Layers of {blocks} {kind} blocks are no ResNet-{', '.join(map(str, BLOCKS))}.")


def _count(names: Iterable[str], pattern: str) -> int:
    """Number of different values of the pattern's group."""
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


def _objectives(state: StateDict) -> tuple[str, tuple[str, ...] | None]:
    """Contrastive method, and the tasks with a projector; no tasks (None) for a backbone alone."""
    if not _is_framework(state):
        return "simclr", None
    simsiam = any(key.startswith(("cont_predictor.", "cont_projector.layer3.")) for key in state)
    present = [any(key.startswith(prefix) for key in state) for prefix in ("cont_projector.", "predict_projector.")]
    tasks = tuple(task for task, has_projector in zip(TASKS, present) if has_projector)
    labels = state.get("predict_projector.layer4.0.weight")
    if labels is not None and labels.shape[:1] != (len(AUGMENTATIONS),):
        raise ValueError(
            f"`predict_projector.layer4.0.weight` has the shape {tuple(labels.shape)}; expected a row for each of the "
            f"paper's {len(AUGMENTATIONS)} augmentations: {', '.join(AUGMENTATIONS)}."
        )
    return "simsiam" if simsiam else "simclr", tasks


def _heads(backbone: StateDict, known_tasks: Sequence[str] | None, asked: Sequence[str] | None) -> dict:
    """Fields `tasks`, `shared_head` and `embedding_size` of the configuration."""
    weights = {key: value for key, value in backbone.items() if re.fullmatch(r"fc(_layers\.\d+)?\.weight", key)}
    heads = {key: value.shape[0] for key, value in weights.items() if value.ndim == 2}
    sizes = list(heads.values())
    if len(heads) not in (1, 2) or len(set(sizes)) != 1 or (len(heads) == 2 and "fc.weight" in heads):
        raise ValueError(f"Expected `fc` or `fc_layers.0`, or two of `fc_layers.N` of equal size; found {heads}.")
    adapters = _count(backbone, r"layer2\.0\.conv1\.bns\.(\d+)\.")  # 0 without adapters
    if known_tasks is None and max(len(sizes), adapters) == len(TASKS):
        known_tasks = TASKS
    asked = (asked,) if isinstance(asked, str) else asked
    if known_tasks is not None and asked is not None and set(asked) != set(known_tasks):
        raise ValueError(f"`tasks` {tuple(asked)} contradicts the file, whose tasks are {tuple(known_tasks)}.")
    tasks = known_tasks or asked
    if tasks is None:
        tasks = TASKS[:1]
        logger.warning(
            "The file has one head and lacks its tasks; taking it as contrastive. For Pred Only pass "
            "tasks=('predictive',), for MT-Simple tasks=('contrastive', 'predictive')."
        )
    tasks = [task for task in TASKS if task in tasks] if set(tasks) <= set(TASKS) else list(tasks)
    shared = len(sizes) < len(tasks)
    return {"tasks": tasks, "shared_head": shared, "embedding_size": sizes[0] * (1 if shared else len(tasks))}


def _original_name(name: str, config: MTSLVRConfig, state: StateDict) -> str:
    """Original name of one of our tensors."""
    module, _, rest = name.partition(".")
    projectors = {**PROJECTORS[config.contrastive_method], "predictive_projector": PREDICTIVE_PROJECTOR}
    if module in projectors:
        original, layers = projectors[module]
        index, _, parameter = rest.partition(".")
        return f"{original}.{layers[int(index)]}.{parameter}"
    prefix = "backbone." if module == "mtslvr" else ""
    return prefix + _original_backbone_name(name.removeprefix("mtslvr."), config, f"{prefix}fc.weight" in state)


def _original_backbone_name(name: str, config: MTSLVRConfig, single_fc: bool) -> str:
    parts = name.split(".")
    if parts[0] == "heads":
        return f"fc.{parts[2]}" if single_fc else f"fc_layers.{_task_number(parts[1], config)}.{parts[2]}"
    module, rest = parts[1], parts[2:]
    if module == "final_norms":
        return f"end_bns.{_task_number(rest[0], config)}.0.{rest[1]}"
    if module == "stem":
        return "conv1.weight" if rest[0] == "conv" else f"bn1.{rest[-1]}"
    block, layer = f"{module}.{rest[0]}", rest[1]  # layer2.0, and conv1 or shortcut
    if layer == "shortcut":
        return f"{block}.downsample.{0 if rest[2] == 'conv' else 1}.{rest[-1]}"
    if config.adapter_type == "none":
        return f"{block}.{layer if rest[2] == 'conv' else layer.replace('conv', 'bn')}.{rest[-1]}"
    if rest[2] == "conv":
        return f"{block}.{layer}.conv.{rest[-1]}"
    task, part, parameter = _task_number(rest[3], config), rest[4], rest[5]
    adapter = {
        "bn": {"norm": f"bns.{task}"},
        "parallel": {"norm": f"bns.{task}", "conv": f"parallel_conv.{task}.conv"},
        "series": {"norm": f"bns.{task}.1", "conv": f"bns.{task}.0.conv.1", "input_norm": f"bns.{task}.0.conv.0"},
    }[config.adapter_type]
    return f"{block}.{layer}.{adapter[part]}.{parameter}"


def _task_number(task: str, config: MTSLVRConfig) -> int:
    return 0 if task == SHARED else list(config.tasks).index(task)


def _check_complete(state: StateDict, targets: StateDict, sources: Mapping[str, str]) -> None:
    """Raises a ValueError unless each tensor has a partner of the same shape and kind of number."""
    wanted = set(sources.values())
    assert len(wanted) == len(sources), "two tensors of the model have one original"
    complaints = {
        "missing from the file": sorted(wanted - state.keys()),
        "not part of the network": sorted(state.keys() - wanted),
        "of another shape": [
            f"{source} {tuple(state[source].shape)} instead of {tuple(targets[name].shape)}"
            for name, source in sources.items()
            if source in state and state[source].shape != targets[name].shape
        ],
        "of another type": [
            f"{source} {state[source].dtype} instead of {targets[name].dtype}"
            for name, source in sources.items()
            if source in state and state[source].is_floating_point() != targets[name].is_floating_point()
        ],
    }
    lines = [f"{len(keys)} {what}: {_shown(keys)}" for what, keys in complaints.items() if keys]
    if lines:
        raise ValueError("The file's tensors do not make up an original network. " + "; ".join(lines) + ".")


def _shown(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")


def _save_all_or_nothing(model: MTSLVRModel | MTSLVRForPreTraining, destination: Path) -> None:
    """Saves beside the destination and renames, so that an interruption leaves no incomplete folder."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.parent / f".{destination.name}.{os.getpid()}.unfinished"
    try:
        model.save_pretrained(unfinished)
        MTSLVRFeatureExtractor(sampling_rate=model.config.sampling_rate).save_pretrained(unfinished)
        if destination.exists():
            destination.rmdir()  # empty, as checked
        unfinished.rename(destination)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


__all__ = ["convert_checkpoint", "infer_config", "model_from_state_dict"]
