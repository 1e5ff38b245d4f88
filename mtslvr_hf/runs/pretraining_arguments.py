"""Arguments of pre-training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..configuration_mtslvr import AUGMENTATIONS, TASKS
from ..trainer import PROBE_KINDS, MTSLVRTrainingArguments
from .parser import AudioArguments, RunParser, configurations
from .saved_values import mask_secrets, saved_values
from .sizes import SIZES, choose_sizes, describe, measure_audio

SAVED_CONFIG = "pretrain.yaml"


@dataclass
class ModelArguments:
    """The fields of MTSLVRConfig."""

    _argument_group_name = "model"

    frontend: str = field(default="mel_stft", metadata={"help": "Input of the network: mel_stft, mel or waveform."})
    sampling_rate: int = field(default=16000, metadata={"help": "Sampling rate in Hz."})
    n_fft: int = field(default=1024, metadata={"help": "Length of the STFT in samples."})
    hop_length: int = field(default=512, metadata={"help": "Hop between STFT frames in samples."})
    num_mel_bins: int = field(default=128, metadata={"help": "Mel bands."})
    normalize_spectrogram: bool = field(
        default=False, metadata={"help": "Standardize spectrograms by fixed statistics, with a floor of -60 dB."}
    )
    window_seconds: float = field(default=5.0, metadata={"help": "Length in seconds of the network's input."})
    depth: int = field(default=18, metadata={"help": "Layers of the ResNet: 18, 34, 50, 101 or 152."})
    base_width: int = field(default=64, metadata={"help": "Channels of the stem; layer4 has eight times as many."})
    adapter_type: str = field(default="parallel", metadata={"help": "Task adapters: none, bn, series or parallel."})
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "contrastive and predictive, or one of them."}
    )
    shared_head: bool = field(default=False, metadata={"help": "One head for all tasks instead of one each."})
    embedding_size: int = field(default=1000, metadata={"help": "Size of all heads together."})
    pooling: str = field(default="mean", metadata={"help": "Of the last feature map: mean, mean_max or bands."})
    num_bands: int = field(default=4, metadata={"help": "Bands of frequency of the pooling bands."})
    use_heads: bool = field(default=True, metadata={"help": "A linear head for each embedding, or none."})
    contrastive_method: str = field(default="simclr", metadata={"help": "simclr or simsiam."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of NT-Xent."})
    predictive_weight: float = field(default=1.0, metadata={"help": "Weight of the predictive loss."})
    augmentations: list[str] = field(
        default_factory=lambda: list(AUGMENTATIONS), metadata={"help": "Augmentations, in the order of the labels."}
    )
    predictive_target: str = field(
        default="labels",
        metadata={
            "help": "Target of the predictive task: the augmentations of a view (labels), the differences of the two "
            "views' augmentation parameters (parameters), or both."
        },
    )
    augmentation_parameters: list[str] | None = field(
        default=None,
        metadata={"help": "Predicted parameters, each as augmentation.parameter. Default: all of the augmentations."},
    )


@dataclass
class DataArguments(AudioArguments):
    """Data of training and evaluation."""

    _argument_group_name = "data"

    dataset_name: str = field(
        default="",
        metadata={"help": "Name on the Hub, or a folder of parquet shards, audio files or tar shards. Required."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    data_files: list[str] | None = field(default=None, metadata={"help": "Only these files of the data set."})
    held_out_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training split's clips that is used for evaluation instead."}
    )
    eval_clips: int = field(default=1000, metadata={"help": "Largest number of evaluation clips."})
    size_to_data: bool = field(
        default=False,
        metadata={"help": f"Choose {', '.join(SIZES)} from the amount of audio, if they are not given."},
    )
    stream_timeout: float = field(
        default=300.0,
        metadata={"help": "Seconds that a shard which cannot be read over the network is tried again, then skipped."},
    )
    streaming: bool = field(default=True, metadata={"help": "Stream, instead of downloading everything first."})
    shuffle_buffer: int = field(
        default=256, metadata={"help": "Undecoded clips that each worker shuffles in memory; 1 does not shuffle."}
    )
    different_crops: bool = field(
        default=False,
        metadata={
            "help": "Two random crops of each file as its views, instead of one crop twice; see docs/recipe.md."
        },
    )
    max_augmentations: int | None = field(
        default=None,
        metadata={"help": "Each clip gets 1 to this many augmentations. Default: 1 to all, as the paper."},
    )
    scale_heads: bool = field(
        default=False,
        metadata={"help": "Give the heads equal variance in the embedding at the end, measured on evaluation clips."},
    )
    clip_seconds: float | None = field(default=None, metadata={"help": "Length of a clip. Default: window_seconds."})
    normalization: str = field(
        default="global", metadata={"help": "Waveforms: global (AudioSet's mean and deviation), sample or none."}
    )


@dataclass
class ProbeArguments:
    """Probe of the embeddings during training."""

    _argument_group_name = "probe"

    probe_data: str | None = field(
        default=None,
        metadata={
            "help": "Labelled audio of the probe: a folder per class, a data set on the Hub, or a benchmark's name as "
            "for `mtslvr evaluate`. Default: no probe."
        },
    )
    probe_data_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    probe_split: str | None = field(
        default=None, metadata={"help": "Split of the data set. Default: the benchmark's, or train."}
    )
    probe_audio_column: str | None = field(default=None, metadata={"help": "Column of the audio."})
    probe_label_column: str | None = field(default=None, metadata={"help": "Column of the classes."})
    probe_group_column: str | None = field(
        default=None,
        metadata={"help": "Column of groups (speakers, recordings) that stay together. Default: the benchmark's."},
    )
    probe_kind: str = field(
        default="linear",
        metadata={"help": f"One of {', '.join(PROBE_KINDS)}. Metrics: eval_probe_accuracy_both and others."},
    )
    probe_steps: int | None = field(
        default=None, metadata={"help": "Probe every N steps. Default: with every evaluation."}
    )
    probe_max_clips: int = field(
        default=1000, metadata={"help": "Largest number of clips, kept in memory; all classes keep their share."}
    )


ARGUMENTS = (ModelArguments, DataArguments, ProbeArguments, MTSLVRTrainingArguments)


def read_arguments(
    argv: Sequence[str],
) -> tuple[dict[str, Any], ModelArguments, DataArguments, ProbeArguments, MTSLVRTrainingArguments]:
    """Values of the configuration file and the command line, and dataclasses of them; errors end the program.

    The values are by field name: all fields declared in this package, and the given ones of transformers.
    """
    parser = RunParser(ARGUMENTS, "mtslvr pretrain", "Pre-trains MT-SLVR on streamed audio.", configurations())
    given = parser.read(argv)
    values = {**parser.defaults(), **given}
    if not values.get("output_dir"):
        parser.error("CONFIG is missing; without one, give --output_dir")
    if values["size_to_data"]:
        values = {**values, **_sizes(values, given), **given}
    model, data, probe, training = parser.parse_dict(values)
    return values, model, data, probe, training


def _sizes(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes for the data, or those of the run in the output folder, which goes on; given ones are not changed."""
    before = saved_values(Path(values["output_dir"]) / SAVED_CONFIG)
    if before.get("size_to_data") and before.get("dataset_name") == mask_secrets(values["dataset_name"]):
        return {name: before[name] for name in SIZES if name in before}
    if not values["dataset_name"]:
        return {}  # load_data says what is missing
    amount = measure_audio(
        values["dataset_name"],
        config=values["dataset_config"],
        split=values["train_split"],
        audio_column=values["audio_column"],
        data_files=values["data_files"],
        allow_row_paths=values["allow_row_paths"],
    )
    seconds = values["clip_seconds"] or values["window_seconds"]
    on_gpu = not values.get("use_cpu") and torch.accelerator.is_available()
    sizes = choose_sizes(amount, seconds, on_gpu, processes=int(os.environ.get("WORLD_SIZE", "1")))
    sizes.update((name, given[name]) for name in SIZES if name in given)
    if int(os.environ.get("RANK", "0")) == 0:
        print(describe(amount, sizes, seconds))
    return sizes


__all__ = ["SAVED_CONFIG", "DataArguments", "ModelArguments", "ProbeArguments", "read_arguments"]
