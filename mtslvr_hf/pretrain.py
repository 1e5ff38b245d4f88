"""Pre-trains MT-SLVR on streamed audio.

    mtslvr pretrain CONFIG [--any_field value ...]
    accelerate launch -m mtslvr_hf.pretrain CONFIG [--any_field value ...]

CONFIG is a configuration of this package, as small_data, or a YAML file of the fields that `--help` lists; `base:
other.yaml` inherits values. The command line overrides it. The same command, started again, resumes from the last
checkpoint of its output folder.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from . import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForPreTraining
from .augmentations import TwoViewAugmentation
from .cards.pretraining import TrainingSummary
from .data import AudioStream, load_audio, load_clips
from .data.local import local_path
from .data.network import limit_silence
from .embedding import equal_variance_scale
from .evaluation import open_data
from .files import output_folder
from .resumable.trainer import evaluations_without_improvement, is_over
from .runs.command import run_command
from .runs.data_files import check_decoders, data_fingerprint, local_files
from .runs.pretraining_arguments import SAVED_CONFIG, DataArguments, ModelArguments, ProbeArguments, read_arguments
from .runs.run_folder import (
    check_data,
    find_checkpoint,
    finish,
    is_finished,
    run_of,
    save,
    save_arguments,
    set_up_logging,
)
from .runs.saved_values import mask_secrets
from .trainer import MTSLVRTrainer, MTSLVRTrainingArguments, Probe

logger = logging.getLogger("mtslvr_hf.pretrain")  # also with `python -m`

LONGEST_SILENCE = 30.0  # seconds that a server of HTTP may be silent before it is asked again


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs pre-training; returns the metrics of the saved model on the evaluation clips, if any."""
    values, model_args, data_args, probe_args, training_args = read_arguments(sys.argv[1:] if argv is None else argv)
    set_up_logging(training_args)
    with run_of(training_args) as signals:
        checkpoint = find_checkpoint(training_args, values, SAVED_CONFIG, fixed=[ModelArguments, DataArguments])
        if checkpoint is not None:
            check_unfinished(checkpoint, training_args)
        model, extractor = make_model(model_args, data_args, training_args)
        fingerprint = check_source(data_args, checkpoint)
        train_stream, eval_clips = load_data(model, data_args, training_args)
        probes = make_probes(probe_args, training_args)
        save_arguments(values, training_args, SAVED_CONFIG, fingerprint)
        trainer = MTSLVRTrainer(
            model=model,
            args=training_args,
            train_dataset=train_stream,
            eval_dataset=eval_clips,
            processing_class=extractor,
            augmentation=make_augmentation(model, data_args, training_args),
            probes=probes,
            summary=TrainingSummary(
                dataset=mask_secrets(data_args.dataset_name),
                dataset_config=data_args.dataset_config,
                dataset_split=data_args.train_split,
            ),
        )
        trainer.signals = signals
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if eval_clips is not None else {}
        if data_args.scale_heads:
            scale_heads(trainer, data_args)
        save(trainer, metrics)
        finish(trainer)
    return metrics


def check_unfinished(checkpoint: str, args: MTSLVRTrainingArguments) -> None:
    """Ends the program if the run is complete or was stopped early, so that it does not start again by accident.

    A run that was killed behind its last checkpoint, before it was saved or published, is not complete.
    """
    if not (is_finished(args) and is_over(checkpoint, args) and Path(checkpoint).parent == output_folder(args)):
        return
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if state.global_step >= args.max_steps:
        sys.exit(
            f"{checkpoint} is the end of a run of {args.max_steps} steps. Choose another --output_dir for a new run."
        )
    sys.exit(
        f"The run of {checkpoint} was stopped early: {evaluations_without_improvement(state)} evaluations without "
        "improvement. Choose another --output_dir for a new run, or a larger --early_stopping_patience to continue."
    )


def check_source(data_args: DataArguments, checkpoint: str | None) -> str | None:
    """Fingerprint of the training data, which is that of the run that a checkpoint belongs to.

    Raises:
        SystemExit: If the data changed, or audio needs a decoder that is not installed.
    """
    if not data_args.dataset_name:
        sys.exit("`dataset_name` is missing: name a data set on the Hub or a folder.")
    local = local_files(data_args.dataset_name, data_args.dataset_config, data_args.data_files)
    check_decoders(local, data_args.max_bad_share)
    fingerprint = data_fingerprint(
        data_args.dataset_name, data_args.dataset_config, data_args.dataset_revision, data_args.data_files
    )
    folder = None if checkpoint is None else Path(checkpoint).parent
    check_data(folder, fingerprint, data_args.data_changed)
    return fingerprint


def make_model(
    model_args: ModelArguments, data_args: DataArguments, args: MTSLVRTrainingArguments
) -> tuple[MTSLVRForPreTraining, MTSLVRFeatureExtractor]:
    """New model, the same for the same seed, and its feature extractor."""
    set_seed(args.seed)
    config = MTSLVRConfig(**dataclasses.asdict(model_args))
    extractor = MTSLVRFeatureExtractor(sampling_rate=config.sampling_rate, normalization=data_args.normalization)
    return MTSLVRForPreTraining(config), extractor


