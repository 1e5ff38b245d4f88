"""MT-SLVR models in mteb's audio tasks.

mteb decodes audio with torchcodec and FFmpeg. This module reads the encoded files and decodes them as in pre-training.
mteb's own wrapper of a `SentenceTransformer(MODEL)` gives the same embeddings of audio at the model's rate. At others
they differ slightly, because mteb then resamples by torchaudio. mteb 2.26 takes every such object for a text model,
unless it is told:

    wrapper = mteb.models.SentenceTransformerEncoderWrapper(SentenceTransformer(MODEL))
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update={"modalities": ["audio"]})
    mteb.evaluate(wrapper, tasks)
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from datasets import Audio
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import cached_file

from ..embedding import encode
from ..fingerprints import model_fingerprint
from ..installation import install_hint

if TYPE_CHECKING:
    from mteb.models import ModelMeta

AUDIOSET, AUDIOSET_TASKS = "agkphysics/AudioSet", {"AudioSet", "AudioSetMini"}  # the data set, and mteb's tasks of it
CITATION = """@inproceedings{heggan2023mtslvr,
  author = {Heggan, Calum and Hospedales, Tim and Budgett, Sam and Yaghoobi, Mehrdad},
  title = {{MT-SLVR}: Multi-Task Self-Supervised Learning for Transformation In(Variant) Representations},
  booktitle = {Proc. Interspeech},
  year = {2023},
  doi = {10.21437/Interspeech.2023-1064},
}"""


class MTSLVREncoder:
    """Model with mteb's `EncoderProtocol`, compared by cosine similarity.

    Args:
        model_name: A model's folder, or its name on the Hub, with its feature extractor.
        revision: Commit on the Hub.
        device: Device of the model; default: a GPU if there is one.
        tasks: Tasks of the embedding, in its order; default: the active tasks.

    Raises:
        OSError: If there is no such model.
        ValueError: If the model has no such task.

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
        self.revision = revision
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
        """Embeddings of a task's audio in its order, (clips, D) float32.

        Args:
            inputs: Data loader of mteb: batches with an `audio` column.
            task_metadata, hf_split, hf_subset: Used in messages only.
            prompt_type: Not used: queries and documents are embedded in the same way.
            batch_size: Windows per forward pass.
            show_progress_bar: Default: on a terminal.
            precision: Must be `"float32"`.

        Raises:
            ValueError: If there is no audio column, a clip cannot be decoded, or the precision is another.
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
        """Cosine similarities of all pairs: (n, D) and (m, D), or (D,), -> (n, m) tensor."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: np.ndarray | torch.Tensor, embeddings2: np.ndarray | torch.Tensor):
        """Cosine similarities of rows: (n, D) twice -> (n,) tensor."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """Model metadata for mteb's results; needs mteb."""
        if self._meta is None:
            self._meta = self._make_meta()
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: "ModelMeta") -> None:
        self._meta = meta

    def _make_meta(self) -> "ModelMeta":
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
            from mteb.types import Licenses
        except ImportError as error:
            raise ImportError(f"This needs mteb: {install_hint('mteb')}.") from error
        config = self.model.config
        card = _card_data(self.model_name, self.revision)
        data = [name for name in card.datasets or () if not Path(name).exists()]
        base = card.base_model if isinstance(card.base_model, str) else None
        local = Path(self.model_name).is_dir()
        tasks = config.resolve_tasks(self.tasks)
        parameters = self.model.num_parameters()
        return ModelMeta(
            loader=None if local else MTSLVREncoder,
            loader_kwargs={} if self.tasks is None else {"tasks": tasks},
            name=f"local/{Path(self.model_name).resolve().name}" if local else self.model_name,
            # mteb reuses results of the same name and revision: other weights or poolings need another revision.
            revision=config._commit_hash if not local else model_fingerprint(self.model, self.feature_extractor)[:16],
            release_date=None,
            languages=[],  # of no language
            n_parameters=parameters,
            n_embedding_parameters=0,
            memory_usage_mb=round(parameters * 4 / 2**20, 1),
            max_tokens=None,
            embed_dim=config.embedding_size_of(tasks),
            license=card.license if card.license in get_args(Licenses) else None,
            open_weights=None if local else True,
            public_training_code=None,
            public_training_data=f"https://huggingface.co/datasets/{data[0]}" if data else None,
            framework=["PyTorch", "Transformers", "Sentence Transformers", "safetensors"],
            reference=None if local else f"https://huggingface.co/{self.model_name}",
            similarity_fn_name=ScoringFunction("cosine"),
            use_instructions=False,
            # The names of tasks, as far as the card tells: mteb marks those that a model was trained on.
            training_datasets=AUDIOSET_TASKS if AUDIOSET in data else None,
            adapted_from=base,
            modalities=["audio"],
            citation=CITATION,
            experiment_kwargs=None if self.tasks is None else {"tasks": "-".join(tasks)},
        )


def _card_data(model_name: str, revision: str | None) -> ModelCardData:
    """Metadata of a model's card; empty without a card."""
    path = cached_file(model_name, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return ModelCardData()
    return cast(ModelCardData, ModelCard(Path(path).read_text(encoding="utf-8")).data)


def _clips(inputs: Iterable[dict[str, Any]], what: str) -> Iterator[Any]:
    """Clips of a data loader: encoded files if the data set holds files, else clips of the batches."""
    dataset: Any = getattr(inputs, "dataset", None)
    features = getattr(dataset, "features", None)
    if features is not None and "audio" not in features:
        raise ValueError(f"{what} has no audio column, only {', '.join(features)}: these models embed only audio.")
    if features is not None and isinstance(features["audio"], Audio):
        for row in dataset.select_columns(["audio"]).cast_column("audio", Audio(decode=False)):
            yield row["audio"]
        return
    for batch in inputs:
        if "audio" not in batch:
            raise ValueError(f"{what} has no audio, only {', '.join(batch)}: these models embed only audio.")
        yield from batch["audio"]


def _unit(embeddings: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(n, D) or (D,) -> (n, D) float32 of norm 1."""
    return torch.nn.functional.normalize(torch.as_tensor(embeddings).float().reshape(-1, np.shape(embeddings)[-1]))


__all__ = ["MTSLVREncoder"]
