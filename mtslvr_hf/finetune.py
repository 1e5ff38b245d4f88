"""Trains a classifier of sounds on a pre-trained MT-SLVR model.

    mtslvr finetune --model MODEL --data FOLDER --output_dir outputs/mine [--method METHOD ...]
    accelerate launch -m mtslvr_hf.finetune CONFIG.yaml [--any_field value ...]

METHOD is linear_probe, adapters or everything. A configuration is a YAML file with the fields that `--help` lists; the
command line overrides it. The same command, started again, resumes from the last checkpoint of its output folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, set_seed
from transformers import logging as transformers_logging

from . import MTSLVRFeatureExtractor, MTSLVRForAudioClassification
from .cards.classification import METRICS, ClassifierSummary, create_classifier_card
from .classification import (
    ClassificationTrainer,
    ClipCollator,
    ClipDataset,
    EmbeddedClips,
    LinearProbeTrainer,
    SetEpoch,
    WeightedLoss,
    balanced_weights,
    divide,
    drop_bad_clips,
    embed_clips,
    make_folds,
    multi_label_metrics,
    single_label_metrics,
)
from .data import LabelledAudio, load_labelled_audio
from .files import output_folder
from .runs.command import run_command
from .runs.data_files import data_fingerprint
from .runs.finetuning_arguments import DataArguments, FineTuningArguments, ModelArguments, read_arguments
from .runs.run_folder import check_data, find_checkpoint, finish, run_of, save, save_arguments, set_up_logging
from .runs.saved_values import mask_secrets

logger = logging.getLogger("mtslvr_hf.finetune")  # also with `python -m`

SAVED_CONFIG = "finetune.yaml"
DEFAULT_EVAL_FRACTION = 0.2


class Clips(NamedTuple):
    """Clips of training and evaluation."""

    train: LabelledAudio
    evaluation: LabelledAudio | None
    split: str  # description of the split


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs fine-tuning; returns the metrics of the saved model on the evaluation clips, if any."""
    values, model_args, data_args, args = read_arguments(sys.argv[1:] if argv is None else argv)
    set_up_logging(args)
    transformers_logging.set_verbosity_error()  # omits the warning that the classifier is new
    with run_of(args) as signals:
        checkpoint = find_checkpoint(args, values, SAVED_CONFIG, fixed=[ModelArguments, DataArguments])
        fingerprint = data_fingerprint(data_args.data, data_args.data_config, data_args.data_revision)
        check_data(None if checkpoint is None else Path(checkpoint).parent, fingerprint, data_args.data_changed)
        with args.main_process_first(desc="reading the data set"):
            clips = load_data(data_args)
        model, extractor = make_model(model_args, clips.train, args)
        save_arguments(values, args, SAVED_CONFIG, fingerprint)
        trainer, clips = make_trainer(model, extractor, clips, model_args, data_args, args)
        trainer.signals = signals
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if clips.evaluation is not None else {}
        report(trainer, clips, metrics, model_args, data_args)
        save(trainer, metrics)
        if model_args.save_adapter and trainer.is_world_process_zero():
            trainer.model.save_adapter(str(output_folder(args) / "adapter"), model_args.adapter_name)
        finish(trainer)
    return metrics


def load_data(data_args: DataArguments) -> Clips:
    """Labelled clips, divided into training and evaluation."""
    load = partial(
        load_labelled_audio,
        data_args.data,
        data_args.data_config,
        audio_column=data_args.audio_column,
        label_column=data_args.label_column,
        group_column=data_args.group_column,
        revision=data_args.data_revision,
        allow_row_paths=data_args.allow_row_paths,
    )
    clips = load(split=data_args.train_split)
    if data_args.eval_split is not None:
        evaluation = load(split=data_args.eval_split)
        if evaluation.multi_label != clips.multi_label:
            sys.exit(f"Only one of {data_args.train_split} and {data_args.eval_split} has lists of labels.")
        return Clips(clips, evaluation.with_classes(clips.classes), f"split {data_args.eval_split}")
    grouped = "" if clips.groups is None else ", groups kept together"
    if data_args.folds is not None:
        parts = make_folds(clips.labels, data_args.folds, data_args.split_seed, clips.groups)
        held_out = parts == data_args.fold
        split = f"fold {data_args.fold} of {data_args.folds}, stratified{grouped}, split seed {data_args.split_seed}"
    else:
        fraction = DEFAULT_EVAL_FRACTION if data_args.eval_fraction is None else data_args.eval_fraction
        if fraction == 0:
            return Clips(clips, None, "none")
        held_out = divide(clips.labels, (fraction, 1 - fraction), data_args.split_seed, clips.groups) == 0
        split = f"held-out {100 * fraction:g} %, stratified{grouped}, split seed {data_args.split_seed}"
    train, evaluation = clips.select((~held_out).nonzero()[0]), clips.select(held_out.nonzero()[0])
    return Clips(train, evaluation, split)


