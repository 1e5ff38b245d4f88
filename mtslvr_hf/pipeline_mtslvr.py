"""Pipelines of transformers for embeddings and for classification, of audio in every form that the extractor reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AudioClassificationPipeline, BatchFeature, Pipeline

FIELDS = frozenset(("array", "bytes", "path", "raw"))  # of a clip as a dictionary


class MTSLVRFeatureExtractionPipeline(Pipeline):
    """Feature-extraction pipeline: the embedding of each clip. (transformers' own reads text alone.)

    `pipeline("feature-extraction", MODEL, trust_remote_code=True)` takes it from the model's code. With the package,
    `pipeline_class` takes its place, and no code of the model runs.

    Example:

        >>> from transformers import pipeline
        >>> from mtslvr_hf.pipeline_mtslvr import MTSLVRFeatureExtractionPipeline
        >>> embed = pipeline(
        ...     "feature-extraction", "outputs/my-model", pipeline_class=MTSLVRFeatureExtractionPipeline
        ... )
        >>> len(embed("kick.wav"))
        1000
    """

    _load_processor: Any = False  # the parent's types are None
    _load_image_processor: Any = False
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # the parent has no types
        """Embeddings of one clip, or a list of them for a list of clips.

        Args:
            inputs: A clip, or a list: a path, a file's bytes, `{"bytes", "path"}`, an array or tensor (samples,) at
                the model's rate, `{"array" or "raw", "sampling_rate"}`, a decoder, or a data set's row with one of
                these.
            kwargs: `return_tensors=True` for tensors (D,) instead of lists of D floats; `tasks` of the embedding, in
                its order (default: the active ones); `batch_size` (default: 1).
        """
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]  # the parent takes any names
        self, return_tensors: bool = False, tasks: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {} if tasks is None else {"tasks": tasks}, {"return_tensors": return_tensors}

    def preprocess(self, inputs: Any) -> BatchFeature:  # type: ignore[override]
        """Inputs of the model for one clip."""
        return _model_inputs(self, inputs)

    def _forward(self, model_inputs: Mapping[str, Tensor], tasks: Any = None) -> dict[str, Tensor]:  # type: ignore[override]
        return {"embeddings": self.model(**model_inputs, tasks=tasks).pooler_output}

    def postprocess(self, outputs: Mapping[str, Tensor], return_tensors: bool = False) -> Any:  # type: ignore[override]
        """Embedding of one clip, (D,)."""
        embedding = outputs["embeddings"][0].float()
        return embedding if return_tensors else embedding.tolist()


class MTSLVRAudioClassificationPipeline(AudioClassificationPipeline):
    """Audio-classification pipeline that reads files and several channels as `encode` does.

    Unlike transformers' own, it never starts the ffmpeg program, and it averages the channels of files and of
    `{"array", "sampling_rate"}`. M4A, MP4, WebM, AAC and WMA need the package and torchcodec.

    Example:

        >>> from transformers import pipeline
        >>> from mtslvr_hf.classification import MTSLVRAudioClassificationPipeline
        >>> classify = pipeline(
        ...     "audio-classification", "outputs/drums", pipeline_class=MTSLVRAudioClassificationPipeline
        ... )
        >>> classify("kick.wav", top_k=2)
        [{'score': 0.98, 'label': 'kick'}, {'score': 0.01, 'label': 'snare'}]
    """

    def preprocess(self, inputs: Any) -> BatchFeature:  # type: ignore[override]  # the parent has no types
        """Inputs of the model for one clip.

        Args:
            inputs: A path, a URL (with the package), a file's bytes, `{"bytes", "path"}`, an array or tensor
                (samples,) at the model's rate, `{"array" or "raw", "sampling_rate"}`, a decoder, or a data set's row
                with one of these.

        Raises:
            ValueError: If it cannot be used; it names the file.
        """
        return _model_inputs(self, inputs)


def _model_inputs(pipeline: Pipeline, inputs: Any) -> BatchFeature:
    extractor: Any = pipeline.feature_extractor
    if extractor is None:
        raise ValueError("The pipeline has no feature extractor: pass `feature_extractor`.")
    if isinstance(inputs, Mapping) and not inputs.keys() & FIELDS:
        inputs = _audio_of_row(inputs)
    if isinstance(inputs, Mapping) and inputs.get("raw") is not None:
        inputs = {"array": inputs["raw"], "sampling_rate": inputs.get("sampling_rate")}
    elif isinstance(inputs, Mapping) and inputs.get("array") is None:
        inputs = {"bytes": inputs.get("bytes"), "path": inputs.get("path")}
    has_rate = isinstance(inputs, Mapping) or hasattr(inputs, "get_all_samples")
    return extractor([inputs], sampling_rate=None if has_rate else extractor.sampling_rate, return_tensors="pt")


def _audio_of_row(row: Mapping[str, Any]) -> Any:
    """Audio of a data set's row: the column `audio`, or the only value that is audio."""
    if "audio" in row:
        return row["audio"]
    values = row.values()
    found = [
        each
        for each in values
        if hasattr(each, "get_all_samples") or (isinstance(each, Mapping) and each.keys() & FIELDS)
    ]
    if len(found) != 1:
        which = "several columns with audio" if found else "no audio"
        raise ValueError(f"The row has {which} among {', '.join(map(str, row))}; expected audio in a column `audio`.")
    return found[0]


__all__ = ["MTSLVRAudioClassificationPipeline", "MTSLVRFeatureExtractionPipeline"]
