"""save_pretrained and push_to_hub write the model's card, and keep one that exists."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import hub_server as hub
import pytest
from huggingface_hub import ModelCard
from markdown_rows import unpadded
from small_models import make_model

from mtslvr_hf import MTSLVRForAudioClassification, MTSLVRForPreTraining, MTSLVRModel
from mtslvr_hf.cards.results import MeasuredResult, check_results, write_results

hub_server = hub.hub_server  # the fixture
ROOT = Path(__file__).parents[2]
HEAD = """
import sys
import torch
from pathlib import Path
from mtslvr_hf import MTSLVRConfig, MTSLVRForAudioClassification, MTSLVRForPreTraining, MTSLVRModel

config = MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=8)
"""
HIDE_PACKAGE = "import sys; sys.modules['mtslvr_hf'] = None  # also where it is installed\n"


def client(server, folder, code, head=HEAD, *arguments):
    """Output of code in a client process of the server."""
    environment = server.environment(folder / "home", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("model_class", "pipeline", "title"),
    [
        (MTSLVRModel, "feature-extraction", "MT-Parallel (SimCLR)"),
        (MTSLVRForPreTraining, "feature-extraction", "MT-Parallel (SimCLR)"),
        (MTSLVRForAudioClassification, "audio-classification", "3 classes of sounds"),
    ],
)
def test_a_saved_model_has_its_card(tmp_path, model_class, pipeline, title):
    classes = (
        {"num_labels": 3, "id2label": {0: "kick", 1: "snare", 2: "hat"}} if "Audio" in model_class.__name__ else {}
    )
    make_model(model_class=model_class, **classes).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == pipeline
    assert "mtslvr" in card.data.tags and card.data.license is None
    assert card.text.startswith(f"\n# {title}\n") and "No result has been measured with these weights." in card.text
    assert "More Information Needed" not in card.text and "## Training" not in card.text
    if classes:
        assert "Recognizes the class of a sound: kick, snare, hat." in card.text
    else:
        assert "| Encoder | ResNet-18, base width 4 |" in unpadded(card.text)


def test_only_the_main_process_writes_a_card(tmp_path):
    make_model().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()


def test_a_card_that_exists_stays(tmp_path):
    path = tmp_path / "README.md"
    own = "---\n# mine\ntags: [mtslvr, birds]\nlibrary_name: x\npipeline_tag: audio-to-audio\n---\n\n# Mine\n"
    path.write_text(own)
    make_model().save_pretrained(tmp_path)
    assert path.read_text() == own  # nothing is missing
    path.write_text("# Mine\n\nText.\n")
    make_model(model_class=MTSLVRForAudioClassification).save_pretrained(tmp_path)
    card = ModelCard.load(path)
    assert card.text.strip() == "# Mine\n\nText."
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["mtslvr", "audio", "audio-classification"],
    }
    path.write_text("---\ntags: [birds]\nlicense: mit\n---\n# Mine\n")
    make_model().save_pretrained(tmp_path)
    card = ModelCard.load(path)
    assert card.data.tags == ["birds", "mtslvr"] and card.data.license == "mit"


def test_a_card_that_cannot_be_read_stays_with_a_warning(tmp_path, caplog):
    path = tmp_path / "README.md"
    path.write_text("---\ntags: [birds\n---\n# Mine\n")
    make_model().save_pretrained(tmp_path)
    assert path.read_text() == "---\ntags: [birds\n---\n# Mine\n"
    assert "README.md cannot be read, so it was not changed" in caplog.text


def test_results_stay_when_the_same_weights_are_saved_again(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    write_results(tmp_path, [MeasuredResult(dataset="drums", protocol="5-way 1-shot", value=0.5)])
    before = (tmp_path / "README.md").read_bytes()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before and check_results(tmp_path)


PUSH = """
    kinds = {"base": MTSLVRModel, "whole": MTSLVRForPreTraining, "classes": MTSLVRForAudioClassification}
    for name, kind in kinds.items():
        commit = kind(config).push_to_hub(f"tester/{name}", tags="birds")
        assert commit.repo_url.repo_id == f"tester/{name}", commit
    model = MTSLVRModel(config)
    model.push_to_hub("tester/branch", revision="next", commit_message="Weights", private=True)
    print(model.push_to_hub("tester/base", create_pr=True).pr_num)
