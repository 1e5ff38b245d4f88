"""Models as ONNX files: the merged network, checked against torch before the file appears."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..embedding.encode import feature_extractor_of
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..files import whole_file
from ..modeling_mtslvr import MTSLVRModel, MTSLVRPreTrainedModel
from .graphs import DECOMPOSITIONS, EmbeddingGraph, SpectrogramGraph, WaveformGraph

INPUTS = ("waveform", "spectrogram")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of a clip's embedding, relative
LOWEST_OPSET = 18  # what torch translates to
OUTPUT = "embeddings"


@dataclass(frozen=True)
class ExportReport:
    """Report of an export: the file, and its error against torch.

    Attributes:
        path: the file.
        input: "waveform" or "spectrogram".
        tasks: the tasks in the embedding, in its order.
        embedding_size: D.
        opset: the file's ONNX operator set.
        size: the file's bytes.
        clips: clips that were compared, in batches of several shapes.
        max_error: the largest |onnx - torch| / |torch| of a clip's embedding (Euclidean norms).
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
    """The exported graph does not compute what the model computes."""


def export_onnx(
    model: MTSLVRPreTrainedModel,
    destination: str | Path,
    input: str = "waveform",
    tasks: Sequence[str] | str | None = None,
    opset: int | None = None,
    feature_extractor: MTSLVRFeatureExtractor | None = None,
) -> ExportReport:
    """Writes a model as one ONNX file, in float32, with adapters and batch normalization merged.

    The file takes `input_values` (batch, samples) float32 and `attention_mask` (batch, samples) int64 as the feature
    extractor makes them, of any batch and length, and cuts the windows itself; or, with `input="spectrogram"`,
    `input_features` (batch, channels, mels, frames), what `model.frontend` makes of one window. It returns
    `embeddings` (batch, D), the forward's `pooler_output`. Every clip is computed in as many windows as the longest of
    its batch has, so batches of like length are the cheapest. Clips must be padded on the right: a graph cannot refuse
    others. Its metadata say how to prepare audio for it and what the embedding is made of.

    It is compared with torch in onnxruntime on noise, tones and silence of several lengths and batches, and nothing
    is left at `destination` that was not found equal. With a `mel_stft` model, single clips can still differ by more:
    by some 1e-4 where a phase is so close to pi that rounding decides for -pi, by up to 1e-2 where bands hold nothing
    but rounding noise (synthetic periodic signals), as they do between one device and another in torch.

    Args:
        model: The model; a classifier's or a pre-training model's embedding is what is exported.
        destination: The file to write, `*.onnx`; its folder is made. A file that is there is replaced.
        input: `"waveform"` or `"spectrogram"`.
        tasks: Tasks of the embedding, in its order; the model's active ones unless given.
        opset: ONNX operator set, 18 or higher; torch's default unless given.
        feature_extractor: The one whose settings go into the metadata; the one beside the model's weights unless
            given, or the default one for a model that was not loaded.

    Returns:
        Where it is, and the largest error found.

    Raises:
        ImportError: If onnx, onnxruntime or onnxscript is missing; it says how to install them.
        ValueError: If an argument is not one of those listed, or the model has no spectrogram.
        ExportError: If the largest error is above 1e-4. No file is written then.
        OSError: If there is no feature extractor beside the model's weights.
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
        worst = float(torch.tensor(errors).max())  # NaN if there is one
        if not worst <= TOLERANCE:
            raise ExportError(
                f"the exported network differs from torch by {worst:.1e} of an embedding, more than {TOLERANCE:.0e}; "
                "wrote nothing. Are the model's weights and statistics finite, torch and onnxscript up to date?"
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
    """Runs an exported file in onnxruntime on the CPU beside the model.

    Args:
        path: the ONNX file.
        model: the model it was made from, in float32 on the CPU.
        batches: inputs of the model's forward.
        tasks: the tasks it was exported for.

    Returns:
        For each clip, |onnx - torch| / |torch| of its embedding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own default pins every core, taken or not
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
        raise ValueError("This model reads waveforms and has no spectrogram: export it with `input='waveform'`.")
    if opset is not None and opset < LOWEST_OPSET:
        raise ValueError(f"`opset` is {opset}; torch writes {LOWEST_OPSET} or higher.")
    if destination.is_dir():
        raise ValueError(f"{destination} is a folder; expected a file to write, such as {destination / 'model.onnx'}.")


def to_onnx(graph: EmbeddingGraph, example: dict[str, torch.Tensor], opset: int | None = None) -> Any:
    """Traces a graph, whose `dynamic_axes` say which may vary, and translates it; a `torch.onnx.ONNXProgram`."""
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
            f"`opset` is {opset}, which this onnxscript cannot write (it wrote {written}): update it, or choose "
            "a lower one."
        )
    # Not `optimize=True`, whose rewriting takes the 2e-16 that is added before a logarithm for 0 and drops it
    # (onnxscript 0.7), so that silence becomes -inf.
    optimizer.inline(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    return program


def _metadata(
    network: MTSLVRModel, input: str, tasks: Sequence[str], extractor: MTSLVRFeatureExtractor
) -> dict[str, str]:
    """Metadata of the file for programs that have nothing else; every value is JSON."""
    config = network.config
    facts = {
        "input": input,
        "tasks": list(tasks),
        "head_size": config.head_size,
        "sampling_rate": config.sampling_rate,
        "normalization": extractor.normalization,
        "mean": extractor.mean,
        "std": extractor.std,
        "window_samples": config.window_samples,
        "frontend": config.frontend,
        "n_fft": config.n_fft,
        "hop_length": config.hop_length,
        "num_mel_bins": config.num_mel_bins,
    }
    return {f"mtslvr.{name}": json.dumps(value) for name, value in facts.items()}


__all__ = ["ExportError", "ExportReport", "compare", "export_onnx", "to_onnx"]
