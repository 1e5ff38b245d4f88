"""Clips per second of embedding both heads, beside the same embedding computed as the authors' code does.

python benchmarks/embedding.py
"""

from __future__ import annotations

import argparse

import torch
from as_published import machine, relative_error, seconds_each, task_by_task, unfolded

from mtslvr_hf import MTSLVRConfig, MTSLVRModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(window_seconds=arguments.seconds, base_width=arguments.base_width)).eval()
    waveforms = torch.randn(arguments.batch_size, model.config.window_samples)

    def published() -> torch.Tensor:
        with unfolded(model):
            return torch.cat(list(task_by_task(model, waveforms).values()), dim=-1)

    with torch.inference_mode():
        assert relative_error(model(waveforms).pooler_output, published()) < 1e-4
        seconds = seconds_each({"as published": published, "ours": lambda: model(waveforms)}, arguments.rounds)
    print(f"{arguments.batch_size} clips of {arguments.seconds} s, width {arguments.base_width}; {machine()}\n")
    print("| both heads | s a batch | clips/s | times as fast |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {arguments.batch_size / value:.2f} | {seconds['as published'] / value:.2f} |")


if __name__ == "__main__":
    main()
