"""Pre-training with transformers' Trainer."""

from .arguments import MTSLVRTrainingArguments
from .checkpoints import is_complete, last_checkpoint
from .metrics import embedding_spread
from .probe import PROBE_KINDS, Probe
from .trainer import MTSLVRTrainer

__all__ = [
    "PROBE_KINDS",
    "MTSLVRTrainer",
    "MTSLVRTrainingArguments",
    "Probe",
    "embedding_spread",
    "is_complete",
    "last_checkpoint",
]
