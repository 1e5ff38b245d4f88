"""mtslvr publish: what reaches the Hub, what is refused before, and what is said when it fails, on loopback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server as hub
import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from small_models import make_model

from mtslvr_hf import MTSLVRFeatureExtractor, MTSLVRForAudioClassification, MTSLVRForPreTraining
from mtslvr_hf.caching import cache_audio
from mtslvr_hf.cards.pretraining import create_model_card
from mtslvr_hf.cards.results import MeasuredResult, write_results
from mtslvr_hf.embedding import embed_dataset
from mtslvr_hf.publishing import publish

hub_server = hub.hub_server  # the fixture
ROOT = Path(__file__).parents[2]
NAME = "tester/sounds"


def save(folder, model):
    model.eval().save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    create_model_card(model.config, repo_id=None).save(folder / "README.md")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "pre-trained", make_model(model_class=MTSLVRForPreTraining))


@pytest.fixture
def model(saved, tmp_path):
    """A copy of a saved model."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def unchecked(monkeypatch):
    """Publishing without the processes that load, which take seconds each."""
    monkeypatch.setattr("mtslvr_hf.publishing.hub.check_loading", lambda *arguments: None)


class Client:
    """Process of a client of the server that runs one text of code after another; `publish` loads nothing there."""

    CODE = """
import sys
import mtslvr_hf.publishing.hub as p

p.check_loading = lambda *arguments: None
for line in sys.stdin:
    exec(eval(line), globals())
    print(end="\\0", flush=True)
"""

    def __init__(self, server, folder):
        environment = server.environment(folder / "home", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE], cwd=folder, env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def run(self, code):
        """What the code prints."""
        self.process.stdin.write(f"{code!r}\n")
        self.process.stdin.flush()
        printed = iter(lambda: self.process.stdout.read(1), "\0")
        return "".join(character for character in printed if character or pytest.fail("the client ended"))


