"""Model cards of the paper's rows, `model_cards/ROW/README.md`, from their configurations and `paper_figures.yaml`.

    python training/write_model_cards.py

Each card states that the row is not trained yet, and has the paper's figures in a section of their own; they are never
metadata. A card without this statement is of trained weights and stays. `mtslvr evaluate --update-card` writes results
into a card.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from mtslvr_hf import MTSLVRConfig
from mtslvr_hf.cards.parts import save_card
from mtslvr_hf.cards.pretraining import TrainingSummary, create_model_card, variant_name
from mtslvr_hf.markdown import markdown_table
from mtslvr_hf.runs.parser import CONFIGS
from mtslvr_hf.runs.pretraining_arguments import read_arguments

FIGURES = Path(__file__).with_name("paper_figures.yaml")


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
        clips_seen=values["max_steps"] * values["per_device_train_batch_size"],
        optimizer=values["optim"].capitalize(),
        lr_scheduler=values["lr_scheduler_type"],
        clip_seconds=values["clip_seconds"] or values["window_seconds"],
        normalization=values["normalization"],
        versions={},
    )
    config = MTSLVRConfig(**{name: values[name] for name in fields})
    card = create_model_card(
        config,
        settings,
        repo_id=f"outputs/{path.stem}",
        command=f"accelerate launch -m mtslvr_hf.pretrain {path.stem}",
        paper=paper_section(variant_name(config)),
    )
    save_card(card, folder)


def paper_section(variant: str) -> str:
    """Section of the paper's figures of a row.

    Args:
        variant: Name of the row in `variant_name`: "MT-Parallel (SimCLR)", "Pred Only".
    """
    figures = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    name, _, method = variant.partition(" (")
    tables = [method.rstrip(")")] if method else list(figures["tables"])
    rows = [figures["tables"][table][name] for table in tables]
    row = next(each for each in rows if "misprinted" not in each)
    accuracies = [
        (data, f"{value:.2f} ± {interval:.2f}")
        for data, value, interval in zip(figures["sets"], row["accuracy"], row["interval"], strict=True)
    ]
    mean = sum(row["accuracy"]) / len(row["accuracy"])
    accuracies += [("mean, computed here", f"{mean:.2f}"), ("average rank among the seven rows", f"{row['rank']}")]
    return "\n\n".join(
        [
            "## The paper's figures, not of these weights",
            "5-way 1-shot accuracy in per cent with 95 % intervals over 10,000 episodes, of the paper's own networks. "
            f"Source: {figures['source']}.",
            markdown_table(["data", "the paper's accuracy, %"], accuracies),
            *(misprint(figures, table, each) for table, each in zip(tables, rows) if "misprinted" in each),
            "This project has measured no weights of this row yet.\n[docs/results.md](../../docs/results.md) compares "
            "rows that were trained here on other data with a smaller budget.",
        ]
    )


def misprint(figures: dict[str, Any], table: str, row: dict[str, Any]) -> str:
    """Sentences about values that the source misprints."""
    places = [figures["sets"].index(name) for name in row["misprinted"]]
    values = ", ".join(f"{figures['sets'][place]} {row['accuracy'][place]:.2f}" for place in places)
    return (
        f"The {table} table of the source has other values in this row: {values}. They are misprinted: a row without "
        "a contrastive part is the same in both tables, and the printed ranks come out with the values above only."
    )


if __name__ == "__main__":
    main()
