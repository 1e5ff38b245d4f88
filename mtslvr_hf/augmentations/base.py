"""Base class of augmentations: parameters per clip, batched transforms.

Shapes: B clips, S samples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

DEVICE_BLOCK = 2**27  # samples in one operation, to limit memory
SMALLEST_VARIANCE = 1e-12  # of the cosine in a range of a thousandth of a turn; rounding decides below it


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws (count,) float32 values, uniform in [low, high), on the CPU."""
    return torch.rand(count, generator=generator).mul_(high - low).add_(low)


def draw_seeds(count: int, generator: torch.Generator) -> Tensor:
    """Draws (count,) int64 seeds of 31 bits for `noise.random_bits`, on the CPU."""
    return torch.randint(0, 2**31, (count,), generator=generator)


def check_range(owner: str, name: str, low: float, high: float, smallest: float = -float("inf")) -> None:
    """Raises ValueError unless smallest <= low <= high."""
    if not smallest <= low <= high:
        raise ValueError(
            f"{owner}: the range of {name} is {low}..{high}; it must be ascending and not below {smallest}."
        )


class Augmentation(ABC):
    """Augmentation: parameters with one value per clip, and a batched function of clips and parameters.

    A subclass sets `name` and `parameter_names`, draws in `sample_parameters` and computes in `transform`. Optional:
    `effort` (the pipeline runs augmentations with more effort less often, for more clips at once); `sort_by`, the
    parameter that the work for a clip depends on; `cpu_block`, samples per operation on a CPU, few enough that
    intermediate results stay in cache and in mapped memory; `parameter_ranges`, without which the predictive target
    `"parameters"` has no parameters of this augmentation; `parameter_periods` of those among them that are circular.
    """

    name: str
    parameter_names: tuple[str, ...]
    effort: int = 1
    sort_by: str | None = None
    cpu_block: int = 2**21
    parameter_periods: Mapping[str, float] = MappingProxyType({})  # values a period apart have the same effect

    @property
    def parameter_ranges(self) -> Mapping[str, tuple[float, float]]:
        """Lowest and highest value of each continuous parameter, drawn uniformly from there; none by default."""
        return {}

    @abstractmethod
    def sample_parameters(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws the parameters of `n` clips from a CPU generator: a CPU tensor (n,) for each of `parameter_names`."""

    @abstractmethod
    def transform(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Computes (B, S) from float32 `waveforms` (B, S), which it must not modify, and CPU parameters (B,)."""

    @torch.no_grad()
    def apply(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Augments a batch, each clip with its own parameters.

        Args:
            waveforms: (B, S), real, S >= 1; not modified.
            parameters: Output of `sample_parameters(B, generator)`.

        Returns:
            (B, S), float32, on the waveforms' device, without gradient. The result of a clip depends on no other clip.

        Raises:
            TypeError: If the waveforms are complex.
            ValueError: If the waveforms are not (B, S) with S >= 1, or a parameter is missing or not (B,).
        """
        if waveforms.is_complex():
            raise TypeError(f"{self.name}: waveforms must be real, got {waveforms.dtype}.")
        if waveforms.dim() != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"{self.name}: waveforms must be (batch, samples), got {tuple(waveforms.shape)}.")
        own = {}
        for key in self.parameter_names:
            value = parameters.get(key)
            if value is None or value.shape != waveforms.shape[:1]:
                found = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(f"{self.name}: parameter {key!r} must be ({waveforms.shape[0]},), got {found}.")
            own[key] = value.cpu()
        if waveforms.shape[0] == 0:
            return waveforms.float()
        with torch.autocast(waveforms.device.type, enabled=False):
            return self._in_blocks(waveforms.float().contiguous(), own)

    def parameter_differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Differences of the views' parameters, first minus second: mean 0 and variance 1 for uniform draws.

        A circular parameter has two: sine and cosine of the angle between the views. A parameter whose range is a
        single value has none.

        Args:
            parameters: (B, 2) for each parameter, the values of the first and of the second view.

        Returns:
            (B,) float32 by name of the parameter, with the ending `_sine` or `_cosine` if it is circular.

        Raises:
            ValueError: If a range is not finite and ascending, or its parameter is not drawn.
        """
        differences: dict[str, Tensor] = {}
        for name, (low, high) in self.parameter_ranges.items():
            if name not in parameters or not -math.inf < low <= high < math.inf:
                raise ValueError(
                    f"{self.name}: `parameter_ranges` holds {name!r}: ({low}, {high}); expected a parameter among "
                    f"{', '.join(parameters)}, and a finite, ascending range."
                )
            if low == high:
                continue
            first, second = parameters[name].double().unbind(dim=1)
            if name in self.parameter_periods:
                radians = 2 * math.pi / self.parameter_periods[name]
                parts = _standardized_angle(radians * (first - second), radians * (high - low))
                differences |= {f"{name}_{part}": value for part, value in parts}
            else:
                differences[name] = (first - second) * math.sqrt(6) / (high - low)  # a uniform draw: width^2 / 12
        return {name: difference.float() for name, difference in differences.items()}

    def _in_blocks(self, waveforms: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        batch, samples = waveforms.shape
        clips = max(1, (self.cpu_block if waveforms.device.type == "cpu" else DEVICE_BLOCK) // samples)
        if batch <= clips:
            return self.transform(waveforms, parameters)
        output = torch.empty_like(waveforms)
        if self.sort_by is None:
            own = {key: value.split(clips) for key, value in parameters.items()}
            for n, (block, result) in enumerate(zip(waveforms.split(clips), output.split(clips), strict=True)):
                result.copy_(self.transform(block, {key: value[n] for key, value in own.items()}))
            return output
        for block in parameters[self.sort_by].argsort().split(clips):
            rows = block.to(waveforms.device, non_blocking=True)
            own = {key: value[block] for key, value in parameters.items()}
            output.index_copy_(0, rows, self.transform(waveforms.index_select(0, rows), own))
        return output


def _standardized_angle(angle: Tensor, width: float) -> Iterator[tuple[str, Tensor]]:
    """Standardized sine and cosine (B,) of the angle between two uniform draws from a range of `width` radians."""
    # E cos(k angle) = |E exp(i k draw)|^2 = (sin(k width / 2) / (k width / 2))^2
    once, twice = ((math.sin(half) / half) ** 2 for half in (width / 2, width))
    yield "sine", angle.sin() / math.sqrt(max((1 - twice) / 2, SMALLEST_VARIANCE))
    yield "cosine", (angle.cos() - once) / math.sqrt(max((1 + twice) / 2 - once**2, SMALLEST_VARIANCE))


def samples_of(fractions: Tensor, samples: int) -> Tensor:
    """Fractions (B,) of a clip of `samples` in whole samples, int64."""
    return (fractions.double() * samples).round_().long()


def to_device(values: Tensor, waveforms: Tensor) -> Tensor:
    """Moves values (B,) to the device of the waveforms, as a column (B, 1)."""
    return values.to(waveforms.device, non_blocking=True).unsqueeze(1)


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of CPU tensors of one dtype on a device, in a single transfer."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def counting(count: int, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """0, 1, ..., `count` - 1, (count,); a view that must not be modified."""
    return _counting(1 << (count - 1).bit_length() if count > 1 else 1, device, dtype)[:count]


@lru_cache(maxsize=64)
def _counting(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.arange(count, dtype=dtype, device=device)


__all__ = [
    "Augmentation",
    "check_range",
    "counting",
    "draw_seeds",
    "samples_of",
    "sent_together",
    "to_device",
    "uniform",
]
