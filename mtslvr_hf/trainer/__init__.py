"""Pre-training with transformers' Trainer."""

from .arguments import MTSLVRTrainingArguments
from .checkpoints import is_complete, last_checkpoint
from .metrics import embedding_spread, mean_average_precision
from .trainer import MTSLVRTrainer

__all__ = [
    "MTSLVRTrainer",
    "MTSLVRTrainingArguments",
    "embedding_spread",
    "is_complete",
    "last_checkpoint",
    "mean_average_precision",
]
