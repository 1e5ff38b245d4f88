"""MT-SLVR models in mteb's audio tasks.

mteb's own loading decodes audio through torchcodec and FFmpeg. Here the files' bytes are read undecoded, and decoded
and resampled as in pre-training.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Audio
from transformers import AutoFeatureExtractor, AutoModel

from ..embedding import encode
from ..fingerprints import weights_sha256

if TYPE_CHECKING:
    from mteb.models import ModelMeta

CITATION = """@inproceedings{heggan2023mtslvr,
  author = {Heggan, Calum and Hospedales, Tim and Budgett, Sam and Yaghoobi, Mehrdad},
  title = {{MT-SLVR}: Multi-Task Self-Supervised Learning for Transformation In(Variant) Representations},
  booktitle = {Proc. Interspeech},
  year = {2023},
  doi = {10.21437/Interspeech.2023-1064},
}"""


class MTSLVREncoder:
    """A model as mteb's `EncoderProtocol` wants it, compared by cosine similarity.

    Args:
        model_name: A model's folder, or its name on the Hub, with its feature extractor.
        revision: Commit on the Hub.
        device: Where it runs; a GPU if there is one unless given.
        tasks: Tasks of the embedding, in its order; the model's active ones unless given.

    Raises:
        OSError: If there is no such model.
        ValueError: If a task is not one of the model's.

    Example:

        >>> import mteb
        >>> encoder = MTSLVREncoder("outputs/my-model")
        >>> result = mteb.evaluate(encoder, mteb.get_task("ESC50"))
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        tasks: Sequence[str] | str | None = None,
    ):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(model_name, revision=revision).eval().to(device)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(model_name, revision=revision)
        self.model_name = model_name
        self.tasks = None if tasks is None else self.model.config.resolve_tasks(tasks)
        self._meta: ModelMeta | None = None

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
    ) -> np.ndarray:
        """Embeds a task's audio, in order.

        Args:
            inputs: mteb's data loader: batches with an `audio` column.
            task_metadata: Which task it is; used in messages only, as are the next two.
            hf_split: Its split.
            hf_subset: Its subset.
            prompt_type: Whether these are queries or documents: audio is embedded the same way as either.
            batch_size: Windows that go through the network at once.
            show_progress_bar: Whether to show one; on a terminal unless given.
            precision: `"float32"`, the only one.

        Returns:
            (clips, D) float32.

        Raises:
            ValueError: If there is no audio column, a clip cannot be decoded, or another precision is asked for.
        """
        if precision != "float32":
            raise ValueError(f"`precision` is {precision!r}; embeddings are 'float32'.")
        name = getattr(task_metadata, "name", task_metadata)
        return encode(
            self.model,
            _clips(inputs, f"task {name}, split {hf_split}, subset {hf_subset}"),
            feature_extractor=self.feature_extractor,
            tasks=self.tasks,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    def similarity(self, embeddings1: np.ndarray | torch.Tensor, embeddings2: np.ndarray | torch.Tensor):
        """Cosine similarity of each with each: (n, D) and (m, D), or (D,), -> (n, m) tensor."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: np.ndarray | torch.Tensor, embeddings2: np.ndarray | torch.Tensor):
        """Cosine similarity of each with its counterpart: (n, D) twice -> (n,) tensor."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """Metadata of the model for mteb's results; needs mteb."""
        if self._meta is None:
            self._meta = self._make_meta()
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: "ModelMeta") -> None:
        self._meta = meta

    def _make_meta(self) -> "ModelMeta":
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            raise ImportError("This needs mteb: `pip install 'mtslvr-hf[mteb]'`.") from error
        config = self.model.config
        local = Path(self.model_name).is_dir()
        tasks = config.resolve_tasks(self.tasks)
        parameters = self.model.num_parameters()
        return ModelMeta(
            loader=None if local else MTSLVREncoder,
            loader_kwargs={} if self.tasks is None else {"tasks": tasks},
            name=f"local/{Path(self.model_name).resolve().name}" if local else self.model_name,
            # mteb takes results of the same name and revision for those of this model: other weights, other revision
            revision=config._commit_hash if not local else weights_sha256(self.model)[:16],
            release_date=None,
            languages=None,
            n_parameters=parameters,
            n_embedding_parameters=0,
            memory_usage_mb=round(parameters * 4 / 2**20, 1),
            max_tokens=None,
            embed_dim=config.embedding_size_of(tasks),
            license=None,
            open_weights=None if local else True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers"],
            reference=None if local else f"https://huggingface.co/{self.model_name}",
            similarity_fn_name=ScoringFunction("cosine"),
            use_instructions=False,
            training_datasets=None,  # unknown here: the model card says what it was trained on
            modalities=["audio"],
            citation=CITATION,
            experiment_kwargs=None if self.tasks is None else {"tasks": "-".join(tasks)},
        )


def _clips(inputs: Iterable[dict[str, Any]], what: str) -> Iterator[Any]:
    """Each clip of a data loader: the encoded file if the data set holds files, else what the batches hold."""
    dataset: Any = getattr(inputs, "dataset", None)
    features = getattr(dataset, "features", None)
    if features is not None and "audio" not in features:
        raise ValueError(f"{what} has no audio column, only {', '.join(features)}: these models embed audio alone.")
    if features is not None and isinstance(features["audio"], Audio):
        for row in dataset.select_columns(["audio"]).cast_column("audio", Audio(decode=False)):
            yield row["audio"]
        return
    for batch in inputs:
        if "audio" not in batch:
            raise ValueError(f"{what} has no audio, only {', '.join(batch)}: these models embed audio alone.")
        yield from batch["audio"]


def _unit(embeddings: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(n, D) or (D,) -> (n, D) float32 of norm 1."""
    return torch.nn.functional.normalize(torch.as_tensor(embeddings).float().reshape(-1, np.shape(embeddings)[-1]))


__all__ = ["MTSLVREncoder"]