def make_augmentation(
    model: MTSLVRForPreTraining, data_args: DataArguments, args: MTSLVRTrainingArguments
) -> TwoViewAugmentation:
    """Pipeline of the model's augmentations."""
    try:
        return TwoViewAugmentation(
            model.config.augmentations,
            sampling_rate=model.config.sampling_rate,
            seed=args.seed if args.data_seed is None else args.data_seed,
            max_augmentations=data_args.max_augmentations,
        )
    except ValueError as error:
        sys.exit(f"`max_augmentations` or `augmentations`: {error}")


def load_data(
    model: MTSLVRForPreTraining, data_args: DataArguments, args: MTSLVRTrainingArguments
) -> tuple[AudioStream, torch.Tensor | None]:
    """Stream of training clips, and decoded evaluation clips, of this process."""
    if data_args.scale_heads and data_args.eval_split is None and data_args.held_out_fraction == 0:
        sys.exit("`scale_heads` needs `eval_split` or a `held_out_fraction` above 0.")
    config = model.config
    share: dict[str, Any] = {
        "rank": args.process_index,
        "world_size": args.world_size,
        "crops": 2 if data_args.different_crops else 1,
        "on_truncated": data_args.on_truncated,
    }
    clip_seconds = data_args.clip_seconds or config.window_seconds
    if _is_remote(data_args):
        limit_silence(min(data_args.stream_timeout, LONGEST_SILENCE))
        share["retry_seconds"] = data_args.stream_timeout
    rows = _open(data_args, data_args.train_split)
    stream = AudioStream(
        rows,
        clip_seconds,
        config.sampling_rate,
        batch_size=args.per_device_train_batch_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        shuffle_buffer=data_args.shuffle_buffer,
        max_bad_share=data_args.max_bad_share,
        held_out_fraction=data_args.held_out_fraction,
        **share,
    )
    if args.eval_strategy == IntervalStrategy.NO:
        return stream, None
    limit = -(-data_args.eval_clips // args.world_size)
    return stream, load_evaluation_clips(model, data_args, limit, **share)


def load_evaluation_clips(
    model: MTSLVRForPreTraining, data_args: DataArguments, limit: int, **options: Any
) -> torch.Tensor:
    """Decoded clips of the evaluation split, or of the held-out rows of the training split."""
    config, fraction = model.config, data_args.held_out_fraction
    seconds = data_args.clip_seconds or config.window_seconds
    if data_args.eval_split is not None:
        return load_clips(_open(data_args, data_args.eval_split), seconds, config.sampling_rate, limit, **options)
    if fraction == 0:
        sys.exit("Evaluation needs `eval_split` or a `held_out_fraction` above 0; or set `eval_strategy: 'no'`.")
    rows = _open(data_args, data_args.train_split)
    return load_clips(rows, seconds, config.sampling_rate, limit, held_out_fraction=fraction, held_out=True, **options)


def scale_heads(trainer: MTSLVRTrainer, data_args: DataArguments) -> None:
    """Gives the heads equal variance on the evaluation clips: stores their scales in the configuration.

    An error does not end the run: the heads stay as they are, with a warning.
    """
    model = trainer.model
    if not trainer.is_world_process_zero() or len(set(model.config.embedding_parts.values())) < 2:
        return
    try:
        clips = load_evaluation_clips(model, data_args, data_args.eval_clips)
        model.config.embedding_scale = equal_variance_scale(
            model, clips, trainer.processing_class, trainer.args.eval_batch_size
        )
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning("The heads are not scaled: %s", error)
    else:
        logger.info("Scales of the heads: %s", model.config.embedding_scale)


def _is_remote(data_args: DataArguments) -> bool:
    """True for data that are read over a network."""
    if data_args.data_files is not None:
        return any("://" in file for file in data_args.data_files)
    return local_path(data_args.dataset_name) is None


def _open(data_args: DataArguments, split: str) -> datasets.Dataset | datasets.IterableDataset:
    return load_audio(
        data_args.dataset_name,
        data_args.dataset_config,
        split=split,
        streaming=data_args.streaming,
        audio_column=data_args.audio_column,
        revision=data_args.dataset_revision,
        data_files=data_args.data_files,
        allow_row_paths=data_args.allow_row_paths,
    )


def make_probes(probe_args: ProbeArguments, args: MTSLVRTrainingArguments) -> list[Probe]:
    """List of the probe, if there is one."""
    if probe_args.probe_data is None:
        if "probe_" in (args.metric_for_best_model or ""):
            sys.exit(f"`metric_for_best_model` is {args.metric_for_best_model!r}, which needs `probe_data`.")
        return []
    data = open_data(
        probe_args.probe_data,
        config=probe_args.probe_data_config,
        split=probe_args.probe_split,
        audio_column=probe_args.probe_audio_column,
        label_column=probe_args.probe_label_column,
        group_column=probe_args.probe_group_column,
    )
    if probe_args.probe_group_column is not None:
        data = dataclasses.replace(data, group_disjoint=True)
    probe = Probe(
        data,
        probe_args.probe_kind,
        steps=probe_args.probe_steps,
        max_clips=probe_args.probe_max_clips,
        seed=args.seed,
    )
    return [probe]


if __name__ == "__main__":
    run_command(main)
