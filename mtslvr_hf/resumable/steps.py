"""Steps of training whose loss or gradients are not finite: they are skipped, counted, and end the run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm
MOST_NAMES = 16  # of clips in a message
LONGEST_STREAK_AT_END = 1


class NonFiniteError(RuntimeError):
    """Error of a run whose losses, gradients or weights are no longer finite numbers."""


class _Outcome(NamedTuple):
    """Outcome of a step that may still be on its way from the device."""

    flags: torch.Tensor  # (2,) on the CPU: not finite, stop
    arrived: Any  # event of the device, or None
    step: int
    names: Sequence[str]


class StepGuard:
    """Skips optimizer steps that are not finite, restores BatchNorm's statistics, and agrees on a stop.

    A fused optimizer skips the step by itself. On a GPU, nothing then waits for the device: the host learns of the
    step one step later. All processes get the same outcome.

    Args:
        most: Skipped steps in a row that end the run.
    """

    def __init__(self, most: int):
        self.most = most
        self.skipped = 0  # since the run began
        self.in_a_row = 0
        self.stop = False  # a process wants to stop, and all know it
        self._finite: torch.Tensor | None = None
        self._statistics: list[tuple[list[torch.Tensor], torch.Tensor]] = []  # of one dtype; before the step, in a row
        self._pending: deque[_Outcome] = deque()
        self._losses, self._finite_losses = 0, 0.0  # since the last log; a tensor after the first loss
        self._sum: float | None = 0.0  # of the finite losses up to the last log; None if a checkpoint does not have it
        self._window_sum: float | torch.Tensor = 0.0  # of those since

    def begin(self, model: nn.Module) -> None:
        """Start of a step, before its first forward pass."""
        self._finite = None
        statistics = defaultdict(list)
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] in STATISTICS:
                statistics[buffer.dtype].append(buffer)
        self._statistics = [(buffers, _in_a_row(buffers)) for buffers in statistics.values()]

    def add(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a batch of the step, or 0 if it is not finite: one NaN would stay in the Trainer's sum."""
        finite = torch.isfinite(loss)
        self._finite = finite if self._finite is None else self._finite & finite
        self._losses += 1
        self._finite_losses = self._finite_losses + finite.float()  # type: ignore[assignment]
        loss = torch.where(finite, loss, 0.0)
        self._window_sum = self._window_sum + loss.detach().float()
        return loss

    def check(
        self,
        model: nn.Module,
        optimizer: Any,
        step: int,
        names: Sequence[str],
        stop: bool,
        scaled: bool,
        norm: torch.Tensor | None = None,
    ) -> None:
        """End of a step's backward pass: leaves the model as it was before the step if that is not finite.

        Args:
            model: The model.
            optimizer: Its optimizer.
            step: Number of the step, for messages.
            names: Names of the step's clips, for messages.
            stop: This process wants to stop.
            scaled: Gradients are scaled (fp16): the scaler looks at them and skips the step itself.
            norm: Norm of all gradients, (), if it is known.

        Raises:
            NonFiniteError: If the last `most` steps known here were not finite.
        """
        assert self._finite is not None
        finite = self._finite
        if not scaled:
            norm = gradient_norm(model) if norm is None else norm
            finite = finite & torch.isfinite(norm).to(finite.device)
        flags = torch.stack([(~finite).float(), torch.full((), float(stop), device=finite.device)])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        skip = flags[0] > 0
        for buffers, before in self._statistics:
            kept = torch.where(skip, before, _in_a_row(buffers)).split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(kept, buffers)])
        if not scaled:
            _skip(model, optimizer, flags[0])
        on_gpu = flags.device.type == "cuda"
        event = torch.cuda.Event() if on_gpu else None
        self._pending.append(_Outcome(flags.to("cpu", non_blocking=True), event, step, names))
        if event is not None:
            event.record()
        self.resolve(keep=1 if on_gpu else 0)

    def resolve(self, keep: int = 0) -> None:
        """Takes the outcomes of all steps but the last `keep` into account; waits for them.

        Raises:
            NonFiniteError: As `check`.
        """
        while len(self._pending) > keep:
            outcome = self._pending.popleft()
            if outcome.arrived is not None:
                outcome.arrived.synchronize()
            skipped, stop = (bool(flag) for flag in outcome.flags.numpy())
            self.stop = self.stop or stop
            self.skipped += skipped
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if self.in_a_row >= self.most:
                raise NonFiniteError(_message(self.in_a_row, outcome))

    def finish(self) -> None:
        """End of training.

        Raises:
            NonFiniteError: If the run ended with steps that were not finite.
        """
        last = self._pending[-1] if self._pending else _Outcome(torch.zeros(2), None, 0, ())
        self.resolve()
        if self.in_a_row > LONGEST_STREAK_AT_END:
            raise NonFiniteError(_message(self.in_a_row, last))

    def corrected(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Logs with the mean of the finite losses since the last call; without figures that are not finite."""
        self.resolve()
        share = float(self._finite_losses) / self._losses if self._losses else 1.0
        self._losses, self._finite_losses = 0, 0.0
        if self._sum is not None:
            self._sum, self._window_sum = self._sum + float(self._window_sum), 0.0
        logs = dict(logs)
        if share == 0:
            logs.pop("loss", None)
        elif share < 1:
            logs["loss"] /= share
        if not logs.get("grad_norm", 0.0) < float("inf"):
            del logs["grad_norm"]
        return {**logs, **({"skipped_steps": self.skipped} if self.skipped else {})}

    def mean_loss(self, steps: int) -> float | None:
        """Mean loss of this process over all steps of the run that were not skipped; None if it is not known."""
        steps -= self.skipped
        return None if self._sum is None or steps < 1 else (self._sum + float(self._window_sum)) / steps

    def state_dict(self) -> dict[str, Any]:
        """Counts and sums, for JSON."""
        self.resolve()
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row}
        return {**counts, "loss_sum": self._sum, "window_loss_sum": float(self._window_sum)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict`."""
        self.skipped, self.in_a_row, self.stop = state["skipped"], state["in_a_row"], False
        self._sum, self._window_sum = state.get("loss_sum"), state.get("window_loss_sum", 0.0)
        self._pending.clear()
        self._losses, self._finite_losses = 0, 0.0


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Norm of all gradients of a model, ()."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def check_weights(model: nn.Module, step: int) -> None:
    """Check of a model that is about to be saved.

    Raises:
        NonFiniteError: If a weight or statistic is not finite.
    """
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all().cpu() for value in tensors.values()])
    if not finite.all():
        names = [name for name, good in zip(tensors, finite.tolist()) if not good]
        raise NonFiniteError(
            f"At step {step}, {len(names)} of {len(tensors)} tensors of the model are not finite ({names[0]}, ...): "
            "nothing is saved, and what was saved before is kept. Start again with a lower learning_rate."
        )


def _in_a_row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Copy of all values in one tensor: a device is asked once for all, not once for each."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _skip(model: nn.Module, optimizer: Any, flag: torch.Tensor) -> None:
    """Makes the optimizer's next step leave weights and its state alone if the flag () is 1."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = flag  # as torch.amp.GradScaler does
    elif flag > 0:
        model.zero_grad(set_to_none=True)  # optimizers pass over parameters without gradient


def _message(streak: int, outcome: _Outcome) -> str:
    names = ", ".join(map(str, outcome.names[:MOST_NAMES])) + (", ..." if len(outcome.names) > MOST_NAMES else "")
    return (
        f"The loss or its gradients were not finite in {streak} steps in a row, the last one step {outcome.step}. "
        "These steps were skipped, and the run is stopped; checkpoints of before are kept. Start again with a lower "
        f"learning_rate, or a higher temperature.{f' Clips of the last step: {names}.' if names else ''}"
    )


__all__ = ["NonFiniteError", "StepGuard", "check_weights", "gradient_norm"]
