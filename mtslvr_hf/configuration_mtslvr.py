"""Configuration of MT-SLVR models."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import ModuleDict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

FRONTENDS = ("mel_stft", "mel", "waveform")
DEPTHS = (18, 34, 50, 101, 152)
ADAPTER_TYPES = ["none", "bn", "series", "parallel"]  # `register_adapter_type` adds to it
TASKS = ("contrastive", "predictive")
POOLINGS = ("mean", "mean_max", "bands")
# Smallest and largest values of numbers. They keep a damaged or hostile config.json from filling the memory.
LIMITS: dict[str, tuple[float, float]] = {
    "sampling_rate": (1_000, 768_000),
    "n_fft": (2, 65_536),
    "hop_length": (1, 65_536),
    "num_mel_bins": (1, 1_024),
    "base_width": (1, 512),
    "embedding_size": (1, 65_536),
    "num_bands": (1, 1_024),
    "window_seconds": (0, 3_600),
    "temperature": (0, 1e6),
    "predictive_weight": (0, 1e6),
    "num_labels": (1, 100_000),
}
MOST_NAMES = 10_000  # in a list of names
CONTRASTIVE_METHODS = ("simclr", "simsiam")
PREDICTIVE_TARGETS = ("labels", "parameters", "both")
AUGMENTATIONS = ("pitch_shift", "fade", "white_noise", "mixed_noise", "time_stretch", "time_masking", "time_shift")
AUGMENTATION_PARAMETERS = (
    "pitch_shift.semitones",
    "fade.in_fraction",
    "fade.out_fraction",
    "white_noise.snr_db",
    "white_noise.exponent",
    "mixed_noise.snr_db",
    "mixed_noise.exponent",
    "time_stretch.rate",
    "time_masking.start_fraction",
    "time_masking.length_fraction",
    "time_shift.shift_fraction_sine",
    "time_shift.shift_fraction_cosine",
)

# Names of other adapters, and names that torch.nn.ModuleDict uses.
RESERVED_NAMES = frozenset(("shared", *TASKS, *dir(ModuleDict()), *vars(ModuleDict())))

# All classes that load a checkpoint without the package, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_mtslvr.MTSLVRConfig",
    "AutoModel": "modeling_mtslvr.MTSLVRModel",
    "AutoModelForPreTraining": "modeling_mtslvr.MTSLVRForPreTraining",
    "AutoModelForAudioClassification": "modeling_mtslvr.MTSLVRForAudioClassification",
}


# Files by which `SentenceTransformer(FOLDER)` reads a checkpoint: its `Transformer` module returns `pooler_output`.
# There, an array is one clip, and (channels, samples) if it has two axes; bare arrays are at the model's rate.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"audio": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
}


class MTSLVRConfig(PreTrainedConfig):
    """Configuration of an MT-SLVR network and its pre-training heads.

    Args:
        frontend: Input of the network: `"mel_stft"` (log-mel, and magnitude and phase of a complex mel STFT: three
            channels), `"mel"` (log-mel) or `"waveform"` (1-D convolutions on the raw signal).
        sampling_rate: Sampling rate of the input in Hz.
        n_fft: Length of the STFT in samples.
        hop_length: Distance of two STFT frames in samples.
        num_mel_bins: Number of HTK mel bands between 0 Hz and half the sampling rate.
        normalize_spectrogram: Standardizes spectrograms by fixed statistics, with decibels below -60 raised to -60.
            Without it, as in the paper, digital silence is -157 dB and loud bands are 40 dB.
        window_seconds: Length of a window. Longer audio is cut into windows, shorter audio is repeated to fill one.
        depth: Layers of the ResNet: 18 and 34 have basic blocks; 50, 101 and 152 have bottlenecks.
        base_width: Channels of the stem and of layer1; layer4 has eight times as many (times four with bottlenecks).
        adapter_type: Adapters of each task in layer2 to layer4: `"none"`, `"bn"` (batch normalization), `"series"` or
            `"parallel"` (1x1 convolutions and batch normalization).
        tasks: `"contrastive"` and `"predictive"`, or one of them, in the order of the embedding's parts.
        shared_head: One head of `embedding_size` for all tasks instead of one head each.
        embedding_size: Size of all heads together; split evenly over the tasks unless the head is shared. Not used
            without heads.
        pooling: Statistics of the last feature map that go into a head: `"mean"` over frequency and time,
            `"mean_max"` (mean and maximum over both, side by side), or `"bands"` (means over time within each of
            `num_bands` equal bands of frequency, side by side from low to high; spectrograms only).
        num_bands: Bands of the pooling `"bands"`; must divide the rows of frequency of the last feature map, which are
            `num_mel_bins` / 32, rounded up. Not used by other poolings.
        use_heads: True for a linear head behind the pooling; False for the pooled feature map as embedding.
        embedding_scale: Factor of each task's part of `pooler_output`; a task that is not named has 1.
            [`mtslvr_hf.embedding.equal_variance_scale`] measures it on unlabeled audio.
        contrastive_method: `"simclr"` (NT-Xent) or `"simsiam"` (negative cosine with stop-gradient).
        temperature: Temperature of NT-Xent.
        predictive_weight: Weight of the predictive loss in the sum of both.
        augmentations: Augmentations that the predictive task predicts, in the order of the labels.
        predictive_target: Target of the predictive task: `"labels"` (the augmentations of a view), `"parameters"` (the
            differences of the augmentation parameters of two views) or `"both"`.
        augmentation_parameters: Parameters whose differences are predicted, in the order of the targets, each as
            `"augmentation.parameter"`; a circular parameter has two targets, with the endings `_sine` and `_cosine`.
            Default: those of the built-in augmentations among `augmentations`.
        added_adapters: Added tasks with their adapter types; set by `model.add_adapter` and `model.delete_adapter`.
        active_adapters: Tasks of the embedding, in its order; default: `tasks`. Set by `model.set_adapter`.
        merged_adapters: Tasks whose adapters were merged into the convolutions, the only tasks of a merged network;
            None without a merge. Set by `model.merge_adapters`.
        kwargs: Arguments of every transformers configuration (`num_labels`, `id2label`, `problem_type`, ...).

    Raises:
        ValueError: If a value is not allowed, or values do not fit together.

    Source: Heggan et al., "MT-SLVR", Interspeech 2023, sections 3 and 4; Lee et al., "Improving Transferability of
    Representations via Augmentation-Aware Self-Supervision", NeurIPS 2021, for the parameters as a target.

    Example:

        >>> from mtslvr_hf import MTSLVRConfig, MTSLVRModel
        >>> config = MTSLVRConfig(adapter_type="parallel", depth=18)
        >>> config.hidden_size, config.num_hidden_layers, config.head_size
        (512, 4, 500)
        >>> model = MTSLVRModel(config)
    """

    model_type = "mtslvr"
    temperature: float | int = 0.07  # undeclared, transformers takes it for a parameter of text generation
    _other_embedding = False  # True if read with another pooling, or without the heads, than saved; not saved

    def __init__(
        self,
        frontend: str = "mel_stft",
        sampling_rate: int = 16000,
        n_fft: int = 1024,
        hop_length: int = 512,
        num_mel_bins: int = 128,
        normalize_spectrogram: bool = False,
        window_seconds: float = 5.0,
        depth: int = 18,
        base_width: int = 64,
        adapter_type: str = "parallel",
        tasks: Sequence[str] | str = TASKS,
        shared_head: bool = False,
        embedding_size: int = 1000,
        pooling: str = "mean",
        num_bands: int = 4,
        use_heads: bool = True,
        embedding_scale: Mapping[str, float] | None = None,
        contrastive_method: str = "simclr",
        temperature: float = 0.07,
        predictive_weight: float = 1.0,
        augmentations: Sequence[str] = AUGMENTATIONS,
        predictive_target: str = "labels",
        augmentation_parameters: Sequence[str] | None = None,
        added_adapters: Mapping[str, str] | None = None,
        active_adapters: Sequence[str] | None = None,
        merged_adapters: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        self.frontend = frontend
        self.sampling_rate = sampling_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.num_mel_bins = num_mel_bins
        self.normalize_spectrogram = normalize_spectrogram
        self.window_seconds = window_seconds
        self.depth = depth
        self.base_width = base_width
        self.adapter_type = adapter_type
        self.tasks = _names("tasks", [tasks] if isinstance(tasks, str) else tasks)
        self.shared_head = shared_head
        self.embedding_size = embedding_size
        self.pooling = pooling
        self.num_bands = num_bands
        self.use_heads = use_heads
        self.embedding_scale = None if embedding_scale is None else _by_name("embedding_scale", embedding_scale)
        self.contrastive_method = contrastive_method
        self.temperature = temperature
        self.predictive_weight = predictive_weight
        self.augmentations = _names("augmentations", augmentations)
        self.predictive_target = predictive_target
        self.augmentation_parameters: list[str] | None = None
        if augmentation_parameters is not None:
            self.augmentation_parameters = _names("augmentation_parameters", augmentation_parameters)
        self.added_adapters = _by_name("added_adapters", added_adapters or {})
        self.active_adapters = None if active_adapters is None else _names("active_adapters", active_adapters)
        self.merged_adapters = None if merged_adapters is None else _names("merged_adapters", merged_adapters)
        self._check()
        if kwargs.get("num_labels") is not None:
            _check_number("num_labels", kwargs["num_labels"], whole=True)
        super().__init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Configuration from the dictionary of a checkpoint; keyword arguments replace its values and are checked too.

        If they change the pooling, the heads of the checkpoint do not fit: `use_heads` becomes False, with a warning.

        Raises:
            ValueError: If a value is not allowed, or `use_heads=True` asks for heads that do not fit or are missing.
        """
        fields = inspect.signature(MTSLVRConfig.__init__).parameters.keys() - {"self", "kwargs"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        saved = cls(**config_dict)
        pooling, num_bands = given.get("pooling", saved.pooling), given.get("num_bands", saved.num_bands)
        changed = pooling != saved.pooling or (pooling == "bands" and num_bands != saved.num_bands)
        wants_heads = given.get("use_heads", saved.use_heads and not changed)
        if wants_heads and (changed or not saved.use_heads):
            raise ValueError(
                f"The checkpoint has no heads for the pooling {pooling!r}: it was saved with the pooling "
                f"{saved.pooling!r}{'' if saved.use_heads else ', without heads'}. Leave out `use_heads=True`; for a "
                "new network, call MTSLVRConfig."
            )
        loaded = super().from_dict({**config_dict, **given, "use_heads": wants_heads}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if changed or wants_heads != saved.use_heads:
            config._other_embedding = True
        if saved.use_heads and not wants_heads and "use_heads" not in given:
            logger.warning_once(
                f"The heads were trained with the pooling {saved.pooling!r} and are not used with {pooling!r}: the "
                f"embedding of a task is its pooled feature map, {config.pooled_size} values."
            )
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Writes `config.json`, and the files by which sentence-transformers reads a model.

        Of these, it replaces only the one that depends on the configuration: sentence-transformers writes the others
        itself when it saves a model with further modules or prompts.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            path = os.path.join(save_directory, name)
            if name == "sentence_bert_config.json":
                audio = {"sampling_rate": self.sampling_rate, "channels_first": True}
                content = {**content, "processing_kwargs": {"audio": audio}}
            elif os.path.exists(path):
                continue
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.write("\n")

    def to_dict(self) -> dict[str, Any]:
        """Dictionary of the fields that are saved."""
        return {name: value for name, value in super().to_dict().items() if name != "_other_embedding"}

    def _check(self) -> None:
        _check_choice("frontend", self.frontend, FRONTENDS)
        _check_choice("depth", self.depth, DEPTHS)
        _check_choice("adapter_type", self.adapter_type, ADAPTER_TYPES)
        _check_choice("contrastive_method", self.contrastive_method, CONTRASTIVE_METHODS)
        _check_choice("pooling", self.pooling, POOLINGS)
        for name in ("use_heads", "shared_head", "normalize_spectrogram"):
            _check_choice(name, getattr(self, name), (True, False))
        sizes = ("sampling_rate", "n_fft", "hop_length", "num_mel_bins", "base_width", "embedding_size", "num_bands")
        for name in (*sizes, "window_seconds", "temperature", "predictive_weight"):
            _check_number(name, getattr(self, name), whole=name in sizes)
        for name in ("window_seconds", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be greater than 0, got {getattr(self, name)!r}.")
        if self.normalize_spectrogram and self.frontend == "waveform":
            raise ValueError("`normalize_spectrogram` needs a spectrogram; the frontend is 'waveform'.")
        _check_names("tasks", self.tasks)
        _check_names("augmentations", self.augmentations)
        for task in self.tasks:
            _check_choice("tasks", task, TASKS)
        _check_choice("predictive_target", self.predictive_target, PREDICTIVE_TARGETS)
        self._check_parameters()
        for name, adapter_type in self.added_adapters.items():
            self.check_new_adapter(name, adapter_type)
        all_tasks = [*self.tasks, *self.added_adapters]
        for field in ("merged_adapters", "active_adapters"):
            if getattr(self, field) is not None:
                _check_names(field, getattr(self, field))
                self.check_tasks(getattr(self, field), all_tasks)
        for task, factor in (self.embedding_scale or {}).items():
            if task not in all_tasks or not _is_number(factor) or not 0 < factor < math.inf:
                raise ValueError(
                    f"`embedding_scale` must give some of the tasks {all_tasks} a positive, finite factor; got "
                    f"{task!r}: {factor!r}."
                )
        if self.merged_adapters is not None:
            self.check_tasks(self.embedding_tasks)
        if self.use_heads and not self.shared_head and self.embedding_size % len(self.tasks):
            raise ValueError(
                f"`embedding_size` {self.embedding_size} cannot be split evenly over {len(self.tasks)} tasks: "
                "choose a multiple, or `shared_head=True`."
            )
        if self.frontend != "waveform" and self.window_samples <= self.n_fft // 2:
            raise ValueError(
                f"`window_seconds` {self.window_seconds} is {self.window_samples} samples at {self.sampling_rate} Hz; "
                f"the STFT's reflect padding needs more than n_fft / 2 = {self.n_fft // 2}."
            )
        if self.pooling == "bands":
            self._check_bands()

    def _check_parameters(self) -> None:
        if self.augmentation_parameters is not None:
            _check_names("augmentation_parameters", self.augmentation_parameters)
        for name in self.augmentation_parameters or ():
            augmentation, _, parameter = name.partition(".")
            if augmentation not in self.augmentations or not parameter:
                raise ValueError(
                    "`augmentation_parameters` must name parameters of `augmentations`, each as "
                    f"'augmentation.parameter'; got {name!r}, and the augmentations {', '.join(self.augmentations)}."
                )
        if "predictive" in self.tasks and self.predictive_target != "labels" and not self.parameter_targets:
            raise ValueError(
                f"`predictive_target` {self.predictive_target!r} needs `augmentation_parameters`: none of the "
                f"augmentations {', '.join(self.augmentations)} is built in, so name their parameters."
            )

    def _check_bands(self) -> None:
        if self.frontend == "waveform":
            raise ValueError(
                "`pooling` 'bands' needs a spectrogram, the frontend is 'waveform': choose 'mean' or 'mean_max'."
            )
        rows = -(-self.num_mel_bins // 32)  # five times halved and rounded up: stem, max-pool, layer2 to layer4
        if rows % self.num_bands:
            possible = ", ".join(str(bands) for bands in range(1, rows + 1) if rows % bands == 0)
            raise ValueError(
                f"`num_bands` is {self.num_bands}, but must divide the {rows} rows of frequency of the last feature "
                f"map, from {self.num_mel_bins} mel bands: choose one of {possible}."
            )

    def check_new_adapter(self, name: str, adapter_type: str) -> None:
        """Raises a ValueError if the name or the type of a new task is not allowed."""
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"An adapter's name must consist of letters, digits, _ and -; got {name!r}.")
        if name in RESERVED_NAMES:
            raise ValueError(f"The adapter name {name!r} is reserved: choose another.")
        _check_choice("adapter_type", adapter_type, ADAPTER_TYPES[1:])

    def check_tasks(self, tasks: Sequence[str], available: Sequence[str] | None = None) -> None:
        """Raises a ValueError unless `tasks` holds tasks of the network, each once."""
        available = self.available_tasks if available is None else available
        if not tasks or len(set(tasks)) != len(tasks) or not set(tasks) <= set(available):
            raise ValueError(f"`tasks` must name some of {list(available)}, each once; got {list(tasks)}.")

    def resolve_tasks(self, tasks: Sequence[str] | str | None = None) -> list[str]:
        """Tasks of an embedding as a list; `embedding_tasks` for None.

        Raises:
            ValueError: If the network has no such task, or a task is named twice.
        """
        names = self.embedding_tasks if tasks is None else [tasks] if isinstance(tasks, str) else list(tasks)
        self.check_tasks(names)
        return names

    def embedding_size_of(self, tasks: Sequence[str] | str | None = None) -> int:
        """Size of the embedding of tasks: `head_size` for each distinct head. See [`resolve_tasks`]."""
        parts = self.embedding_parts
        return self.head_size * len({parts[task] for task in self.resolve_tasks(tasks)})

    def architecture(self) -> dict[str, Any]:
        """Fields that define the network (input, layers, adapters, pooling, heads), without training, active tasks."""
        names = "frontend sampling_rate n_fft hop_length num_mel_bins normalize_spectrogram window_seconds depth"
        names += " base_width adapter_type tasks shared_head embedding_size pooling num_bands use_heads"
        names += " embedding_scale added_adapters merged_adapters"
        return {name: getattr(self, name) for name in names.split()}

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """Pipelines of the model's own code by task, which transformers uses only with `trust_remote_code=True`.

        With the package, a classifier names none: transformers' own pipeline needs no such trust.
        """
        if not any("Classification" in name for name in self.architectures or ()):
            impl = "pipeline_mtslvr.MTSLVRFeatureExtractionPipeline"
            return {"feature-extraction": {"impl": impl, "pt": ["AutoModel"]}}
        if not __name__.startswith("transformers_modules."):
            return {}
        impl = "pipeline_mtslvr.MTSLVRAudioClassificationPipeline"
        return {"audio-classification": {"impl": impl, "pt": ["AutoModelForAudioClassification"]}}

    @property
    def available_tasks(self) -> list[str]:
        """Tasks that the network can compute: those of pre-training and the added ones, or the merged ones."""
        return [*self.tasks, *self.added_adapters] if self.merged_adapters is None else list(self.merged_adapters)

    @property
    def embedding_tasks(self) -> list[str]:
        """Tasks of the embedding by default, in its order."""
        if self.active_adapters is not None:
            return list(self.active_adapters)
        return list(self.tasks if self.merged_adapters is None else self.merged_adapters)

    @property
    def embedding_parts(self) -> dict[str, str]:
        """Part of the embedding of each available task: tasks that share trunk and head have the same."""
        one_for_all = self.adapter_type == "none" and (self.shared_head or not self.use_heads)
        return {task: "shared" if one_for_all and task in self.tasks else task for task in self.available_tasks}

    @property
    def parameter_targets(self) -> list[str]:
        """Parameters whose differences the model predicts, in order; empty if it predicts labels alone, or nothing."""
        if "predictive" not in self.tasks or self.predictive_target == "labels":
            return []
        if self.augmentation_parameters is not None:
            return list(self.augmentation_parameters)
        return [name for name in AUGMENTATION_PARAMETERS if name.partition(".")[0] in self.augmentations]

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return round(self.window_seconds * self.sampling_rate)

    @property
    def hidden_size(self) -> int:
        """Channels of layer4."""
        return self.base_width * 8 * (1 if self.depth < 50 else 4)

    @property
    def projection_dim(self) -> int:
        """Size of the embedding of the active tasks, by the name under which sentence-transformers looks for it."""
        return self.embedding_size_of()

    @property
    def pooled_size(self) -> int:
        """Size of a task's pooled feature map, the input size of a head."""
        return self.hidden_size * {"mean": 1, "mean_max": 2, "bands": self.num_bands}[self.pooling]

    @property
    def num_hidden_layers(self) -> int:
        """Stages of the ResNet, layer1 to layer4."""
        return 4

    @property
    def head_size(self) -> int:
        """Size of one task's embedding."""
        if not self.use_heads:
            return self.pooled_size
        return self.embedding_size if self.shared_head else self.embedding_size // len(self.tasks)


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {_shown(value)}.")


def _check_number(name: str, value: Any, whole: bool) -> None:
    """Raises a ValueError unless a value is a finite number within `LIMITS`."""
    low, high = LIMITS[name]
    kind = "a whole number" if whole else "a number"
    if not _is_number(value) or (whole and not isinstance(value, int)) or not low <= value <= high:
        raise ValueError(f"`{name}` must be {kind} between {low:,} and {high:,}; got {_shown(value)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _names(name: str, values: Any) -> list[str]:
    """List of names; ValueError if it is something else."""
    listed = isinstance(values, Sequence) and not isinstance(values, (str, bytes)) and len(values) <= MOST_NAMES
    if not listed or not all(isinstance(value, str) for value in values):
        raise ValueError(f"`{name}` must be a list of at most {MOST_NAMES:,} names; got {_shown(values)}.")
    return list(values)


def _by_name(name: str, values: Any) -> dict[str, Any]:
    """Dictionary with names as keys; ValueError if it is something else."""
    if not isinstance(values, Mapping) or len(values) > MOST_NAMES or not all(isinstance(key, str) for key in values):
        raise ValueError(f"`{name}` must be a dictionary of at most {MOST_NAMES:,} names; got {_shown(values)}.")
    return dict(values)


def _shown(value: Any) -> str:
    """Start of a value for an error message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_names(name: str, values: list[str]) -> None:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"`{name}` must name at least one, and each once; got {values!r}.")


__all__ = ["MTSLVRConfig"]
