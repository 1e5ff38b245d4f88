"""Base of the Trainers: checkpoints with checksums, steps that are not finite, and signals."""

from .checkpoints import fault_of, is_complete, last_checkpoint
from .signals import RunStopped, StopSignals, WorkerSignals
from .steps import NonFiniteError
from .trainer import ResumableTrainer, SaveError

__all__ = [
    "NonFiniteError",
    "ResumableTrainer",
    "RunStopped",
    "SaveError",
    "StopSignals",
    "WorkerSignals",
    "fault_of",
    "is_complete",
    "last_checkpoint",
]
