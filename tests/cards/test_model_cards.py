"""model_cards/ holds a card of each row of the paper, as its configuration now is."""

import sys
from pathlib import Path

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
    write_model_cards.main(["--output", str(tmp_path)])
    assert card.read_text() == text
