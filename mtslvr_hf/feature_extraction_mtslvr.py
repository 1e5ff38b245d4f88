"""Feature extractor: audio files and arrays of any rate, type and number of channels to normalized mono waveforms."""

from __future__ import annotations

import importlib
import io
import os
from array import array as PlainArray
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from types import ModuleType
from typing import Any, Protocol, TypeAlias, Union, cast

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import BatchFeature, SequenceFeatureExtractor

NORMALIZATIONS = ("global", "sample", "none")
AUDIOSET_MEAN = -0.00029522
AUDIOSET_STD = 0.11652075
SMALLEST_STD = 1e-7  # of a clip; silence stays silence
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; resampling from others takes memory or time without limit
MAX_CHANNELS = 64  # an array with more rows is not (channels, samples)
KINDS = (
    "a path, a URL, an array or tensor of shape (samples,), a list of numbers, a dictionary with `array` and "
    "`sampling_rate` or with `bytes` or `path`, a data set's row or a decoder"
)


class AudioDecoder(Protocol):
    """Decoder of torchcodec and datasets."""

    def get_all_samples(self) -> Any:
        """Object with `data`, (channels, samples), and `sample_rate`."""


# One clip: path or URL, encoded bytes, samples, a dictionary with the keys of a `datasets.Audio` column, or a decoder.
AudioInput: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, np.ndarray, torch.Tensor, Sequence[float], Mapping[str, Any], AudioDecoder
]


