"""Clips per second of one pre-training step, compared with the computation of the authors' code.

python benchmarks/training_step.py                 # network: forward, backward, Adam
pip install torch-audiomentations
python benchmarks/training_step.py --augmentation  # and augmentations
python benchmarks/training_step.py --profile       # whole step by torch operator
"""

from __future__ import annotations

import argparse

import torch
from as_published import (
    augment_clip_by_clip,
    machine,
    print_operators,
    relative_error,
    seconds_each,
    task_by_task,
    unfolded,
)

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import TwoViewAugmentation


def loss_as_published(model: MTSLVRForPreTraining, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of views (batch, 2, samples), with the whole network for each view and task."""
    embeds = [task_by_task(model.mtslvr, views[:, view]) for view in (0, 1)]
    contrastive = torch.stack([embed["contrastive"] for embed in embeds], dim=1)
    flat = torch.cat([embed["predictive"] for embed in embeds])
    logits = torch.stack(model.predictive_projector(flat).chunk(2), dim=1)
    return model._sum(*model._losses(contrastive, logits, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--augmentation", action="store_true", help="time the augmentations of both views too")
    parser.add_argument("--profile", action="store_true", help="print our step's operators by time instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = MTSLVRForPreTraining(MTSLVRConfig(window_seconds=arguments.seconds, base_width=arguments.base_width))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-5, weight_decay=1e-6, fused=True)
    waveforms = torch.randn(arguments.batch_size, model.config.window_samples)
    views, labels, _ = TwoViewAugmentation()(waveforms, step=0)

    def ours(dtype: torch.dtype | None = None) -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = model(views, augmentation_labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def with_views() -> None:
        nonlocal views, labels
        views, labels, _ = TwoViewAugmentation()(waveforms, step=int(torch.randint(10**6, ())))
        ours()

    def published() -> None:
        with unfolded(model):
            loss_as_published(model, views, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    title = f"{arguments.batch_size} clips of {arguments.seconds} s, width {arguments.base_width}; {machine()}\n"
    if arguments.profile:
        print(title)
        print_operators(with_views, arguments.rounds, arguments.batch_size)
        return
    model.eval()
    with torch.no_grad(), unfolded(model):
        expected = loss_as_published(model, views, labels)
    with torch.no_grad():
        assert relative_error(model(views, augmentation_labels=labels).loss, expected) < 1e-4
    model.train()

    steps = {"network, as published": published, "network, ours": ours}
    steps["network, ours, bfloat16"] = lambda: ours(torch.bfloat16)
    if arguments.augmentation:
        pipeline, generator = TwoViewAugmentation(), torch.Generator().manual_seed(0)
        steps["two views, clip by clip"] = lambda: [augment_clip_by_clip(waveforms, 16000, generator) for _ in "12"]
        steps["two views, ours"] = lambda: pipeline(waveforms, step=int(torch.randint(10**6, ())))
    print(title)
    report(seconds_each(steps, arguments.rounds), arguments.batch_size)


def report(seconds: dict[str, float], batch_size: int) -> None:
    """Prints the parts and the whole steps."""
    totals = dict(seconds)
    if "two views, ours" in seconds:
        totals["whole step, as published"] = seconds["network, as published"] + seconds["two views, clip by clip"]
        totals["whole step, ours"] = seconds["network, ours"] + seconds["two views, ours"]
        totals["whole step, ours, bfloat16"] = seconds["network, ours, bfloat16"] + seconds["two views, ours"]
    print("| part | s a batch | clips/s | times as fast as published |\n| --- | --- | --- | --- |")
    for name, value in totals.items():
        kind = name.split(",")[0]
        baseline = totals[f"{kind}, clip by clip" if kind == "two views" else f"{kind}, as published"]
        print(f"| {name} | {value:.3f} | {batch_size / value:.2f} | {baseline / value:.2f} |")


if __name__ == "__main__":
    main()
