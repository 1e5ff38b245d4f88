"""training/compact_model.py: half the size, the same embeddings, a card that says so."""

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForPreTraining
from mtslvr_hf.cards.pretraining import TrainingSummary, create_model_card

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import compact_model as script

ROOT = Path(__file__).parents[2]
FLUTE = ROOT / "demo/audio/flute"


@pytest.fixture
def run(tmp_path):
    """Folder as a run of `mtslvr pretrain` leaves it."""
    folder = tmp_path / "run"
    config = MTSLVRConfig(base_width=8, window_seconds=1.0, pooling="bands", use_heads=False)
    torch.manual_seed(0)
    model = MTSLVRForPreTraining(config)
    model.save_pretrained(folder)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(folder)
    create_model_card(config, TrainingSummary(steps=40, seed=3), license="cc-by-sa-4.0").save(folder / "README.md")
    values = {"contrastive_loss": 2.0, "predictive_loss": "0.6", "augmentation_map": 0.7}
    log = [{"step": step, **values} for step in (20, 40)]
    log.append({"step": 40, **{f"eval_{name}": value for name, value in values.items()}})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (folder / "pretrain.yaml").write_text("# Repeats this run: mtslvr pretrain pretrain.yaml\nseed: 3\n")
    (tmp_path / "ATTRIBUTION.md").write_text("# Attribution\n")
    return folder


def test_a_compact_copy(run, tmp_path, capsys):
    out = tmp_path / "small"
    script.main(
        [str(run), "--output", str(out), "--attribution", str(tmp_path / "ATTRIBUTION.md"), "--check", str(FLUTE)]
    )
    assert "embeddings differ by at most" in capsys.readouterr().out
    stored, before = load_file(out / "model.safetensors"), load_file(run / "model.safetensors")
    assert not any("projector" in name or "classifier" in name for name in stored)
    assert {value.dtype for value in stored.values() if value.dim() > 1} == {torch.float16}
    assert torch.float32 in {value.dtype for value in stored.values()}  # batch normalization
    assert (out / "model.safetensors").stat().st_size < 0.6 * sum(
        value.nbytes for name, value in before.items() if "projector" not in name
    )
    model = AutoModel.from_pretrained(out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact, found = (
        each.encode(FLUTE / "program_73_key_67_velocity_96.flac")
        for each in (MTSLVRForPreTraining.from_pretrained(run), model)
    )
    assert found == pytest.approx(exact, abs=1e-3 * float(abs(exact).max()))
    assert (out / "preprocessor_config.json").read_text() == (run / "preprocessor_config.json").read_text()


def test_its_card(run, tmp_path):
    out, config = tmp_path / "small", tmp_path / "run.yaml"
    config.write_text("# A run\nseed: 3\n")
    files = ["--attribution", str(tmp_path / "ATTRIBUTION.md"), "--config", str(config), "--check", str(FLUTE)]
    script.main([str(run), "--output", str(out), *files])
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-sa-4.0" and card.data.model_name == "small"
    assert card.text.lstrip().startswith("# small\n")
    assert "```yaml\n# A run\nseed: 3\n```" in card.text and "![Training](training.png)" in card.text
    assert "(ATTRIBUTION.md)" in card.text and "| Seed" in card.text
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "ATTRIBUTION.md").exists() and (out / "pretrain.yaml").exists()


@pytest.mark.parametrize("mistake", ["difference", "no log", "weight beyond float16"])
def test_mistakes_leave_nothing(run, tmp_path, monkeypatch, capsys, mistake):
    if mistake == "difference":
        monkeypatch.setattr(script, "TOLERANCE", 0.0)
    elif mistake == "no log":
        (run / "trainer_state.json").unlink()
    else:
        model = MTSLVRForPreTraining.from_pretrained(run)
        with torch.no_grad():
            next(parameter for parameter in model.mtslvr.parameters() if parameter.dim() > 1).mul_(1e8)
        model.save_pretrained(run)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((SystemExit, FileNotFoundError, ValueError)) as error:
        script.main([str(run), "--output", str(tmp_path / "small"), "--check", str(FLUTE)])
    said = f"{error.value} {capsys.readouterr().err}"
    assert {"difference": "embeddings of the copy differ", "no log": "trainer_state.json"}.get(
        mistake, "float16"
    ) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_folder_is_not_touched(run, capsys):
    with pytest.raises(SystemExit):
        script.main([str(run), "--output", str(run), "--check", str(FLUTE)])
    assert "exists" in capsys.readouterr().err and (run / "trainer_state.json").is_file()
