"""Model card of an adapter."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..adapters import read_adapter
from .parts import fill_template, is_hub_name, public_name, save_card


def create_adapter_card(folder: Path, base_model: str, repo_id: str, output: Path) -> None:
    """Writes the card of an adapter of `save_adapter` into another folder.

    Args:
        folder: Folder of the adapter.
        base_model: Model that it is for: a folder, of which the card has the last part, or a name on the Hub.
        repo_id: Name of the adapter on the Hub.
        output: Folder of the card.
    """
    description, tensors = read_adapter(folder)
    base, classes = public_name(base_model), description.get("id2label", {})
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification" if classes else "feature-extraction",
        tags=["mtslvr", "audio", "adapters"],
        base_model=base if is_hub_name(base_model) else None,
    )
    rows = [
        ("Task", description["name"]),
        ("Adapters", description["adapter_type"]),
        ("Values", f"{sum(tensor.numel() for tensor in tensors.values()):,}"),
        ("Model", f"{base}; SHA-256 of its shared weights {description['trunk'][:16]}..."),
        *([("Classes", ", ".join(classes.values()))] if classes else []),
    ]
    card = fill_template(ModelCard, "adapter", data, rows=rows, base=base, repo=repo_id, name=description["name"])
    output.mkdir(parents=True, exist_ok=True)
    save_card(card, output)


__all__ = ["create_adapter_card"]
