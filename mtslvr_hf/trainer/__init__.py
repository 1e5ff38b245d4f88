"""Pre-training with transformers' Trainer."""

from .arguments import MTSLVRTrainingArguments
from .checkpoints import is_complete, last_checkpoint
from .metrics import embedding_spread
from .probe_callback import PROBE_KINDS, ProbeCallback
from .trainer import MTSLVRTrainer

__all__ = [
    "PROBE_KINDS",
    "MTSLVRTrainer",
    "MTSLVRTrainingArguments",
    "ProbeCallback",
    "embedding_spread",
    "is_complete",
    "last_checkpoint",
]
