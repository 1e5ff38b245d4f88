"""ONNX files of models, with adapters merged and outputs checked against torch."""

import copy
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..files import write_whole
from ..installation import install_hint
from ..modeling_mtslvr import MTSLVRForAudioClassification, MTSLVRPreTrainedModel, feature_extractor_of
from .graphs import DECOMPOSITIONS, ModelGraph, SpectrogramGraph, WaveformGraph

logger = logging.getLogger(__name__)

INPUTS = ("waveform", "spectrogram")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
SUFFIX = ".onnx"
TOLERANCE = 1e-4  # relative error of a clip's embedding
LOWEST_OPSET = 18  # of torch's exporter
PERTURBATION = 1e-7  # of a sample's value: float32's rounding
PERTURBED_COPIES = 16  # in a batch
PERTURBED_BATCHES = 4
EXPLAINED = 5.0  # an error of at most so many times torch's own difference is rounding


@dataclass(frozen=True)
class ExportReport:
    """ONNX file and its error against torch.

    Attributes:
        tasks: Tasks of the embedding, in its order.
        embedding_size: D.
        labels: Names of a classifier's logits, in their order; None without a classifier.
        opset: ONNX operator set.
        size: Bytes of the file.
        clips: Number of clips compared, in batches of several shapes.
        max_error: Largest |onnx - torch| / |torch| of a clip's embedding or logits (Euclidean norms).
        explained: Clips with an error above the tolerance that rounding explains.
    """

    path: Path
    input: str
    tasks: list[str]
    embedding_size: int
    labels: list[str] | None
    opset: int
    size: int
    clips: int
    max_error: float
    explained: int


class ExportError(ValueError):
    """Difference between the exported graph and the model that is too large."""