"""


def test_a_published_model_has_its_card(hub_server, tmp_path):
    assert client(hub_server, tmp_path, PUSH) == "1\n"
    for name, tag in (("base", "feature-extraction"), ("whole", "feature-extraction"), ("classes", "audio-classif")):
        files = hub_server.files(f"tester/{name}")
        assert {"README.md", "config.json", "model.safetensors", "modeling_mtslvr.py"} <= files.keys()
        card = ModelCard(files["README.md"].decode())
        assert card.data.pipeline_tag.startswith(tag) and {"mtslvr", "birds"} <= set(card.data.tags)
        assert card.data.license is None and f'"tester/{name}"' in card.text
        assert "automatically generated" not in card.text and "More Information Needed" not in card.text
        (commit,) = hub_server.repository("models", f"tester/{name}").history("main")[1:]
        assert commit.title == "Upload model"
    branch = hub_server.repository("models", "tester/branch")
    assert branch.private and branch.history("next")[-1].title == "Weights" and len(branch.history("main")) == 1
    assert "README.md" in hub_server.files("tester/branch", revision="next")


AGAIN = """
    from huggingface_hub import HfApi

    model = MTSLVRModel(config)
    model.push_to_hub("tester/mine")
    text = b"---\\nlicense: mit\\n---\\n\\n# Mine\\n\\nMeasured by hand.\\n"
    HfApi().upload_file(repo_id="tester/mine", path_or_fileobj=text, path_in_repo="README.md")
    model.add_model_tags(["added"])
    model.push_to_hub("tester/mine")
    model.save_pretrained("new", push_to_hub=True, repo_id="tester/new", commit_message="Saved")
    model.save_pretrained("other", push_to_hub=True, repo_id="tester/mine")
    Path("kept").mkdir()
    Path("kept/README.md").write_text("# Kept\\n")
    Path("kept/notes.txt").write_text("")
    model.save_pretrained("kept", push_to_hub=True)
"""


def test_a_card_on_the_hub_or_in_the_folder_stays(hub_server, tmp_path):
    client(hub_server, tmp_path, AGAIN)
    card = ModelCard(hub_server.files("tester/mine")["README.md"].decode())
    assert card.text.strip() == "# Mine\n\nMeasured by hand." and card.data.license == "mit"
    assert card.data.library_name == "transformers" and {"mtslvr", "added"} <= set(card.data.tags)
    assert hub_server.repository("models", "tester/new").history("main")[-1].title == "Saved"
    assert hub_server.files("tester/new")["README.md"] == (tmp_path / "new/README.md").read_bytes()
    kept = hub_server.files("tester/kept")
    assert kept["README.md"] == (tmp_path / "kept/README.md").read_bytes() and "notes.txt" not in kept
    card = ModelCard(kept["README.md"].decode())
    assert card.text.strip() == "# Kept" and card.data.pipeline_tag == "feature-extraction"


ALONE = """
    from transformers import AutoModel, AutoModelForAudioClassification

    model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
    model.save_pretrained("alone")
    model.push_to_hub("tester/alone", tags=["birds"])
    AutoModelForAudioClassification.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained("classes")
"""


def test_without_the_package_the_card_is_short(hub_server, tmp_path):
    make_model().save_pretrained(tmp_path / "made")
    client(hub_server, tmp_path, ALONE, HIDE_PACKAGE, tmp_path / "made")
    for text, pipeline in (
        ((tmp_path / "alone/README.md").read_text(), "feature-extraction"),
        (hub_server.files("tester/alone")["README.md"].decode(), "feature-extraction"),
        ((tmp_path / "classes/README.md").read_text(), "audio-classification"),
    ):
        card = ModelCard(text)
        assert card.data.library_name == "transformers" and card.data.pipeline_tag == pipeline
        assert card.data.tags[:2] == ["mtslvr", "audio"] and card.data.license is None
        assert re.search(r"from_pretrained\(\"(THIS_FOLDER|tester/alone)\", trust_remote_code=True\)", card.text)
