"""model_cards/ holds a card of each row of the paper, as its configuration now is."""

import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from markdown_rows import unpadded

from mtslvr_hf.cards.results import MeasuredResult, write_results
from mtslvr_hf.runs.parser import CONFIGS

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
sys.path.insert(0, str(ROOT / "training"))

import write_model_cards  # noqa: E402


def test_the_cards_are_current(tmp_path):
    write_model_cards.main(["--output", str(tmp_path)])
    rows = {path.stem for path in (CONFIGS / "paper").glob("*.yaml")} - {"base"}
    assert {path.name for path in CARDS.iterdir()} == {path.name for path in tmp_path.iterdir()} == rows
    for row in rows:
        kept, made = (folder / row / "README.md" for folder in (CARDS, tmp_path))
        command = f"accelerate launch -m mtslvr_hf.pretrain {row}\n"
        assert command in made.read_text()
        if write_model_cards.is_untrained(kept):
            assert kept.read_text() == made.read_text(), "run python training/write_model_cards.py"


def test_a_measured_card_is_no_longer_untrained_and_stays(tmp_path):
    write_model_cards.main(["--output", str(tmp_path)])
    card = tmp_path / "pred_only/README.md"
    write_results(card.parent, [MeasuredResult(dataset="sounds", protocol="5-way 1-shot", value=0.5)])
    text = card.read_text()
    assert "## Training\n\n```bash\naccelerate launch" in text
    assert "Not trained yet" not in text and "No result has been measured" not in text
    assert "This project has measured no weights" not in text
    assert (
        text.index("## Results") < text.index("## The paper's figures, not of these weights") < text.index("## Limits")
    )
    assert [result.metric_value for result in ModelCard(text).data.eval_results] == [0.5]
    write_model_cards.main(["--output", str(tmp_path)])
    assert card.read_text() == text


def test_each_row_has_the_papers_figures_apart_from_its_own():
    for folder in CARDS.iterdir():
        card = ModelCard.load(folder / "README.md")
        before, _, section = card.text.partition("## The paper's figures, not of these weights\n")
        section, _, _ = section.partition("\n## ")
        figures = re.findall(r"\| ([\d.]+) ± [\d.]+ \|", unpadded(section))
        assert len(figures) == 10 and "https://cheggan.github.io/" in section
        assert not any(figure in before for figure in figures)
        if "Not trained yet" in card.text:
            assert "model-index" not in card.data.to_dict() and "metrics" not in card.data.to_dict()
            assert "This project has measured no weights of this row yet." in section
            assert "(6,944.4 hours, repetitions counted)" in before


def test_the_papers_figures_are_those_of_the_documentation():
    figures = yaml.safe_load(write_model_cards.FIGURES.read_text())
    _, _, text = (ROOT / "docs/results.md").read_text().partition("## The paper's tables\n")
    for method, table in figures["tables"].items():
        lines = unpadded(text.partition(f"\n{method}:\n\n")[2].partition("\n\n")[0]).splitlines()
        header, *rows = [line.strip("| ").split(" | ") for line in lines if not line.startswith("| -")]
        assert header == ["row", *figures["sets"], "mean", "rank"]
        assert len(rows) == len(table) == 7
        for name, *cells, mean, rank in rows:
            found = table[name.partition(" (")[0]]
            if "misprinted" in found:  # the documentation repeats the other table's row, and names the values
                assert name.endswith("(as in the SimSiam table)")
                places = [figures["sets"].index(data) for data in found["misprinted"]]
                printed = ", ".join(f"{found['accuracy'][place]:.2f}" for place in places)
                assert f"is a misprint from {found['misprinted'][0]} on: {printed}." in " ".join(text.split())
                right = figures["tables"]["SimSiam"]["Pred Only"]
                same = [place for place in range(10) if place not in places]
                assert [found["accuracy"][place] for place in same] == [right["accuracy"][place] for place in same]
                found = right
            shown = [f"{value:.2f} ± {interval:.2f}" for value, interval in zip(found["accuracy"], found["interval"])]
            assert [cell.replace("± .", "± 0.") for cell in cells] == shown
            assert float(rank) == found["rank"] and abs(float(mean) - sum(found["accuracy"]) / 10) < 0.0051


def test_a_row_without_a_contrastive_part_names_the_misprint():
    card = unpadded((CARDS / "pred_only/README.md").read_text())
    assert "| VoxCeleb | 21.68 ± 0.40 |" in card and "They are misprinted" in card
    assert "VoxCeleb 20.08, SpeechCommands 23.40, CREMA-D 29.07, SAA 26.27, C-Voice 31.80" in card
    assert "misprint" not in (CARDS / "mt_split_simclr/README.md").read_text()
