"""The model of the repository: it loads, it is useful, its card is true, and it can be published."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

from mtslvr_hf.cards.results import check_results
from mtslvr_hf.evaluation import FewShotProtocol, evaluate
from mtslvr_hf.publishing import publish

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models/mtslvr-small"
NOT_IN_ITS_TRAINING = ["flute", "nylon_guitar", "piano", "trumpet", "vibraphone", "violin"]  # of a sound font


def test_its_weights_are_small_and_load_as_float32():
    assert (MODEL / "model.safetensors").stat().st_size <= 16e6
    model = AutoModel.from_pretrained(MODEL)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    assert model.config.embedding_size_of() == 2048


def test_its_code_is_that_of_the_package():
    files = sorted(MODEL.glob("*_mtslvr.py"))
    assert len(files) == 5
    for file in files:
        assert file.read_bytes() == (ROOT / "mtslvr_hf" / file.name).read_bytes()


def test_it_is_better_than_log_mel_statistics_on_sounds_that_it_has_not_heard():
    protocol = FewShotProtocol(episodes=500)
    report = evaluate([MODEL], [ROOT / "demo/audio"], protocol, classes=NOT_IN_ITS_TRAINING, show_progress_bar=False)
    rows = {row.model: row for row in report.results[0].rows if row.main}
    log_mel, untrained = rows["log-mel statistics"], rows["untrained network"]
    trained = rows[str(MODEL)]
    assert trained.accuracy - trained.interval > max(log_mel.accuracy + log_mel.interval, untrained.accuracy)


def test_its_card_is_true_and_names_who_made_the_audio():
    assert check_results(MODEL)
    card = ModelCard.load(MODEL / "README.md")
    assert card.data.license == "cc-by-sa-4.0" and card.data.model_name == "mtslvr-small"
    assert len(card.data.eval_results) >= 6
    for link in ("training.png", "ATTRIBUTION.md"):
        assert f"({link})" in card.text and (MODEL / link).is_file()
    licenses = [line for line in (MODEL / "ATTRIBUTION.md").read_text().splitlines() if line.startswith("- ")]
    assert len(licenses) > 40


@pytest.mark.slow
def test_it_can_be_published(tmp_path):
    done = publish(MODEL, "tester/mtslvr-small", dry_run=tmp_path / "out")
    assert {"ATTRIBUTION.md", "training.png", "results.json", "modeling_mtslvr.py"} <= set(done.files)
    assert not any((tmp_path / "out" / file).is_symlink() for file in done.files)
