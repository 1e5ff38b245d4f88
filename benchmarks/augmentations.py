"""Time of each augmentation and of two views, compared with torch-audiomentations and with lower bounds.

pip install torch-audiomentations
python benchmarks/augmentations.py
python benchmarks/augmentations.py --profile    # time of the pipeline by torch operator
python benchmarks/augmentations.py --launches   # kernels of two views on a GPU, counted without one
python benchmarks/augmentations.py --share --base-width 16 --seconds 2 --batch-size 64 --threads 1    # of the step

The floor (lower bound) of an augmentation is the time of its Fourier transforms, of the multiplications of its
resampler at the speed of a large matrix product, and of one copy of the clip, in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from as_published import augment_clip_by_clip, machine, print_operators, seconds_each
from launches import LaunchCounter, count_launches
from scipy.fft import next_fast_len
from torch import Tensor

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import Augmentation, TwoViewAugmentation
from mtslvr_hf.augmentations.resampling import CROSSINGS, CUTOFF
from mtslvr_hf.augmentations.rounds import apply_in_rounds

RATE = 16_000
MATRIX = 1024


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="batches of two views in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="print the operators of the pipeline by time instead")
    parser.add_argument("--launches", action="store_true", help="count kernels on a GPU instead, without one")
    parser.add_argument("--share", action="store_true", help="print the share of the views in a step instead")
    parser.add_argument("--base-width", type=int, default=64, help="of the network of --share")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.launches:
        print_launches(round(arguments.seconds * RATE))
        return
    waveforms = 0.1 * torch.randn(arguments.batch_size, round(arguments.seconds * RATE))
    print(f"{arguments.batch_size} clips of {arguments.seconds} s; {machine()}\n")
    if arguments.share:
        print_share(waveforms, arguments.base_width, arguments.rounds, arguments.steps)
        return
    if arguments.profile:
        pipeline, steps = TwoViewAugmentation(), iter(range(10**9))
        print_operators(lambda: pipeline(waveforms, next(steps)), arguments.steps, len(waveforms))
        return
    print_each(waveforms, arguments.rounds)
    print_two_views(waveforms, arguments.rounds, arguments.steps)


def print_launches(samples: int, steps: int = 4) -> None:
    """Prints the table of kernels of two views of a step, at several batch sizes, and the most frequent operators."""
    print("| batch | kernels: least, most | operators on the host |\n| --- | --- | --- |")
    for batch in (8, 64, 256, 512):
        counters = [launches_of_a_step(batch, samples, step) for step in range(steps)]
        totals = [counter.launches.total() for counter in counters]
        print(f"| {batch} | {min(totals)}, {max(totals)} | {max(counter.on_host for counter in counters)} |")
    print("\n| operator | kernels |\n| --- | --- |")
    for name, count in counters[-1].launches.most_common(20):
        print(f"| {name} | {count} |")


def launches_of_a_step(batch: int, samples: int, step: int) -> LaunchCounter:
    """Count for the views of `batch` clips of `samples`."""
    pipeline = TwoViewAugmentation()
    drawn, views = pipeline.draw(batch, step), torch.empty(batch, 2, samples, device="meta")
    return count_launches(lambda: apply_in_rounds(views, drawn.order, drawn.values, pipeline.augmentations))


def print_share(waveforms: Tensor, base_width: int, rounds: int, steps: int) -> None:
    """Prints the share of the views in a step of a network: views, forward, backward, Adam."""
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(MTSLVRConfig(window_seconds=waveforms.shape[1] / RATE, base_width=base_width))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-5, fused=True)
    pipeline = TwoViewAugmentation()
    views, labels, _ = pipeline(waveforms, step=0)

    def network() -> None:
        model(views, augmentation_labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    functions = {
        "two views": lambda: [pipeline(waveforms, step) for step in range(steps)],
        "network": lambda: [network() for _ in range(steps)],
    }
    seconds = {name: value / steps for name, value in seconds_each(functions, rounds).items()}
    print("| part | ms a clip | share of the step |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value / len(waveforms):.2f} | {value / sum(seconds.values()):.0%} |")


def print_each(waveforms: Tensor, rounds: int) -> None:
    """Prints the table of single augmentations."""
    pipeline, generator = TwoViewAugmentation(), torch.Generator().manual_seed(0)
    peers = peers_by_name()
    functions: dict[str, Callable[[], object]] = parts(waveforms)
    for augmentation in pipeline.augmentations:
        drawn = augmentation.sample_parameters(len(waveforms), generator)
        functions[augmentation.name] = lambda a=augmentation, p=drawn: a.apply(waveforms, p)
        if augmentation.name in peers:
            peer = peers[augmentation.name]
            functions[f"{augmentation.name}, peer, batch"] = lambda peer=peer: peer(waveforms.unsqueeze(1))
            functions[f"{augmentation.name}, peer, clips"] = lambda peer=peer: [peer(c[None, None]) for c in waveforms]
    seconds = {name: value / len(waveforms) * 1e3 for name, value in seconds_each(functions, rounds).items()}
    print("| ms a clip | ours | floor | x floor | torch-audiomentations: clip by clip, batch | x |")
    print("| --- | --- | --- | --- | --- | --- |")
    for augmentation in pipeline.augmentations:
        name = augmentation.name
        least, own = floor(augmentation, waveforms.shape[1], seconds), seconds[name]
        row = f"| {name} | {own:.2f} | {least:.2f} | {own / least:.1f} |"
        if name in peers:
            clips, batch = seconds[f"{name}, peer, clips"], seconds[f"{name}, peer, batch"]
            row += f" {clips:.2f}, {batch:.2f} | {min(clips, batch) / own:.1f} |"
        else:
            row += " | |"
        print(row)


def peers_by_name() -> dict[str, Callable[[Tensor], Tensor]]:
    """Augmentations of torch-audiomentations by our names, on (clips, 1, samples)."""
    from torch_audiomentations import AddColoredNoise, PitchShift, Shift

    options = {"sample_rate": RATE, "p": 1.0, "output_type": "tensor"}
    return {
        "pitch_shift": PitchShift(-15, 15, **options),
        "white_noise": AddColoredNoise(3, 30, -1, 0, **options),
        "mixed_noise": AddColoredNoise(3, 30, -2, 2, **options),
        "time_shift": Shift(-0.5, 0.5, **options),
    }


def parts(waveforms: Tensor, n_fft: int = 1280) -> dict[str, Callable[[], object]]:
    """Parts of the lower bounds: the transforms of a vocoder and of noise, a matrix product, and a copy."""
    clips, samples = waveforms.shape
    frames = torch.randn(2 * samples // n_fft + 2, n_fft)
    spectra = torch.fft.rfft(frames)
    noise = torch.fft.rfft(torch.randn(2, next_fast_len(samples, real=True)))
    matrix, copy = torch.randn(MATRIX, MATRIX), torch.empty_like(waveforms)

    def vocoder() -> None:
        for _ in range(clips):
            torch.fft.rfft(frames), torch.fft.rfft(frames), torch.fft.irfft(spectra)

    return {
        "vocoder": vocoder,
        "noise": lambda: [torch.fft.irfft(noise) for _ in range(clips // 2)],
        "matrix": lambda: [matrix @ matrix for _ in range(clips)],
        "copy": lambda: copy.copy_(waveforms),
    }


def floor(augmentation: Augmentation, samples: int, milliseconds: dict[str, float]) -> float:
    """Lower bound of an augmentation in milliseconds per clip, from those of its parts."""
    least = milliseconds["copy"]
    if augmentation.name in ("pitch_shift", "time_stretch"):
        least += milliseconds["vocoder"]
    if augmentation.name in ("white_noise", "mixed_noise"):
        least += milliseconds["noise"]
    if augmentation.name == "pitch_shift":  # slower clips have more outputs, faster clips need longer filters
        semitones = torch.linspace(augmentation.min_semitones, augmentation.max_semitones, 61)
        ratios = torch.exp2(semitones / 12)
        products = samples / ratios * (2 * CROSSINGS / CUTOFF * ratios.clamp(min=1))
        least += milliseconds["matrix"] * float(products.mean()) / MATRIX**3
    return least


def print_two_views(waveforms: Tensor, rounds: int, steps: int) -> None:
    """Prints the table of the pipeline and of the same augmentations clip by clip."""
    pipeline, generator = TwoViewAugmentation(), torch.Generator().manual_seed(0)
    functions = {
        "clip by clip": lambda: [augment_clip_by_clip(waveforms, RATE, generator) for _ in range(2 * steps)],
        "ours": lambda: [pipeline(waveforms, step) for step in range(steps)],
    }
    seconds = seconds_each(functions, rounds)
    print("\n| two views of all seven | s a batch | clips/s | x |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        clips = len(waveforms) * steps / value
        print(f"| {name} | {value / steps:.3f} | {clips:.1f} | {seconds['clip by clip'] / value:.1f} |")


if __name__ == "__main__":
    main()