def module_of_package(name: str) -> ModuleType | None:
    """Module of the package, which is not downloaded with the model's code; None if the package is not installed."""
    try:
        return importlib.import_module(f"mtslvr_hf.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mtslvr_hf":
            raise
        return None


def normalize_waveforms(
    waveforms: torch.Tensor, normalization: str, mean: float = AUDIOSET_MEAN, std: float = AUDIOSET_STD
) -> torch.Tensor:
    """Normalization of waveforms, each row by itself.

    Args:
        waveforms: (..., samples).
        normalization: `"global"` (by `mean` and `std`), `"sample"` (by the mean and std of each row) or `"none"`.
        mean, std: Mean and standard deviation of all audio, AudioSet's by default.
    """
    if normalization == "global":
        return (waveforms - mean) / std
    if normalization == "sample":
        own_std, own_mean = torch.std_mean(waveforms, dim=-1, keepdim=True, correction=0)
        return (waveforms - own_mean) / own_std.clamp(min=SMALLEST_STD)
    return waveforms


class MTSLVRFeatureExtractor(SequenceFeatureExtractor):
    """Feature extractor: mixes down, resamples, normalizes and pads audio. The model computes spectrograms itself.

    Args:
        sampling_rate: Sampling rate of the output in Hz.
        normalization: `"global"` (x - mean) / std, `"sample"` (by mean and std of each clip) or `"none"`.
        mean, std: For `"global"`; AudioSet's by default.
        do_resample: Whether to resample audio of another rate; otherwise it raises a ValueError.
        return_attention_mask: Whether calls return the mask by default.
        kwargs: Arguments of every transformers feature extractor.

    Source: Heggan et al., "MT-SLVR", Interspeech 2023, section 4 (normalization by AudioSet's statistics).

    Example:

        >>> extractor = MTSLVRFeatureExtractor()
        >>> inputs = extractor([np.zeros(44100), np.zeros(22050)], sampling_rate=44100, return_tensors="pt")
        >>> inputs["input_values"].shape
        torch.Size([2, 16000])
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        sampling_rate: int = 16000,
        normalization: str = "global",
        mean: float = AUDIOSET_MEAN,
        std: float = AUDIOSET_STD,
        do_resample: bool = True,
        return_attention_mask: bool = True,
        feature_size: int = 1,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"`normalization` must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}.")
        if not std > 0:
            raise ValueError(f"`std` must be greater than 0, got {std}.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.normalization = normalization
        self.mean = mean
        self.std = std
        self.do_resample = do_resample
        self.return_attention_mask = return_attention_mask

    def __call__(
        self,
        raw_speech: AudioInput | Iterable[AudioInput],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        channels_first: bool = False,
    ) -> BatchFeature:
        """Prepares one clip or several; nothing is random.

        Args:
            raw_speech: One clip, a list of clips, or a batch (batch, samples) as an array or tensor. A clip is a numpy
                array, torch tensor (its device is kept) or list of floats, (samples,); a dictionary with `array` and
                `sampling_rate`, or a decoder with `get_all_samples()`, as in `datasets` and torchcodec, whose arrays
                may be (channels, samples); a file's path, its bytes, or a dictionary with either. Channels are
                averaged. Integers of 8, 16 and 32 bits are PCM. Files are read by soundfile; with the package, they
                may also be URLs and of the formats that `encode` reads, and damage is recognized.
            sampling_rate: Rate of arrays in Hz; not needed for clips that have a rate. Files have their own.
            padding: `True` or `"longest"` pads with zeros on the right to the longest clip, `"max_length"` to
                `max_length`; `False` does not pad.
            max_length: Samples at `self.sampling_rate`, for `padding="max_length"` and `truncation`.
            truncation: Whether to cut clips longer than `max_length`.
            return_attention_mask: Whether to return the mask, 1 for samples and 0 for padding.
            return_tensors: `"pt"` or `"np"`; default: lists of numpy arrays.
            channels_first: True if a 2-D array is one clip (channels, samples); a 3-D array is then a batch of them,
                (batch, channels, samples).

        Returns:
            `input_values` (batch, samples) float32 and `attention_mask` (batch, samples) int64.

        Raises:
            ValueError: If a clip is empty, not finite, complex or of a shape with another or an ambiguous meaning; if
                a rate is missing, contradicts the rate of the clip, or differs from the extractor's without
                `do_resample`; if a file cannot be read. It names the clip.
            ImportError: If a file or another rate came, and soundfile or soxr is not installed.
        """
        raw_clips, _ = split_audio(raw_speech, channels_first)
        clips = [self.prepare(clip, sampling_rate, number, channels_first) for number, clip in enumerate(raw_clips)]
        if not clips:
            raise ValueError("Got an empty list of clips.")
        length = self._padded_length(clips, padding, max_length, truncation)
        if truncation:
            clips = [clip[:max_length] for clip in clips]
        masks = [torch.ones(len(clip), dtype=torch.long, device=clip.device) for clip in clips]
        if length is not None:
            clips = [pad(clip, (0, length - len(clip)), value=self.padding_value) for clip in clips]
            masks = [pad(mask, (0, length - len(mask))) for mask in masks]
        features = {"input_values": clips, "attention_mask": masks}
        if not (self.return_attention_mask if return_attention_mask is None else return_attention_mask):
            del features["attention_mask"]
        if return_tensors in ("pt", "np") and len({len(clip) for clip in clips}) > 1:
            raise ValueError("Clips of different lengths make no tensor without padding: use `padding=True`.")
        if return_tensors == "pt":
            return BatchFeature({name: torch.stack(values) for name, values in features.items()})
        arrays = {name: [value.cpu().numpy() for value in values] for name, values in features.items()}
        return BatchFeature(arrays, tensor_type=return_tensors)

    def prepare(
        self, clip: Any, sampling_rate: int | None = None, number: int = 0, channels_first: bool = False
    ) -> torch.Tensor:
        """Normalized waveform (samples,) float32 of one clip, at `self.sampling_rate`.

        Args:
            clip, sampling_rate, channels_first: As for a call.
            number: Index of the clip, for messages.

        Raises:
            ValueError, ImportError: As for a call.
        """
        file = encoded_file(clip)
        if file is not None:
            samples, sampling_rate = _read_file(file, number)
            clip = {"array": samples, "sampling_rate": sampling_rate}
        samples, own_rate = _samples_and_rate(clip)
        channels_first = channels_first or samples is not clip
        sampling_rate, own_rate = plain_rate(sampling_rate), plain_rate(own_rate)
        rate = own_rate if sampling_rate is None else sampling_rate
        if rate is None:
            raise ValueError(f"Clip {number} came without a sampling rate: pass `sampling_rate` in Hz.")
        if own_rate not in (None, rate):
            raise ValueError(f"Clip {number} has {own_rate} Hz, but `sampling_rate` is {sampling_rate} Hz: drop one.")
        waveform = _mono(samples, number, channels_first)
        if rate != self.sampling_rate:
            waveform = self._resample(waveform, rate, number)
        return normalize_waveforms(waveform, self.normalization, self.mean, self.std)

    def _resample(self, waveform: torch.Tensor, rate: int, number: int) -> torch.Tensor:
        if not self.do_resample:
            raise ValueError(
                f"Clip {number} is at {rate} Hz and the model takes {self.sampling_rate} Hz: resample it, or set "
                "`do_resample=True`."
            )
        if rate != int(rate) or not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(
                f"Clip {number} has the sampling rate {rate}; expected a whole number of Hz from {MIN_RATE:,} to "
                f"{MAX_RATE:,}."
            )
        try:
            import soxr
        except ImportError as error:
            raise ImportError(f"Clip {number} is at {rate} Hz; resampling needs soxr: `pip install soxr`.") from error
        try:  # as in pre-training and `encode`
            samples = soxr.resample(waveform.cpu().numpy(), int(rate), self.sampling_rate, quality="HQ")
        except (RuntimeError, ValueError) as error:
            message = f"Clip {number}: {rate} Hz cannot be resampled to {self.sampling_rate} Hz: {error}"
            raise ValueError(message) from error
        resampled = torch.from_numpy(samples) if len(samples) else waveform.mean(0, keepdim=True)
        return resampled.to(waveform.device)

    def _padded_length(
        self, clips: Sequence[torch.Tensor], padding: bool | str, max_length: int | None, truncation: bool
    ) -> int | None:
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"`padding` must be True, False, 'longest' or 'max_length'; got {padding!r}.")
        if max_length is None and (truncation or padding == "max_length"):
            raise ValueError("`padding='max_length'` and `truncation=True` need `max_length`, in samples.")
        longest = max(len(clip[:max_length] if truncation else clip) for clip in clips)
        if padding in (False, "do_not_pad"):
            return None
        return max(longest, max_length or 0) if padding == "max_length" else longest


def split_audio(audio: Any, channels_first: bool = False) -> tuple[Iterable[Any], bool]:
    """Clips of an argument, and whether it is a single clip.

    Several clips are a list, tuple or iterator (a list of numbers is one clip), an array of paths, an array as
    [`split_array`] reads it, or several rows of a data set (`dataset[:2]`). A Series of numbers is one clip.

    Raises:
        TypeError: If it is neither, or the pair (samples, rate) of a reader of files.
        ValueError: If an array has a wrong or an ambiguous shape.
    """
    audio = _plain_array(audio)
    if isinstance(audio, np.ndarray) and audio.dtype.kind in "OSU":  # array of paths
        return cast(Iterable[Any], audio), False
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return split_array(audio, channels_first)
    rows = _rows_of_batch(audio) if isinstance(audio, Mapping) else None
    if rows is not None:
        return rows, False
    if isinstance(audio, (str, os.PathLike, bytes, bytearray, Mapping)) or hasattr(audio, "get_all_samples"):
        return [audio], True
    if isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[1], Number) and hasattr(audio[0], "shape"):
        raise TypeError(
            "A pair of an array and a rate came, as soundfile.read and torchaudio.load return it: pass the array, and "
            "the rate as `sampling_rate`. For channels, pass (channels, samples) and `channels_first=True`."
        )
    if isinstance(audio, (list, tuple)):
        single = len(audio) > 0 and all(isinstance(value, Number) for value in audio)
        return ([audio], True) if single else (audio, False)
    if isinstance(audio, Iterable) and not hasattr(audio, "read"):  # an open file would be iterated by lines
        return audio, False
    raise TypeError(f"`audio` is a {type(audio).__name__}; expected {KINDS}, or several of them.")


def _plain_array(audio: Any) -> Any:
    """NumPy array of a Series or column of numbers of another library or of the standard library; else the argument.

    Raises:
        TypeError: If it is a table with several columns.
    """
    if isinstance(audio, PlainArray):
        return np.asarray(audio)
    if isinstance(audio, (np.ndarray, torch.Tensor)) or not hasattr(audio, "to_numpy"):
        return audio
    values = audio.to_numpy()
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise TypeError(f"A {type(audio).__name__} came; expected {KINDS}, or several of them: choose one column.")
    return values


def _rows_of_batch(batch: Mapping[str, Any]) -> list[Any] | None:
    """Audio of the rows of a batch `{"audio": [...]}` or `{"array": [...], "sampling_rate": [...]}`; else None."""
    kinds = (list, tuple, np.ndarray, torch.Tensor)
    clips, rates = batch.get("audio"), batch.get("sampling_rate")
    if isinstance(clips, kinds[:3]) and len(clips) and not isinstance(clips[0], Number):
        return list(clips)
    if "array" in batch and isinstance(rates, kinds) and np.ndim(rates) == 1:
        return [{"array": clip, "sampling_rate": rate} for clip, rate in zip(batch["array"], rates)]
    return None


def split_array(array: np.ndarray | torch.Tensor, channels_first: bool) -> tuple[Sequence[Any], bool]:
    """Clips of an array, and whether it is a single clip.

    Args:
        array: (samples,) or (batch, samples); with `channels_first`, (channels, samples) or (batch, channels,
            samples), also (samples,).
        channels_first: Whether it has an axis of channels.

    Raises:
        ValueError: If it has other axes, or is more likely (samples, channels).
    """
    shape = tuple(array.shape)
    if len(shape) == 1 or (len(shape) == 2 and channels_first):
        return cast(Sequence[Any], [array]), True
    if len(shape) == 2 and shape[0] > shape[1] and 0 < shape[1] <= MAX_CHANNELS:
        raise ValueError(
            f"The array has the shape {shape}: one clip (samples, channels), or {shape[0]} clips (batch, samples) of "
            f"{shape[1]} samples? For one clip, transpose it and pass `channels_first=True`; for several, pass a list."
        )
    if len(shape) != (3 if channels_first else 2):
        raise ValueError(
            f"The array has the shape {shape}; expected (samples,) for one clip or (batch, samples) for several; with "
            "`channels_first=True`, (channels, samples) or (batch, channels, samples)."
        )
    return cast(Sequence[Any], array), False


def check_shape(shape: Sequence[int], name: str, channels_first: bool) -> None:
    """Checks the shape of one clip: (samples,), or (channels, samples) with one channel or if the caller said so.

    Raises:
        ValueError: If it has another shape, or one that may also be a batch.
    """
    shape = tuple(shape)
    if len(shape) == 1 or 0 in shape or (len(shape) == 2 and shape[0] == 1):
        return
    if len(shape) != 2 or shape[0] > min(MAX_CHANNELS, shape[1]):
        raise ValueError(
            f"{name} has the shape {shape}; expected (samples,), or (channels, samples) with at most {MAX_CHANNELS} "
            "channels. Transpose (samples, channels); pass several clips as a list."
        )
    if not channels_first:
        raise ValueError(
            f"{name} has the shape {shape}: one clip (channels, samples), or {shape[0]} clips (batch, samples)? For "
            "one clip, pass `channels_first=True`, or a dictionary with `array` and `sampling_rate`; for several, "
            "pass a list of (samples,), or the array without a list around it."
        )


def encoded_file(clip: Any) -> Mapping[str, Any] | None:
    """Encoded file of a clip as `{"bytes", "path"}`, one of them None; None if the clip is something else."""
    if isinstance(clip, (str, os.PathLike)):
        return {"bytes": None, "path": os.fspath(clip)}
    if isinstance(clip, (bytes, bytearray)):
        return {"bytes": bytes(clip), "path": None}
    if isinstance(clip, Mapping) and "array" not in clip and clip.keys() & {"bytes", "path"}:
        return clip
    return None


def _read_file(file: Mapping[str, Any], number: int) -> tuple[np.ndarray, int]:
    """Mono samples (samples,) of an encoded file, and its rate: by the package, or else by soundfile."""
    data, path = file.get("bytes"), file.get("path")
    name = f"Clip {number} ({path})" if path else f"Clip {number}"
    package = module_of_package("audio.recording")
    if package is not None:
        with package.open_recording(file, name) as recording:
            return np.concatenate(list(recording.blocks(recording.rate))), recording.rate
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{name} is a file; reading it needs soundfile: `pip install soundfile`.") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data) if data else path) as sound:
            frames, rate = sound.frames, sound.samplerate
            samples = sound.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot be read by soundfile: {error}") from error
    if len(samples) < frames:
        raise ValueError(f"{name} ends after {len(samples)} of {frames} samples; fetch or write it again.")
    return samples.mean(axis=1), rate


def _samples_and_rate(clip: Any) -> tuple[Any, int | None]:
    """Samples and sampling rate of a clip."""
    if isinstance(clip, Mapping):
        if "array" not in clip:
            raise ValueError(
                "A clip in a dictionary needs `array` and `sampling_rate`, or `bytes` or `path` of a file; got "
                f"{sorted(clip)}."
            )
        return clip["array"], clip.get("sampling_rate")
    if hasattr(clip, "get_all_samples"):
        decoded = clip.get_all_samples()
        return decoded.data, decoded.sample_rate
    return clip, None


def plain_rate(rate: Any) -> Any:
    """Number of an array or tensor that holds a single one, as formats of `datasets` give it; else the argument."""
    return rate.item() if isinstance(rate, (np.ndarray, torch.Tensor)) and len(rate.reshape(-1)) == 1 else rate


def _mono(samples: Any, number: int, channels_first: bool) -> torch.Tensor:
    """(samples,) or (channels, samples) of any kind -> (samples,) float32."""
    waveform = samples if isinstance(samples, torch.Tensor) else waveform_from_array(samples, number)
    if waveform.dtype.is_complex:
        raise ValueError(f"Clip {number} is complex; expected real samples.")
    check_shape(waveform.shape, f"Clip {number}", channels_first)
    if waveform.numel() == 0:
        raise ValueError(f"Clip {number} is empty.")
    waveform = to_float(waveform.detach(), number)
    waveform = waveform.mean(dim=0) if waveform.ndim == 2 else waveform
    if not torch.isfinite(waveform).all():
        raise ValueError(f"Clip {number} has samples that are NaN or infinite.")
    return waveform


def waveform_from_array(samples: Any, number: int) -> torch.Tensor:
    """Tensor of an array or list of any type, which is kept: integers are scaled by `to_float`.

    Raises:
        ValueError: If it is none, masked, or a list of integers, whose full scale is unknown.
    """
    samples = _plain_array(samples)
    try:
        array = np.ascontiguousarray(np.asarray(samples))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        waveform = torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of read-only ones
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Clip {number} is a {type(samples).__name__} that is no array of samples ({error}); expected an array, a "
            "tensor, a list of floats, a file, a dictionary with `array` and `sampling_rate`, or a decoder."
        ) from error
    if isinstance(samples, (list, tuple)) and waveform.dtype in (torch.int64, torch.bool):
        raise ValueError(
            f"Clip {number} is a list of integers, whose full scale is unknown: pass an array of their type, such as "
            "numpy.asarray(samples, dtype=numpy.int16), or the data set itself, whose column has the type; or divide "
            "by the full scale (32768 for 16 bit)."
        )
    if np.ma.is_masked(samples):
        raise ValueError(f"Clip {number} is an array with masked samples: fill or remove them.")
    return waveform


def to_float(waveform: torch.Tensor, number: int) -> torch.Tensor:
    if waveform.dtype.is_floating_point:
        return waveform.float()
    if waveform.dtype == torch.uint8:
        return (waveform.float() - 128) / 128
    if waveform.dtype in (torch.int8, torch.int16, torch.int32):
        return waveform.float() / -float(torch.iinfo(waveform.dtype).min)
    raise ValueError(
        f"Clip {number} holds {waveform.dtype}, which has no full scale: pass floats, or integers "
        "of 8, 16 or 32 bits in their own type, such as samples.astype(numpy.int16). The formats `numpy` and `torch` "
        "of a data set turn all integers into int64: pass the data set itself."
    )


__all__ = ["MTSLVRFeatureExtractor"]