def export_onnx(
    model: MTSLVRPreTrainedModel,
    destination: str | Path,
    input: str = "waveform",
    tasks: Sequence[str] | str | None = None,
    opset: int | None = None,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
    attention_mask: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """ONNX export of a model as one float32 file from audio to embeddings, and to a classifier's logits.

    Input: `waveforms` (batch, samples) float32, mono, at the model's sampling rate, from -1 to 1, of any batch size
    and length. The graph normalizes them and cuts windows as in torch. With `input="spectrogram"`: `input_features`
    (batch, channels, mels, frames), the output of `model.frontend` for one window of normalized audio. Outputs: for a
    classifier `logits` (batch, labels), and `embeddings` (batch, D), the model's `pooler_output`; NaN for a clip that
    is empty or not finite. Metadata `mtslvr.*` (JSON) give sampling rate, tasks, labels and parts of the embedding.

    onnxruntime and torch are compared on noise, tones and silence of several lengths and batch sizes. Torch gets each
    clip above the tolerance again, with its samples changed by 1e-7 of their value, up to 64 times. If torch's own
    outputs change by a fifth of the error or more, a warning gives both numbers; the cause is mostly a phase near pi
    that is rounded to -pi (`mel_stft`). Otherwise the file is refused.

    Args:
        model: Any MT-SLVR model; projectors of pre-training are not exported. For a classifier's embedding alone, give
            `model.base_model`.
        destination: File to write, `*.onnx`; its folder is created, an existing file is replaced.
        input: `"waveform"` or `"spectrogram"`.
        tasks: Tasks of the embedding, in its order. Default: the model's active tasks.
        opset: ONNX operator set, 18 or higher. Default: torch's.
        feature_extractor: Source of the normalization. Default: the one saved with the model, or the default one for a
            model that was not loaded.
        attention_mask: Whether the graph has a second input `attention_mask` (batch, samples) int64, 1 for samples and
            then 0 for padding, for clips of different lengths in a batch. Each clip then costs as many windows as the
            longest one. A choice at export, because inputs of ONNX graphs cannot be left out.
        tolerance: Largest relative error of a clip's embedding or logits.

    Raises:
        ImportError: If onnx, onnxruntime or onnxscript is missing; the message has the pip command.
        ValueError: If an argument is not one of those listed, the file name does not end in .onnx, the model has no
            spectrogram, or the classifier reads other tasks.
        ExportError: If an error is above the tolerance and rounding does not explain it. No file is written.
        OSError: If a loaded model was saved without a feature extractor.
    """
    _check_packages()
    destination = Path(destination)
    _check_arguments(model, destination, input, opset, attention_mask, tolerance)
    extractor = feature_extractor_of(model, feature_extractor)
    tasks = _resolve_tasks(model, tasks)
    reference = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    graph = _graph(reference, input, tasks, extractor, attention_mask)
    batches = graph.batches()
    program = to_onnx(graph.eval(), batches[-1], opset)
    program.model.doc_string = _description(graph)
    program.model.metadata_props.update(_metadata(reference, input, tasks, extractor))
    content = program.model_proto.SerializeToString()
    errors = compare(content, reference, batches, tasks, extractor)
    clips = [_clip(batch, number) for batch in batches for number in range(len(next(iter(batch.values()))))]
    above = [(error, clip) for error, clip in zip(errors, clips) if not error <= tolerance]
    measured = _own_differences(above, reference, tasks, extractor, tolerance)
    write_whole(destination, content)
    if measured:
        _warn(destination, measured, tolerance, len(clips))
    return ExportReport(
        path=destination,
        input=input,
        tasks=tasks,
        embedding_size=reference.config.embedding_size_of(tasks),
        labels=_labels(reference),
        opset=program.model.opset_imports[""],
        size=len(content),
        clips=len(errors),
        max_error=max(errors),
        explained=len(measured),
    )


@torch.inference_mode()
def compare(
    file: str | Path | bytes,
    model: MTSLVRPreTrainedModel,
    batches: Sequence[dict[str, torch.Tensor]],
    tasks: Sequence[str] | None = None,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
) -> list[float]:
    """Relative error |onnx - torch| / |torch| of each clip, in onnxruntime on the CPU.

    Args:
        file: ONNX file, or its content.
        model: Its model, in float32 on the CPU.
        batches: Inputs of the file by name.
        tasks: Tasks of the file.
        feature_extractor: Its feature extractor; default as in `export_onnx`.

    Returns:
        Error of each clip, the larger one of embedding and logits; NaN if any value is.
    """
    import onnxruntime

    extractor = feature_extractor_of(model, feature_extractor)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the default pins every core, even a busy one
    content = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    errors: list[float] = []
    for inputs in batches:
        expected = _outputs(model, inputs, tasks, extractor)
        found = session.run(list(expected), {name: value.numpy() for name, value in inputs.items()})
        pairs = zip(map(torch.from_numpy, found), expected.values())
        errors += _largest([_relative_errors(values, wanted) for values, wanted in pairs])
    return errors


def _outputs(
    model: MTSLVRPreTrainedModel,
    inputs: dict[str, torch.Tensor],
    tasks: Sequence[str] | None,
    extractor: MTSLVRFeatureExtractor,
) -> dict[str, torch.Tensor]:
    """Outputs of torch for the inputs of a graph, (B, ...) each."""
    if "waveforms" in inputs:
        waveforms = inputs["waveforms"]
        lengths = inputs.get("attention_mask", torch.ones_like(waveforms)).sum(dim=1).long().tolist()
        clips = [clip[:length] for clip, length in zip(waveforms, lengths)]
        inputs = dict(extractor(clips, extractor.sampling_rate, return_attention_mask=True, return_tensors="pt"))
    outputs = {"embeddings": model.base_model(**inputs, tasks=tasks).pooler_output}
    if isinstance(model, MTSLVRForAudioClassification):
        outputs["logits"] = model(**inputs).logits
    return outputs


def _relative_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """(B, D), (B, D) or (1, D) -> (B,)."""
    size = expected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (found - expected).norm(dim=1) / size


def _largest(errors: Sequence[torch.Tensor]) -> list[float]:
    """Largest of several errors (B,), by clip; NaN if one is."""
    return torch.stack(list(errors)).amax(dim=0).tolist()


def _clip(batch: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    return {name: values[number : number + 1] for name, values in batch.items()}


@torch.inference_mode()
def own_difference(
    model: MTSLVRPreTrainedModel,
    inputs: dict[str, torch.Tensor],
    tasks: Sequence[str] | None,
    extractor: MTSLVRFeatureExtractor,
    enough: float = math.inf,
) -> float:
    """Largest relative difference of torch's outputs for one clip, when its values change by 1e-7 of themselves.

    Args:
        model: In float32 on the CPU.
        inputs: Inputs of the graph for one clip, (1, ...) each.
        tasks: Tasks of the embedding.
        extractor: Source of the normalization.
        enough: Difference at which the search ends; otherwise after 64 random changes.
    """
    generator = torch.Generator().manual_seed(0)
    name, *masks = inputs
    values = inputs[name].expand(1 + PERTURBED_COPIES, *inputs[name].shape[1:])
    repeated = {mask: inputs[mask].expand(len(values), -1) for mask in masks}
    largest = 0.0
    for _ in range(PERTURBED_BATCHES):
        noise = PERTURBATION * torch.randn(values.shape, generator=generator)
        noise[0] = 0.0  # the clip itself
        outputs = _outputs(model, {name: values * (1 + noise), **repeated}, tasks, extractor).values()
        errors = _largest([_relative_errors(output[1:], output[:1]) for output in outputs])
        largest = max(largest, *errors)
        if largest >= enough:
            break
    return largest


def _own_differences(
    above: Sequence[tuple[float, dict[str, torch.Tensor]]],
    model: MTSLVRPreTrainedModel,
    tasks: Sequence[str],
    extractor: MTSLVRFeatureExtractor,
    tolerance: float,
) -> list[tuple[float, float]]:
    """Errors above the tolerance with torch's own differences; an ExportError unless rounding explains each."""
    measured = []
    for error, clip in above:
        own = own_difference(model, clip, tasks, extractor, enough=error / EXPLAINED)
        if not error <= EXPLAINED * own:
            raise ExportError(
                f"the exported network differs from torch by {error:.1e} of an output, more than the tolerance "
                f"{tolerance:.0e}. Rounding does not explain it: torch's own output changes by only {own:.1e} when "
                f"that clip changes by {PERTURBATION:.0e}. No file was written. Check that weights and statistics are "
                "finite; update torch and onnxscript; or raise the tolerance if this error is harmless."
            )
        measured.append((error, own))
    return measured


def _warn(destination: Path, measured: Sequence[tuple[float, float]], tolerance: float, clips: int) -> None:
    error, own = max(measured)
    logger.warning(
        "%s differs from torch by %.1e of an output, more than the tolerance %.0e, on %d of %d clips. Rounding "
        "explains it: torch's own output changes by %.1e when that clip changes by %.0e (mostly a phase near pi that "
        "is rounded to -pi).",
        *(destination, error, tolerance, len(measured), clips, own, PERTURBATION),
    )


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: {install_hint('onnx')}.")


def _check_arguments(
    model: MTSLVRPreTrainedModel,
    destination: Path,
    input: str,
    opset: int | None,
    attention_mask: bool,
    tolerance: float,
) -> None:
    if input not in INPUTS:
        raise ValueError(f"`input` must be one of {', '.join(map(repr, INPUTS))}; got {input!r}.")
    if input == "spectrogram" and model.config.frontend == "waveform":
        raise ValueError("this model reads waveforms and has no spectrogram; use `input='waveform'`.")
    if input == "spectrogram" and attention_mask:
        raise ValueError("`attention_mask` is for waveforms: an item of `input='spectrogram'` is one window.")
    if opset is not None and opset < LOWEST_OPSET:
        raise ValueError(f"`opset` is {opset}; torch writes {LOWEST_OPSET} or higher.")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"`tolerance` is {tolerance}; expected a number above 0, such as {TOLERANCE:.0e}.")
    if destination.is_dir():
        raise ValueError(f"{destination} is a folder; expected a file such as {destination / 'model.onnx'}.")
    if destination.suffix != SUFFIX:
        raise ValueError(
            f"{destination} does not end in {SUFFIX}; expected a name such as {destination.with_suffix(SUFFIX)}."
        )


def _resolve_tasks(model: MTSLVRPreTrainedModel, tasks: Sequence[str] | str | None) -> list[str]:
    """Tasks of the embedding; raises a ValueError if the classifier reads others."""
    resolved = model.config.resolve_tasks(tasks)
    if isinstance(model, MTSLVRForAudioClassification) and resolved != model.config.embedding_tasks:
        raise ValueError(
            f"the classifier reads the embedding of {model.config.embedding_tasks}; got tasks {resolved}. Leave them "
            "out, or export the embedding without the classifier (`--no-classifier`, `model.base_model`)."
        )
    return resolved


def _graph(
    model: MTSLVRPreTrainedModel,
    input: str,
    tasks: Sequence[str],
    extractor: MTSLVRFeatureExtractor,
    attention_mask: bool,
) -> ModelGraph:
    network = model.base_model.inference_network(tasks)
    classifier = model.classifier if isinstance(model, MTSLVRForAudioClassification) else None
    if input == "spectrogram":
        return SpectrogramGraph(network, tasks, extractor, classifier)
    return WaveformGraph(network, tasks, extractor, classifier, attention_mask)


def to_onnx(graph: ModelGraph, example: dict[str, torch.Tensor], opset: int | None = None) -> Any:
    """`torch.onnx.ONNXProgram` of a graph; its `dynamic_axes` may vary."""
    from onnxscript import optimizer

    dynamic = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in graph.dynamic_axes.items()}
    with torch.no_grad():
        traced = torch.export.export(
            graph, (), example, dynamic_shapes=dynamic, prefer_deferred_runtime_asserts_over_guards=True
        ).run_decompositions(DECOMPOSITIONS)
    program: Any = torch.onnx.export(
        traced,
        dynamic_shapes=graph.dynamic_axes,
        input_names=list(graph.dynamic_axes),
        output_names=graph.outputs,
        opset_version=opset,
        dynamo=True,
        external_data=False,
        optimize=False,
        verbose=False,
    )
    written = program.model.opset_imports[""]
    if opset not in (None, written):  # torch only logs it
        raise ValueError(
            f"`opset` is {opset}, which this onnxscript cannot write (it wrote {written}); update onnxscript or set a "
            "lower opset."
        )
    # Not `optimize=True`: onnxscript 0.7 drops the 2e-16 that is added before a logarithm, so silence becomes -inf.
    optimizer.inline(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces with paths of this machine
    return program


def _description(graph: ModelGraph) -> str:
    """Sentences on inputs and outputs, for people who have the file alone."""
    config = graph.network.config
    if "waveforms" in graph.dynamic_axes:
        text = (
            f"waveforms (batch, samples): mono audio at {config.sampling_rate} Hz, floats from -1 to 1, not "
            "normalized: the graph normalizes. Any length: the graph cuts windows and averages their embeddings. "
        )
    else:
        text = "input_features (batch, channels, mels, frames): the output of model.frontend for normalized audio. "
    if "attention_mask" in graph.dynamic_axes:
        text += "attention_mask (batch, samples): 1 for samples, then 0 for padding. "
    outputs = {"logits": "one for each of mtslvr.labels, before softmax or sigmoid", "embeddings": "of mtslvr.tasks"}
    text += " ".join(f"{name}: {outputs[name]}." for name in graph.outputs)
    return f"MT-SLVR. {text} NaN: a clip is empty or not finite. Metadata mtslvr.* are JSON."


def _labels(model: MTSLVRPreTrainedModel) -> list[str] | None:
    if not isinstance(model, MTSLVRForAudioClassification):
        return None
    return [label for _, label in sorted((model.config.id2label or {}).items())]


def _metadata(
    model: MTSLVRPreTrainedModel, input: str, tasks: Sequence[str], extractor: MTSLVRFeatureExtractor
) -> dict[str, str]:
    """Metadata for programs without this package; every value is JSON."""
    config = model.config
    facts: dict[str, Any] = {"input": input, "tasks": list(tasks), "embedding_size": config.embedding_size_of(tasks)}
    names = "sampling_rate window_samples head_size pooling num_bands use_heads"
    labels = _labels(model)
    if labels is not None:
        facts |= {"labels": labels, "problem_type": config.problem_type}
    if input == "spectrogram":  # what a program needs to compute it; the other graph does this itself
        names += " frontend n_fft hop_length num_mel_bins normalize_spectrogram"
        facts |= {name: getattr(extractor, name) for name in ("normalization", "mean", "std")}
    facts |= {name: getattr(config, name) for name in names.split()}
    return {f"mtslvr.{name}": json.dumps(value) for name, value in facts.items()}


__all__ = ["ExportError", "ExportReport", "compare", "export_onnx", "own_difference", "to_onnx"]
