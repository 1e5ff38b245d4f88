"""Trainers of classifiers: of a whole model, and of a classifier on fixed embeddings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ..cards.parts import save_card
from ..files import output_folder
from ..modeling_mtslvr import MTSLVRForAudioClassification, MTSLVRModelOutput
from ..resumable import ResumableTrainer, WorkerSignals
from .clips import EmbeddedClips


class ClassificationTrainer(ResumableTrainer):
    """Trainer whose model card is `card`; without one, it writes none."""

    model: MTSLVRForAudioClassification
    card: ModelCard | None = None

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's batches; signals do not end its workers before the run."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = WorkerSignals(loader.worker_init_fn)
        return loader

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes `card` into the output folder; ignores the facts for Trainer's own card."""
        if self.card is not None and self.is_world_process_zero():
            save_card(self.card, output_folder(self.args))


class _StandIn(nn.Module):
    """Replacement of the encoder that standardizes embeddings."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, embeddings: torch.Tensor, *args: Any, **kwargs: Any) -> MTSLVRModelOutput:
        """(batch, D) -> `pooler_output` (batch, D)."""
        return MTSLVRModelOutput(pooler_output=(embeddings - self.mean) / self.std)


class LinearProbeTrainer(ClassificationTrainer):
    """Trainer of a model's classifier on embeddings that `embed_clips` computed once; the encoder is frozen.

    The classifier trains in fewer steps on embeddings whose dimensions have mean 0 and standard deviation 1. Saved
    models and checkpoints are whole models, whose classifier includes this scaling.

    Args:
        model: Model without encoder while this Trainer is used; `restore` puts it back.
        args: As for Trainer; DataLoader workers are not used.
        train_dataset: The embedded training clips.
        kwargs: As for Trainer.
    """

    def __init__(
        self, model: MTSLVRForAudioClassification, args: TrainingArguments, train_dataset: EmbeddedClips, **kwargs: Any
    ):
        args = copy.copy(args)
        args.dataloader_num_workers, args.dataloader_persistent_workers = 0, False
        model.freeze_feature_encoder()
        self.encoder = model.mtslvr
        std, mean = torch.std_mean(train_dataset.embeddings, dim=0, correction=0)
        # Constant dimensions carry no information, and a division by their deviation of 0 is not possible.
        self.stand_in = cast(Any, _StandIn(mean, torch.where(std > 1e-6 * std.max(), std, 1.0)))
        model.mtslvr = self.stand_in
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Context in which the model is whole, with a classifier of raw embeddings."""
        self._to_raw(self.model.classifier)
        self.model.mtslvr = self.encoder
        try:
            yield
        finally:
            self.model.mtslvr = self.stand_in
            self._to_standardized(self.model.classifier)

    def restore(self) -> MTSLVRForAudioClassification:
        """Whole model on the Trainer's device; ends the use of this Trainer."""
        self._to_raw(self.model.classifier)
        self.model.mtslvr = self.encoder
        self.model.to(self.args.device)  # type: ignore[arg-type]  # transformers hides the signature of `to`
        return self.model.eval()

    @torch.no_grad()
    def _to_raw(self, classifier: nn.Linear) -> None:
        """W (x - mean) / std + b = (W / std) x + (b - (W / std) mean)."""
        classifier.weight.div_(self.stand_in.std)
        classifier.bias.sub_(classifier.weight @ self.stand_in.mean)

    @torch.no_grad()
    def _to_standardized(self, classifier: nn.Linear) -> None:
        classifier.bias.add_(classifier.weight @ self.stand_in.mean)
        classifier.weight.mul_(self.stand_in.std)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        classifier = self.model.classifier
        exact = [parameter.detach().clone() for parameter in classifier.parameters()]
        with self.whole_model():
            super()._save(output_dir)
        with torch.no_grad():  # only one process saves: rounding must not make it differ from the others
            for parameter, value in zip(classifier.parameters(), exact):
                parameter.copy_(value)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self.whole_model():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> bool:  # type: ignore[override]  # as in ResumableTrainer
        with self.whole_model():
            return super()._load_best_model()


__all__ = ["ClassificationTrainer", "LinearProbeTrainer"]
