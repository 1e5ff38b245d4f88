"""Model card of a saved model: a new one, or one that exists with the metadata that it lacks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from ..modeling_mtslvr import MTSLVRForAudioClassification, MTSLVRPreTrainedModel
from .classification import create_classifier_card
from .parts import save_card
from .pretraining import create_model_card

logger = logging.getLogger(__name__)


def write_card(
    model: MTSLVRPreTrainedModel, folder: Path, repo_id: str | None = None, tags: Sequence[str] = ()
) -> None:
    """Writes the model card of a folder into which a model is saved; a card that exists only gets missing metadata.

    The missing metadata are `library_name`, `pipeline_tag`, the tags of the model if there are none, the tag mtslvr,
    and the given tags. A card whose metadata cannot be read stays as it is, with a warning.

    Args:
        model: Model of any class.
        folder: Folder of the card.
        repo_id: Name of the model on the Hub, for a new card.
        tags: Further tags.
    """
    create = create_classifier_card if isinstance(model, MTSLVRForAudioClassification) else create_model_card
    new = create(model.config, repo_id=repo_id)
    path = folder / "README.md"
    if not path.is_file():
        new.data["tags"] = list(dict.fromkeys([*new.data["tags"], *tags]))
        save_card(new, folder)
        return
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        logger.warning("The metadata of %s cannot be read, so it was not changed: %s", path, error)
        return
    data: Any = card.data
    before = data.to_dict()
    known = [data.tags] if isinstance(data.tags, str) else data.tags or new.data["tags"]
    data.library_name = data.library_name or new.data["library_name"]
    data.pipeline_tag = data.pipeline_tag or new.data["pipeline_tag"]
    data.tags = list(dict.fromkeys([*known, *([] if "mtslvr" in known else ["mtslvr"]), *tags]))
    if data.to_dict() != before:
        save_card(card, folder)


__all__ = ["write_card"]
