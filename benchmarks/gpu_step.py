"""Sections of `gpu_pretraining.py` that need only torch and transformers: correctness, augmentations, step.

Data are in (pinned) memory as from the stream: int16 with a scale for each clip.

Shapes: B clips, S samples.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from as_published import augment_clip_by_clip, relative_error, seconds_each
from launches import count_launches

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import TwoViewAugmentation
from mtslvr_hf.augmentations.rounds import apply_in_rounds

Say = Callable[[str], None]
KERNELS = {  # class: parts of kernel names in lower case; the first match counts
    "copies": ("memcpy", "memset"),
    "FFT": ("fft", "vector_", "regular_"),
    "optimizer": ("fused_adam", "fusedadam", "multi_tensor"),
    "batch normalization": ("batch_norm", "batchnorm", "bn_fw", "bn_bw"),
    "convolutions and matrix products": ("conv", "gemm", "cutlass", "xmma", "cudnn", "wgrad", "dgrad", "sm90", "sm80"),
    "pooling": ("pool",),
    "reductions": ("reduce", "softmax", "sort", "scan", "cumsum"),
    "gather and scatter": ("index", "gather", "scatter"),
    "elementwise": ("elementwise", "triton", "cat"),
}


def waveforms_of(batch: int, samples: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Decaying chords in noise as from the stream: int16 (B, S) and scales (B,), pinned for a GPU."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(samples) / 16_000
    frequency = 80 * 32 ** torch.rand(batch, 3, 1, generator=generator)  # (B, 3, 1)
    clips = (2 * torch.pi * frequency * seconds).sin().sum(1) * (-0.5 * seconds).exp()
    clips += 0.01 * torch.randn(batch, samples, generator=generator)
    scales = clips.abs().amax(dim=1) / 32767
    values = (clips / scales[:, None]).round().short()
    return (values.pin_memory(), scales.pin_memory()) if device.type == "cuda" else (values, scales)


def views_of(
    pipeline: TwoViewAugmentation, batch: tuple[torch.Tensor, torch.Tensor], device: torch.device, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (B, 2, S) and labels of a batch of the stream, made on the device without synchronization."""
    values, scales = (part.to(device, non_blocking=True) for part in batch)
    views, labels, _ = pipeline(values * scales[:, None], step=step)
    return views, labels


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Correctness


def correctness(options: argparse.Namespace, say: Say) -> None:
    """Comparison of views, loss and gradients on the device and on the CPU, from the same seed."""
    device, batch = torch.device(options.device), 4 if options.quick else 16
    torch.backends.cudnn.allow_tf32 = False  # matrix products do not use it by default
    clips = waveforms_of(batch, 80_000 if not options.quick else 16_000, torch.device("cpu"))
    pipeline = TwoViewAugmentation(seed=1)
    views, labels = views_of(pipeline, clips, torch.device("cpu"), step=3)
    device_views, device_labels = views_of(pipeline, clips, device, step=3)
    wait(device)
    assert torch.equal(labels, device_labels.cpu())
    errors = {"views, the worst clip": max(map(relative_error, device_views.cpu(), views))}
    config = MTSLVRConfig(base_width=16, window_seconds=views.shape[-1] / 16_000)
    expected = loss_and_gradients(config, views, labels)
    rounded = views * (1 + 1e-7 * torch.randn(views.shape, generator=torch.Generator().manual_seed(0)))
    own = [relative_error(*pair) for pair in zip(loss_and_gradients(config, rounded, labels), expected)]
    for name, dtype in {"float32": None, "bf16": torch.bfloat16}.items():
        found = loss_and_gradients(config, views.to(device), labels.to(device), dtype)
        for part, ours, theirs in zip(("loss", "gradients"), found, expected):
            errors[f"{part}, {name}"] = relative_error(ours, theirs)
    # Spectrograms in dB and phases of near-zero values make gradients uncertain on any device.
    errors["gradients, float32, on the CPU, of views that differ by 1e-7"] = own[1]
    limits = {"views, the worst clip": 1e-3, "loss, float32": 1e-4, "loss, bf16": 5e-2}
    limits["gradients, float32"] = 3 * own[1]
    say("| against the CPU in float32 | relative error | limit | |\n| --- | --- | --- | --- |")
    for name, error in errors.items():
        limit = limits.get(name)
        verdict = "" if limit is None else "ok" if error <= limit else "FAILS"
        say(f"| {name} | {error:.1e} | {'' if limit is None else f'{limit:.0e}'} | {verdict} |")
    say(f"\nA step waits for the device: {where_a_step_waits(config, clips, device)}")


