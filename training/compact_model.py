"""Compact copy of a pre-trained model for sharing: weights in half the memory, without the training heads.

    python training/compact_model.py outputs/mtslvr-small --output models/mtslvr-small \\
        --attribution data/open_pool/ATTRIBUTION.md --config training/configs/mtslvr-small.yaml

The copy has the encoder and its embeddings. Its matrices and filters are stored as float16 and load as float32. It has
no projectors and no predictive classifier, which only training needs. The card of the run is kept, with the figure
`training.png` of the run's log. Needs `pip install -e '.[evaluation]'` for the figure.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoFeatureExtractor, AutoModel

from mtslvr_hf import MTSLVRModel
from mtslvr_hf.cards.parts import save_card
from mtslvr_hf.data import find_audio_files
from mtslvr_hf.evaluation.report.plots import check_matplotlib

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-3  # of an embedding's length
CURVE, ATTRIBUTION, RUN = "training.png", "ATTRIBUTION.md", "pretrain.yaml"
PANELS = (  # title, logged values
    ("contrastive loss", ("contrastive_loss", "eval_contrastive_loss")),
    ("predictive loss", ("predictive_loss", "eval_predictive_loss")),
    ("recognition of augmentations, mAP", ("augmentation_map", "eval_augmentation_map")),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the copy and its card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of mtslvr pretrain")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; its name is the model's")
    parser.add_argument("--config", type=Path, help="configuration of the run, to show in the card")
    parser.add_argument("--attribution", type=Path, help="ATTRIBUTION.md of the audio, which is copied")
    parser.add_argument(
        "--check", type=Path, default=ROOT / "demo" / "audio", help="audio of the comparison (default: demo/audio)"
    )
    options = parser.parse_args(argv)
    check_matplotlib()
    if options.output.exists():
        parser.error(f"{options.output} exists: give another folder, or remove it.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=options.output.parent, prefix=".compact-") as folder:
        staged = Path(folder) / options.output.name
        model = AutoModel.from_pretrained(options.run).eval()
        save_compact(model, options.run, staged)
        difference = largest_difference(model, staged, find_audio_files(options.check))
        if difference > TOLERANCE:
            parser.error(f"embeddings of the copy differ by {difference:.1e}, more than {TOLERANCE:.0e}.")
        shutil.copyfile(options.run / RUN, staged / RUN)
        if options.attribution is not None:
            shutil.copyfile(options.attribution, staged / ATTRIBUTION)
        draw_curve(read_log(options.run), staged / CURVE)
        write_card(options.run, staged, difference, options.config, attributed=options.attribution is not None)
        staged.rename(options.output)
    size = (options.output / "model.safetensors").stat().st_size
    print(f"Wrote {options.output}: {size / 1e6:.1f} MB of weights; embeddings differ by at most {difference:.1e}.")


def save_compact(model: MTSLVRModel, run: Path, output: Path) -> None:
    """Saves the model with float16 matrices and filters, and a configuration that loads them as float32.

    Raises:
        ValueError: If a weight is too large for float16.
    """
    stored = {
        name: value.half() if value.dim() > 1 and value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    beyond = [name for name, value in stored.items() if not value.isfinite().all()]
    if beyond:
        raise ValueError(f"weights of {run} do not fit into float16: {', '.join(beyond)}.")
    model.save_pretrained(output, state_dict=stored)
    AutoFeatureExtractor.from_pretrained(run).save_pretrained(output)


def largest_difference(model: MTSLVRModel, copy: Path, files: Sequence[Path]) -> float:
    """Largest distance between a file's two embeddings, divided by the length of the first."""
    compact = AutoModel.from_pretrained(copy).eval()
    paths = [str(file) for file in files]
    exact, stored = (each.encode(paths, convert_to="torch") for each in (model, compact))
    return float(((exact - stored).norm(dim=1) / exact.norm(dim=1)).max())


def read_log(run: Path) -> list[Mapping[str, Any]]:
    """Logged values of a run, in order."""
    return json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def draw_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the losses and the mean average precision over the steps, of training and of held-out clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS):
        for name, label, style in zip(names, ("training", "held-out clips"), ("-", "o")):
            entries = [entry for entry in log if name in entry]
            values = [float(entry[name]) for entry in entries]
            axes.plot([entry["step"] for entry in entries], values, style, label=label, linewidth=1, markersize=4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def write_card(run: Path, output: Path, difference: float, config: Path | None, attributed: bool) -> None:
    """Writes the run's card with the copy's name, its command, the curve, storage and attribution."""
    card = ModelCard.load(run / "README.md")
    name = output.resolve().name
    card.data["model_name"] = name
    text = re.sub(r"^# .*$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
    lines = [f"`{RUN}` has all settings of the run.", ""]
    if config is not None:
        lines += [f"`{config.name}`:", "", "```yaml", config.read_text(encoding="utf-8").strip(), "```", ""]
    lines += [
        f"![Training]({CURVE})",
        "",
        "Stored: filters and matrices as float16, loaded as float32; without projectors and predictive classifier. "
        f"This moves embeddings by at most {difference:.1e} of their length (sounds of the demo).",
        "",
    ]
    if attributed:
        lines += [f"The audio's authors and licenses: [{ATTRIBUTION}]({ATTRIBUTION}).", ""]
    head, title, rest = text.partition("## Training\n\n")
    if not title:
        raise ValueError(f"{run / 'README.md'} has no section Training: expected the card of `mtslvr pretrain`.")
    card.text = f"{head}{title}" + "\n".join(lines) + "\n" + rest
    save_card(card, output)


if __name__ == "__main__":
    main()