def run(server, folder, command):
    environment = server.environment(folder / "home", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout if done.returncode == 0 else done.stderr


def test_a_model_goes_to_the_hub_and_loads_there(hub_server, model, tmp_path):
    for name in ("training_args.bin", "optimizer.pt", "notes.txt"):
        (model / name).write_bytes(b"x")
    (model / "checkpoint-1").mkdir()
    run_of = {"dataset_name": "/data/secret place/pool", "output_dir": str(model), "base_width": 4}
    (model / "pretrain.yaml").write_text(json.dumps(run_of))
    write_results(model, [MeasuredResult(dataset="drums", protocol="5-way 1-shot", value=0.5)])
    command = [sys.executable, "-m", "mtslvr_cli", "publish", str(model), NAME, "--license", "cc0-1.0", "--private"]
    output = run(hub_server, tmp_path, command)
    files = hub_server.files(NAME)
    assert files.keys() == {
        *(
            "README.md",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "pretrain.yaml",
            "results.json",
        ),
        *(f"{part}_mtslvr.py" for part in ("configuration", "feature_extraction", "losses", "modeling", "pipeline")),
        *(path.name for path in model.glob("*.json")),
    }
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert str(tmp_path).encode() not in b"".join(files.values()) and b"/data/" not in files["pretrain.yaml"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "cc0-1.0" and f'from_pretrained("{NAME}", trust_remote_code=True)' in card.text
    assert hub_server.repository("models", NAME).private
    assert "Not published: checkpoint-1/, notes.txt, optimizer.pt, training_args.bin" in output
    commit = hub_server.repository("models", NAME).history("main")[-1].oid
    assert f"/commit/{commit}" in output and f'AutoModel.from_pretrained("{NAME}")' in output


def test_every_kind_is_recognized_and_loads(tmp_path, saved):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(3):
        soundfile.write(sounds / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 16_000), 16_000)
    classes = make_model(model_class=MTSLVRForAudioClassification, num_labels=3)
    save(tmp_path / "classifier", classes)
    network = make_model()
    embed_dataset(network, sounds, tmp_path / "embeddings", rows_per_shard=2)
    cache_audio(sounds, tmp_path / "audio")
    network.add_adapter("birds")
    network.save_adapter(tmp_path / "adapter", "birds")
    base = save(tmp_path / "base", make_model())
    for kind, words, options in (
        ("classifier", "classifier", {}),
        ("embeddings", "embeddings", {}),
        ("audio", "cached audio", {}),
        ("adapter", "adapter", {"base_model": str(base)}),
    ):
        copy = tmp_path / f"copy of {kind}"
        found = publish(tmp_path / kind, NAME, license="mit", dry_run=copy, **options)
        assert found.kind.name == words and found.url is None
        assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == found.files.keys()
        assert "license: mit" in (copy / "README.md").read_text() and NAME in (copy / "README.md").read_text()
        assert str(tmp_path) not in "".join(path.read_text() for path in copy.rglob("*.json*"))
    assert f'load_adapter("{NAME}")' in (tmp_path / "copy of adapter/README.md").read_text()
    shard = min((tmp_path / "embeddings/data").glob("*.parquet"))
    content = shard.read_bytes()
    for damaged, message in (
        (content[:50] + b"x" + content[51:], r"is not the shard in manifest\.json"),
        (content[:-1] + b"x", r"\.parquet is damaged"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            publish(tmp_path / "embeddings", NAME, license="mit", dry_run=tmp_path / "damaged")


def test_what_does_not_load_without_the_package_is_refused(model, tmp_path):
    code = model / "modeling_mtslvr.py"
    code.write_text("import mtslvr_hf\n" + code.read_text())
    with pytest.raises(ValueError, match=r"what would be published does not load: .*mtslvr_hf"):
        publish(model, NAME, license="mit", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_output_is_refused(model, tmp_path):
    code = model / "modeling_mtslvr.py"
    text = code.read_text()
    assert text.count("pooler_output=self.concatenate_parts(embeddings, tasks)") == 1
    code.write_text(
        text.replace("self.concatenate_parts(embeddings, tasks)", "1.5 * self.concatenate_parts(embeddings, tasks)")
    )
    with pytest.raises(ValueError, match=r"differs from .*: the output for a reference clip by"):
        publish(model, NAME, license="mit", dry_run=tmp_path / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "README.md").unlink(), "has no card README.md"),
        (lambda f: (f / "model.safetensors").unlink(), "has a configuration, but no weights"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "is a model of type 'bert'"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: append(f / "README.md", "hf_abcdefghijklmnopqrstuvwxyz"), "README.md, line .* token of the Hub"),
        (lambda f: append(f / "README.md", "see /home/me/x.wav"), "README.md, line .* the local path /home/me/x.wav"),
        (lambda f: append(f / "modeling_mtslvr.py", "# /data/me/x"), "modeling_mtslvr.py, line .* local path"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "metadata of the card cannot be read"),
        (lambda f: change_card(f, "0.5", "0.9"), "the results in the card differ from results.json"),
        (
            lambda f: make_model(seed=1, model_class=MTSLVRForPreTraining).save_pretrained(f),
            "the results in results.json are of other weights",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_the_upload(model, tmp_path, unchecked, change, message):
    write_results(model, [MeasuredResult(dataset="drums", protocol="5-way 1-shot", value=0.5)])
    change(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        publish(model, NAME, license="mit", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def append(file, line):
    file.write_text(f"{file.read_text()}\n{line}\n")


def test_texts_and_images_that_the_card_links_to_are_published(model, tmp_path, unchecked):
    for name in ("ATTRIBUTION.md", "training.png", "other.md", "weights.pkl"):
        (model / name).write_bytes(b"x")
    (tmp_path / "outside.md").write_text("x")
    links = (
        "[a](ATTRIBUTION.md) ![b](training.png) [c](weights.pkl) [d](../outside.md) [e](absent.md) [f](config.json)"
    )
    with (model / "README.md").open("a") as card:
        card.write(f"\n{links}\n")
    publish(model, NAME, license="cc0-1.0", dry_run=tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"ATTRIBUTION.md", "training.png", "config.json"} <= files
    assert not {"other.md", "weights.pkl", "outside.md"} & files


def change_card(folder, old, new):
    card = folder / "README.md"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new))


def test_a_license_is_asked_for(model, tmp_path, unchecked):
    with pytest.raises(ValueError, match="the license is not known: give `--license`"):
        publish(model, NAME, dry_run=tmp_path / "out")
    publish(model, NAME, license="unknown", dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "unknown"
    again = publish(tmp_path / "out", NAME, dry_run=tmp_path / "again")  # the card's
    assert "model.safetensors" in again.files
    with pytest.raises(FileExistsError, match="choose a new folder"):
        publish(model, NAME, license="mit", dry_run=tmp_path / "again")


def test_wrong_arguments(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, name, options, message in (
        (tmp_path / "none", NAME, {}, "there is no folder"),
        (tmp_path / "empty", NAME, {}, "holds nothing to publish"),
        (model, "sounds", {}, "the name is 'sounds'; expected OWNER/NAME"),
        (model, NAME, {"base_model": "me/base"}, "takes no `base_model`"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            publish(folder, name, **options)


def test_failures_of_the_hub_are_explained_and_repeated(hub_server, model, tmp_path):
    code = f"p.publish({str(model)!r}, {NAME!r}, license='mit')"
    try_it = f"try:\n    {code}\nexcept OSError as error:\n    print(error)"
    with Client(hub_server, tmp_path) as client:
        hub_server.read_only = True
        assert f"the Hub does not let this token write to {NAME} (403)" in client.run(try_it)
        hub_server.read_only, hub_server.cut = False, True
        output = client.run(try_it)
        assert "the Hub could not be reached" in output and "The same command can be repeated." in output
        hub_server.cut, hub_server.damaged = False, {"config.json"}
        assert "differs from what was uploaded: config.json. Publish again." in client.run(try_it)
        hub_server.damaged = set()
        assert client.run(f"print({code})").startswith("Published the pre-trained model")
        hub_server.token = "hf_other"
        assert "(401)" in client.run(try_it.replace("license='mit'", "license='mit', token='hf_loopback'"))


def test_branches_pull_requests_and_files_that_are_gone(hub_server, model, tmp_path):
    extra = model / "model-00002.safetensors"
    extra.write_bytes(b"old")
    code = f"print(p.publish({str(model)!r}, {NAME!r}, license='mit', OPTIONS).url)"
    with Client(hub_server, tmp_path) as client:
        client.run(code.replace("OPTIONS", "revision='main'"))
        hub_server.repository("models", NAME).branches["main"][-1].files["NOTES.md"] = hub.Blob(b"mine", lfs=False)
        extra.unlink()
        page = client.run(code.replace("OPTIONS", "create_pr=True"))
        assert page.strip().endswith(f"{NAME}/discussions/1")
        assert extra.name in hub_server.files(NAME)
        assert extra.name not in hub_server.files(NAME, revision="refs/pr/1")
        assert "NOTES.md" in hub_server.files(NAME, revision="refs/pr/1")  # of somebody else
        client.run(code.replace("OPTIONS", "revision='next'"))
    assert extra.name not in hub_server.files(NAME, revision="next")
    assert extra.name in hub_server.files(NAME)
