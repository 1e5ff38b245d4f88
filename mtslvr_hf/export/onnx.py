"""ONNX files of models, with adapters merged and outputs checked against torch."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..files import whole_file
from ..modeling_mtslvr import MTSLVRModel, MTSLVRPreTrainedModel, feature_extractor_of
from .graphs import DECOMPOSITIONS, EmbeddingGraph, SpectrogramGraph, WaveformGraph

INPUTS = ("waveform", "spectrogram")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # relative error of a clip's embedding
LOWEST_OPSET = 18  # of torch's exporter
OUTPUT = "embeddings"


@dataclass(frozen=True)
class ExportReport:
    """ONNX file and its error against torch.

    Attributes:
        tasks: Tasks of the embedding, in its order.
        embedding_size: D.
        opset: ONNX operator set.
        size: Bytes of the file.
        clips: Number of clips compared, in batches of several shapes.
        max_error: Largest |onnx - torch| / |torch| of a clip's embedding (Euclidean norms).
    """

    path: Path
    input: str
    tasks: list[str]
    embedding_size: int
    opset: int
    size: int
    clips: int
    max_error: float


class ExportError(ValueError):
    """Difference between the exported graph and the model that is too large."""


def export_onnx(
    model: MTSLVRPreTrainedModel,
    destination: str | Path,
    input: str = "waveform",
    tasks: Sequence[str] | str | None = None,
    opset: int | None = None,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
) -> ExportReport:
    """ONNX export of a model's embedding as one float32 file, with adapters and batch normalization merged.

    Inputs: `input_values` (batch, samples) float32 and `attention_mask` (batch, samples) int64 from the feature
    extractor, padded on the right, of any batch size and length; or, with `input="spectrogram"`, `input_features`
    (batch, channels, mels, frames), the output of `model.frontend` for one window. Output: `embeddings` (batch, D),
    the model's `pooler_output`. The graph computes as many windows per clip as the longest clip of the batch has, so
    clips of similar length are the cheapest. The metadata give audio settings and the parts of the embedding.

    onnxruntime and torch are compared on noise, tones and silence of several lengths and batch sizes; a file that
    differs is not kept. Single clips of a `mel_stft` model can differ more: by about 1e-4 if a phase is so close to pi
    that it is rounded to -pi, by up to 1e-2 if bands hold only rounding noise (synthetic periodic signals). In torch,
    two devices differ as much.

    Args:
        model: Any MT-SLVR model; heads of a classifier or of pre-training are not exported.
        destination: File to write, `*.onnx`; its folder is created, an existing file is replaced.
        input: `"waveform"` or `"spectrogram"`.
        tasks: Tasks of the embedding, in its order. Default: the model's active tasks.
        opset: ONNX operator set, 18 or higher. Default: torch's.
        feature_extractor: Source of settings for the metadata. Default: the one saved with the model, or the default
            one for a model that was not loaded.

    Raises:
        ImportError: If onnx, onnxruntime or onnxscript is missing; the message has the pip command.
        ValueError: If an argument is not one of those listed, or the model has no spectrogram.
        ExportError: If the largest error is above 1e-4. No file is written.
        OSError: If a loaded model was saved without a feature extractor.
    """
    _check_packages()
    destination = Path(destination)
    reference: MTSLVRModel = copy.deepcopy(model.base_model).cpu().float().eval().requires_grad_(False)
    tasks = reference.config.resolve_tasks(tasks)
    _check_arguments(reference, destination, input, opset)
    extractor = feature_extractor or feature_extractor_of(model)
    kind = WaveformGraph if input == "waveform" else SpectrogramGraph
    graph, batches = kind(reference.inference_network(tasks), tasks), kind.batches(reference)
    program = to_onnx(graph.eval(), batches[-1], opset)
    program.model.metadata_props.update(_metadata(reference, input, tasks, extractor))
    with whole_file(destination) as temporary:
        program.save(temporary, external_data=False)
        errors = compare(temporary, reference, batches, tasks)
        worst = float(torch.tensor(errors).max())  # NaN if any is
        if not worst <= TOLERANCE:
            raise ExportError(
                f"the exported network differs from torch by {worst:.1e} of an embedding, more than {TOLERANCE:.0e}; "
                "no file was written. Check that weights and statistics are finite; update torch and onnxscript."
            )
    return ExportReport(
        path=destination,
        input=input,
        tasks=tasks,
        embedding_size=reference.config.embedding_size_of(tasks),
        opset=program.model.opset_imports[""],
        size=destination.stat().st_size,
        clips=len(errors),
        max_error=worst,
    )


@torch.inference_mode()
def compare(
    path: str | Path,
    model: MTSLVRModel,
    batches: Sequence[dict[str, torch.Tensor]],
    tasks: Sequence[str] | None = None,
) -> list[float]:
    """Relative error |onnx - torch| / |torch| of each clip's embedding, in onnxruntime on the CPU.

    Args:
        path: ONNX file.
        model: Its model, in float32 on the CPU.
        batches: Inputs of the model's forward.
        tasks: Tasks of the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the default pins every core, even a busy one
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    errors: list[float] = []
    for inputs in batches:
        expected = model(**inputs, tasks=tasks).pooler_output  # (B, D)
        (found,) = session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
        difference = (torch.from_numpy(found) - expected).norm(dim=1)
        errors += (difference / expected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)).tolist()
    return errors


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX export needs {', '.join(missing)}: `pip install 'mtslvr-hf[onnx]'`, or `pip install "
            f"{' '.join(missing)}`."
        )


def _check_arguments(network: MTSLVRModel, destination: Path, input: str, opset: int | None) -> None:
    if input not in INPUTS:
        raise ValueError(f"`input` must be one of {', '.join(map(repr, INPUTS))}; got {input!r}.")
    if input == "spectrogram" and network.config.frontend == "waveform":
        raise ValueError("this model reads waveforms and has no spectrogram; use `input='waveform'`.")
    if opset is not None and opset < LOWEST_OPSET:
        raise ValueError(f"`opset` is {opset}; torch writes {LOWEST_OPSET} or higher.")
    if destination.is_dir():
        raise ValueError(f"{destination} is a folder; expected a file such as {destination / 'model.onnx'}.")


def to_onnx(graph: EmbeddingGraph, example: dict[str, torch.Tensor], opset: int | None = None) -> Any:
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
        output_names=[OUTPUT],
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


def _metadata(
    network: MTSLVRModel, input: str, tasks: Sequence[str], extractor: MTSLVRFeatureExtractor
) -> dict[str, str]:
    """Metadata for programs without this package; every value is JSON."""
    of_network = "head_size pooling num_bands use_heads sampling_rate window_samples frontend n_fft hop_length"
    facts = {"input": input, "tasks": list(tasks)}
    facts |= {name: getattr(network.config, name) for name in f"{of_network} num_mel_bins".split()}
    facts |= {name: getattr(extractor, name) for name in ("normalization", "mean", "std")}
    return {f"mtslvr.{name}": json.dumps(value) for name, value in facts.items()}


__all__ = ["ExportError", "ExportReport", "compare", "export_onnx", "to_onnx"]
