"""Callbacks of saving and early stopping."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from .arguments import MTSLVRTrainingArguments


class SaveBestCallback(TrainerCallback):
    """Asks for a checkpoint whenever an evaluation is the best so far, so that it can be loaded at the end."""

    def on_evaluate(
        self,
        args: MTSLVRTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        value = metrics.get(f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
        if value is None:
            return
        better = state.best_metric is None or (
            value > state.best_metric if args.greater_is_better else value < state.best_metric
        )
        control.should_save = control.should_save or better


def own_callbacks(args: MTSLVRTrainingArguments) -> list[TrainerCallback]:
    """The callbacks that the arguments ask for, beside transformers' own."""
    callbacks: list[TrainerCallback] = [SaveBestCallback()] if args.load_best_model_at_end else []
    if args.early_stopping_patience and args.eval_strategy != IntervalStrategy.NO:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    return callbacks


__all__ = ["SaveBestCallback", "own_callbacks"]
