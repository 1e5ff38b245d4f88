"""Audio-classification pipeline that reads files without the ffmpeg program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AudioClassificationPipeline

from ..audio.recording import read_waveform


class MTSLVRAudioClassificationPipeline(AudioClassificationPipeline):
    """Audio-classification pipeline that decodes paths, URLs, bytes and undecoded data set rows as `encode` does.

    Unlike transformers' own, it never starts the ffmpeg program; M4A, MP4, WebM, AAC and WMA need torchcodec. Files
    with several channels are mixed down.

    Example:

        >>> from transformers import pipeline
        >>> from mtslvr_hf.classification import MTSLVRAudioClassificationPipeline
        >>> classify = pipeline(
        ...     "audio-classification", "outputs/drums", pipeline_class=MTSLVRAudioClassificationPipeline
        ... )
        >>> classify("kick.wav", top_k=2)
        [{'score': 0.98, 'label': 'kick'}, {'score': 0.01, 'label': 'snare'}]
    """

    def preprocess(self, inputs: Any) -> Mapping[str, Any]:  # type: ignore[override]  # the parent has no types
        """Inputs of the model for one clip.

        Args:
            inputs: A path, a URL that fsspec opens, a file's bytes, `{"bytes", "path"}`, or an input of transformers'
                pipeline: an array (samples,) at the model's rate, `{"array" or "raw", "sampling_rate"}`, a decoder.

        Raises:
            BadClipError: A ValueError that names the file, if it cannot be used.
        """
        if isinstance(inputs, (str, Path)):
            inputs = {"bytes": None, "path": str(inputs)}
        elif isinstance(inputs, bytes):
            inputs = {"bytes": inputs, "path": None}
        if isinstance(inputs, Mapping) and "array" not in inputs and "raw" not in inputs:
            if self.feature_extractor is None:
                raise ValueError("The pipeline has no feature extractor: pass `feature_extractor`.")
            row = {"bytes": inputs.get("bytes"), "path": inputs.get("path")}
            inputs = read_waveform(row, self.feature_extractor.sampling_rate)
        return super().preprocess(inputs)


__all__ = ["MTSLVRAudioClassificationPipeline"]
