"""Clips per second of one pre-training step, compared with the computation of the authors' code.

python benchmarks/training_step.py                           # views, forward, backward, Adam; full width and narrow
python benchmarks/training_step.py --sizes 64x10x16          # width x seconds x clips
python benchmarks/training_step.py --compile                 # and compiled by Inductor, which needs a C++ compiler
pip install torch-audiomentations
python benchmarks/training_step.py --clip-by-clip            # and the authors' kind of augmentation
python benchmarks/training_step.py --profile                 # whole step by torch operator
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from as_published import (
    augment_clip_by_clip,
    convolution_rate,
    machine,
    print_operators,
    relative_error,
    seconds_each,
    task_by_task,
    unfolded,
)
from torch.utils.flop_counter import FlopCounterMode

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import TwoViewAugmentation
from mtslvr_hf.modeling_mtslvr import MTSLVRModelOutput
from mtslvr_hf.trainer.views_ahead import ViewsAhead, threads_for_views

AHEAD = "whole step, ours, with the next views"
STEPS = 8  # of it in a round, of which the first waits for its views
PUBLISHED, BY_CLIP, VIEWS = "network, as published", "two views, clip by clip", "two views, ours"


@contextmanager
def as_published(model: MTSLVRForPreTraining) -> Iterator[None]:
    """Context in which the whole network runs for each view and task, without folding."""
    network = model.mtslvr
    compute = network.forward

    def forward(input_values: torch.Tensor, tasks: list[str], **options: object) -> MTSLVRModelOutput:
        network.forward = compute
        embeds = task_by_task(network, input_values)
        network.forward = forward
        return MTSLVRModelOutput(**{f"{task}_embeds": values for task, values in embeds.items()})

    with unfolded(model):
        network.forward = forward
        network.encoder.training_kernels = lambda tasks: None
        try:
            yield
        finally:
            del network.forward, network.encoder.training_kernels


class Step:
    """Training step of a copy of a model: forward, backward, Adam."""

    def __init__(self, model: MTSLVRForPreTraining, dtype: torch.dtype | None = None):
        self.model = copy.deepcopy(model)
        self.dtype = dtype
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-5, weight_decay=1e-6, fused=True)

    def __call__(self, views: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            loss = self.model(views, augmentation_labels=labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(width: int, length: float, clips: int, options: argparse.Namespace) -> None:
    """Prints the table, or the profile, of a size."""
    torch.manual_seed(0)
    published = MTSLVRForPreTraining(MTSLVRConfig(window_seconds=length, base_width=width))
    model = copy.deepcopy(published).to(memory_format=torch.channels_last)  # as the trainer does
    pipeline, waveforms = TwoViewAugmentation(), torch.randn(clips, published.config.window_samples)
    views, labels, _ = pipeline(waveforms, step=0)
    draws = iter(range(10**9))
    print(f"\n{clips} clips of {length:g} s, width {width}; {machine()}\n")
    if options.profile:
        step = Step(model)
        print_operators(lambda: step(*pipeline(waveforms, step=next(draws))[:2]), options.rounds, clips)
        return
    check(published, model, views, labels)
    steps = {"network, ours": Step(model), "network, ours, bfloat16": Step(model, torch.bfloat16)}
    if options.compile:
        steps["network, ours, compiled"] = compiled(Step(model), views, labels)
        steps["network, ours, bfloat16, compiled"] = compiled(Step(model, torch.bfloat16), views, labels)
    baseline = Step(published)

    def authors() -> None:
        with as_published(baseline.model):
            baseline(views, labels)

    parts: dict[str, Callable[[], object]] = {PUBLISHED: authors}
    parts |= {name: lambda step=step: step(views, labels) for name, step in steps.items()}
    parts[VIEWS] = lambda: pipeline(waveforms, step=next(draws))
    if options.clip_by_clip:
        generator = torch.Generator().manual_seed(0)
        parts[BY_CLIP] = lambda: [augment_clip_by_clip(waveforms, 16000, generator) for _ in "12"]
    threads = threads_for_views(model.config, torch.get_num_threads())
    if threads > 0:  # as the trainer does

        def ahead() -> None:
            for batch in ViewsAhead([{}] * STEPS, lambda _, draw: pipeline(waveforms, step=draw), 0, threads):
                steps["network, ours"](*batch["views"][:2])

        parts[AHEAD] = ahead
    seconds = seconds_each(parts, options.rounds)
    if threads > 0:
        seconds[AHEAD] /= STEPS
    report(seconds, clips)
    limits(model, views, labels)


def check(
    published: MTSLVRForPreTraining, model: MTSLVRForPreTraining, views: torch.Tensor, labels: torch.Tensor
) -> None:
    """Compares the losses in training mode."""
    with torch.no_grad():
        ours = copy.deepcopy(model)(views, augmentation_labels=labels).loss
        other = copy.deepcopy(published)
        with as_published(other):
            assert relative_error(ours, other(views, augmentation_labels=labels).loss) < 1e-3


def compiled(step: Step, views: torch.Tensor, labels: torch.Tensor) -> Step:
    """The step with its model compiled."""
    began = time.perf_counter()
    step.model.compile(fullgraph=True)
    step(views, labels)
    print(f"torch.compile took {time.perf_counter() - began:.0f} s")
    return step


def report(seconds: dict[str, float], clips: int) -> None:
    """Prints the parts and the whole steps."""
    totals = dict(seconds)
    views = {PUBLISHED: BY_CLIP}  # of whole steps; all others have ours
    for name in seconds:
        if name.startswith("network") and views.get(name, VIEWS) in seconds:
            totals[name.replace("network", "whole step")] = seconds[name] + seconds[views.get(name, VIEWS)]
    print(
        "| part | s a batch | clips/s | times as fast as published | views' share |\n| --- | --- | --- | --- | --- |"
    )
    for name, value in totals.items():
        kind = name.split(",")[0]
        baseline = totals.get(BY_CLIP if kind == "two views" else f"{kind}, as published")
        ratio = f"{baseline / value:.2f}" if baseline else ""
        in_turns = name.startswith("whole step, ours") and name != AHEAD
        share = f"{seconds[VIEWS] / value:.0%}" if in_turns else ""
        print(f"| {name} | {value:.3f} | {clips / value:.2f} | {ratio} | {share} |")


def limits(model: MTSLVRForPreTraining, views: torch.Tensor, labels: torch.Tensor) -> None:
    """Prints how fast the network could be at the rate of a large convolution."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model)(views[:2], augmentation_labels=labels[:2]).loss.backward()
    needed = counter.get_total_flops() / 2
    print(f"\nForward and backward need {needed / 1e9:.2f} GFLOP a clip. A large 3x3 convolution reaches")
    for dtype in (torch.float32, torch.bfloat16):
        rate = convolution_rate(dtype)
        print(f"{rate / 1e9:.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}: {rate / needed:.1f} clips/s at most.")


def size_of(text: str) -> tuple[int, float, int]:
    """Width, seconds and clips of "64x10x16"."""
    width, length, clips = text.split("x")
    return int(width), float(length), int(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [(64, 10.0, 16), (16, 2.0, 64)]
    parser.add_argument("--sizes", type=size_of, nargs="+", default=sizes, help="width x seconds x clips of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clip-by-clip", action="store_true", help="time augmentations of one clip after another too")
    parser.add_argument("--compile", action="store_true", help="time compiled networks too")
    parser.add_argument("--profile", action="store_true", help="print our step's operators by time instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in options.sizes:
        measure(*size, options)


if __name__ == "__main__":
    main()