def loss_and_gradients(
    config: MTSLVRConfig, views: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and all gradients in one vector, on the CPU."""
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(config).to(views.device)
    with torch.autocast(views.device.type, dtype=dtype, enabled=dtype is not None):
        loss = model(views, augmentation_labels=labels).loss
    loss.backward()
    return loss.detach().cpu(), torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()


def where_a_step_waits(config: MTSLVRConfig, clips: tuple[torch.Tensor, ...], device: torch.device) -> str:
    """First synchronization in a step with augmentations, as reported by torch."""
    if device.type != "cuda":
        return "cannot be seen without a GPU"
    step = Step(config, tuple(part.pin_memory() for part in clips), device, torch.bfloat16)
    step()
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        frames = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "mtslvr_hf" in frame.filename
        ]
        return f"yes, {str(error).splitlines()[0]} at {frames[-1] if frames else 'an unknown place'}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


# Augmentations


def augmentations(options: argparse.Namespace, say: Say) -> None:
    """Time of the pipeline, of each augmentation, and of the composition clip by clip."""
    device, batch = torch.device(options.device), options.batch_sizes[-1]
    clips, pipeline = waveforms_of(batch, options.samples, device), TwoViewAugmentation(seed=1)
    steps = iter(range(10**9))
    parts: dict[str, Callable[[], object]] = {
        "two views of each clip, all seven": lambda: views_of(pipeline, clips, device, next(steps))
    }
    both = (clips[0].to(device) * clips[1].to(device)[:, None]).repeat(2, 1)  # (2 B, S)
    generator = torch.Generator().manual_seed(0)
    for augmentation in pipeline.augmentations:
        drawn = augmentation.sample_parameters(2 * batch, generator)
        parts[f"{augmentation.name}, both views of each clip"] = lambda a=augmentation, d=drawn: a.apply(both, d)
    seconds = seconds_each(parts, options.rounds, lambda: wait(device))
    peer, reason = clip_by_clip(both[: 2 if options.quick else 8], device, options)
    say(f"Batches of {batch} clips of {options.samples / 16_000:g} s; {memory(device)}\n")
    say("| | ms a batch | clips/s | x clip by clip |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        ratio = f"{peer * batch / value:.0f}" if peer and name.startswith("two views") else ""
        say(f"| {name} | {1e3 * value:.1f} | {batch / value:.0f} | {ratio} |")
    if peer:
        say(f"| two views clip by clip, torch-audiomentations | {1e3 * peer * batch:.0f} | {1 / peer:.1f} | 1 |")
    else:
        say(reason)
    views = torch.empty(batch, 2, options.samples, device="meta")
    drawn = pipeline.draw(batch, 0)
    counted = count_launches(lambda: apply_in_rounds(views, drawn.order, drawn.values, pipeline.augmentations))
    say(f"\nTwo views of {batch} clips: {counted.launches.total()} kernels, counted without a GPU;")
    say(f"{launches_on(device, lambda: views_of(pipeline, clips, device, next(steps)))} in the profile of a step")


def launches_on(device: torch.device, function: Callable[[], object]) -> str:
    """Kernels and copies on the GPU in a call of a function, from torch's profiler."""
    if device.type != "cuda":
        return "none, without a GPU,"
    function()
    wait(device)
    with torch.profiler.profile() as watched:
        function()
        wait(device)
    on_gpu = torch.autograd.DeviceType.CUDA
    return str(sum(event.count for event in watched.key_averages() if event.device_type == on_gpu))


def clip_by_clip(clips: torch.Tensor, device: torch.device, options: argparse.Namespace) -> tuple[float | None, str]:
    """Seconds for two views of a clip with torch-audiomentations, clip by clip; or the reason of no measurement."""
    if importlib.util.find_spec("torch_audiomentations") is None:
        return None, "\nClip by clip: not timed, torch_audiomentations is missing (carry its wheels)."
    generator = torch.Generator().manual_seed(0)

    def compose() -> None:
        for _ in range(2):
            augment_clip_by_clip(clips, 16_000, generator)

    return seconds_each({"": compose}, 1, lambda: wait(device))[""] / len(clips), ""


def memory(device: torch.device) -> str:
    if device.type != "cuda":
        return "no GPU memory"
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return f"at most {peak:.1f} GiB of GPU memory"


# The step


class Step:
    """Training step with data in memory: two views, forward, backward, Adam."""

    def __init__(
        self,
        config: MTSLVRConfig,
        clips: tuple[torch.Tensor, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype | None,
        compile_by: dict[str, str] | None = None,
        layout: torch.memory_format = torch.channels_last,  # as the trainer
        ahead: bool = False,
    ):
        torch.manual_seed(0)
        model = MTSLVRForPreTraining(config).to(device).to(memory_format=layout)
        self.model = model if compile_by is None else torch.compile(model, fullgraph=True, **compile_by)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=5e-5, weight_decay=1e-6, fused=True)
        self.clips, self.device, self.dtype = clips, device, dtype
        self.pipeline, self.count = TwoViewAugmentation(seed=1), 0
        self.side = None
        if ahead:
            from mtslvr_hf.trainer.trainer import SideStream

            self.side = SideStream(device)
        self.views, self.labels = self.make_views()

    def make_views(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.count += 1
        if self.side is None:
            return views_of(self.pipeline, self.clips, self.device, self.count)

        def make(values: torch.Tensor) -> tuple:
            scales = self.clips[1].to(self.device, non_blocking=True)
            return self.pipeline(values.to(self.device, non_blocking=True) * scales[:, None], step=self.count)

        return self.side.make(make, self.clips[0])[:2]

    def network(self) -> None:
        """Step without the views."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss = self.model(self.views, augmentation_labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        self.views, self.labels = self.make_views()
        self.network()


def seconds_of_many(function: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Seconds per call, without synchronization between calls."""
    for _ in range(min(3, rounds)):
        function()
    wait(device)
    began = time.perf_counter()
    for _ in range(rounds):
        function()
    wait(device)
    return (time.perf_counter() - began) / rounds


def step(options: argparse.Namespace, say: Say) -> None:
    """Time of the step in float32 and bf16, at several batch sizes, and with possible accelerations."""
    biggest, trainer = options.batch_sizes[-1], find_missing()
    head = "| step | batch | clips/s | ms | network alone, ms | views' share | peak |"
    say(f"Clips of {options.samples / 16_000:g} s, data in pinned memory\n\n{head}\n{'| --- ' * 7}|")
    time_step("bf16", options, say, biggest)
    if trainer is None:
        time_step("bf16, views on a side stream", options, say, biggest, ahead=True)
    else:
        say(f"| views on a side stream: {trainer} | | | | | | |")
    with cudnn_benchmark():
        time_step("bf16, cudnn.benchmark", options, say, biggest)
        contiguous = {"layout": torch.contiguous_format}
        time_step("bf16, cudnn.benchmark, contiguous weights", options, say, biggest, **contiguous)
    for batch in options.batch_sizes[:-1]:
        time_step("bf16", options, say, batch)
    time_step("float32 (TF32 convolutions)", options, say, biggest, dtype=None)
    profile(options, say, biggest)


def compiled(options: argparse.Namespace, say: Say) -> None:
    """Time of the step with torch.compile, which needs a minute or more to start; the rehearsal only traces.

    The mode reduce-overhead records CUDA graphs, whose launches the host does not pay for.
    """
    ways = [{"backend": "aot_eager"}] if options.quick else [{"backend": "inductor"}, {"mode": "reduce-overhead"}]
    say(f"| step | batch | clips/s | ms | network alone, ms | views' share | peak |\n{'| --- ' * 7}|")
    biggest = options.batch_sizes[-1]
    time_step("bf16", options, say, biggest)
    for way in ways:
        (name,) = way.values()
        time_step(f"bf16, torch.compile, {name}", options, say, biggest, compile_by=way)


def find_missing() -> str | None:
    """Reason that the trainer cannot be imported, or None."""
    missing = [name for name in ("datasets", "soundfile", "soxr") if importlib.util.find_spec(name) is None]
    return f"left out, mtslvr_hf.trainer needs {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def config_of(options: argparse.Namespace) -> MTSLVRConfig:
    return MTSLVRConfig(window_seconds=options.samples / 16_000, base_width=options.base_width)


def time_step(
    name: str,
    options: argparse.Namespace,
    say: Say,
    batch: int,
    dtype: torch.dtype | None = torch.bfloat16,
    **changes: Any,
) -> None:
    """Prints one row of the table."""
    device = torch.device(options.device)
    memory(device)
    one = Step(config_of(options), waveforms_of(batch, options.samples, device), device, dtype, **changes)
    whole = seconds_of_many(one, device, options.rounds)
    network = seconds_of_many(one.network, device, options.rounds)
    cells = [name, batch, f"{batch / whole:.0f}", f"{1e3 * whole:.1f}", f"{1e3 * network:.1f}"]
    say(f"| {' | '.join(map(str, [*cells, f'{1 - network / whole:.0%}', memory(device)]))} |")


def profile(options: argparse.Namespace, say: Say, batch: int) -> None:
    """Time of a bf16 step by class of kernel."""
    device = torch.device(options.device)
    one = Step(config_of(options), waveforms_of(batch, options.samples, device), device, torch.bfloat16)
    seconds_of_many(one, device, 2)
    with torch.profiler.profile() as watched:
        whole = seconds_of_many(one, device, 3)
    on_gpu, times, counts = device.type == "cuda", defaultdict(float), defaultdict(int)
    for event in watched.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if not spent or (on_gpu and event.device_type != torch.autograd.DeviceType.CUDA):
            continue
        kind = next((k for k, parts in KERNELS.items() if any(p in event.key.lower() for p in parts)), "other")
        times[kind] += spent / 6e6  # 3 warm-up and 3 measured steps
        counts[kind] += event.count / 6
    say(f"\nA bf16 step of {batch} clips, profiled: {1e3 * whole:.1f} ms, of which the device was busy")
    say(f"{1e3 * sum(times.values()):.1f} ms in {sum(counts.values()):.0f} {'kernels' if on_gpu else 'operators'}\n")
    say("| kind | ms | share | launches |\n| --- | --- | --- | --- |")
    for kind, spent in sorted(times.items(), key=lambda item: -item[1]):
        say(f"| {kind} | {1e3 * spent:.2f} | {spent / sum(times.values()):.0%} | {counts[kind]:.0f} |")
