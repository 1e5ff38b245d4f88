"""Model cards of the paper's rows, `model_cards/ROW/README.md`, from their configurations.

    python training/write_model_cards.py

Each card states that the row is not trained yet. A card without this statement is of trained weights and stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from inspect import signature
from pathlib import Path

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.cards.parts import save_card
from mtslvr_hf.cards.pretraining import TrainingSummary, create_model_card
from mtslvr_hf.runs.parser import CONFIGS
from mtslvr_hf.runs.pretraining_arguments import read_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the cards of rows that are not trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = Path(__file__).parents[1] / "model_cards"
    parser.add_argument("--output", type=Path, default=default, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    for path in sorted((CONFIGS / "paper").glob("*.yaml")):
        folder = options.output / path.stem
        if path.name != "base.yaml" and is_untrained(folder / "README.md"):
            write_card(path, folder)


def is_untrained(card: Path) -> bool:
    """True for a missing card, or one that states that the row is not trained."""
    return not card.exists() or "Not trained yet" in card.read_text(encoding="utf-8")


def write_card(path: Path, folder: Path) -> None:
    """Writes the card of one row from its configuration."""
    values = read_arguments([str(path)])[0]
    fields = signature(MTSLVRConfig).parameters.keys() & values.keys()
    settings = TrainingSummary(
        dataset=values["dataset_name"],
        dataset_config=values["dataset_config"],
        dataset_split=values["train_split"],
        steps=values["max_steps"],
        batch_size=values["per_device_train_batch_size"],
        learning_rate=values["learning_rate"],
        weight_decay=values["weight_decay"],
        optimizer=values["optim"].capitalize(),
        lr_scheduler=values["lr_scheduler_type"],
        clip_seconds=values["clip_seconds"] or values["window_seconds"],
        normalization=values["normalization"],
        versions={},
    )
    card = create_model_card(
        MTSLVRConfig(**{name: values[name] for name in fields}),
        settings,
        repo_id=f"outputs/{path.stem}",
        command=f"accelerate launch -m mtslvr_hf.pretrain {path.stem}",
    )
    save_card(card, folder)


if __name__ == "__main__":
    main()