def make_model(
    model_args: ModelArguments, data: LabelledAudio, args: FineTuningArguments
) -> tuple[MTSLVRForAudioClassification, MTSLVRFeatureExtractor]:
    """Pre-trained model with a new classifier, frozen except for the method's part; and its feature extractor."""
    set_seed(args.seed)
    extractor = AutoFeatureExtractor.from_pretrained(model_args.model, trust_remote_code=False)
    config = AutoConfig.from_pretrained(
        model_args.model,
        trust_remote_code=False,  # or transformers would ask
        id2label=dict(enumerate(data.classes)),
        label2id={name: number for number, name in enumerate(data.classes)},
        problem_type="multi_label_classification" if data.multi_label else "single_label_classification",
    )
    adapters = model_args.method == "adapters"
    if adapters or model_args.tasks is not None:  # the classifier uses one task, or the given ones
        config.active_adapters = config.available_tasks[:1] if adapters else model_args.tasks
        config.check_tasks(config.active_adapters)
    model = AutoModelForAudioClassification.from_pretrained(
        model_args.model,
        config=config,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # of a classifier for other classes
    )
    if adapters:
        model.add_adapter(model_args.adapter_name, model_args.adapter_type, model_args.adapter_init)
        model.train_adapter(model_args.adapter_name)
    elif model_args.method == "linear_probe":
        model.freeze_feature_encoder()
    return model, extractor


def make_trainer(
    model: MTSLVRForAudioClassification,
    extractor: MTSLVRFeatureExtractor,
    clips: Clips,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: FineTuningArguments,
) -> tuple[ClassificationTrainer, Clips]:
    """Trainer, and the clips that can be used: all are decoded once."""
    probe = model_args.method == "linear_probe"
    encoder = None
    if probe:
        model.mtslvr.to(args.device)  # type: ignore[arg-type]  # transformers hides the signature of `to`
        encoder = model.mtslvr.inference_network()

    def usable(data: LabelledAudio, random_crops: bool = False) -> ClipDataset | EmbeddedClips:
        dataset = ClipDataset(
            data, extractor.sampling_rate, data_args.max_seconds, random_crops, args.seed, data_args.on_truncated
        )
        if encoder is not None:
            return embed_clips(dataset, encoder, extractor, args, data_args.max_bad_share)
        return drop_bad_clips(dataset, args, data_args.max_bad_share)

    train, evaluation = usable(clips.train, random_crops=not probe), None
    if clips.evaluation is not None:
        evaluation = usable(clips.evaluation)
    clips = Clips(train.data, None if evaluation is None else evaluation.data, clips.split)
    report_classes(clips)
    multi_label, loss = clips.train.multi_label, None
    if data_args.class_weights == "balanced":
        loss = WeightedLoss(balanced_weights(clips.train.labels, multi_label), multi_label)
    options: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": train,
        "eval_dataset": evaluation,
        "processing_class": extractor,
        "compute_metrics": multi_label_metrics if multi_label else single_label_metrics,
        "compute_loss_func": loss,
    }
    if isinstance(train, EmbeddedClips):
        return LinearProbeTrainer(**options), clips
    return ClassificationTrainer(data_collator=ClipCollator(extractor), callbacks=[SetEpoch(train)], **options), clips


def report_classes(clips: Clips) -> None:
    """Logs the numbers of clips and classes, and warns of classes that are evaluated but not trained."""
    counts = clips.train.labels.sum(0)
    evaluated = 0 if clips.evaluation is None else len(clips.evaluation)
    logger.info("%d clips of %d classes to train on, %d to evaluate on", len(clips.train), len(counts), evaluated)
    if clips.evaluation is not None:
        absent = (counts == 0) & (clips.evaluation.labels.sum(0) > 0)
        names = [name for name, missing in zip(clips.train.classes, absent) if missing]
        if names:
            logger.warning("Classes with evaluation clips, but no training clips: %s", ", ".join(names))


def report(
    trainer: ClassificationTrainer,
    clips: Clips,
    metrics: dict[str, float],
    model_args: ModelArguments,
    data_args: DataArguments,
) -> None:
    """Logs the metrics and makes the model card."""
    values = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    if values:
        logger.info(", ".join(f"{words} {values[name]:.4f}" for name, words in METRICS.items() if name in values))
    trainer.card = create_classifier_card(
        trainer.model.config,
        ClassifierSummary(
            base_model=model_args.model,
            method=model_args.method,
            dataset=mask_secrets(data_args.data),
            train_clips=len(clips.train),
            eval_clips=0 if clips.evaluation is None else len(clips.evaluation),
            split=clips.split,
            class_weights=data_args.class_weights,
            epochs=trainer.state.epoch,
            batch_size=trainer.args.train_batch_size * trainer.args.world_size,
            learning_rate=trainer.args.learning_rate,
            seed=trainer.args.seed,
            license=cast(FineTuningArguments, trainer.args).license,
            metrics=values,
        ),
        trainer.args.hub_model_id,
    )


if __name__ == "__main__":
    run_command(main)
