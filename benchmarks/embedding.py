"""Clips per second of embedding both heads, compared with alternatives in one run.

python benchmarks/embedding.py                                  # the published computation, ours, AST-base
python benchmarks/embedding.py --batch-size 1 --no-ast          # latency of one clip
python benchmarks/embedding.py --compile --onnx                 # and other ways to run ours (pip install -e '.[onnx]')
python benchmarks/embedding.py --device cuda --dtype bfloat16 --compile --batch-size 256
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from as_published import machine, relative_error, seconds_each, task_by_task, unfolded
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

ENCODED_BATCHES = 8  # in a call of encode, which starts threads once
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the merged network too")
    parser.add_argument("--onnx", action="store_true", help="time ONNX Runtime too (CPU)")
    parser.add_argument("--no-ast", action="store_true", help="leave out AST-base")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    model = MTSLVRModel(MTSLVRConfig(window_seconds=options.seconds, base_width=options.base_width)).eval()
    clips = 0.1 * np.random.default_rng(0).standard_normal((options.batch_size, model.config.window_samples))
    clips = list(clips.astype(np.float32))
    waveforms = MTSLVRFeatureExtractor()(clips, sampling_rate=16_000, return_tensors="pt")["input_values"]
    waveforms = waveforms.to(options.device)
    expected = model(waveforms.cpu()).pooler_output
    model = model.to(options.device, dtype)

    functions = ours(model, waveforms, clips, options)
    for name, function in functions.items():
        error = relative_error(torch.as_tensor(function())[: len(clips)].float().cpu(), expected)
        assert error < TOLERANCE[dtype], (name, error)
    if not options.no_ast:
        functions |= ast(clips, options, dtype)
    seconds = seconds_each(functions, options.rounds, synchronize(options.device))
    several = f"{ENCODED_BATCHES} batches"
    seconds = {name: value / (ENCODED_BATCHES if several in name else 1) for name, value in seconds.items()}
    report(seconds, options, model, waveforms)


def ours(
    model: MTSLVRModel, waveforms: torch.Tensor, clips: list[np.ndarray], options: argparse.Namespace
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions for the same embeddings, (batch, D), the published computation first."""

    def published() -> torch.Tensor:
        with unfolded(model):
            return torch.cat(list(task_by_task(model, waveforms).values()), dim=-1)

    def encode(model: MTSLVRModel, batches: int = ENCODED_BATCHES, compile: bool = False) -> np.ndarray:
        return model.encode(batches * clips, 16_000, batch_size=len(clips), compile=compile)

    merged = model.inference_network()
    functions = {
        "as published": published,
        "ours: forward": lambda: model(waveforms).pooler_output,
        "ours: merged network": lambda: merged(waveforms).pooler_output,
        f"ours: encode, {ENCODED_BATCHES} batches of arrays": lambda: encode(model),
        "ours: encode, one batch": lambda: encode(model, 1),
    }
    if options.compile:
        other = copy.deepcopy(model)  # a model keeps one inference network at a time
        compiled = other.inference_network(compile=True)
        functions["ours: merged network, compiled"] = lambda: compiled(waveforms).pooler_output
        functions[f"ours: encode(compile=True), {ENCODED_BATCHES} batches"] = lambda: encode(other, compile=True)
        started = time.perf_counter()
        compiled(waveforms)
        print(f"torch.compile took {time.perf_counter() - started:.0f} s")
    if options.onnx:
        functions["ours: ONNX Runtime"] = onnx_session(model, waveforms, options)
    return functions


def onnx_session(
    model: MTSLVRModel, waveforms: torch.Tensor, options: argparse.Namespace
) -> Callable[[], torch.Tensor]:
    import onnxruntime

    from mtslvr_hf.export import export_onnx

    extractor = MTSLVRFeatureExtractor(normalization="none")  # the waveforms are normalized
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        path = Path(folder) / "model.onnx"
        print(f"ONNX: largest relative error {export_onnx(model, path, feature_extractor=extractor).max_error:.1e}")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])
    inputs = {"waveforms": waveforms.cpu().numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def ast(clips: list[np.ndarray], options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Callable]:
    """AST-base of transformers with random weights."""
    network = ASTModel(ASTConfig()).eval().to(options.device, dtype)
    extractor = ASTFeatureExtractor()

    def features() -> torch.Tensor:
        inputs = extractor(clips, sampling_rate=16_000, return_tensors="pt")
        return inputs["input_values"].to(options.device, dtype)

    ready = features()
    return {
        "AST-base: network alone": lambda: network(ready).pooler_output,
        "AST-base: extractor and network": lambda: network(features()).pooler_output,
    }


def synchronize(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def matmul_rate(options: argparse.Namespace) -> float:
    """Operations per second of a large matrix product in the same dtype."""
    size = 8192 if options.device.startswith("cuda") else 2048
    matrix = torch.randn(size, size, device=options.device, dtype=getattr(torch, options.dtype))
    seconds = seconds_each({"": lambda: matrix @ matrix}, options.rounds, synchronize(options.device))[""]
    return 2 * size**3 / seconds


def report(
    seconds: dict[str, float], options: argparse.Namespace, model: MTSLVRModel, waveforms: torch.Tensor
) -> None:
    merged = model.inference_network()
    with FlopCounterMode(display=False) as counter:
        merged(waveforms[:1])
    rate, needed = matmul_rate(options), counter.get_total_flops()
    print(
        f"{options.batch_size} clips of {options.seconds} s, width {options.base_width}, {options.dtype} on "
        f"{options.device}; {machine()}\n"
    )
    baselines = ["as published", "AST-base: network alone"][: 1 if options.no_ast else 2]
    print("| both heads | s a batch | clips/s |", *(f"x {name} |" for name in baselines))
    print("| --- " * (3 + len(baselines)) + "|")
    for name, value in seconds.items():
        ratios = " | ".join(f"{seconds[baseline] / value:.2f}" for baseline in baselines)
        print(f"| {name} | {value:.3f} | {options.batch_size / value:.2f} | {ratios} |")
    reached = needed * options.batch_size / seconds["ours: merged network"]
    print(
        f"\nThe merged network needs {needed / 1e9:.2f} GFLOP a clip and reaches {reached / 1e9:.0f} GFLOP/s, "
        f"{100 * reached / rate:.0f} % of a large matrix product's {rate / 1e9:.0f} GFLOP/s."
    )


if __name__ == "__main__":
    main()
