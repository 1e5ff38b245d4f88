"""Pre-training with transformers' Trainer."""

from ..resumable import NonFiniteError, is_complete, last_checkpoint
from .arguments import MTSLVRTrainingArguments
from .metrics import embedding_spread
from .probe import PROBE_KINDS, Probe
from .trainer import MTSLVRTrainer

__all__ = [
    "PROBE_KINDS",
    "MTSLVRTrainer",
    "MTSLVRTrainingArguments",
    "NonFiniteError",
    "Probe",
    "embedding_spread",
    "is_complete",
    "last_checkpoint",
]
