"""Baseline of the benchmarks: the computation of the authors' code, with our modules.

Each task runs the whole network from the waveform, a parallel adapter is a separate convolution, and the frontend
computes two STFTs and full products with the mel filters. Results are the same; the benchmarks check that first.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torchaudio
from torch.profiler import ProfilerActivity, profile

from mtslvr_hf import MTSLVRModel
from mtslvr_hf.modeling_mtslvr import (
    SHARED,
    MTSLVRConvLayer,
    MTSLVREncoder,
    MTSLVRFrontend,
    MTSLVRParallelAdapter,
    decibels,
)


def _one_by_one(
    layer: MTSLVRConvLayer, hidden_states: torch.Tensor, task: str = SHARED, kernels: None = None
) -> torch.Tensor:
    adapter = layer.adapters[task if task in layer.adapters else SHARED]
    if isinstance(adapter, MTSLVRParallelAdapter):
        return adapter.norm(layer.conv(hidden_states) + adapter.conv(hidden_states))
    return adapter.norm(layer.conv(hidden_states))


def _two_stfts(frontend: MTSLVRFrontend, waveforms: torch.Tensor) -> torch.Tensor:
    """(batch, samples) -> (batch, 3, mels, frames), for `mel_stft`."""
    size, hop, filters = frontend.config.n_fft, frontend.config.hop_length, frontend.mel_filters
    waveforms = waveforms.float()
    hann, rectangle = torch.hann_window(size, device=waveforms.device), waveforms.new_ones(size)
    power = torch.stft(waveforms, size, hop, window=hann, return_complex=True).abs().square()
    spectrum = torch.stft(waveforms, size, hop, window=rectangle, return_complex=True)
    real, imaginary = filters @ spectrum.real, filters @ spectrum.imag
    imaginary[..., 0] = 0  # as ours: no phase depends on rounding
    phase = torch.atan2(imaginary, real)
    return torch.stack([decibels(filters @ power), decibels(torch.hypot(real, imaginary)), phase], dim=1)


@contextmanager
def unfolded(model: torch.nn.Module) -> Iterator[None]:
    """Context in which convolution, adapter and batch normalization run one by one, in the default memory layout."""
    layers = [m for m in model.modules() if isinstance(m, MTSLVRConvLayer)]
    stem = next(m for m in model.modules() if isinstance(m, MTSLVREncoder)).stem
    frontend = next(m for m in model.modules() if isinstance(m, MTSLVRFrontend))
    frontend.forward = _two_stfts.__get__(frontend)
    layout = stem.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(), *arguments[1:]))
    for layer in layers:
        layer.forward = _one_by_one.__get__(layer)
    try:
        yield
    finally:
        layout.remove()
        del frontend.forward
        for layer in layers:
            del layer.forward


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def task_by_task(model: MTSLVRModel, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
    """Embedding of each task (batch, head_size), each from the waveform."""
    return {task: getattr(model(waveforms, tasks=(task,)), f"{task}_embeds") for task in model.config.tasks}


def augment_clip_by_clip(waveforms: torch.Tensor, sampling_rate: int, generator: torch.Generator) -> torch.Tensor:
    """View of each clip (batch, samples) in a Python loop, by torch-audiomentations or else torchaudio."""
    from torch_audiomentations import AddColoredNoise, PitchShift, Shift

    rate = {"sample_rate": sampling_rate, "p": 1.0, "output_type": "tensor"}
    modules = [
        PitchShift(-15, 15, **rate),
        AddColoredNoise(3, 30, -1, 0, **rate),
        AddColoredNoise(3, 30, -2, 2, **rate),
        Shift(-0.5, 0.5, **rate),
    ]
    functions = [lambda clip, module=module: module(clip[None, None])[0, 0] for module in modules]
    functions += [_fade, _mask, _stretch]
    views = []
    for clip in waveforms:
        order = torch.randperm(len(functions), generator=generator).tolist()
        count = int(torch.randint(1, len(functions) + 1, (), generator=generator))
        for index in order[:count]:
            clip = functions[index](clip)
        views.append(clip)
    return torch.stack(views)


def _fade(clip: torch.Tensor) -> torch.Tensor:
    return torchaudio.transforms.Fade(len(clip) // 4, len(clip) // 4, "exponential")(clip)


def _mask(clip: torch.Tensor) -> torch.Tensor:
    clip = clip.clone()
    clip[len(clip) // 3 : len(clip) // 3 + len(clip) // 16] = 0
    return clip


def _stretch(clip: torch.Tensor, rate: float = 0.8) -> torch.Tensor:
    window = torch.hann_window(2048, device=clip.device)
    spectrum = torch.stft(clip, 2048, 512, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * 512, 1025, device=clip.device)[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    return torch.istft(stretched, 2048, 512, window=window)[: len(clip)]


def seconds_each(
    functions: dict[str, Callable[[], object]], rounds: int, synchronize: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median wall time of each function in seconds; functions alternate, so that machine load affects all of them.

    Args:
        functions: Functions by name.
        rounds: Number of measurements, after one warm-up round.
        synchronize: Waits for the device.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def convolution_rate(dtype: torch.dtype, rounds: int = 9) -> float:
    """Operations per second of a large 3x3 convolution in channels last, the fastest of some rounds."""
    channels, size, batch = 256, 32, 16
    images = torch.randn(batch, channels, size, size).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            torch.nn.functional.conv2d(images, kernel, padding=1)
            times.append(time.perf_counter() - begin)
    return 2 * 9 * channels**2 * size**2 * batch / min(times[1:])


def print_operators(function: Callable[[], object], rounds: int, clips: int) -> None:
    """Prints torch's operators by self time, over `rounds` calls for `clips` clips each, after two warm-up calls."""
    function(), function()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(rounds):
            function()
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("| operator | ms a clip | share | calls |\n| --- | --- | --- | --- |")
    for event in events[:16]:
        own = event.self_cpu_time_total
        print(f"| {event.key} | {own / 1e3 / rounds / clips:.2f} | {own / total:.0%} | {event.count / rounds:.0f} |")
    print(f"| all | {total / 1e3 / rounds / clips:.2f} | | |")


def machine() -> str:
    """Description of the machine."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
